# SPDX-License-Identifier: Apache-2.0
"""Correctness of every kernel on a GPU: bytes against the twins, canaries, cuts, graph capture.

Needs torch, triton and cuda-python alone: ``python bench/gpu_checks.py``. Each check prints a line;
the exit status is the number of those that failed. ``--json FILE`` notes what passed where.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton

from bodocache.errors import BackendUnavailable
from bodocache.kernels import (
    CopyPath,
    DevicePages,
    Formula,
    LayerwiseCopy,
    Quantiser,
    coldest_pages,
    copy_and_sum_pages,
    copy_pages,
    digest_pages,
    gather_pages,
    gather_quantised,
    refresh_keys,
    scatter_pages,
    scatter_quantised,
    score_pages,
)
from bodocache.kernels.page_records import DEPTH
from bodocache.kernels.quantiser import QuantisedForm
from bodocache.kernels.reference import coldest as coldest_twin
from bodocache.kernels.reference import copy as copy_twin
from bodocache.kernels.reference import digest as digest_twin
from bodocache.kernels.reference import gather as gather_twin
from bodocache.kernels.reference import quantise as quantise_twin
from bodocache.kernels.reference import score as score_twin
from bodocache.kernels.reference import subtree as subtree_twin
from bodocache.layout import Group, Layout, LayoutKind, PagedMemory
from bodocache.pages import PAGE

PAGE_TOKENS = 16
PAGES = 24
GROUPS = (
    Group("gqa", layers=3, heads=8, head_dim=128, itemsize=2),
    Group("narrow", layers=2, heads=2, head_dim=16, itemsize=1),  # 16-byte rows
    Group("mla", layers=3, heads=1, head_dim=576, itemsize=2, kv=1),
)
GDS_SKIPPED = 77  # exit status of _gpu_gds.py
BEYOND_NBYTES = 5 << 30  # a pool with offsets beyond 2^31 and 2^32


class Skipped(Exception):
    """This machine cannot run the check."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where pools lie."""

    device: torch.device
    groups: tuple[Group, ...] = GROUPS

    @property
    def real(self) -> bool:
        """Whether this is a GPU, and not the interpreter on the CPU."""
        return self.device.type == "cuda"

    def pool(self, kind: LayoutKind, group: Group, *, on_host: bool = False) -> "Pool":
        """Random pages."""
        layout = Layout(kind, group, PAGE_TOKENS, PAGES)
        memory = torch.randint(0, 256, (layout.pool_nbytes,), dtype=torch.uint8)
        if not on_host:
            memory = memory.to(self.device)
        elif self.real:
            memory = memory.pin_memory()
        return Pool(PagedMemory.of_layout(memory, layout), memory, layout)

    def wait(self) -> None:
        """Until the GPU has done everything."""
        if self.real:
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True, slots=True)
class Pool:
    """Pages and the bytes behind them."""

    pages: PagedMemory
    memory: torch.Tensor
    layout: Layout

    def twin(self) -> "Pool":
        """A copy of both."""
        memory = self.memory.clone()
        if self.memory.is_pinned():
            memory = memory.pin_memory()
        return Pool(PagedMemory.of_layout(memory, self.layout), memory, self.layout)


