# SPDX-License-Identifier: Apache-2.0
"""Frames of several sizes in one directory: a slab for each group of a model, and one link.

The groups share the threads, so that one queue per device orders their reads and writes, and the
capacity, in numbers of frames: a prefix needs a page of every group.
"""

import asyncio
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bodocache.clock import Clock
from bodocache.errors import BackendError, ConfigError
from bodocache.io import manifest
from bodocache.io.config import OpenMode, SlabConfig
from bodocache.io.header import SUPERBLOCK_NBYTES
from bodocache.io.slab import SlabBackend
from bodocache.io.workers import WorkerPool


@dataclass(frozen=True, slots=True)
class GroupFrames:
    """The frames of one group. ``share``: how many it has for each one of a group of share 1."""

    name: str  # of the directory below: lower-case letters, digits, - and _
    page_nbytes: int
    form: bytes
    share: float = 1.0

    def __post_init__(self) -> None:
        if not manifest.GROUP_NAME.fullmatch(self.name):
            raise ConfigError(
                f"group {self.name!r}: expected lower-case letters, digits, - and _, 64 at most"
            )
        if not 0 < self.share < float("inf"):
            raise ConfigError(f"group {self.name}: share={self.share}: must be above 0")


async def open_groups(
    shared: SlabConfig, groups: Sequence[GroupFrames], *, clock: Clock
) -> dict[str, SlabBackend]:
    """A slab for each of ``groups`` below ``shared.directory``, by name.

    ``shared`` says everything else; its capacity and its budget are those of all groups together,
    its page size and form are not used. Slabs of groups that it opened once and that are no longer
    named are removed, for they would count against nothing (manifest.py). Each is closed by itself;
    the last one ends the threads.

    Raises:
        ConfigError: a name stands twice, or the capacity has no frame for some group.
        BackendLocked, BackendError: as for :meth:`SlabBackend.open`.
    """
    configs = _divided(shared, groups)
    if shared.mode is OpenMode.WRITER:
        await asyncio.to_thread(_claim, shared.directory, configs)
    pool = WorkerPool(shared.queue_depth, clock, asyncio.get_running_loop())
    pool.enter()
    opened: dict[str, SlabBackend] = {}
    try:
        for name in sorted(configs, key=lambda name: _growth_nbytes(configs[name])):
            opened[name] = await SlabBackend.open(configs[name], clock=clock, pool=pool)
    except BaseException:
        for backend in opened.values():
            await backend.close()
        raise
    finally:
        await pool.leave()
    return {name: opened[name] for name in configs}


def _divided(shared: SlabConfig, groups: Sequence[GroupFrames]) -> dict[str, SlabConfig]:
    """The configuration of each group: as many frames of each as its share says."""
    whole = [
        replace(
            shared,
            directory=shared.directory / group.name,
            page_nbytes=group.page_nbytes,
            form=group.form,
        )
        for group in groups
    ]
    if len({group.name for group in groups}) != len(groups) or not groups:
        raise ConfigError(f"groups {[group.name for group in groups]}: expected distinct names")
    room = shared.capacity_nbytes - len(groups) * SUPERBLOCK_NBYTES
    weights = [
        group.share * config.written_nbytes for group, config in zip(groups, whole, strict=True)
    ]
    frames = [int(group.share * room / sum(weights)) for group in groups]
    if min(frames) < 1:
        raise ConfigError(
            f"capacity_nbytes={shared.capacity_nbytes}: no room for a frame of every group"
        )
    return {
        group.name: replace(
            config,
            capacity_nbytes=SUPERBLOCK_NBYTES + count * config.written_nbytes,
            write_nbytes_per_day=math.ceil(shared.write_nbytes_per_day * weight / sum(weights)),
        )
        for group, config, count, weight in zip(groups, whole, frames, weights, strict=True)
    }


def _claim(directory: Path, names: Iterable[str]) -> None:
    """Make ``names`` the groups of ``directory``, and remove those of before."""
    try:
        with manifest.opened(directory) as ours:
            ours.keep(names)
    except OSError as error:
        raise BackendError(f"groups {directory}: cannot be opened: {error}") from error


def _growth_nbytes(config: SlabConfig) -> int:
    """How much longer its files become: those that shrink make room for the others."""
    files = [config.directory / name for name in ("payload.slab", "headers.slab")]
    held = sum(file.stat().st_size for file in files if file.is_file())
    return config.capacity_nbytes - held
