# SPDX-License-Identifier: Apache-2.0
"""Page kernels: gather, scatter and digest, each with its plain-PyTorch twin in ``reference``.

Importing this compiles nothing, starts no thread and does not touch CUDA.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bodocache.kernels.digest import digest_pages
    from bodocache.kernels.gather import Gathered, gather_pages
    from bodocache.kernels.scatter import scatter_pages

__all__ = ["Gathered", "digest_pages", "gather_pages", "scatter_pages"]

if not TYPE_CHECKING:
    _HOMES = {
        "Gathered": "gather",
        "digest_pages": "digest",
        "gather_pages": "gather",
        "scatter_pages": "scatter",
    }

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
