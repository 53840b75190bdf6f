# SPDX-License-Identifier: Apache-2.0
"""Twin of ``coldest_pages``: a full sort."""

import torch


def coldest_pages(keys: torch.Tensor, depths: torch.Tensor, count: int) -> torch.Tensor:
    """Rows (ascending) of the ``count`` least finite ``keys``, deepest first, then first row."""
    order = depths.argsort(descending=True, stable=True)
    order = order[keys[order].argsort(stable=True)]
    able = int((keys < torch.inf).sum())
    return order[: min(count, able)].sort().values.to(torch.int32)
