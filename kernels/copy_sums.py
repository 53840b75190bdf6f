# SPDX-License-Identifier: Apache-2.0
"""Copy pages between two pools, and sum what is copied, layer by layer, on the way."""

from typing import NamedTuple

import torch

from bodocache.kernels import check
from bodocache.kernels.check import Indices
from bodocache.kernels.copy import PageCopy, launch_pair, on_stream, seen_by
from bodocache.kernels.reference.copy import sum_pages as sums_twin
from bodocache.kernels.runs import pair_of
from bodocache.kernels.select import CopyPath
from bodocache.layout import PagedMemory


class Sums(NamedTuple):
    """Raw sums of what was copied: int64[n, layers, 2], the bits of u64 words (digest.py)."""

    words: torch.Tensor

    @property
    def layers(self) -> int:
        """Layers of each page."""
        return int(self.words.shape[1])


def copy_and_sum_pages(
    source: PagedMemory,
    destination: PagedMemory,
    source_slots: Indices,
    destination_slots: Indices,
    *,
    layers: range | None = None,
    blocks: int | None = None,
    stream: "torch.cuda.Stream | None" = None,
) -> Sums:
    """As :func:`copy_pages`, by the SM kernel or on the host, with the raw sums of every layer.

    A layer's words count from its own first: its part of the ``page`` form starts at word o of the
    page, so the page's digest is ``sum(a) + n, sum(b + o * a) + n``. The sums belong to ``stream``.
    """
    copy = PageCopy(source, destination, layers=layers, blocks=blocks)
    pair = pair_of("copy_and_sum_pages", copy.source, copy.destination, by_layer=True)
    depth = copy.source.layers
    with on_stream(stream, copy.device):
        slots = seen_by(stream, copy.checked(source_slots, destination_slots))
        count = len(slots[0])
        if not check.on_gpu(copy.device):
            if count:
                copy.copy_on_host(*slots)
            return Sums(sums_twin(copy.source, slots[0]))
        words = torch.zeros((count, depth, 2), dtype=torch.int64, device=copy.device)
        if count:
            placed = copy.placed(CopyPath.SM, *slots)
            launch_pair(pair, placed, copy.blocks, words.view(-1, 2), parts=depth).run()
    return Sums(words)
