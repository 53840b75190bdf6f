# SPDX-License-Identifier: Apache-2.0
"""Digests of pages in device memory, as a backend that reads straight into it wants them."""

import numpy as np
import torch
from numpy.typing import NDArray

from bodocache.kernels import digest_pages

SCRATCH_NBYTES = 64 << 20  # of scattered pages, copied together at once


def digest_device_rows(pages: torch.Tensor, rows: NDArray[np.int64], /) -> NDArray[np.uint64]:
    """The digests of ``rows`` of ``pages`` (u8[slots, nbytes]), before the key's seed: u64[N, 2].

    Adjacent rows are digested where they are; others are copied together first, for a launch costs
    more than a page. Returns when the device has read them.
    """
    if not len(rows):
        return np.empty((0, 2), np.uint64)
    if (np.diff(rows) == 1).all():
        return _digests(pages[int(rows[0]) : int(rows[-1]) + 1])
    together = max(1, SCRATCH_NBYTES // pages.shape[1])
    parts = [torch.from_numpy(rows[i : i + together]) for i in range(0, len(rows), together)]
    return np.concatenate(
        [_digests(pages.index_select(0, part.to(pages.device))) for part in parts]
    )


def _digests(pages: torch.Tensor) -> NDArray[np.uint64]:
    digests: NDArray[np.uint64] = digest_pages(pages).cpu().numpy().view(np.uint64)
    return digests
