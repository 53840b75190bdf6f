# SPDX-License-Identifier: Apache-2.0
"""Layer-wise copies: what lands when, cuts, and how far they run ahead.

On CPU pools for real; the order of things on a lane that does its work when the test says so.
"""

import pytest
import torch

from bodocache.errors import BackendError, BodoCacheError, LayoutError
from bodocache.kernels import LayerwiseCopy, gather_pages
from bodocache.kernels.layerwise import LayerCopies
from bodocache.layout import Group, Layout, LayoutKind, PagedMemory

LAYERS, PAGES = 4, 6
SHAPE = {"layers": LAYERS, "heads": 2, "head_dim": 16, "itemsize": 2}


def pool(kind, **shape):
    layout = Layout(kind, Group("g", **{**SHAPE, **shape}), 2, PAGES + 2)
    memory = torch.randint(0, 256, (layout.pool_nbytes,), dtype=torch.uint8)
    return PagedMemory.of_layout(memory, layout), memory


class SlowLane:
    """Does what was submitted one by one, as a stream would; ``engine_done`` is its counter."""

    def __init__(self):
        self.queue, self.done, self.told = [], 0, 0

    def submit(self, copy, _path, source_slots, destination_slots):
        self.queue.append(lambda: copy.run(source_slots, destination_slots))

    def mark(self):
        return Passed(self, len(self.queue))

    def hold_until(self, count):
        self.queue.append(count)

    def tell(self, count, _stream):
        self.told = max(self.told, count)

    def make_wait(self, _stream, mark):
        self.run_to(mark.place)
        assert mark.passed, "the engine would wait for ever"

    def release(self):
        self.told = LAYERS
        self.drain()

    def drain(self):
        self.run_to(len(self.queue))

    def run_to(self, place):
        while self.done < place:
            step = self.queue[self.done]
            if isinstance(step, int):
                if self.told < step:
                    return
            else:
                step()
            self.done += 1


class Passed:
    def __init__(self, lane, place):
        self._lane, self.place = lane, place

    @property
    def passed(self):
        return self._lane.done >= self.place


@pytest.fixture
def pools():
    torch.manual_seed(3)
    return pool(LayoutKind.PAGE), pool(LayoutKind.LAYER_FIRST)


SLOTS = torch.tensor([5, 3, 1, 0, 2, 4]), torch.tensor([1, 2, 3, 5, 6, 7])


def begin(pools, **options):
    (source, _), (destination, _) = pools
    page_nbytes = source.page_nbytes
    return LayerwiseCopy(source, destination, *SLOTS, chunk_nbytes=2 * page_nbytes, **options)


def landed(pools, layers=None):
    """Which pages have their bytes, in those layers."""
    (source, _), (destination, _) = pools
    ours = gather_pages(source, SLOTS[0], layers=layers).pages
    theirs = gather_pages(destination, SLOTS[1], layers=layers).pages
    return (ours == theirs).all(dim=1).tolist()


def test_whole_pages_land_chunk_by_chunk_until_a_cut(pools):
    copy = begin(pools)
    before = pools[1][1].clone()
    assert (copy.submitted, copy.whole) == (0, 0)
    assert copy.advance()
    assert copy.advance()
    copy.cut()
    assert copy.whole == 4
    assert landed(pools) == [True] * 4 + [False] * 2
    rest, _ = gather_pages(pools[1][0], torch.tensor([0, 4, 6, 7]))
    untouched = PagedMemory.of_layout(
        before, Layout(LayoutKind.LAYER_FIRST, Group("g", **SHAPE), 2, PAGES + 2)
    )
    assert torch.equal(rest, gather_pages(untouched, torch.tensor([0, 4, 6, 7])).pages)


def test_a_cut_takes_back_what_was_not_submitted_and_nothing_else(pools):
    lane = SlowLane()
    copy = begin(pools, lane=lane)
    copy.advance()
    copy.cut()
    assert (copy.submitted, copy.whole) == (2, 0)
    copy.drain()
    assert copy.whole == 2
    assert landed(pools) == [True] * 2 + [False] * 4


