# SPDX-License-Identifier: Apache-2.0
"""Correctness of every kernel on a GPU: all bytes against the twins, cuts, graph capture.

Needs torch, triton and cuda-python: ``python bench/gpu_checks.py``; checks of a whole cache, and of
GDS, say what else they need and are skipped without it. Each check runs in a
process of its own, a few at a time: one that crashes or hangs costs only itself. A line for each;
the exit status is the number of those that failed. ``--json FILE`` notes what passed where, after
every check.
"""

import argparse
import functools
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
import triton
from _gpu_checks_cache import check_cache_cancel, check_cache_layers
from _gpu_checks_pages import (
    check_bulk_copies_within_the_device,
    check_copies_within_the_device,
    check_gather_and_scatter,
    check_host_copies,
    check_offsets_beyond_2_31,
    check_sums_by_layer,
)
from _gpu_checks_scoring import check_scores_and_the_coldest
from _gpu_checks_streams import check_graph_capture, check_layerwise_copies
from _gpu_pools import GROUPS, Machine, Pool, Skipped, changes_only, same

from bodocache.errors import BackendUnavailable
from bodocache.kernels import (
    CopyPath,
    Quantiser,
    gather_quantised,
    gpu,
    scatter_quantised,
    select,
)
from bodocache.kernels.quantiser import QuantisedForm
from bodocache.kernels.reference import digest as digest_twin
from bodocache.kernels.reference import quantise as quantise_twin
from bodocache.kernels.reference.views import page_views
from bodocache.layout import Group, LayoutKind

