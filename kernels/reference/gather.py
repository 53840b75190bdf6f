# SPDX-License-Identifier: Apache-2.0
"""Twin of ``gather_pages``."""

import torch

from bodocache.kernels.reference.digest import digest_pages
from bodocache.kernels.reference.views import page_views
from bodocache.layout import PagedMemory


def gather_pages(
    source: PagedMemory, slots: torch.Tensor, rows: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    """Copy pages ``slots`` of ``source`` to ``rows`` of ``out``; return their digests."""
    pieces = [view[slots.long()].flatten(1) for view in page_views(source)]
    pages = torch.cat(pieces, dim=1)
    out[rows.long()] = pages
    return digest_pages(pages)
