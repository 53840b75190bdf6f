# SPDX-License-Identifier: Apache-2.0
"""The kernels on a GPU, as ratios to what else could do the work, beside it in the same run.

Each path and peer first does a little work in a process of its own, which may crash or hang: those
that do are rows that say so, and are left out. The bytes of each timed call are compared with its
twin's once. Inputs are random and rotate over sets larger than the L2; times are medians of device
events. Under 5 minutes; needs torch, triton and cuda-python, no more. Without a GPU: exit code 2.
"""

import argparse
import contextlib
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import _common
import _gpu_bench
import _gpu_device
import _gpu_link
import _gpu_overlap
import _gpu_peers
import _gpu_scoring
import torch
from _gpu_timing import EventTimer, StandInTimer, explain

from bodocache.kernels import check, gpu, select

SECTIONS = {
    "within_device": _gpu_device.measure,
    "link": _gpu_link.measure,
    "submission": _gpu_link.measure_submission,
    "checks": _gpu_device.measure_checks,
    "scoring": _gpu_scoring.measure,
    "overlap": _gpu_overlap.measure,  # last: there it waits on the device
}
PROOF_TIMEOUT_S = 60
PROOFS_LIMIT_S = 120  # of all: as long only where the GPU serves one process at a time
# A table a section: the figure, what has a column each, what has a line each.
TABLES = (
    ("within_device", "share_of_copy", "piece_nbytes", ("what",)),
    ("within_device", "over_plain", "piece_nbytes", ("what",)),
    ("link", "gb_per_s", "piece_nbytes", ("direction", "what")),
    ("link", "over_best", "piece_nbytes", ("direction", "what")),
    ("submission", "microseconds", "direction", ("what",)),
    ("layerwise", "over_longer", "begins", ("what", "ahead")),
    ("beside", "slowdown", "compute", ("direction", "what")),
    ("scoring", "median_s", "pages", ("begins", "what")),
    ("checks", "microseconds", "mode", ("what",)),
)


def main() -> int:
    """Measure, write, print the table; 2 where there is no GPU."""
    arguments = _arguments()
    stand_in = arguments.device == "cpu"
    if not stand_in and not torch.cuda.is_available():
        print("no CUDA device: nothing to measure here", file=sys.stderr)
        return 2
    torch.manual_seed(7)
    begun_s = time.monotonic()
    # First, and with no context in this process: the GPU may be one that serves a single process.
    barred = {} if stand_in or arguments.prove else prove_all(arguments.device)
    bench = _bench(arguments)
    bench.barred |= barred
    if arguments.prove:
        with _stream(bench):
            if arguments.prove == _gpu_overlap.AHEAD_NAME:
                _gpu_overlap.prove_ahead(bench)
            else:
                _gpu_link.prove(bench, arguments.prove)
        return 0
    left_s = max(0.0, bench.scale.limit_s - (time.monotonic() - begun_s))
    guard = threading.Timer(left_s, _give_up, (arguments.json, bench))
    guard.daemon = True
    guard.start()
    with _stream(bench):
        for name in arguments.sections or SECTIONS:
            print(f"== {name}", file=sys.stderr, flush=True)
            with bench.reporting(name, "all"):
                SECTIONS[name](bench)
            _free(bench)
    guard.cancel()
    write(arguments.json, bench)
    return 0


def prove_all(device: str) -> dict[str, str]:
    """Each path and peer that fails in a process of its own, and why."""
    names = [*_gpu_link.OURS, *_gpu_peers.PEERS, _gpu_overlap.AHEAD_NAME]
    is_exclusive = gpu.is_exclusive(torch.device(device))
    until_s = time.monotonic() + PROOFS_LIMIT_S
    with ThreadPoolExecutor(1 if is_exclusive else len(names)) as pool:
        said = pool.map(lambda name: _why_not(name, device, until_s), names)
        return {name: why for name, why in zip(names, said, strict=True) if why is not None}


def write(target: str, bench: _gpu_bench.Bench, *notes: str) -> None:
    """The tables, the document, and the claims last: the end of the output is what is read."""
    report = bench.report
    gpu = {} if bench.is_stand_in else _gpu(bench.device)
    if bench.is_stand_in:
        notes = (*notes, "no GPU: every time is a stand-in")
    out = sys.stderr if target == "-" else sys.stdout
    print(tables(report.rows), file=out, flush=True)
    extra = {"scale": bench.scale.name, "notes": list(notes), **gpu}
    _common.write(target, report.rows, report.claims, **extra)
    met = sum(claim.met for claim in report.claims)
    print(f"{met} of {len(report.claims)} claims met", file=sys.stderr)


