# SPDX-License-Identifier: Apache-2.0
"""The yardstick of bench/hints.py does what a plain program does."""

from pathlib import Path

import numpy as np
import pytest

from bodocache import jit
from bodocache.replay import hints
from bodocache.replay.policies.model import Touches, checked
from bodocache.replay.shapes import workload
from bodocache.replay.trace import load_trace

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture(scope="module")
def two_class():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        import _two_class
    jit.warm()
    return _two_class.two_class_lru


@pytest.fixture(scope="module")
def touches():
    trace = load_trace(workload("chat", seed=3, requests=300, page_tokens=512))
    columns = trace.pages, trace.offsets, trace.parent, trace.depth, trace.timestamps_s
    return checked(Touches(*columns))


def plain(touches, capacity, said):
    """One page at a time, on sets."""
    present, last, stays, found = set(), {}, {}, []
    for number, begin in enumerate(touches.offsets[:-1]):
        pages = touches.ids[begin : touches.offsets[number + 1]].tolist()
        leading = [page in present for page in [*pages, -1]].index(False)
        found.append(leading)
        staying = 0 if said[number] < 0.5 else len(pages) - 1
        for page in pages[leading : min(staying, capacity)]:
            if len(present) == capacity:
                inner = {touches.parents[other] for other in present}
                leaves = present - inner - set(pages)
                gone = min(leaves, key=lambda p: (stays[p], last[p], -touches.depths[p], p))
                present.remove(gone)
            present.add(page)
        for depth, page in enumerate(pages):
            last[page], stays[page] = number, depth < staying
    return found


@pytest.mark.parametrize("capacity", [60, 300, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_it_does_what_a_plain_program_does(two_class, touches, capacity, seed):
    said = hints.noisy(hints.continued(touches), 0.8, seed)
    said[::10] = np.nan
    found = plain(touches, capacity, said)
    assert two_class(touches, capacity, said).hits.tolist() == found
    assert sum(found) > 100
