# SPDX-License-Identifier: Apache-2.0
"""Twin of ``digest_pages``."""

import torch


def digest_pages(pages: torch.Tensor) -> torch.Tensor:
    """int64[N, 2] digests of uint8[N, nbytes] ``pages``; int64 wraps as u64 does, mod 2^64."""
    words = pages.contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    count = words.shape[1]
    position = torch.arange(1, count + 1, device=pages.device)
    return torch.stack((words.sum(1), (words * position).sum(1)), dim=1) + count