def tables(rows: list[dict[str, Any]]) -> str:
    """Rows as text: one table a section and figure, then what failed."""
    parts = [text for spec in TABLES if (text := _table(rows, *spec))]
    failures = {
        f"{row['section']}, {row['what']}: {row['failed']}": None for row in rows if "failed" in row
    }
    return "\n\n".join([*parts, *(["failed:\n  " + "\n  ".join(failures)] if failures else [])])


def _table(
    rows: list[dict[str, Any]], section: str, figure: str, across: str, down: tuple[str, ...]
) -> str:
    cells: dict[tuple[str, ...], dict[str, float]] = {}
    columns: dict[str, None] = {}
    for row in rows:
        if row["section"] == section and figure in row and across in row:
            columns[str(row[across])] = None
            cells.setdefault(tuple(str(row.get(key, "")) for key in down), {})[str(row[across])] = (
                row[figure]
            )
    if not cells:
        return ""
    head = f"{section}: {figure}"
    width = max(len(head), *(len(" ".join(line)) for line in cells))
    lines = [f"{head:<{width}}" + "".join(f"{column:>20}" for column in columns)]
    for line, found in cells.items():
        figures = (f"{found[column]:.4g}" if column in found else "-" for column in columns)
        lines.append(f"{' '.join(line):<{width}}" + "".join(f"{text:>20}" for text in figures))
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = _common.parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller grid, about 90 s")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, help="default: all")
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--prove", help=argparse.SUPPRESS)
    return parser.parse_args()


def _bench(arguments: argparse.Namespace) -> _gpu_bench.Bench:
    if arguments.device == "cpu":  # a test: under TRITON_INTERPRET=1 the kernels run on the CPU
        check.on_gpu = lambda _: True
        scale, timer = _gpu_bench.TINY, StandInTimer()
        device = torch.device("cpu")
    else:
        scale = _gpu_bench.QUICK if arguments.quick else _gpu_bench.FULL
        device = torch.device("cuda", torch.device(arguments.device).index or 0)
        torch.cuda.set_device(device)
        timer = EventTimer(device, torch.cuda.Stream(device), scale.budget_s, scale.runs)
    return _gpu_bench.Bench(device, timer, scale, _gpu_bench.Report(), {})


@contextlib.contextmanager
def _stream(bench: _gpu_bench.Bench) -> Iterator[None]:
    """A stream of our own: the legacy one takes no copies in batches.

    Not one of torch's 32, which it hands out in turns: a load's stream would be the same one, and
    wait there for what comes behind it.
    """
    if bench.is_stand_in:
        yield
        return
    torch.zeros(1, device=bench.device)  # torch's context is this thread's from here
    driver = gpu.bindings("driver")
    flag = driver.CUstream_flags.CU_STREAM_NON_BLOCKING.value
    stream = gpu.checked("cuStreamCreate", driver.cuStreamCreate(flag))
    with torch.cuda.stream(torch.cuda.ExternalStream(int(stream), device=bench.device)):
        yield


def _why_not(name: str, device: str, until_s: float = math.inf) -> str | None:
    limit_s = min(PROOF_TIMEOUT_S, until_s - time.monotonic())
    if limit_s <= 0:
        return "alone, in a process of its own: no time was left for it"
    command = [sys.executable, __file__, "--prove", name, "--device", device]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return f"alone, in a process of its own, it did not end within {limit_s:.0f} s"
    if ran.returncode == 0:
        return None
    last = ran.stderr.strip().splitlines()[-1:] or [""]
    return f"alone, in a process of its own: exit code {ran.returncode}: {last[0][:300]}"


def _give_up(target: str, bench: _gpu_bench.Bench) -> None:
    """Write what there is and end: a kernel may hang, and no call returns from that."""
    bench.report.failed("run", "all", f"stopped after {bench.scale.limit_s:g} s")
    write(target, bench, "stopped before its end")
    sys.stdout.flush()
    os._exit(1)


def _free(bench: _gpu_bench.Bench) -> None:
    """Give memory back between sections, and see whether the device still works."""
    if bench.is_stand_in:
        return
    try:
        bench.timer.finish()
        torch.cuda.empty_cache()
    except RuntimeError as error:
        bench.report.failed("run", "device", f"from here on nothing works: {explain(error)}")


def _gpu(device: torch.device) -> dict[str, Any]:
    """What the figures depend on."""
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "l2_nbytes": getattr(properties, "L2_cache_size", None),
        "driver": select.driver_build(),
        "cuda": torch.version.cuda,
        "cuda_python": _common._version("cuda-bindings"),  # noqa: SLF001 -- the same script folder
    }


if __name__ == "__main__":
    sys.exit(main())
