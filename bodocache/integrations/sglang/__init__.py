# SPDX-License-Identifier: Apache-2.0
"""BodoCache under SGLang: a storage backend for HiCache, an external linker, a copy kernel.

SGLang imports modules by the paths in its launch flags and takes classes from them
(docs/sglang.md); the backend's is this one. :mod:`host_copies` needs no SGLang.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "BodoCacheStorage":
        from bodocache.integrations.sglang.storage import BodoCacheStorage

        return BodoCacheStorage
    raise AttributeError(f"module {__name__} has no attribute {name}")
