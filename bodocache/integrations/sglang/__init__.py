# SPDX-License-Identifier: Apache-2.0
"""BodoCache under SGLang: a storage backend for HiCache, an external linker, a copy kernel.

SGLang imports modules by the paths in its launch flags and takes classes from them
(docs/sglang.md); the backend's is this one. It is resolved on first use: host_copies needs no
sglang.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bodocache.integrations.sglang.storage import BodoCacheStorage

__all__ = ["BodoCacheStorage"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from bodocache.integrations.sglang import storage

        return getattr(storage, name)
