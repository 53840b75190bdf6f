# SPDX-License-Identifier: Apache-2.0
"""Twins of ``copy_pages`` and of the sums of ``copy_and_sum_pages``."""

import torch

from bodocache.kernels.reference.digest import digest_pages
from bodocache.kernels.reference.views import page_views
from bodocache.layout import PagedMemory

WORD_NBYTES = 4


def copy_pages(
    source: PagedMemory,
    destination: PagedMemory,
    source_slots: torch.Tensor,
    destination_slots: torch.Tensor,
) -> None:
    """Copy pages ``source_slots`` to ``destination_slots``; any devices, with torch alone."""
    for ours, theirs in zip(page_views(source), page_views(destination), strict=True):
        chosen = ours[source_slots.long().to(ours.device)]
        theirs[destination_slots.long().to(theirs.device)] = chosen.to(theirs.device)


def sum_pages(source: PagedMemory, slots: torch.Tensor) -> torch.Tensor:
    """Raw sums of every layer of pages ``slots``: int64[n, layers, 2]."""
    views = page_views(source)
    sums = []
    for layer in range(source.layers):
        pieces = views[layer * source.kv : (layer + 1) * source.kv]
        part = torch.cat([piece[slots.long()].flatten(1) for piece in pieces], dim=1)
        sums.append(digest_pages(part) - part.shape[1] // WORD_NBYTES)
    return torch.stack(sums, dim=1)