def test_after_the_commit_layers_land_in_order(pools):
    lane = SlowLane()
    copy = begin(pools, lane=lane)
    copy.advance()
    copy.commit()
    copy.wait_layer(1)
    assert landed(pools, range(2)) == [True] * 6
    assert landed(pools, range(2, 3)) == [True] * 2 + [False] * 4
    assert copy.whole == 2
    copy.wait_layer(LAYERS - 1)
    assert copy.whole == 6
    assert landed(pools) == [True] * 6


def test_layers_are_submitted_as_far_as_it_is_told_to_go_on(pools):
    lane = SlowLane()
    copies = LayerCopies(pools[0][0], pools[1][0])
    copy = begin(pools, lane=lane, copies=copies)
    with pytest.raises(BodoCacheError, match="commit first"):
        copy.go_on(1)
    copy.commit(layers=1)
    copy.go_on(3)
    copy.go_on(2)  # it has
    assert (len(lane.queue), copy.whole_layers) == (3, 0)
    lane.run_to(2)
    assert (copy.whole_layers, copy.whole) == (2, 0)
    with pytest.raises(BodoCacheError, match="layer 3 of 4 does not come"):
        copy.wait_layer(3)
    with pytest.raises(BodoCacheError, match="5 layers of 4"):
        copy.go_on(5)
    copy.go_on(LAYERS)
    copy.drain()
    assert (copy.whole_layers, copy.whole) == (LAYERS, 6)
    assert landed(pools) == [True] * 6
    again = begin(pools, copies=copies)
    again.commit()
    assert again.whole == 6


def test_it_runs_so_many_layers_ahead_and_no_more(pools):
    lane = SlowLane()
    copy = begin(pools, lane=lane, ahead=2)
    copy.commit()
    copy.drain()  # as far as it may go by itself
    assert landed(pools, range(2)) == [True] * 6
    assert landed(pools, range(2, 3)) == [False] * 6
    copy.layer_done(0)
    copy.drain()
    assert landed(pools, range(2, 3)) == [True] * 6
    assert landed(pools, range(3, 4)) == [False] * 6
    copy.layer_done(1)
    copy.wait_layer(3)
    assert copy.whole == 6


@pytest.mark.parametrize(
    ("layers", "ahead", "done"),
    [(5, 2, {1, 3}), (6, 2, {1, 3, 5}), (8, 4, {3, 7}), (9, 4, {2, 5, 8}), (3, 3, set())],
)
def test_an_engine_that_says_only_every_so_many_layers_gets_them_all(layers, ahead, done):
    source, destination = (pool(kind, layers=layers)[0] for kind in ("page", "layer_first"))
    copy = LayerwiseCopy(source, destination, *SLOTS, ahead=ahead, lane=SlowLane())
    copy.commit()
    for layer in range(layers):
        copy.wait_layer(layer)
        if layer in done:
            copy.layer_done(layer)
    assert copy.whole == PAGES


def test_an_engine_that_stops_aborts_and_nothing_is_left_waiting(pools):
    lane = SlowLane()
    copy = begin(pools, lane=lane, ahead=1)
    copy.commit()
    copy.drain()
    assert copy.whole == 0
    copy.abort()
    assert lane.done == len(lane.queue)
    assert landed(pools) == [True] * 6


def test_a_commit_that_failed_says_so_of_the_layers_that_do_not_come(pools):
    lane = SlowLane()
    copy = begin(pools, lane=lane, ahead=1)
    submit, calls = lane.submit, []

    def refusing(*operands):
        calls.append(1)
        if len(calls) == 2:
            raise BackendError("cuLaunchKernel: refused")
        submit(*operands)

    lane.submit = refusing
    with pytest.raises(BackendError):
        copy.commit()
    copy.wait_layer(0)
    assert copy.whole == 0
    for say in (copy.wait_layer, copy.layer_done):
        with pytest.raises(BodoCacheError, match="layer 1 of 4 does not come: the commit failed"):
            say(1)
    with pytest.raises(BodoCacheError, match="commit after it was committed"):
        copy.commit()
    copy.abort()
    assert lane.done == len(lane.queue)


