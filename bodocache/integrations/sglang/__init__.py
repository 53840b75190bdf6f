# SPDX-License-Identifier: Apache-2.0
"""BodoCache under SGLang's HiCache: a storage backend that is named by a launch flag.

SGLang imports this module by its path and takes the class from it (docs/sglang.md). The class is
resolved on first use: only it needs sglang.
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
