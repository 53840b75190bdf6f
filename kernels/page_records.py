# SPDX-License-Identifier: Apache-2.0
"""The device's copy of what eviction needs of page records, as columns, and the formula's terms.

Columns, because a kernel that reads 128-byte records reads all of each: 64 bytes a page are kept
and scoring reads 32 of them, side by side. The host's table is the truth; it writes changed rows
here once a window. This module owns its tensors. Rows that were never written are free.
"""

import functools
import importlib
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray

from bodocache.errors import LayoutError
from bodocache.kernels import check
from bodocache.kernels.check import UNIT_NBYTES, Spec
from bodocache.pages import PAGE, Tier

TIERS = len(Tier)

STAMP, SINCE, NUM_TIMES = 0, 1, 1 + TIERS  # planes of ``times``; SINCE + tier
HEAT, RECOMPUTE, NBYTES, PARENT, DEPTH, STATE, NUM_WORDS = range(7)  # planes of ``words``
RATE, RESIDENCE, FLOOR, LOADS = range(4)  # of a formula's terms
HELD = 1 << 8  # in STATE: pinned; the bits below are the record's ``tiers``

DEPTH_BITS = 24  # of a page's depth in the order of eviction: prefixes of 16 million pages
MAX_LEVELS = 1 << DEPTH_BITS

_OP = "DevicePages.update"


