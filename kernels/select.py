# SPDX-License-Identifier: Apache-2.0
"""Which path a copy takes, and where pages are scored, from what was measured on this GPU.

``bodocache calibrate`` checks and times every path and keeps the table on disk, by device, driver
and version of ours. A path that no table names is *unproven* and never chosen; asked for by name it
works. Without a table every copy that touches a GPU goes through torch's own indexing, and pages
are scored on the host.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import logging
import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
import triton

from bodocache import env

_log = logging.getLogger(__name__)

UNCALIBRATED_BYTES_PER_S = 10e9  # taken for a link that was not measured: less than PCIe 4.0 has
LINK_BLOCKS = 4  # most of the SM and bulk kernels between host and device


class CopyPath(StrEnum):
    """How pages get from one pool to another."""

    TORCH = "torch"  # index_select and index_put of torch, tensor by tensor
    COPY_ENGINE = "copy_engine"  # one asynchronous copy per run; takes no multiprocessor
    SM = "sm"  # the Triton kernel, few blocks over a link
    BULK = "bulk"  # cp.async.bulk through shared memory, sm_90 and later


class Direction(StrEnum):
    """From where to where."""

    HOST_TO_DEVICE = "host_to_device"
    DEVICE_TO_HOST = "device_to_host"
    WITHIN_DEVICE = "within_device"


@dataclass(frozen=True, slots=True)
class Measured:
    """One point of the table."""

    direction: Direction
    path: CopyPath
    piece_nbytes: int
    nbytes: int  # of the whole copy: with the pieces', their count
    bytes_per_s: float
    blocks: int  # that the path was given; 0: it takes none of ours

    def __post_init__(self) -> None:
        if not 0 < self.bytes_per_s < math.inf or min(self.piece_nbytes, self.nbytes) < 1:
            raise ValueError(f"{self}: nothing measured")


class Work(StrEnum):
    """What scoring consists of."""

    SCORE = "score_pages"
    REFRESH = "refresh_keys"
    COLDEST = "coldest_pages"


class Place(StrEnum):
    """Where pages are scored."""

    HOST = "host"
    DEVICE = "device"


@dataclass(frozen=True, slots=True)
class Scored:
    """Seconds of one piece of scoring; the host's with the transfer of what comes out."""

    work: Work
    place: Place
    num_pages: int
    seconds: float

    def __post_init__(self) -> None:
        if not 0 < self.seconds < math.inf or self.num_pages < 1:
            raise ValueError(f"{self}: nothing measured")


@dataclass(frozen=True, slots=True)
class Table:
    """What was measured on one GPU, under one driver, by one version of ours."""

    device: str
    points: tuple[Measured, ...]
    scored: tuple[Scored, ...] = ()

    def best(
        self,
        direction: Direction,
        *,
        piece_nbytes: int,
        nbytes: int,
        indices_on_device: bool,
        blocks: int | None = None,
    ) -> CopyPath:
        """The fastest path at the measured pieces nearest below, and there at the total nearest
        below, or else the smallest. Pieces smaller than any measured go through torch.

        ``blocks``: how many may be taken; a path that was given more when it was measured is none.
        """
        points = [
            point
            for point in self.nearest(direction, piece_nbytes)
            if not (indices_on_device and point.path is CopyPath.COPY_ENGINE)
            and (blocks is None or point.blocks <= blocks)
        ]
        totals = sorted({point.nbytes for point in points})
        nearest = max((n for n in totals if n <= nbytes), default=totals[0] if totals else 0)
        there = [point for point in points if point.nbytes == nearest]
        return max(there, key=lambda point: point.bytes_per_s).path if there else CopyPath.TORCH

    def nearest(self, direction: Direction, piece_nbytes: int) -> list[Measured]:
        """What was measured of the largest pieces that are no larger than these."""
        points = [point for point in self.points if point.direction is direction]
        size = max((p.piece_nbytes for p in points if p.piece_nbytes <= piece_nbytes), default=0)
        return [point for point in points if point.piece_nbytes == size]

    def place(self, work: Work, num_pages: int) -> Place:
        """Where ``work`` on so many pages takes less, by the measured number nearest below; the
        host where less was measured, or the device is not proven there.
        """
        points = [p for p in self.scored if p.work is work and p.num_pages <= num_pages]
        most = max((point.num_pages for point in points), default=0)
        seconds = {point.place: point.seconds for point in points if point.num_pages == most}
        if Place.DEVICE not in seconds:
            return Place.HOST
        return min(seconds, key=lambda place: seconds[place])


def direction_of(source: torch.device, destination: torch.device) -> Direction:
    """The direction of a copy of which at least one side is a GPU."""
    if source == destination:
        return Direction.WITHIN_DEVICE
    return Direction.HOST_TO_DEVICE if source.type == "cpu" else Direction.DEVICE_TO_HOST


