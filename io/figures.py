# SPDX-License-Identifier: Apache-2.0
"""Figures of a slab on disk: how full it is, how its pages lie, how deep and how old they are."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bodocache.io.columns import Columns
from bodocache.io.extents import runs
from bodocache.io.found import capacity_of, open_found
from bodocache.io.header import Superblock
from bodocache.pages import PageTable, Reason
from bodocache.prefix import PrefixIndex


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of integers, from 2^i up to 2^(i + 1) - 1 each, and of zero."""

    lows: tuple[int, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, values: NDArray[np.int64]) -> "Histogram":
        """Of ``values``, none negative; ends with the greatest."""
        lows = [0, *(1 << i for i in range(int(values.max(initial=0)).bit_length()))]
        places = np.searchsorted(lows, values, side="right") - 1
        return cls(tuple(lows), tuple(np.bincount(places, minlength=len(lows)).tolist()))


@dataclass(frozen=True, slots=True)
class Figures:
    """One slab, as its headers have it."""

    superblock: Superblock
    capacity_nbytes: int
    nbytes_on_disk: int  # what both files occupy
    pages: int  # that a get would find
    reasons: dict[Reason, int]  # frames that hold no page
    free_runs: Histogram  # by frames
    first_pages: int  # of a prompt: no page comes before them
    orphans: int  # the page before them is not here
    adjacent: int  # pages right behind the page before them
    depths: Histogram
    ages: Histogram  # by pages written since
    generation: int  # of the newest page: pages ever written

    @property
    def fill(self) -> float:
        """Share of the frames that hold a page."""
        return self.pages / max(1, self.superblock.frame_count)

    @property
    def children(self) -> int:
        """Pages whose predecessor is here."""
        return self.pages - self.first_pages - self.orphans

    @property
    def adjacent_share(self) -> float:
        """Of the pages whose predecessor is here, those right behind it."""
        return self.adjacent / max(1, self.children)

    @property
    def extent_pages(self) -> float:
        """Mean pages of one prefix in adjacent frames: what one read brings at most."""
        return self.pages / max(1, self.pages - self.adjacent)


def measure(directory: Path) -> Figures:
    """The figures of the slab in ``directory``, from its headers alone; changes nothing.

    Raises:
        BackendError: there is no slab that this build reads.
    """
    _, slab = open_found(directory)
    try:
        nbytes_on_disk = slab.payload.nbytes_on_disk + slab.headers.nbytes_on_disk
    finally:
        slab.close()
    columns, held = slab.columns, slab.columns.reasons == Reason.NONE
    frames = np.flatnonzero(held)
    generations = columns.generations[frames].astype(np.int64)
    generation = int(columns.generations.max(initial=0))
    is_first = ~columns.parents[frames].any(axis=1)
    found, counts = np.unique(columns.reasons[~held], return_counts=True)
    return Figures(
        superblock=slab.superblock,
        capacity_nbytes=capacity_of(slab.superblock),
        nbytes_on_disk=nbytes_on_disk,
        pages=len(frames),
        reasons={Reason(r): n for r, n in zip(found.tolist(), counts.tolist(), strict=True)},
        free_runs=Histogram.of(np.diff(runs(~held))[:, 0]),
        first_pages=int(is_first.sum()),
        orphans=_absent(columns, frames, columns.parents[frames[~is_first]]),
        adjacent=_adjacent(columns, frames),
        depths=Histogram.of(columns.depths[frames].astype(np.int64)),
        ages=Histogram.of(generation - generations),
        generation=generation,
    )


def _adjacent(columns: Columns, frames: NDArray[np.int64]) -> int:
    """How many of ``frames`` lie right behind the page before theirs."""
    behind = frames[1:][np.diff(frames) == 1]
    return int((columns.parents[behind] == columns.keys[behind - 1]).all(axis=1).sum())


def _absent(columns: Columns, frames: NDArray[np.int64], parents: NDArray[np.uint8]) -> int:
    """How many of ``parents`` (keys) no page of ``frames`` has."""
    table = PageTable(max(1, len(frames)))
    index = PrefixIndex(table)
    index.insert(table.add(columns.keys[frames]))
    return int((index.find(np.ascontiguousarray(parents)) < 0).sum())
