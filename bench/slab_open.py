# SPDX-License-Identifier: Apache-2.0
"""Seconds to open a slab of a million frames that all hold pages: every header read and checked.

Page cache dropped for the header file before each cold opening (POSIX_FADV_DONTNEED). The process
is warm: compiled code is loaded before. Needs 5 GB of disk, given back at the end.
"""

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from _common import Claim, parser, write

from bodocache import jit
from bodocache.clock import RealClock
from bodocache.io import header
from bodocache.io.backend import TRANSFER
from bodocache.io.config import SlabConfig
from bodocache.io.header import HEADER_NBYTES, SUPERBLOCK_NBYTES, Superblock
from bodocache.io.slab import SlabBackend

PAGE_NBYTES = 4096
CHUNK = 1 << 16  # headers written at once
OPEN_S = 2.0


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--frames", type=int, default=1_000_000)
    arguments.add_argument("--runs", type=int, default=7)
    arguments.add_argument("--dir", type=Path, default=Path(), help="on the disk to be measured")
    chosen = arguments.parse_args()
    jit.warm()
    with tempfile.TemporaryDirectory(dir=chosen.dir) as folder:
        config = SlabConfig(
            Path(folder),
            SUPERBLOCK_NBYTES + chosen.frames * (PAGE_NBYTES + HEADER_NBYTES),
            PAGE_NBYTES,
            b"f" * 32,
        )
        asyncio.run(open_and_close(config))
        fill(config)
        rows = [*measure(config, chosen.runs)]
    claims = [
        Claim.at_most(
            f"{row['page_cache']} opening, {chosen.frames} pages", row["open_s"], OPEN_S, "s"
        )
        for row in rows
    ]
    write(chosen.json, rows, claims)


async def open_and_close(config: SlabConfig) -> tuple[float, int]:
    """Seconds to open, and pages found."""
    begin_s = time.perf_counter()
    backend = await SlabBackend.open(config, clock=RealClock())
    opened_s = time.perf_counter() - begin_s
    found = backend.usage.used_frames
    await backend.close()
    return opened_s, found


def fill(config: SlabConfig) -> None:
    """Write the header of a page to every frame; the payloads do not matter to an opening."""
    random = np.random.default_rng(1)
    with (config.directory / "headers.slab").open("r+b") as file:
        superblock = Superblock.decode(file.read(SUPERBLOCK_NBYTES))
        assert superblock is not None
        for first in range(0, config.frame_count, CHUNK):
            frames = np.arange(first, min(first + CHUNK, config.frame_count))
            records = np.zeros(len(frames), TRANSFER)
            records["key"] = random.integers(0, 256, (len(frames), 32), np.uint8)
            records["frame"], records["nbytes"] = frames, PAGE_NBYTES
            generations = (frames + 1).astype(np.uint64)
            file.write(header.encode(records, generations, superblock).tobytes())
        file.flush()
        os.fsync(file.fileno())


def measure(config: SlabConfig, runs: int) -> Iterator[dict[str, Any]]:
    seconds: dict[str, list[float]] = {"cold": [], "warm": []}
    for _ in range(runs):
        for name, sample in seconds.items():
            if name == "cold":
                drop(config.directory / "headers.slab")
            opened_s, found = asyncio.run(open_and_close(config))
            assert found == config.frame_count
            sample.append(opened_s)
    for name, sample in seconds.items():
        median = statistics.median(sample)
        yield {
            "page_cache": name,
            "frames": config.frame_count,
            "open_s": round(median, 3),
            "least_s": round(min(sample), 3),
            "most_s": round(max(sample), 3),
            "runs": runs,
        }


def drop(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


if __name__ == "__main__":
    main()