def choose(
    direction: Direction,
    *,
    piece_nbytes: int,
    nbytes: int,
    indices_on_device: bool,
    blocks: int | None,
    device: torch.device,
) -> CopyPath:
    """The fastest path proven on ``device``; see :meth:`Table.best`.

    The copy engine needs its runs on the host: it is no choice for indices on the device.
    """
    table = load_table(describe(device))
    if table is None:
        return CopyPath.TORCH
    return table.best(
        direction,
        piece_nbytes=piece_nbytes,
        nbytes=nbytes,
        indices_on_device=indices_on_device,
        blocks=blocks,
    )


def place_of(work: Work, num_pages: int, device: torch.device) -> Place:
    """Where ``work`` on ``num_pages`` pages is done soonest, for results on ``device``."""
    table = load_table(describe(device))
    return Place.HOST if table is None else table.place(work, num_pages)


def bytes_per_s(direction: Direction, *, piece_nbytes: int, device: torch.device) -> float:
    """The best rate measured for large copies of such pieces; else UNCALIBRATED_BYTES_PER_S."""
    table = load_table(describe(device))
    points = [] if table is None else table.nearest(direction, piece_nbytes)
    most = max((point.nbytes for point in points), default=0)
    rates = [point.bytes_per_s for point in points if point.nbytes == most]
    return max(rates, default=UNCALIBRATED_BYTES_PER_S)


@functools.cache
def describe(device: torch.device) -> str:
    """The name under which a GPU's table is kept: model, driver's build, versions, kernels."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return str(device)
    name = torch.cuda.get_device_name(device).replace(" ", "_")
    return "-".join(
        (
            *(name, f"driver{driver_build()}", f"torch{torch.__version__}"),
            *(f"triton{triton.__version__}", f"bodocache{_version()}", _kernels_digest()),
        )
    )


def driver_build() -> str:
    """The build of NVIDIA's driver ("570.86.15"), or the CUDA version that it serves."""
    with contextlib.suppress(OSError):
        for word in Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").split():
            if word[0].isdigit() and "." in word:
                return word
    return f"cuda{getattr(torch._C, '_cuda_getDriverVersion', int)()}"  # noqa: SLF001 -- has no public name


def _version() -> str:
    try:
        return importlib.metadata.version("bodocache")
    except importlib.metadata.PackageNotFoundError:  # run from the source tree
        return "source"


def _kernels_digest() -> str:
    """Of our sources: what was measured of others says nothing of these."""
    folder = Path(__file__).parent
    hashed = hashlib.blake2b(digest_size=6)
    for file in sorted((*folder.glob("*.py"), *folder.glob("csrc/*.cu"))):
        hashed.update(file.read_bytes())
    return hashed.hexdigest()


def table_file(device: str) -> Path:
    """Where the table of ``device`` is kept."""
    return env.user_cache() / "bodocache" / "calibration" / f"{device}.json"


def save_table(table: Table) -> Path:
    """Keep ``table``; later processes choose by it."""
    file = table_file(table.device)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps(as_json(table), indent=1))
    fresh.replace(file)
    load_table.cache_clear()
    return file


def as_json(table: Table) -> dict[str, Any]:
    """``table`` as it is kept: a device, points and what was scored, named as in the classes."""
    return {
        "device": table.device,
        "points": [asdict(point) for point in table.points],
        "scored": [asdict(point) for point in table.scored],
    }


def measured(said: dict[str, Any]) -> Measured:
    """A point as :func:`as_json` writes it; ValueError, KeyError or TypeError if it is none."""
    return Measured(
        Direction(said["direction"]),
        CopyPath(said["path"]),
        int(said["piece_nbytes"]),
        int(said["nbytes"]),
        float(said["bytes_per_s"]),
        int(said["blocks"]),
    )


def scored(said: dict[str, Any]) -> Scored:
    """The same of scoring."""
    return Scored(
        Work(said["work"]), Place(said["place"]), int(said["num_pages"]), float(said["seconds"])
    )


@functools.cache
def load_table(device: str) -> Table | None:
    """The table of ``device``; None where there is none, or one that cannot be read."""
    try:
        said = json.loads(table_file(device).read_text())
        return Table(
            device, tuple(map(measured, said["points"])), tuple(map(scored, said["scored"]))
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # noqa: BLE001 -- a file that anyone wrote: no copy fails by it
        _log.warning(
            "calibration of %s cannot be read (%s: %s): copies take torch's path; `bodocache"
            " calibrate` makes another",
            *(device, type(error).__name__, error),
        )
        return None