def test_an_abort_before_the_commit_is_a_cut(pools):
    lane = SlowLane()
    copy = begin(pools, lane=lane)
    copy.advance()
    copy.abort()
    assert (copy.submitted, copy.whole) == (2, 2)
    with pytest.raises(BodoCacheError, match="commit after it was cut"):
        copy.commit()


def test_only_what_something_waits_for_is_told_and_in_order(pools):
    lane = SlowLane()
    told = []
    lane.tell = lambda count, _: told.append(count)
    copy = begin(pools, lane=lane, ahead=2)
    copy.commit()
    for layer in (1, 0, 1, 2, 3):
        copy.layer_done(layer)
    assert told == [2]  # layers 2 and 3 wait for 1 and 2; the last two layers, nobody for


def test_a_page_longer_than_a_step_is_cut_between_layers(pools):
    (source, _), (destination, _) = pools
    lane = SlowLane()
    nbytes = source.page_nbytes // LAYERS * 3
    copy = LayerwiseCopy(source, destination, *SLOTS, chunk_nbytes=nbytes, lane=lane)
    assert copy.advance()
    assert (len(lane.queue), copy.submitted) == (3, 0)
    assert copy.advance()
    assert (len(lane.queue), copy.submitted) == (4, 1)
    assert copy.advance()
    copy.drain()
    assert copy.whole == 1
    assert landed(pools, range(3)) == [True] * 2 + [False] * 4
    assert landed(pools) == [True] + [False] * 5
    copy.commit(pages=3)
    copy.drain()
    assert copy.whole == 3
    assert landed(pools) == [True] * 3 + [False] * 3


def test_a_step_is_what_a_link_of_10_gb_s_brings_in_2_ms(pools):
    (source, _), (destination, _) = pools
    copy = LayerwiseCopy(source, destination, *SLOTS)
    assert copy._chunk_pages == 20_000_000 // source.page_nbytes


def test_a_commit_of_fewer_pages_leaves_the_others_alone(pools):
    copy = begin(pools)
    copy.advance()
    copy.commit(pages=3)
    copy.wait_layer(LAYERS - 1)
    assert copy.whole == 3
    assert landed(pools) == [True] * 3 + [False] * 3


def test_everything_before_the_commit_is_fine_too(pools):
    copy = begin(pools)
    while copy.advance():
        pass
    copy.commit()
    copy.wait_layer(0)
    assert landed(pools) == [True] * 6


@pytest.mark.parametrize("pages", [1, 7])
def test_a_commit_must_cover_what_was_submitted(pools, pages):
    copy = begin(pools)
    copy.advance()
    with pytest.raises(BodoCacheError, match="expected 2 to 6"):
        copy.commit(pages)


@pytest.mark.parametrize("what", ["advance", "cut", "commit"])
@pytest.mark.parametrize("after", ["cut", "commit"])
def test_what_is_decided_stays_decided(pools, what, after):
    copy = begin(pools)
    getattr(copy, after)()
    with pytest.raises(BodoCacheError, match=f"{what} after it was"):
        getattr(copy, what)()


@pytest.mark.parametrize("layer", [-1, LAYERS])
def test_a_layer_that_is_not_there_is_refused(pools, layer):
    copy = begin(pools)
    copy.commit()
    with pytest.raises(BodoCacheError, match=f"layer {layer} of 4"):
        copy.wait_layer(layer)


def test_nobody_waits_for_layers_before_the_commit(pools):
    with pytest.raises(BodoCacheError, match="commit first"):
        begin(pools).wait_layer(0)


def test_options_below_one_are_refused(pools):
    with pytest.raises(LayoutError, match="ahead=0"):
        begin(pools, ahead=0)
