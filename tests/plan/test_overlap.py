# SPDX-License-Identifier: Apache-2.0
"""Head starts and layers ahead, against a simulated pipeline of a link and an engine."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bodocache import jit
from bodocache.plan.overlap import (
    equal_layers_ahead,
    equal_whole_layers,
    head_start_s,
    layer_deadlines_s,
    layers_ahead,
    whole_layers,
)

jit.warm()  # here, not in a test: a cold compile is not part of any test's time

SECONDS = st.floats(1e-4, 1.0)
LAYERS = st.lists(st.tuples(SECONDS, SECONDS), min_size=1, max_size=12)


def columns(layers):
    return np.array([layer[0] for layer in layers]), np.array([layer[1] for layer in layers])


def simulate(load_s, compute_s, start_s, ahead=None):
    """When the step ends that starts at ``start_s``, and how long it stalled."""
    loaded_s, engine_s, stalled_s, ends = 0.0, start_s, 0.0, []
    for i in range(len(load_s)):
        if ahead is not None and i >= ahead:
            loaded_s = max(loaded_s, ends[i - ahead])
        loaded_s += load_s[i]
        stalled_s += max(0.0, loaded_s - engine_s)
        engine_s = max(engine_s, loaded_s) + compute_s[i]
        ends.append(engine_s)
    return engine_s, stalled_s


@given(LAYERS)
def test_the_head_start_is_the_least_that_stalls_nothing_and_ends_no_later(layers):
    load_s, compute_s = columns(layers)
    head_s = head_start_s(load_s, compute_s)
    end_s, stalled_s = simulate(load_s, compute_s, head_s)
    assert stalled_s <= 1e-9
    assert end_s <= simulate(load_s, compute_s, 0.0)[0] + 1e-9
    assert simulate(load_s, compute_s, head_s - 1e-3)[1] > 1e-4 or head_s < 1e-3


@given(LAYERS)
def test_an_engine_that_counts_layers_starts_at_most_one_load_too_late(layers):
    load_s, compute_s = columns(layers)
    head_s = head_start_s(load_s, compute_s)
    whole = whole_layers(load_s, head_s)
    assert 1 <= whole <= len(layers)
    loaded_s = np.cumsum(load_s)
    assert loaded_s[whole - 1] <= head_s * (1 + 1e-9) or whole == 1
    assert whole == len(layers) or loaded_s[whole] > head_s


@pytest.mark.parametrize(("load_s", "compute_s", "whole"), [(2.0, 1.0, 9), (1.0, 2.0, 1)])
def test_equal_layers_agree_with_the_closed_form(load_s, compute_s, whole):
    layers = 16
    head_s = head_start_s(np.full(layers, load_s), np.full(layers, compute_s))
    assert head_s == max(load_s, layers * load_s - (layers - 1) * compute_s)
    assert whole_layers(np.full(layers, load_s), head_s) == max(1, int(head_s / load_s))
    assert whole_layers(np.full(layers, load_s), head_s) in (whole, whole - 1)


@given(LAYERS)
def test_the_layers_ahead_are_the_fewest_that_stall_nothing(layers):
    load_s, compute_s = columns(layers)
    head_s = head_start_s(load_s, compute_s)
    stalls = [simulate(load_s, compute_s, head_s, k)[1] for k in range(1, len(layers) + 1)]
    assume(not any(1e-10 < stalled < 1e-7 for stalled in stalls))
    fewest = 1 + next(k for k, stalled in enumerate(stalls) if stalled <= 1e-10)
    assert layers_ahead(load_s, compute_s) == fewest


@given(LAYERS)
def test_more_layers_ahead_never_stall_more(layers):
    load_s, compute_s = columns(layers)
    head_s = head_start_s(load_s, compute_s)
    stalls = [simulate(load_s, compute_s, head_s, k)[1] for k in range(1, len(layers) + 1)]
    assert (np.diff(stalls) <= 1e-9).all()


@given(st.floats(1e-4, 1), st.floats(1e-4, 1), st.integers(1, 100))
def test_equal_layers_start_and_run_ahead_as_any_layers_do(load_s, compute_s, layers):
    loads_s, computes_s = np.full(layers, load_s), np.full(layers, compute_s)
    head_s = head_start_s(loads_s, computes_s)
    counts = head_s / load_s, layers - (layers - 2) * compute_s / load_s
    assume(all(abs(count - round(count)) > 1e-6 for count in counts) or load_s == compute_s)
    assert equal_whole_layers(load_s, compute_s, layers) == whole_layers(loads_s, head_s)
    assert equal_layers_ahead(load_s, compute_s, layers) == layers_ahead(loads_s, computes_s)


def test_a_layer_is_needed_when_those_before_it_are_computed():
    deadlines_s = np.empty(3)
    layer_deadlines_s(np.array([1.0, 2.0, 4.0]), 10.0, deadlines_s)
    assert deadlines_s.tolist() == [10.0, 11.0, 13.0]


def test_no_layers_need_no_head_start():
    nothing = np.empty(0)
    assert head_start_s(nothing, nothing) == 0.0
    assert layers_ahead(nothing, nothing) == 1