@dataclass(frozen=True, slots=True)
class Formula:
    """The constants of value density (DESIGN.md, "evict"), as the planner's policy has them."""

    half_life_s: float  # of heat
    min_residence_s: float  # a page younger than this in its tier is not evicted
    load_latency_s: tuple[float, ...]  # [tier]: per op, to the device
    load_s_per_byte: tuple[float, ...]  # [tier]
    saved_floor_s: float = 1e-9  # where holding a page saves nothing, heat still orders it
    _terms: dict[torch.device, torch.Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if not self.half_life_s > 0:
            raise LayoutError(f"Formula: half_life_s is {self.half_life_s}; expected more than 0")
        for name in ("load_latency_s", "load_s_per_byte"):
            if len(getattr(self, name)) != TIERS:
                raise LayoutError(
                    f"Formula: {name} has {len(getattr(self, name))} tiers; pages have {TIERS}"
                )

    def terms(self, device: torch.device) -> torch.Tensor:
        """float64[LOADS + 2 * TIERS]: see the indices above; latencies, then seconds per byte.

        Made once a device, by a small copy that waits; it lives as long as the formula.
        """
        terms = self._terms.get(device)
        if terms is None:
            loads = (*self.load_latency_s, *self.load_s_per_byte)
            numbers = (1.0 / self.half_life_s, self.min_residence_s, self.saved_floor_s, *loads)
            made = torch.tensor(numbers, dtype=torch.float64).to(device)
            terms = self._terms.setdefault(device, made)
        return terms


class DevicePages:
    """Columns of ``capacity`` pages on ``device``, written by rows, read by kernels."""

    __slots__ = ("levels", "times", "words")

    def __init__(self, capacity: int, device: torch.device | str) -> None:
        if capacity < 0:
            raise LayoutError(f"DevicePages: {capacity} rows; expected 0 or more")
        self.times = torch.zeros((NUM_TIMES, capacity), dtype=torch.float64, device=device)
        self.words = torch.zeros((NUM_WORDS, capacity), dtype=torch.int32, device=device)
        self.words[PARENT] = -1
        self.levels = 1  # depths ever written are below this

    @property
    def capacity(self) -> int:
        """Rows there are."""
        return self.words.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the columns lie."""
        return self.words.device

    def update(
        self, rows: NDArray[np.int64], records: NDArray[np.void], since_s: NDArray[np.float64]
    ) -> None:
        """Overwrite ``rows`` (int64[n], distinct) with what the host's table has: 64 bytes a row.

        Args:
            rows: of the page table.
            records: PAGE[n], those rows' records.
            since_s: float64[n, TIERS], when they came to each tier (the queues' ``since_s``).

        Raises:
            LayoutError: shapes, dtypes, rows, parents or depths do not fit.
        """
        self._check(rows, records, since_s)
        if not len(rows):
            return
        rows = np.array(rows)  # torch takes none that is read-only or runs backwards
        times = np.vstack((records["stamp_s"][None], since_s.T))
        at = torch.from_numpy(rows).to(self.device)
        self.times.index_copy_(1, at, torch.from_numpy(times).to(self.device))
        self.words.index_copy_(1, at, torch.from_numpy(_packed(records)).to(self.device))
        self.levels = max(self.levels, int(records["depth"].max()) + 1)

    def grown(self, capacity: int) -> "DevicePages":
        """The same pages with room for ``capacity`` rows (the page table has grown)."""
        if capacity < self.capacity:
            raise LayoutError(f"DevicePages.grown: {capacity} rows; it has {self.capacity}")
        larger = DevicePages(capacity, self.device)
        larger.times[:, : self.capacity] = self.times
        larger.words[:, : self.capacity] = self.words
        larger.levels = self.levels
        return larger

    def on(self, device: torch.device) -> "DevicePages":
        """The same pages on ``device``."""
        there = DevicePages(0, device)
        there.times, there.words = (t.to(device, copy=True) for t in (self.times, self.words))
        there.levels = self.levels
        return there

    def _check(
        self, rows: NDArray[np.int64], records: NDArray[np.void], since_s: NDArray[np.float64]
    ) -> None:
        if rows.dtype != np.int64 or rows.ndim != 1:
            raise LayoutError(f"{_OP}: rows is {rows.dtype}{list(rows.shape)}; expected int64[n]")
        for name, array, dtype, shape in (
            ("records", records, PAGE, rows.shape),
            ("since_s", since_s, np.dtype(np.float64), (len(rows), TIERS)),
        ):
            if array.dtype != dtype or array.shape != shape:
                kind = "PAGE" if dtype == PAGE else str(dtype)
                raise LayoutError(
                    f"{_OP}: {name} is {_short(array)}; expected {kind}{list(shape)}, as in rows"
                )
        if not len(rows):
            return
        ordered = np.sort(rows)
        if ordered[0] < 0 or ordered[-1] >= self.capacity:
            wrong = ordered[0] if ordered[0] < 0 else ordered[-1]
            raise LayoutError(f"{_OP}: rows has {wrong}; there are {self.capacity} rows")
        if (twice := ordered[1:][ordered[1:] == ordered[:-1]]).size:
            raise LayoutError(f"{_OP}: rows has {twice[0]} twice; each row at most once")
        if (parent := int(records["parent"].max())) >= self.capacity:
            raise LayoutError(f"{_OP}: a parent is row {parent}; there are {self.capacity} rows")
        if (depth := int(records["depth"].max())) >= MAX_LEVELS:
            raise LayoutError(f"{_OP}: a depth is {depth}; expected less than {MAX_LEVELS}")


def _short(array: NDArray[Any]) -> str:
    kind = "PAGE" if array.dtype == PAGE else str(array.dtype)
    return f"{kind}{list(array.shape)}"


def _packed(records: NDArray[np.void]) -> NDArray[np.int32]:
    """int32[NUM_WORDS, n]: the bits of the columns of ``words``."""
    words = np.empty((NUM_WORDS, len(records)), np.int32)
    words[HEAT] = records["heat"].view(np.int32)
    words[RECOMPUTE] = records["recompute_s"].view(np.int32)
    words[NBYTES] = records["nbytes"].view(np.int32)
    words[PARENT] = records["parent"]
    words[DEPTH] = records["depth"]
    words[STATE] = np.where(records["pins"] > 0, HELD, 0) | records["tiers"]
    return words


def check_keys(op: str, name: str, pages: DevicePages, keys: torch.Tensor) -> None:
    """Raise LayoutError unless ``keys`` is an aligned float32[capacity] beside ``pages``."""
    spec = Spec((pages.capacity,), (torch.float32,))
    check.operands(op, "pages", pages.device, **{name: (keys, spec)})
    if keys.data_ptr() % UNIT_NBYTES:
        at = f"{keys.data_ptr():#x}"
        raise LayoutError(f"{op}: {name} is at {at}; expected a multiple of {UNIT_NBYTES}")


class HostScoring(Protocol):
    """The compiled loops of ``cpu_scoring.py``, for columns on the CPU; operands are checked."""

    def score(
        self, pages: DevicePages, tier: int, now_s: float, formula: Formula, out: torch.Tensor
    ) -> None:
        """Write each page's log density in ``tier``."""

    def refresh(self, pages: DevicePages, tier: int, keys: torch.Tensor) -> None:
        """Turn scores into eviction keys."""

    def coldest(self, pages: DevicePages, keys: torch.Tensor, rows: torch.Tensor) -> int:
        """Write the ``len(rows)`` coldest pages to ``rows``; return how many there are."""


@functools.cache
def compiled() -> HostScoring | None:
    """The compiled loops, or None where numba is not installed (engines' minimal images)."""
    try:
        return cast("HostScoring", importlib.import_module("bodocache.kernels.cpu_scoring"))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "numba":
            raise
        return None
