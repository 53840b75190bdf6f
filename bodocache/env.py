# SPDX-License-Identifier: Apache-2.0
"""The environment variables BodoCache reads, all of them; read when asked, never on import.

NUMBA_CACHE_DIR    where compiled planner code is kept (default: the user's cache)
XDG_CACHE_HOME     the user's cache (default: ~/.cache)
TRITON_INTERPRET   1: Triton kernels run in its interpreter (tests)
CUDA_DEVICE_MAX_CONNECTIONS   CUDA's: 1 makes all streams share one hardware queue
"""

import os
from pathlib import Path


def jit_cache_root() -> Path:
    """The folder under which compiled code is kept; it may not exist or not be writable."""
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    return Path(chosen) if chosen else user_cache() / "bodocache" / "jit"


def user_cache() -> Path:
    """The user's cache folder, by the XDG convention."""
    chosen = os.environ.get("XDG_CACHE_HOME")
    return Path(chosen) if chosen else Path(os.path.expanduser("~")) / ".cache"  # noqa: PTH111 -- Path.expanduser raises without HOME


def triton_interpreted() -> bool:
    """Whether Triton kernels run in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def cuda_shares_one_queue() -> bool:
    """Whether all of a GPU's streams share one hardware queue, as some trainers set it."""
    return os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS") == "1"
