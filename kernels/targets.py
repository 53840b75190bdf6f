# SPDX-License-Identifier: Apache-2.0
"""The GPUs that kernels are compiled for, and which kernels ran on which of them.

Needs no Triton, so that the command line can name them.
"""

from collections.abc import Mapping

TARGETS: Mapping[str, str] = {
    "sm_80": "A100",
    "sm_90": "H100, H200",
    "sm_100": "B200",
    "sm_120": "RTX 50, RTX PRO 6000",
    "gfx942": "MI300",
}

CUDA_TARGETS = frozenset({"sm_90", "sm_100", "sm_120"})  # have what the CUDA sources use

# Kernel -> the targets on which it ran and equalled its twin. A test holds this equal to the union
# of what bench/results/gpu*.json say under ``proven``.
PROVEN: Mapping[str, frozenset[str]] = {
    kernel: frozenset({"sm_90"})
    for kernel in (
        *("gather", "scatter", "digest", "copy", "bulk_copy"),
        *("score", "subtree", "coldest", "quantise"),
    )
}


def proven(kernel: str, target: str) -> bool:
    """Whether a committed result says that ``kernel`` ran on ``target`` and was right."""
    return target in PROVEN.get(kernel, ())
