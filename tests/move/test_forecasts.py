# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from bodocache.clock import VirtualClock
from bodocache.move.forecasts import Forecasts


class Pages:
    """The first word of the key of each row."""

    def __init__(self, learns=True):
        self.of = np.arange(10, dtype=np.uint64)
        self.learns = learns

    def words(self, rows):
        return self.of[rows]


def told_after_a_use(of_another_page):
    pages, clock = Pages(), VirtualClock()
    forecasts = Forecasts(pages, horizon_s=10.0, now_s=clock.now_s)
    forecasts.say(1, 7, 0.9, np.array([0, 1]))
    if of_another_page:
        pages.of[1] = 99
    forecasts.note_use(2, np.array([1]))
    clock.advance(11.0)
    return forecasts.reliability()[7]


def test_a_row_that_is_another_page_by_now_did_not_come():
    came, other = told_after_a_use(False), told_after_a_use(True)
    assert (came.outcomes, other.outcomes) == (1, 1)
    assert came.base_rate == 0.4  # (1 + .25 * 4) / (1 + 4)
    assert other.base_rate == 0.2


@pytest.mark.parametrize("learns", [True, False])
def test_trusted_odds_count_only_where_nothing_is_learned_and_an_end_in_any_case(learns):
    clock = VirtualClock()
    forecasts = Forecasts(Pages(learns), horizon_s=10.0, now_s=clock.now_s)
    for request in range(0, 400, 2):
        comes = request % 4 == 0
        forecasts.say(request, 7, 0.9 if comes else 0.1, np.array([request % 10]))
        if comes:
            forecasts.note_use(request + 1, np.array([request % 10]))
        clock.advance(11.0)
    assert forecasts.reliability()[7].weight > 0.9
    likely, unlikely = forecasts.favour(7, 0.9), forecasts.favour(7, 0.1)
    assert (likely, unlikely) == (0.0, 0.0) if learns else likely > 1 > -1 > unlikely
    assert forecasts.favour(7, 0.0) == -np.inf
