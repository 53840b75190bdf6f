# SPDX-License-Identifier: Apache-2.0
"""Copies between host and device: our paths, the published shapes, and one large pinned copy.

Every time counts from the call on an idle stream to the last byte: Python, checks, index lists that
a path must move, and the host's own work are in it, for us and for peers. ``select`` is judged
where it chooses: by indices on the host, and by indices on the device.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import _gpu_peers
import torch
from _gpu_bench import (
    KIB,
    Bench,
    Case,
    claim_at_least,
    claim_at_most,
    correct,
    disjoint,
    matching,
    paged,
    worst,
)
from _gpu_timing import Call, explain

from bodocache.kernels import CopyPath, PageCopy, calibrate, select
from bodocache.kernels.reference.copy import copy_pages as twin
from bodocache.kernels.select import Direction, Table
from bodocache.layout import LayoutKind, PagedMemory

SECTION, SELECT = "link", "select"
UNMEASURED = 1e9  # of a ratio that no one measured: worse than any bound
YARDSTICK = "one large copy"
SETS_NBYTES = 128 << 20  # of all sets that rotate: more than twice the L2
CPU_PAGES = 8  # of a call whose cost for the host is measured

DIRECTIONS = (Direction.HOST_TO_DEVICE, Direction.DEVICE_TO_HOST)
# With indices where the path wants them: the copy engine needs its runs on the host.
OURS = {
    str(path): path for path in (CopyPath.SM, CopyPath.BULK, CopyPath.COPY_ENGINE, CopyPath.TORCH)
}
CLAIMED = tuple(name for name, path in OURS.items() if path is not CopyPath.TORCH)
ON_HOST = " (host indices)"
RUN_A_PAGE = "copy_engine, a run a page"


@dataclass(slots=True)
class _Point:
    """One direction and piece size."""

    direction: Direction
    piece_nbytes: int
    source: PagedMemory
    destination: PagedMemory
    memory: torch.Tensor  # of the destination
    sets: list[_gpu_peers.Slots]  # on the host

    @classmethod
    def of(
        cls, bench: Bench, direction: Direction, piece: int, pools: tuple[torch.Tensor, ...]
    ) -> "_Point":
        """An engine's pool by layer on the device, whole pages on the host."""
        host, device = pools
        scale = bench.scale
        sides = [
            (paged(LayoutKind.PAGE, host, scale.layers, piece), host),
            (paged(LayoutKind.LAYER_FIRST, device, scale.layers, piece), device),
        ]
        if direction is Direction.DEVICE_TO_HOST:
            sides.reverse()
        (source, _), (destination, memory) = sides
        pieces = source.bases.size
        count = min(scale.link_call // piece, scale.link_max_pieces) // pieces
        count = max(1, min(count, source.num_pages // 2))
        most = max(2, SETS_NBYTES // (count * source.page_nbytes))
        ours, theirs = (disjoint(bench.order(source.num_pages), count, most) for _ in range(2))
        return cls(
            direction, piece, source, destination, memory, list(zip(ours, theirs, strict=True))
        )

    @property
    def nbytes(self) -> int:
        """Bytes of a call."""
        return len(self.sets[0][0]) * self.source.page_nbytes

    @property
    def fields(self) -> dict[str, object]:
        """What names its rows."""
        return {
            "direction": str(self.direction),
            "piece_nbytes": self.piece_nbytes,
            "nbytes": self.nbytes,
        }

    def ours(self, path: CopyPath, sets: Sequence[_gpu_peers.Slots]) -> Call:
        """Our copy by ``path``."""
        copy = PageCopy(self.source, self.destination, path=path)
        return lambda i: copy.run(*sets[i % len(sets)])

    def calls(self, bench: Bench) -> dict[str, Call]:
        """Everything that is measured here; a row for what cannot even be prepared."""
        on_device = [(s.to(bench.device), d.to(bench.device)) for s, d in self.sets]
        calls: dict[str, Call] = {}
        for name, path in OURS.items():
            needs_host = path is CopyPath.COPY_ENGINE
            calls[name] = self.ours(path, self.sets if needs_host else on_device)
            if path in {CopyPath.SM, CopyPath.BULK}:
                calls[name + ON_HOST] = self.ours(path, self.sets)
        for name, prepare in _gpu_peers.PEERS.items():
            if name in bench.barred:
                continue
            try:
                calls[name] = prepare(self.source, self.destination, self.sets)
            except Exception as error:  # noqa: BLE001 -- a row says why
                bench.report.failed(SECTION, name, explain(error), **self.fields)
        for name, why in bench.barred.items():
            if calls.pop(name, None) or name in _gpu_peers.PEERS:
                bench.report.failed(SECTION, name, why, **self.fields)
            calls.pop(name + ON_HOST, None)
        return calls

    def expected(self) -> torch.Tensor:
        """The destination after the first call, by the twin, in place and put back."""
        before = self.memory.clone()
        twin(self.source, self.destination, *self.sets[0])
        expected = self.memory.clone()
        self.memory.copy_(before)
        return expected


def measure(bench: Bench) -> None:
    """Every direction and piece size; then what ``select`` would have chosen; then the claims."""
    host, device = bench.pinned(bench.scale.link_pool), bench.random(bench.scale.link_pool)
    for direction in DIRECTIONS:
        for piece in bench.scale.link_pieces:
            fields = {"direction": str(direction), "piece_nbytes": piece}
            with bench.reporting(SECTION, "all", **fields):
                _measure_point(bench, _Point.of(bench, direction, piece, (host, device)))
    with bench.reporting(SECTION, SELECT):
        _judge_select(bench, _table(bench))
    _claim(bench)


def prove(bench: Bench, name: str) -> None:
    """Copy a little by path or peer ``name``, both ways; RuntimeError where bytes are wrong."""
    for direction in DIRECTIONS:
        for piece in (512, 64 * KIB):
            host, device = bench.pinned(8 << 20), bench.random(8 << 20)
            point = _Point.of(bench, direction, piece, (host, device))
            call = point.calls(bench).get(name)
            if call is None:
                raise RuntimeError(matching(bench.report.rows, what=name)[0]["failed"])
            before = point.memory.clone()
            case = Case(call, point.memory, point.expected())
            if (why := case.why_wrong(before, bench.timer.finish)) is not None:
                raise RuntimeError(f"{direction}, pieces of {piece} bytes: {why}")


def measure_submission(bench: Bench) -> None:
    """Seconds of the host for a call of a prepared copy of a few pages, nothing waited for."""
    host, device = bench.pinned(bench.scale.link_pool), bench.random(bench.scale.link_pool)
    for direction in DIRECTIONS:
        point = _Point.of(bench, direction, 4 * KIB, (host, device))
        few = point.sets[0][0][:CPU_PAGES].clone(), point.sets[0][1][:CPU_PAGES].clone()
        on_device = few[0].to(bench.device), few[1].to(bench.device)
        fields = {
            "direction": str(direction),
            "pages": len(few[0]),
            "pieces": point.source.bases.size,
        }
        for name, call in _submissions(point, few, on_device).items():
            if name in bench.barred:
                bench.report.failed("submission", name, bench.barred[name], **fields)
                continue
            try:
                seconds = bench.timer.submission_s(call)
            except Exception as error:  # noqa: BLE001 -- a row says why
                bench.report.failed("submission", name, explain(error), **fields)
                continue
            row = {"section": "submission", "what": name, **fields, "microseconds": seconds * 1e6}
            bench.report.rows.append(row)
    for name in (*(n for n in OURS if n != CopyPath.COPY_ENGINE), RUN_A_PAGE):
        measured = worst(bench.report.rows, "microseconds", max, section="submission", what=name)
        title = f"CPU time of a prepared copy of {CPU_PAGES} pages, {name}"
        if name != CopyPath.TORCH:  # torch's own, which waits; a row only
            claim_at_most(bench.report, title, measured, 15, "us")


def _submissions(
    point: _Point, few: _gpu_peers.Slots, on_device: _gpu_peers.Slots
) -> dict[str, Callable[[], object]]:
    """A small copy by every path; and what of the SM kernel's is its launch."""
    calls = {}
    for name, path in OURS.items():
        call = point.ours(path, [few if path is CopyPath.COPY_ENGINE else on_device])
        calls[name] = functools.partial(call, 0)
    copy = PageCopy(point.source, point.destination)
    calls["sm, launch alone"] = copy.launch(*on_device).run
    # The driver takes a batch apart run by run: the same for one run a page, and of a peer's lists.
    alike = [_as_pages(memory) for memory in (point.source, point.destination)]
    whole = PageCopy(*alike, path=CopyPath.COPY_ENGINE)
    calls[RUN_A_PAGE] = functools.partial(whole.run, *few)
    with contextlib.suppress(Exception):  # what it lacks, the link's rows say
        peer = _gpu_peers.memcpy_batch(point.source, point.destination, [few])
        calls["memcpy_batch"] = functools.partial(peer, 0)
    return calls


def _as_pages(memory: PagedMemory) -> PagedMemory:
    """The same bytes as whole pages."""
    (tensor,) = memory.tensors()
    return paged(LayoutKind.PAGE, tensor, memory.layers, memory.page_nbytes // memory.bases.size)


def _measure_point(bench: Bench, point: _Point) -> None:
    calls = point.calls(bench)
    before, expected = point.memory.clone(), point.expected()
    cases = {name: Case(call, point.memory, expected) for name, call in calls.items()}
    good = correct(bench, SECTION, cases, before, **point.fields)
    large = min(bench.scale.link_call, point.memory.numel() // 2)
    ends = [[m[i * large : (i + 1) * large] for i in range(2)] for m in _flat(point)]
    good[YARDSTICK] = lambda i: ends[1][i % 2].copy_(ends[0][i % 2], non_blocking=True)
    timed = bench.timer.interleaved(good, hidden=False)
    for name, why in timed.failures.items():
        bench.report.failed(SECTION, name, why, **point.fields)
    base = large / timed.timings[YARDSTICK].median_s
    for name, timing in timed.timings.items():
        rate = (large if name == YARDSTICK else point.nbytes) / timing.median_s
        said = {"gb_per_s": rate / 1e9, "share_of_large_copy": rate / base}
        bench.report.timed(SECTION, name, timing, **point.fields, **said)


def _flat(point: _Point) -> tuple[torch.Tensor, torch.Tensor]:
    """The memory of both sides."""
    (source,), (destination,) = point.source.tensors(), point.destination.tensors()
    return source, destination


def _table(bench: Bench) -> Table:
    """What ``bodocache calibrate`` kept for this GPU, or measured now."""
    kept = select.load_table(select.describe(bench.device))
    if kept is not None:
        return kept
    if bench.is_stand_in:
        grid = calibrate.Grid((512,), (64 * KIB,))
        found = calibrate.measure(CopyPath.SM, bench.device, grid, lambda _c, _d: 1.0)
        return calibrate.tabled("stand-in", found)[0]
    return calibrate.calibrate(bench.device)[0]


def _judge_select(bench: Bench, table: Table) -> None:
    """A row for every point and place of indices: what it chooses over the best there is."""
    points = {
        (row["direction"], row["piece_nbytes"], row["nbytes"])
        for row in matching(bench.report.rows, section=SECTION)
        if "nbytes" in row  # not of a point that failed as a whole
    }
    for direction, piece, nbytes in sorted(points):
        fields = {"direction": direction, "piece_nbytes": piece, "nbytes": nbytes}
        for on_device in (True, False):
            path = table.best(
                Direction(direction),
                piece_nbytes=piece,
                nbytes=nbytes,
                indices_on_device=on_device,
                blocks=select.LINK_BLOCKS,
            )
            seconds = _seconds(bench, on_device, fields)
            what = SELECT + ", indices on the " + ("device" if on_device else "host")
            if str(path) not in seconds:
                why = f"it chooses {path}, which was not measured"
                bench.report.failed(SECTION, what, why, **fields)
                continue
            best = min(seconds, key=lambda name: seconds[name])
            over = seconds[path] / seconds[best]
            row = {"section": SECTION, "what": what, **fields, "chosen": str(path), "best": best}
            bench.report.rows.append({**row, "over_best": over})


def _seconds(bench: Bench, on_device: bool, fields: dict[str, object]) -> dict[str, float]:  # noqa: FBT001 -- where indices are
    """Seconds of our paths at one point; by indices on the host where a path moves them."""
    found = {}
    for path in OURS:
        if on_device and path == CopyPath.COPY_ENGINE:
            continue
        moves = not on_device and path in {CopyPath.SM, CopyPath.BULK}
        what = path + ON_HOST if moves else path
        if rows := matching(bench.report.rows, section=SECTION, what=what, **fields):
            found[path] = rows[-1].get("median_s", float("inf"))
    return {path: seconds for path, seconds in found.items() if seconds < float("inf")}


def _claim(bench: Bench) -> None:
    rows = matching(bench.report.rows, section=SECTION)
    for direction in DIRECTIONS:
        here = matching(rows, direction=str(direction))
        over_peer, shares, missing = [], {}, set()
        for piece in bench.scale.link_pieces:
            at = {
                row["what"]: row for row in matching(here, piece_nbytes=piece) if "gb_per_s" in row
            }
            ours = [at[name]["gb_per_s"] for name in CLAIMED if name in at]
            peers = [at[name]["gb_per_s"] for name in _gpu_peers.PEERS if name in at]
            missing |= _gpu_peers.PEERS.keys() - at.keys()
            if ours and peers:
                over_peer.append(max(ours) / max(peers))
            if ours:
                shares[piece] = max(
                    at[name]["share_of_large_copy"] for name in CLAIMED if name in at
                )
            if not ours:
                missing.add("ours")
        title = str(direction).replace("_", " ")
        least = min(over_peer, default=0.0)
        against = f"{title}: our best path over the best published, worst piece"
        if missing:  # the best of some is no best of all
            least, against = 0.0, f"{against}; not measured: {', '.join(sorted(missing))}"
        claim_at_least(bench.report, against, least, 1)
        large = [share for piece, share in shares.items() if piece >= 256 * KIB]
        claim_at_least(
            bench.report,
            f"{title}: share of one large copy, pieces >= 256 KiB",
            min(large) if large else None,
            0.95,
        )
        claim_at_least(
            bench.report,
            f"{title}: share of one large copy, pieces of 4 KiB, {select.LINK_BLOCKS} blocks",
            shares.get(4 * KIB),
            0.85,
        )
    judged = [row for row in rows if row["what"].startswith(SELECT)]
    over = max((row.get("over_best", UNMEASURED) for row in judged), default=UNMEASURED)
    title = "select's path over the best, worst point"
    if over == UNMEASURED:
        title += "; not measured everywhere"
    claim_at_most(bench.report, title, over, 1.05, "x")
