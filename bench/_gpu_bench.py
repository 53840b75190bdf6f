# SPDX-License-Identifier: Apache-2.0
"""What the sections of ``kernels.py`` share: scale, rows and claims, pools, checks of bytes."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from _common import Claim, Timing
from _gpu_timing import Call, Timer, explain

from bodocache.layout import Group, Layout, LayoutKind, PagedMemory

KIB, MIB = 1 << 10, 1 << 20
PAGE_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured. Sets that rotate hold several times the L2 of a Hopper GPU (50 MB)."""

    name: str
    device_pieces: tuple[int, ...]
    link_pieces: tuple[int, ...]
    layers: int  # of the pages of both grids: a page has two pieces a layer
    device_pool: int
    device_call: int
    link_pool: int
    link_call: int
    link_max_pieces: int  # copies of single pieces take about 1 us each, and more in Python
    overlap_pages: int
    overlap_layers: int
    matrix: int
    reduction: int
    num_pages: tuple[int, ...]  # the first is the one of the claims; the coldest hundredth goes
    levels: int
    budget_s: float  # of each timed call
    runs: tuple[int, int]
    limit_s: float  # of the run: what there is by then is written


FULL = Scale(
    name="full",
    device_pieces=(512, KIB, 4 * KIB, 64 * KIB, MIB),
    link_pieces=(512, KIB, 4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB),
    layers=8,
    device_pool=1 << 30,
    device_call=256 * MIB,
    link_pool=256 * MIB,
    link_call=128 * MIB,
    link_max_pieces=32 * KIB,
    overlap_pages=256,
    overlap_layers=32,
    matrix=4096,
    reduction=2 << 30,
    num_pages=(10**6, 10**4, 10**7),
    levels=64,
    budget_s=0.15,
    runs=(3, 100),
    limit_s=230,  # the Makefile's is 240
)
QUICK = Scale(
    **{
        **{name: getattr(FULL, name) for name in FULL.__slots__},
        "name": "quick",
        "device_pieces": (KIB, 4 * KIB, MIB),
        "link_pieces": (4 * KIB, 256 * KIB),
        "link_call": 64 * MIB,
        "link_max_pieces": 16 * KIB,
        "num_pages": (10**6,),
        "budget_s": 0.05,
        "limit_s": 150,
    }
)
# For the CPU: every line but the clock runs.
TINY = Scale(
    name="stand-in",
    device_pieces=(512,),
    link_pieces=(512, 4 * KIB),
    layers=2,
    device_pool=32 * KIB,
    device_call=8 * KIB,
    link_pool=64 * KIB,
    link_call=32 * KIB,
    link_max_pieces=8,
    overlap_pages=1,
    overlap_layers=2,
    matrix=16,
    reduction=4 * KIB,
    num_pages=(600, 200),
    levels=6,
    budget_s=0.0,
    runs=(1, 1),
    limit_s=100,
)


@dataclass(slots=True)
class Report:
    """Rows and claims, as they come."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)

    def timed(self, section: str, what: str, timing: Timing, **fields: object) -> None:
        """A row of what was measured."""
        spread = {"median_s": timing.median_s, "p99_s": timing.p99_s, "runs": timing.runs}
        self.rows.append({"section": section, "what": what, **fields, **spread})

    def failed(self, section: str, what: str, why: str, **fields: object) -> None:
        """A row of what was not."""
        self.rows.append({"section": section, "what": what, **fields, "failed": why})


@dataclass(slots=True)
class Bench:
    """One run."""

    device: torch.device
    timer: Timer
    scale: Scale
    report: Report
    barred: dict[str, str]  # what failed in a process of its own, and why: not tried again

    @property
    def is_stand_in(self) -> bool:
        """Whether there is no GPU and no figure."""
        return self.device.type == "cpu"

    @contextlib.contextmanager
    def reporting(self, section: str, what: str, **fields: object) -> Iterator[None]:
        """Make whatever is raised inside a row that says why, and go on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 -- the run must end with what it has
            self.report.failed(section, what, explain(error), **fields)

    def random(self, nbytes: int) -> torch.Tensor:
        """Random bytes on the device."""
        return torch.randint(0, 256, (nbytes,), dtype=torch.uint8, device=self.device)

    def pinned(self, nbytes: int) -> torch.Tensor:
        """Random bytes in pinned host memory."""
        memory = torch.empty(nbytes, dtype=torch.uint8, pin_memory=not self.is_stand_in)
        return memory.copy_(self.random(nbytes))

    def order(self, count: int) -> torch.Tensor:
        """int32 0..count-1 in random order, on the host."""
        return torch.randperm(count, dtype=torch.int32)


@dataclass(frozen=True, slots=True)
class Case:
    """A call and what it must write: the whole of ``target``, as ``expected``."""

    call: Call
    target: torch.Tensor
    expected: torch.Tensor

    def why_wrong(self, before: torch.Tensor, finish: Callable[[], None]) -> str | None:
        """What is wrong of the bytes that one call leaves in ``target``; None if nothing is."""
        self.target.copy_(before)
        finish()
        try:
            self.call(0)
            finish()
        except Exception as error:  # noqa: BLE001 -- a row says why
            return explain(error)
        if torch.equal(self.target, self.expected):
            return None
        return f"{int((self.target != self.expected).sum())} wrong bytes"


def correct(
    bench: Bench, section: str, cases: Mapping[str, Case], before: torch.Tensor, **fields: object
) -> dict[str, Call]:
    """The calls that do what they should; a row for each other one."""
    good: dict[str, Call] = {}
    for name, case in cases.items():
        why = case.why_wrong(before, bench.timer.finish)
        if why is None:
            good[name] = case.call
        else:
            bench.report.failed(section, name, why, **fields)
    return good


def paged(kind: LayoutKind, memory: torch.Tensor, layers: int, piece_nbytes: int) -> PagedMemory:
    """``memory`` as pages of 2 x ``layers`` pieces of ``piece_nbytes``, as many as it holds."""
    group = Group("bench", layers, 1, piece_nbytes // (2 * PAGE_TOKENS), 2)
    pages = memory.numel() // group.page_nbytes(PAGE_TOKENS)
    return PagedMemory.of_layout(memory, Layout(kind, group, PAGE_TOKENS, pages))


def disjoint(order: torch.Tensor, count: int, most: int) -> list[torch.Tensor]:
    """Up to ``most`` sets of ``count`` indices that share none."""
    sets = [part.contiguous() for part in order.split(count) if len(part) == count]
    return sets[:most]


def rotated(values: list[Any]) -> Callable[[int], Any]:
    """The value of a repeat."""
    return lambda index: values[index % len(values)]


def worst(
    rows: list[dict[str, Any]], column: str, pick: Callable[[Any], Any] = min, **where: object
) -> float | None:
    """The least (or ``pick``) of ``column`` over the rows that match; None where there is none."""
    found = [row[column] for row in matching(rows, **where) if column in row]
    return float(pick(found)) if found else None


def matching(rows: list[dict[str, Any]], **where: object) -> list[dict[str, Any]]:
    """The rows with these values."""
    return [row for row in rows if all(row.get(key) == value for key, value in where.items())]


def claim_at_least(report: Report, name: str, measured: float | None, bound: float) -> None:
    """A claim, or none where nothing was measured: its failure is a row."""
    if measured is not None:
        report.claims.append(Claim.at_least(name, measured, bound, ""))


def claim_at_most(
    report: Report, name: str, measured: float | None, bound: float, unit: str = ""
) -> None:
    """As :func:`claim_at_least`."""
    if measured is not None:
        report.claims.append(Claim.at_most(name, measured, bound, unit))
