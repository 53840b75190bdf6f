# SPDX-License-Identifier: Apache-2.0
"""Twin of ``scatter_pages``."""

import torch

from bodocache.kernels.reference.digest import digest_pages
from bodocache.kernels.reference.views import page_views
from bodocache.layout import PagedMemory


def scatter_pages(
    pages: torch.Tensor, destination: PagedMemory, slots: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor:
    """Copy ``rows`` of ``pages`` to pages ``slots`` of ``destination``; return their digests."""
    chosen = pages[rows.long()]
    views = page_views(destination)
    for view, piece in zip(views, chosen.chunk(len(views), dim=1), strict=True):
        view[slots.long()] = piece.reshape(len(slots), *view.shape[1:])
    return digest_pages(chosen)
