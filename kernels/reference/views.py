# SPDX-License-Identifier: Apache-2.0
"""A pool as torch views of the tensors that own it: twins follow no raw addresses."""

import torch

from bodocache.layout import PagedMemory


def page_views(memory: PagedMemory) -> list[torch.Tensor]:
    """Per layer and K/V a view, uint8[num_pages, page_tokens, heads, row_nbytes], in that order."""
    shape = (memory.num_pages, memory.page_tokens, memory.heads, memory.row_nbytes)
    strides = (memory.page_stride, memory.token_stride, memory.head_stride, 1)
    owners = [_bytes_of(tensor) for tensor in memory.tensors()]
    views = []
    for address in memory.bases.ravel().tolist():
        home = next(o for o in owners if 0 <= address - o.data_ptr() < o.numel())
        views.append(torch.as_strided(home, shape, strides, address - home.data_ptr()))
    return views


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """All bytes of the storage behind ``tensor``."""
    empty = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return empty.set_(tensor.untyped_storage())