def slots_of(machine: Machine, count: int = 9, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """Distinct slots in no order."""
    chosen = torch.randperm(PAGES)[:count].to(dtype)
    return chosen.to(machine.device)


def check_gather_and_scatter(machine: Machine) -> None:
    """Every layout, group, index type; layer and head ranges; digests."""
    for kind in LayoutKind:
        for group in machine.groups:
            for dtype in (torch.int32, torch.int64):
                pool = machine.pool(kind, group)
                slots = slots_of(machine, dtype=dtype)
                for layers in (None, range(1, group.layers)):
                    gathered = gather_pages(pool.pages, slots, layers=layers)
                    expected = torch.empty_like(gathered.pages)
                    rows = torch.arange(len(slots), device=machine.device)
                    part = pool.pages.only(layers)
                    digests = gather_twin.gather_pages(part, slots, rows, expected)
                    same(gathered.pages, expected)
                    same(gathered.digests, digests)
                    same(digest_pages(gathered.pages), digests)
                    back = pool.twin()
                    scatter_pages(expected.flip(0).contiguous(), back.pages, slots, layers=layers)
                    again = gather_pages(back.pages, slots, layers=layers).pages
                    same(again, expected.flip(0))


def check_copies_within_the_device(machine: Machine) -> None:
    """Every pair of layouts, and nothing else is touched."""
    for group in machine.groups:
        for ours in LayoutKind:
            for theirs in LayoutKind:
                compare_copy(machine, (ours, theirs), group, CopyPath.SM)


def check_bulk_copies_within_the_device(machine: Machine) -> None:
    """The same by cp.async.bulk."""
    need(machine, CopyPath.BULK)
    for group in machine.groups:
        for ours in LayoutKind:
            compare_copy(machine, (ours, LayoutKind.PAGE), group, CopyPath.BULK)


def check_copies_to_and_from_the_host(machine: Machine) -> None:
    """Every path, both directions, pinned memory, few blocks."""
    for path in CopyPath:
        if path is not CopyPath.SM:
            try:
                need(machine, path)
            except Skipped as reason:
                print(f"         {path}: {reason}")
                continue
        for group in machine.groups:
            for kind in (LayoutKind.LAYER_FIRST, LayoutKind.PAGE_HEAD):
                pair = (kind, LayoutKind.PAGE)
                compare_copy(machine, pair, group, path, host=1)
                compare_copy(machine, pair[::-1], group, path, host=0)


def check_sums_by_layer(machine: Machine) -> None:
    """Raw sums of every layer compose to the digest of the page."""
    group = machine.groups[0]
    for kind in LayoutKind:
        source, destination = machine.pool(kind, group), machine.pool(LayoutKind.PAGE, group)
        slots = slots_of(machine)
        sums = copy_and_sum_pages(source.pages, destination.pages, slots, slots)
        same(sums.words, copy_twin.sum_pages(source.pages, slots))
        pages = gather_pages(destination.pages, slots).pages
        same(pages, gather_pages(source.pages, slots).pages)
        words = pages.shape[1] // 4
        offsets = torch.arange(group.layers, device=machine.device) * (words // group.layers)
        s1 = sums.words[:, :, 0].sum(1) + words
        s2 = (sums.words[:, :, 1] + offsets * sums.words[:, :, 0]).sum(1) + words
        same(torch.stack((s1, s2), dim=1), digest_twin.digest_pages(pages))


def check_offsets_beyond_2_31(machine: Machine) -> None:
    """Pages beyond 2 and 4 GiB of a pool."""
    if not machine.real:
        raise Skipped("a pool of 5 GiB is for a GPU")
    group = Group("large", layers=4, heads=8, head_dim=128, itemsize=2)
    pages = BEYOND_NBYTES // group.page_nbytes(PAGE_TOKENS)
    for kind in (LayoutKind.LAYER_FIRST, LayoutKind.PAGE):
        layout = Layout(kind, group, PAGE_TOKENS, pages)
        memory = torch.zeros(layout.pool_nbytes, dtype=torch.uint8, device=machine.device)
        pool = PagedMemory.of_layout(memory, layout)
        rows = torch.randint(0, 256, (4, layout.page_nbytes), dtype=torch.uint8)
        rows = rows.to(machine.device)
        slots = torch.tensor([pages - 1, pages // 2, 0, pages - 2], device=machine.device)
        digests = scatter_pages(rows, pool, slots)
        same(digests, digest_pages(rows))
        same(gather_pages(pool, slots).pages, rows)
        small = machine.pool(LayoutKind.PAGE, group)
        copy_pages(
            pool, small.pages, slots, torch.arange(4, device=machine.device), path=CopyPath.SM
        )
        same(small.memory[: 4 * layout.page_nbytes], rows.flatten())


def check_layerwise_copies(machine: Machine) -> None:
    """Chunks, a cut, a commit, and how far it runs ahead of an engine on another stream."""
    if not machine.real:
        raise Skipped("streams are for a GPU; tests/kernels/test_layerwise.py has the logic")
    group = machine.groups[0]
    for ahead in (None, 1, 2):
        source = machine.pool(LayoutKind.PAGE, group, on_host=True)
        destination = machine.pool(LayoutKind.LAYER_FIRST, group)
        before = destination.twin()
        ours, theirs = torch.arange(12), torch.arange(12).flip(0) + 3
        copy = LayerwiseCopy(
            *(source.pages, destination.pages, ours, theirs),
            ahead=ahead,
            path=CopyPath.SM,
            chunk_nbytes=2 * source.layout.page_nbytes,
        )
        copy.advance()
        copy.advance()
        copy.commit(pages=10)
        engine = torch.cuda.Stream(machine.device)
        found = []
        for layer in range(group.layers):
            copy.wait_layer(layer, engine)
            with torch.cuda.stream(engine):
                part = range(layer, layer + 1)
                found.append(gather_pages(destination.pages, theirs[:10].cuda(), layers=part).pages)
            copy.layer_done(layer, engine)
        copy.drain()
        machine.wait()
        assert copy.whole == 10, f"{copy.whole} pages are whole; expected 10"
        copy_twin.copy_pages(source.pages, before.pages, ours[:10], theirs[:10])
        same(destination.memory, before.memory)
        expected = gather_pages(before.pages, theirs[:10].cuda()).pages
        same(torch.cat(found, dim=1), expected)
    cut = LayerwiseCopy(
        *(source.pages, destination.pages, ours, theirs),
        path=CopyPath.SM,
        chunk_nbytes=source.layout.page_nbytes,
    )
    cut.advance()
    cut.cut()
    cut.drain()
    assert cut.whole == 1


def check_graph_capture(machine: Machine) -> None:
    """Copies within the device in a CUDA graph: replayed, they move what is there then."""
    if not machine.real:
        raise Skipped("CUDA graphs are for a GPU")
    group = machine.groups[0]
    source = machine.pool(LayoutKind.LAYER_FIRST, group)
    destination = machine.pool(LayoutKind.PAGE, group)
    slots = slots_of(machine)
    copy_pages(source.pages, destination.pages, slots, slots, path=CopyPath.SM)  # compiled
    machine.wait()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        copy_pages(source.pages, destination.pages, slots, slots, path=CopyPath.SM)
    source.memory.copy_(torch.randint_like(source.memory, 256))
    graph.replay()
    machine.wait()
    same(gather_pages(destination.pages, slots).pages, gather_pages(source.pages, slots).pages)


def check_scores_and_the_coldest(machine: Machine) -> None:
    """The same scores, keys and chosen rows as the twins, on random trees of 20,000 pages."""
    count = 20_000 if machine.real else 300
    records, rng = np.zeros(count, PAGE), np.random.default_rng(7)
    parents = rng.integers(-1, np.arange(count))  # each page after one before it, or a root
    records["parent"], records["nbytes"] = parents, 65536
    for row in range(count):
        records["depth"][row] = 0 if parents[row] < 0 else records["depth"][parents[row]] + 1
    records["heat"], records["recompute_s"] = rng.random((2, count)) + 1e-3
    records["stamp_s"], records["tiers"] = rng.random(count), 1
    records["pins"] = rng.random(count) < 0.01
    formula = Formula(60.0, 0.0, (0.0, 1e-5, 1e-4, 1e-3), (0.0, 1e-11, 1e-10, 1e-9))
    ours, theirs = (DevicePages(count, device) for device in (machine.device, torch.device("cpu")))
    for pages in (ours, theirs):
        pages.update(np.arange(count), records, np.zeros((count, 4)))
    scores = score_pages(ours, 0, 2.0, formula)
    near(scores, score_twin.score_pages(theirs, 0, 2.0, formula))
    keys = refresh_keys(ours, 0, 2.0, formula)
    expected = scores.cpu().clone()
    subtree_twin.refresh_keys(theirs, 0, expected)
    same(keys, expected)
    chosen = coldest_pages(ours, keys, count // 10)
    rows = coldest_twin.coldest_pages(expected, theirs.words[DEPTH], count // 10)
    same(chosen.rows[: int(chosen.num_pages)].cpu(), rows.to(torch.int32))


def check_quantised_pages(machine: Machine) -> None:
    """Quantised and restored bit for bit as the twin does, digests of what is stored."""
    group = Group("values", layers=2, heads=4, head_dim=64, itemsize=2)
    kinds = [LayoutKind.LAYER_FIRST, LayoutKind.PAGE_HEAD, LayoutKind.PAGE]
    if not machine.real:  # the interpreter takes 10 s for one of them
        group, kinds = Group("values", layers=1, heads=1, head_dim=32, itemsize=2), kinds[:1]
    for kind in kinds:
        for dtype in (torch.bfloat16, torch.float16):
            for quantiser in Quantiser:
                pool = machine.pool(kind, group)
                values = torch.randn(pool.memory.numel() // 2, device=machine.device).to(dtype)
                pool.memory.copy_(values.view(torch.uint8))
                host = Pool(*cpu_copy(pool), pool.layout)
                slots = slots_of(machine, 9 if machine.real else 2)
                form = {"dtype": dtype, "quantiser": quantiser}
                stored, digests = gather_quantised(pool.pages, slots, **form)
                same(digests, digest_pages(stored))
                expected = gather_on_cpu(host.pages, slots.cpu(), form)
                same(stored, expected)
                same(scatter_quantised(stored, pool.pages, slots, **form), digests)
                again, _ = gather_quantised(pool.pages, slots, **form)
                restored = pool.memory.clone()
                scatter_quantised(again, pool.pages, slots, **form)
                same(pool.memory, restored)  # a second pass changes no value


def cpu_copy(pool: Pool) -> tuple[PagedMemory, torch.Tensor]:
    """The same pages in host memory."""
    memory = pool.memory.cpu().clone()
    return PagedMemory.of_layout(memory, pool.layout), memory


def gather_on_cpu(pages: PagedMemory, slots: torch.Tensor, form: dict[str, Any]) -> torch.Tensor:
    """What the twin stores."""
    nbytes = QuantisedForm.of(pages).page_nbytes
    out = torch.empty((len(slots), nbytes), dtype=torch.uint8)
    rows = torch.arange(len(slots))
    quantise_twin.gather_quantised(pages, slots, rows, out, **form)
    return out


def compare_copy(
    machine: Machine,
    kinds: tuple[LayoutKind, LayoutKind],
    group: Group,
    path: CopyPath,
    host: int | None = None,
) -> None:
    """A copy against its twin, over the whole destination."""
    source = machine.pool(kinds[0], group, on_host=host == 0)
    destination = machine.pool(kinds[1], group, on_host=host == 1)
    expected = destination.twin()
    ours, theirs = torch.randint(0, PAGES, (9,)), torch.randperm(PAGES)[:9]
    copy_pages(source.pages, destination.pages, ours, theirs, path=path)
    machine.wait()
    copy_twin.copy_pages(source.pages, expected.pages, ours, theirs)
    same(destination.memory, expected.memory)


def need(machine: Machine, path: CopyPath) -> None:
    """Skip where the machine has no such path."""
    if not machine.real and path is not CopyPath.TORCH:
        raise Skipped("it is for a GPU")
    if path is CopyPath.BULK and torch.cuda.get_device_capability(machine.device) < (9, 0):
        raise Skipped("compute capability 9.0 is needed")


def near(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Within twice the error that score_pages states for either."""
    found = found.cpu()
    finite = expected.isfinite()
    same(found[~finite], expected[~finite])
    bound = 2**-19 + 2**-23 * expected[finite].abs()
    worst = ((found[finite] - expected[finite]).abs() / bound).max()
    assert worst <= 1, f"scores differ by {worst:.2f} of the bound"


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Bit for bit."""
    assert found.shape == expected.shape, f"{list(found.shape)}, not {list(expected.shape)}"
    wrong = int((found != expected.to(found.device)).sum())
    assert not wrong, f"{wrong} of {found.numel()} elements differ"


def check_gds(machine: Machine) -> None:
    """Pages between device memory and a slab, by the real cuFile."""
    gds(machine, "direct")


def check_gds_in_compat_mode(machine: Machine) -> None:
    """The same through host memory, which needs no driver of GDS."""
    gds(machine, "compat")


def gds(machine: Machine, mode: str) -> None:
    """Run ``_gpu_gds.py``, which skips where cuFile or a package cannot be had."""
    if not machine.real:
        raise Skipped("needs a GPU")
    script = Path(__file__).with_name("_gpu_gds.py")
    command = [sys.executable, str(script), mode]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    said = (ran.stdout + ran.stderr).strip()
    if ran.returncode == GDS_SKIPPED:
        raise Skipped(said)
    assert not ran.returncode, said[-2000:]


CHECKS: tuple[Callable[[Machine], None], ...] = (
    check_gather_and_scatter,
    check_copies_within_the_device,
    check_sums_by_layer,
    check_copies_to_and_from_the_host,
    check_bulk_copies_within_the_device,
    check_offsets_beyond_2_31,
    check_layerwise_copies,
    check_graph_capture,
    check_scores_and_the_coldest,
    check_quantised_pages,
    check_gds,
    check_gds_in_compat_mode,
)


# What a check proves where it passes: kernels as ``bodocache kernels`` names them.
PROVES = {
    "gather_and_scatter": ("gather", "scatter", "digest"),
    "copies_within_the_device": ("copy",),
    "bulk_copies_within_the_device": ("bulk_copy",),
    "scores_and_the_coldest": ("score", "subtree", "coldest"),
    "quantised_pages": ("quantise",),
}


def proven(rows: Sequence[dict[str, Any]], target: str) -> dict[str, list[str]]:
    """Kernel -> targets, of the checks that passed: what kernels/targets.py may then say."""
    passed = [row["check"] for row in rows if row["outcome"] == "passed"]
    return {kernel: [target] for check in passed for kernel in PROVES.get(check, ())}


def run(machine: Machine, checks: Sequence[Callable[[Machine], None]]) -> Iterator[dict[str, Any]]:
    """Do the checks; a row each."""
    for check in checks:
        name, started_s = check.__name__.removeprefix("check_"), time.perf_counter()
        try:
            check(machine)
            outcome, why = "passed", ""
        except (Skipped, BackendUnavailable) as reason:
            outcome, why = "skipped", str(reason)
        except Exception as error:  # noqa: BLE001 -- the next check may still tell us something
            outcome, why = "FAILED", f"{type(error).__name__}: {error}"
            traceback.print_exc()
        seconds = time.perf_counter() - started_s
        print(f"{outcome:8} {name.replace('_', ' ')} ({seconds:.1f} s) {why}", flush=True)
        yield {"check": name, "outcome": outcome, "why": why, "seconds": round(seconds, 2)}


def environment(device: torch.device) -> dict[str, str]:
    """Where it ran."""
    return {
        "gpu": torch.cuda.get_device_name(device),
        "cuda": str(torch.version.cuda),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
    }


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--json", type=Path, help="write the rows there")
    arguments.add_argument("--quick", action="store_true", help="one small group, no 5 GiB pool")
    chosen = arguments.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing to check here", file=sys.stderr)
        return 2
    torch.manual_seed(int(os.environ.get("SEED", "7")))
    device = torch.device("cuda", torch.cuda.current_device())
    groups = GROUPS[1:2] if chosen.quick else GROUPS
    checks = [c for c in CHECKS if not (chosen.quick and c is check_offsets_beyond_2_31)]
    rows = list(run(Machine(device, groups), checks))
    if chosen.json:
        target = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
        said = {"environment": environment(device), "rows": rows, "proven": proven(rows, target)}
        chosen.json.write_text(json.dumps(said, indent=1) + "\n")
    return sum(row["outcome"] == "FAILED" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
