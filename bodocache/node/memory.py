# SPDX-License-Identifier: Apache-2.0
"""The host pool's memory, shared by the node and its engines: one memfd, mapped by each.

Behind the pool lies the table of what is there (presence.py).

No file has a name, so nothing stays behind: the memory is given back when the last process that
maps it is gone. It is sealed, so that no engine can take it from under the others.
"""

import fcntl
import mmap
import os
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache.errors import BodoCacheError
from bodocache.layout import Layout
from bodocache.node.presence import WORD_NBYTES
from bodocache.pools import OwnedPool, pin


class Shared(NamedTuple):
    """What the node hands to engines: the descriptor of its memory, and how long the table is."""

    descriptor: int
    table_words: int


def create(nbytes: int) -> int:
    """A descriptor of ``nbytes`` of memory to share, of zeros.

    Raises:
        BodoCacheError: the system has no room for it.
    """
    try:
        descriptor = os.memfd_create("bodocache-host", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        raise BodoCacheError(f"shared memory: {error}") from error
    try:
        os.ftruncate(descriptor, nbytes)
        fcntl.fcntl(
            descriptor,
            fcntl.F_ADD_SEALS,
            fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL,
        )
    except (OSError, OverflowError) as error:
        os.close(descriptor)
        raise BodoCacheError(
            f"{nbytes} bytes of shared memory: {error}; make tiers.host.capacity_bytes smaller"
        ) from error
    return descriptor


def size_of(layout: Layout, words: int) -> int:
    """Bytes of the pool of ``layout`` and a table of ``words``."""
    return _table_at(layout) + words * WORD_NBYTES


def table(descriptor: int, layout: Layout, words: int) -> NDArray[np.uint64]:
    """The ``words`` of the table, u64[words], in the memory of ``descriptor``."""
    mapping = mmap.mmap(
        descriptor, words * WORD_NBYTES, flags=mmap.MAP_SHARED, offset=_table_at(layout)
    )
    mapping.madvise(mmap.MADV_DONTFORK)
    return np.frombuffer(mapping, np.uint64)


def _table_at(layout: Layout) -> int:
    return -(-layout.pool_nbytes // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY


def attach(descriptor: int, layout: Layout, *, pinned: bool) -> OwnedPool:
    """The pool of ``layout`` that lies in the memory of ``descriptor``, which stays the caller's.

    ``pinned``: registered with CUDA, for a process that copies to a GPU. Children of a fork do not
    see it: they would hold slots that nobody can fence.
    """
    import torch

    mapping = mmap.mmap(descriptor, layout.pool_nbytes, flags=mmap.MAP_SHARED)
    mapping.madvise(mmap.MADV_DONTFORK)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        mapping.madvise(mmap.MADV_HUGEPAGE)
    memory = torch.frombuffer(mapping, dtype=torch.uint8)
    if pinned:
        pin(memory)
    return OwnedPool(layout, name="host", memory=memory)
