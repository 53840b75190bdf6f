# SPDX-License-Identifier: Apache-2.0
"""Under TRITON_INTERPRET=1 the launchers run their Triton kernels on CPU tensors: nothing else."""

from dataclasses import dataclass

import pytest
import torch

from bodocache import env
from bodocache.kernels import check
from bodocache.layout import Group, Layout, LayoutKind, PagedMemory


@dataclass(frozen=True)
class Pool:
    """Random pages and a view of them."""

    memory: PagedMemory
    tensors: list[torch.Tensor]

    def bytes(self) -> torch.Tensor:
        return torch.cat([tensor.reshape(-1).view(torch.uint8) for tensor in self.tensors])


def _pool(kind, *, itemsize=2, head_dim=16, num_pages=5, layers=3, heads=2, kv=2, page_tokens=3):
    group = Group("g", layers, heads, head_dim, itemsize, kv)
    layout = Layout(kind, group, page_tokens, num_pages)
    memory = torch.randint(0, 256, (layout.pool_nbytes,), dtype=torch.uint8)
    return Pool(PagedMemory.of_layout(memory, layout), [memory])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(7)


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """The only thing that tests replace in the launchers: their device check."""
    if env.triton_interpreted():
        monkeypatch.setattr(check, "on_gpu", lambda _: True)


@pytest.fixture
def make_pool():
    return _pool


@pytest.fixture(params=list(LayoutKind))
def kind(request):
    return request.param
