# SPDX-License-Identifier: Apache-2.0
"""The disk tier as its configuration says: one slab, or one in each of several directories."""

from functools import partial

from bodocache.clock import Clock
from bodocache.config import DiskConfig
from bodocache.errors import BackendError
from bodocache.io.backend import Backend
from bodocache.io.config import SlabConfig
from bodocache.io.slab import SlabBackend
from bodocache.io.spread import SpreadBackend


async def open_disk(tier: DiskConfig, *, page_nbytes: int, form: bytes, clock: Clock) -> Backend:
    """Open or create the slabs of ``tier`` for pages of one size and form.

    Raises:
        ConfigError: there is no room for one frame in each directory.
        BackendLocked: another process writes to one of them.
        BackendError: none of them can be opened.
    """
    count = len(tier.directories)
    slabs = [
        SlabConfig(
            directory=directory,
            capacity_nbytes=tier.capacity_bytes // count,
            page_nbytes=page_nbytes,
            form=form,
            queue_depth=tier.queue_depth,
            chunk_nbytes=tier.chunk_bytes,
            write_nbytes_per_day=-(-tier.write_bytes_per_day // count),
            mac_key=bytes.fromhex(tier.mac_key_hex),
        )
        for directory in tier.directories
    ]
    if count == 1:
        return await SlabBackend.open(slabs[0], clock=clock)
    return await SpreadBackend.open([partial(_open, slab, clock) for slab in slabs], clock=clock)


async def _open(slab: SlabConfig, clock: Clock) -> Backend:
    """Open one of several; where its directory is missing, a disk is: none is made in its place."""
    if not slab.directory.is_dir():
        raise BackendError(f"slab {slab.directory}: not there")
    return await SlabBackend.open(slab, clock=clock)
