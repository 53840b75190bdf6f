# SPDX-License-Identifier: Apache-2.0
"""Which path a copy takes: by direction, piece and total bytes, from what was measured on this GPU.

``bodocache calibrate`` checks and times every path and keeps the table on disk, by device and
driver. A path that no table names is *unproven* and never chosen; asked for by name it works.
Without a table every copy that touches a GPU goes through torch's own indexing.
"""

import functools
import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch

from bodocache import env

LINK_BLOCKS = 4  # of the SM and bulk kernels between host and device


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
    nbytes: int  # of the whole copy
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Table:
    """What was measured on one GPU, under one driver."""

    device: str
    points: tuple[Measured, ...]

    def best(
        self, direction: Direction, *, piece_nbytes: int, nbytes: int, indices_on_device: bool
    ) -> CopyPath:
        """The fastest path at the measured point nearest below, or the smallest one there is."""
        points = [
            point
            for point in self.points
            if point.direction is direction
            and not (indices_on_device and point.path is CopyPath.COPY_ENGINE)
        ]
        for size, wanted in (("piece_nbytes", piece_nbytes), ("nbytes", nbytes)):
            sizes = sorted({getattr(point, size) for point in points})
            nearest = max((s for s in sizes if s <= wanted), default=sizes[0] if sizes else 0)
            points = [point for point in points if getattr(point, size) == nearest]
        if not points:
            return CopyPath.TORCH
        return max(points, key=lambda point: point.bytes_per_s).path


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
    device: torch.device,
) -> CopyPath:
    """The fastest path proven on ``device``.

    The copy engine needs its runs on the host: it is no choice for indices on the device.
    """
    table = load_table(describe(device))
    if table is None:
        return CopyPath.TORCH
    return table.best(
        direction, piece_nbytes=piece_nbytes, nbytes=nbytes, indices_on_device=indices_on_device
    )


@functools.cache
def describe(device: torch.device) -> str:
    """The name under which a GPU's table is kept: model, driver, torch."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return str(device)
    driver = getattr(torch._C, "_cuda_getDriverVersion", int)()  # noqa: SLF001 -- has no public name
    name = torch.cuda.get_device_name(device).replace(" ", "_")
    return f"{name}-driver{driver}-torch{torch.__version__}"


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
    """``table`` as it is kept: a device, and points named as in :class:`Measured`."""
    return {"device": table.device, "points": [asdict(point) for point in table.points]}


@functools.cache
def load_table(device: str) -> Table | None:
    """The table of ``device``; None where there is none, or one that cannot be read."""
    try:
        said = json.loads(table_file(device).read_text())
        points = tuple(
            Measured(
                Direction(point["direction"]),
                CopyPath(point["path"]),
                int(point["piece_nbytes"]),
                int(point["nbytes"]),
                float(point["bytes_per_s"]),
            )
            for point in said["points"]
        )
        return Table(device, points)
    except (OSError, ValueError, KeyError, TypeError):
        return None
