# SPDX-License-Identifier: Apache-2.0
"""Page kernels, each with its plain-PyTorch twin in ``reference``.

Importing this compiles nothing, starts no thread and does not touch CUDA.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bodocache.kernels.coldest import Coldest, coldest_pages
    from bodocache.kernels.copy import PageCopy, copy_pages
    from bodocache.kernels.copy_sums import Sums, copy_and_sum_pages
    from bodocache.kernels.digest import digest_pages
    from bodocache.kernels.gather import Gathered, gather_pages, gather_plain
    from bodocache.kernels.layerwise import LayerwiseCopy
    from bodocache.kernels.page_records import DevicePages, Formula
    from bodocache.kernels.quantise import gather_quantised, scatter_quantised
    from bodocache.kernels.quantiser import Quantiser, quantised_nbytes
    from bodocache.kernels.scatter import scatter_pages, scatter_plain
    from bodocache.kernels.score import score_pages
    from bodocache.kernels.select import CopyPath
    from bodocache.kernels.subtree import refresh_keys

__all__ = [
    "Coldest",
    "CopyPath",
    "DevicePages",
    "Formula",
    "Gathered",
    "LayerwiseCopy",
    "PageCopy",
    "Quantiser",
    "Sums",
    "coldest_pages",
    "copy_and_sum_pages",
    "copy_pages",
    "digest_pages",
    "gather_pages",
    "gather_plain",
    "gather_quantised",
    "quantised_nbytes",
    "refresh_keys",
    "scatter_pages",
    "scatter_plain",
    "scatter_quantised",
    "score_pages",
]

if not TYPE_CHECKING:
    _HOMES = {
        "Coldest": "coldest",
        "CopyPath": "select",
        "DevicePages": "page_records",
        "Formula": "page_records",
        "Gathered": "gather",
        "LayerwiseCopy": "layerwise",
        "PageCopy": "copy",
        "Quantiser": "quantiser",
        "Sums": "copy_sums",
        "coldest_pages": "coldest",
        "copy_and_sum_pages": "copy_sums",
        "copy_pages": "copy",
        "digest_pages": "digest",
        "gather_pages": "gather",
        "gather_plain": "gather",
        "gather_quantised": "quantise",
        "quantised_nbytes": "quantiser",
        "refresh_keys": "subtree",
        "scatter_pages": "scatter",
        "scatter_plain": "scatter",
        "scatter_quantised": "quantise",
        "score_pages": "score",
    }

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
