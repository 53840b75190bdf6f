# SPDX-License-Identifier: Apache-2.0
import pytest

from bodocache.cache import warm
from bodocache.replay.simulate.faults import survive

warm()

SEEDS, CHUNK = 160, 20


@pytest.mark.timeout(120)
@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_whatever_goes_wrong_nothing_is_lost_held_twice_or_wrong(first):
    found = [survive(seed) for seed in range(first, first + CHUNK)]
    assert sum(one.wrong_pages for one in found) == 0
    for what in ("deaths", "kills", "damaged_frames", "failures", "brought_pages", "served"):
        assert sum(getattr(one, what) for one in found) > 0, what


def test_a_seed_is_the_same_every_time():
    assert survive(7) == survive(7)


def test_a_slot_that_is_lost_is_seen(monkeypatch):
    from bodocache.replay.simulate.engine import Engine

    let_go = Engine._let_go

    def forgetful(self, job):
        job.spare = job.spare[:0]
        let_go(self, job)

    monkeypatch.setattr(Engine, "_let_go", forgetful)
    with pytest.raises((AssertionError, ExceptionGroup)):
        [survive(seed) for seed in range(20)]