# Processes: what takes long is compiling; one where the GPU serves one at a time.
AT_ONCE = max(2, min(8, (os.cpu_count() or 4) // 2))
CHECK_LIMIT_S = 90
LIMIT_S = 165  # of all checks: those that do not get their turn by then fail
GDS_SKIPPED = 77  # exit status of _gpu_gds.py

Check = Callable[[Machine], None]


# -- quantised pages ------------------------------------------------------------------------------


def check_quantised_pages(machine: Machine) -> None:
    """Quantised and restored bit for bit as the twin does, digests of what is stored."""
    group = Group("values", layers=2, heads=4, head_dim=64, itemsize=2)
    kinds = [LayoutKind.LAYER_FIRST, LayoutKind.PAGE_HEAD, LayoutKind.PAGE]
    if not machine.real:  # the interpreter takes 10 s for one of them
        group, kinds = Group("values", layers=1, heads=2, head_dim=32, itemsize=2), kinds[:1]
    for kind in kinds:
        for dtype in (torch.bfloat16, torch.float16):
            for quantiser in Quantiser:
                pool = machine.pool(kind, group)
                fill_varied(pool, dtype)
                compare_quantised(machine, pool, {"dtype": dtype, "quantiser": quantiser})


def fill_varied(pool: Pool, dtype: torch.dtype) -> None:
    """In each page heads of ordinary values, of zeros, and of either end of the type's range; every
    other token of half of them has infinities, NaN and zeros of either sign.
    """
    range_ = torch.finfo(dtype)
    scales = torch.tensor([1.0, 0.0, range_.max, range_.smallest_normal])
    odd = torch.tensor([torch.inf, torch.nan, -torch.inf, 0.0, -0.0, -torch.nan])
    for base, view in enumerate(page_views(pool.pages)):
        shape = view.view(dtype).shape
        page, token, head, dim = torch.meshgrid(*map(torch.arange, shape), indexing="ij")
        values = torch.randn(shape) * scales[(page + 2 * base + head) % len(scales)]
        values = values.clamp(-range_.max, range_.max)
        is_odd = ((page + head) % 2 == 1) & (token % 2 == 0) & (dim % 5 == 0)
        values = torch.where(is_odd, odd[(token + dim) % len(odd)], values)
        view.copy_(values.to(dtype).view(torch.uint8))


def compare_quantised(machine: Machine, pool: Pool, form: dict[str, Any]) -> None:
    """A gather into rows between canaries, restored to other pages, and once more."""
    count = 9 if machine.real else 2
    slots, to = machine.slots(2 * count).chunk(2)
    rows = torch.arange(count, device=machine.device)
    memory, out = machine.rows(count, QuantisedForm.of(pool.pages).page_nbytes)
    host = pool.twin(torch.device("cpu"))
    expected = memory.cpu().clone()
    stored = expected[1:-1, 32:-32]
    digests = quantise_twin.gather_quantised(host.pages, slots.cpu(), rows.cpu(), stored, **form)

    def gather() -> None:
        found = gather_quantised(pool.pages, slots, **form, out=out, rows=rows).digests
        same(found, digests)
        same(found, digest_twin.digest_pages(out))

    changes_only(machine, memory, expected, gather, pool.memory)
    quantise_twin.scatter_quantised(stored, host.pages, to.cpu(), rows.cpu(), **form)

    def scatter() -> None:
        same(scatter_quantised(out, pool.pages, to, **form, rows=rows), digests)

    changes_only(machine, pool.memory, host.memory, scatter, memory)
    again, _ = gather_quantised(pool.pages, to, **form)
    scatter_quantised(again, pool.pages, to, **form)
    machine.wait()
    same(pool.memory, host.memory)  # a second pass changes no value


# -- storage --------------------------------------------------------------------------------------


def check_gds(machine: Machine, mode: str) -> None:
    """Pages between device memory and a slab by the real cuFile: ``direct``, or through host memory
    (``compat``), which needs no driver of GDS. Skips where cuFile or a package cannot be had.
    """
    if not machine.real:
        raise Skipped("needs a GPU")
    if gpu.is_exclusive(machine.device):
        raise Skipped("needs a second process, and the GPU serves one (mode EXCLUSIVE_PROCESS)")
    script = Path(__file__).with_name("_gpu_gds.py")
    command = [sys.executable, str(script), mode]
    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=CHECK_LIMIT_S - 10, check=False
    )
    said = (ran.stdout + ran.stderr).strip()
    if ran.returncode == GDS_SKIPPED:
        raise Skipped(said)
    assert not ran.returncode, said[-2000:]


# -- which, and what they prove -------------------------------------------------------------------


def checks_of(groups: Sequence[Group]) -> dict[str, Check]:
    """Every check by name."""
    checks: dict[str, Check] = {"offsets_beyond_2_31": check_offsets_beyond_2_31}
    for group in groups:
        for check in (check_gather_and_scatter, check_copies_within_the_device):
            checks[f"{_name(check)} {group.name}"] = functools.partial(check, group=group)
    for path in CopyPath:
        checks[f"host_copies {path}"] = functools.partial(check_host_copies, path=path)
    for path in (CopyPath.SM, CopyPath.BULK, CopyPath.COPY_ENGINE):
        checks[f"layerwise_copies {path}"] = functools.partial(check_layerwise_copies, path=path)
    for mode in ("direct", "compat"):
        checks[f"gds {mode}"] = functools.partial(check_gds, mode=mode)
    others = (
        check_sums_by_layer,
        check_bulk_copies_within_the_device,
        check_graph_capture,
        check_scores_and_the_coldest,
        check_quantised_pages,
        check_cache_layers,
        check_cache_cancel,
    )
    return checks | {_name(check): check for check in others}


def named(checks: Mapping[str, Check], only: Sequence[str]) -> list[str]:
    """The checks of these names, or of all that begin with one that is no check's."""
    names = [
        name
        for wanted in only
        for name in ([wanted] if wanted in checks else [n for n in checks if n.startswith(wanted)])
    ]
    if not names:
        raise SystemExit(f"no check is called {' or '.join(only)}; there are {', '.join(checks)}")
    return names


def _name(check: Callable[..., None]) -> str:
    return check.__name__.removeprefix("check_")


# A kernel, as ``bodocache kernels`` names it, and all checks of kernels that launch it: each must
# have passed, in all its variants. Checks of a whole cache need more than kernels do.
PROVES: Mapping[str, Sequence[str]] = {
    "gather": ("gather_and_scatter", "offsets_beyond_2_31", "graph_capture"),
    "scatter": ("gather_and_scatter", "offsets_beyond_2_31", "graph_capture"),
    "digest": ("gather_and_scatter",),
    "copy": (
        "copies_within_the_device",
        "host_copies sm",
        "sums_by_layer",
        "offsets_beyond_2_31",
        "layerwise_copies sm",
        "graph_capture",
    ),
    "bulk_copy": (
        "bulk_copies_within_the_device",
        "host_copies bulk",
        "offsets_beyond_2_31",
        "layerwise_copies bulk",
    ),
    "score": ("scores_and_the_coldest",),
    "subtree": ("scores_and_the_coldest",),
    "coldest": ("scores_and_the_coldest",),
    "quantise": ("quantised_pages",),
}


def proven(rows: Sequence[dict[str, Any]], target: str) -> dict[str, list[str]]:
    """Kernel -> targets: what kernels/targets.py may then say."""
    outcomes: dict[str, set[str]] = {}
    for row in rows:
        for name in (row["check"], row["check"].partition(" ")[0]):
            outcomes.setdefault(name, set()).add(row["outcome"])
    return {
        kernel: [target]
        for kernel, checks in PROVES.items()
        if all(outcomes.get(check) == {"passed"} for check in checks)
    }


# -- running --------------------------------------------------------------------------------------


def run(machine: Machine, checks: Mapping[str, Check]) -> Iterator[dict[str, Any]]:
    """Do the checks here; a row each."""
    for name, check in checks.items():
        started_s = time.perf_counter()
        try:
            check(machine)
            outcome, why = "passed", ""
        except (Skipped, BackendUnavailable) as reason:
            outcome, why = "skipped", str(reason)
        except Exception as error:  # noqa: BLE001 -- the next check may still tell us something
            outcome, why = "FAILED", f"{type(error).__name__}: {error}"
            traceback.print_exc()
        yield row_of(name, outcome, why, time.perf_counter() - started_s)


def run_apart(
    commands: Mapping[str, Sequence[str]], limit_s: float = LIMIT_S, at_once: int = AT_ONCE
) -> Iterator[dict[str, Any]]:
    """Do each check in a process of its own; rows as they come."""
    until_s = time.monotonic() + limit_s
    with ThreadPoolExecutor(at_once) as threads:
        for done in as_completed(
            [threads.submit(_apart, name, command, until_s) for name, command in commands.items()]
        ):
            yield done.result()


def _apart(name: str, command: Sequence[str], until_s: float) -> dict[str, Any]:
    started_s = time.monotonic()
    limit_s = min(CHECK_LIMIT_S, until_s - started_s)
    if limit_s <= 0:
        return row_of(name, "FAILED", "no time was left for it", 0.0)
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return row_of(name, "FAILED", f"it did not end within {limit_s:.0f} s", limit_s)
    said = [line for line in ran.stdout.splitlines() if line.startswith('{"check": ')]
    if said:
        row: dict[str, Any] = json.loads(said[-1])
        if row["outcome"] == "FAILED":
            sys.stderr.write(ran.stderr)
        return row
    last = ran.stderr.strip().splitlines()[-1:] or [""]
    why = f"its process ended with {ran.returncode}: {last[0][:300]}"
    return row_of(name, "FAILED", why, time.monotonic() - started_s)


def row_of(name: str, outcome: str, why: str, seconds: float) -> dict[str, Any]:
    """One check."""
    return {"check": name, "outcome": outcome, "why": why, "seconds": round(seconds, 2)}


def environment(device: torch.device) -> dict[str, str]:
    """Where it ran."""
    return {
        "gpu": torch.cuda.get_device_name(device),
        "driver": select.driver_build(),
        "cuda": str(torch.version.cuda),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda_python": _version("cuda-bindings"),
        "python": platform.python_version(),
    }


def write(file: Path, said: dict[str, Any]) -> None:
    """All of it or what was there."""
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps(said, indent=1) + "\n")
    fresh.replace(file)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _command(name: str, device: torch.device) -> list[str]:
    return [sys.executable, __file__, "--only", name, "--device", str(device.index)]


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--json", type=Path, help="write the rows there, after each check")
    arguments.add_argument(
        "--quick",
        action="store_true",
        help="one small group, in this process; no 5 GiB pool and no whole cache",
    )
    arguments.add_argument(
        "--only", nargs="+", metavar="NAME", help="these, or all that begin so, in this process"
    )
    arguments.add_argument("--device", type=int, default=0, help="index; default: 0")
    chosen = arguments.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing to check here", file=sys.stderr)
        return 2
    torch.manual_seed(int(os.environ.get("SEED", "7")))
    device = torch.device("cuda", chosen.device)
    machine = Machine(device, GROUPS[1:2] if chosen.quick else GROUPS)
    checks = checks_of(machine.groups)
    if chosen.only or chosen.quick:
        torch.cuda.set_device(device)
        names = [n for n in checks if not n.startswith(("offsets_beyond", "cache_"))]
        if chosen.only:
            names = named(checks, chosen.only)
        came = run(machine, {name: checks[name] for name in names})
    else:
        # This process makes no context: the GPU may be one that serves a single process.
        at_once = 1 if gpu.is_exclusive(device) else AT_ONCE
        came = run_apart({name: _command(name, device) for name in checks}, at_once=at_once)
    rows: list[dict[str, Any]] = []
    for row in came:
        rows.append(row)
        if chosen.only:
            print(json.dumps(row), flush=True)
            continue
        name = row["check"].replace("_", " ")
        print(f"{row['outcome']:8} {name} ({row['seconds']:.1f} s) {row['why']}", flush=True)
        if chosen.json:
            target = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
            found = {"rows": rows, "proven": proven(rows, target)}
            write(chosen.json, {"environment": environment(device), **found})
    return sum(row["outcome"] == "FAILED" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
