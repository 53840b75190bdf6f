# SPDX-License-Identifier: Apache-2.0
"""What every bench script shares: an interleaved timer, the environment, and the JSON written.

Document: ``{environment, rows, claims: [{name, measured, target, met}]}``. No host names, no paths.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PACKAGES = ("numpy", "numba", "torch", "triton")


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one call."""

    median_s: float
    p99_s: float
    runs: int


@dataclass(frozen=True, slots=True)
class Claim:
    """A promise and what was measured; ``target`` is text such as ">= 20 GB/s"."""

    name: str
    measured: float
    target: str
    met: bool

    @classmethod
    def at_least(cls, name: str, measured: float, bound: float, unit: str) -> "Claim":
        """The claim that ``measured`` is ``bound`` or more."""
        return cls(name, round(measured, 3), f">= {bound:g} {unit}".strip(), measured >= bound)

    @classmethod
    def at_most(cls, name: str, measured: float, bound: float, unit: str) -> "Claim":
        """The claim that ``measured`` is ``bound`` or less."""
        return cls(name, round(measured, 3), f"<= {bound:g} {unit}".strip(), measured <= bound)


def interleaved(
    calls: Mapping[str, Callable[[], object]], *, runs: int = 15, warmups: int = 2
) -> dict[str, Timing]:
    """Time every call ``runs`` times, in turns: what disturbs the machine disturbs them alike."""
    for call in calls.values():
        for _ in range(warmups):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(runs):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - begin)
    return {name: timing(sample) for name, sample in seconds.items()}


def timing(seconds: Sequence[float]) -> Timing:
    """Median and p99 of a sample."""
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return Timing(statistics.median(ordered), p99, len(ordered))


def environment() -> dict[str, Any]:
    """What a figure depends on: processor, cores, memory, kernel, versions, load."""
    release = platform.release().partition("-")[0]  # what follows may name a provider
    return {
        "cpu": _line("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": os.cpu_count(),
        "memory": _line("/proc/meminfo", "MemTotal"),
        "system": f"{platform.system()} {release} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "load_1min": round(os.getloadavg()[0], 2),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments of every script: ``--json FILE``, "-" for standard output."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--json", metavar="FILE", default="-", help="where to write; - is stdout")
    return made


def write(
    target: str, rows: Sequence[Mapping[str, Any]], claims: Sequence[Claim], **extra: object
) -> None:
    """Write the document to ``target``, and the claims, readably, to standard error.

    ``extra`` adds to the environment what this script alone depends on.
    """
    document = {
        "environment": {**environment(), **extra},
        "rows": list(rows),
        "claims": [asdict(claim) for claim in claims],
    }
    text = json.dumps(document, indent=1) + "\n"
    if target == "-":
        sys.stdout.write(text)
    else:
        Path(target).write_text(text, encoding="utf-8")
    for claim in claims:
        verdict = "met" if claim.met else "NOT MET"
        print(f"{verdict:8}{claim.name}: {claim.measured:g} ({claim.target})", file=sys.stderr)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _line(path: str, field: str) -> str | None:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), None)
