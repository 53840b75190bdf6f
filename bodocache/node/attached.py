# SPDX-License-Identifier: Apache-2.0
"""One attachment of an engine to its node: the channel, the mapped host pool, the copies."""

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bodocache.errors import NodeFenced
from bodocache.layout import Layout
from bodocache.move.copies import Copies
from bodocache.node import memory, messages
from bodocache.node.channel import Channel, connect
from bodocache.pools import BorrowedPool


class Attached:
    """What an engine has of a node until it is lost."""

    def __init__(self, channel: Channel, copies: Copies) -> None:
        self.channel = channel
        self.copies = copies
        self.is_fenced = False  # what was leased before is not ours to write to
        self._copying = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def check_epoch(self, epoch: int) -> None:
        """Raise NodeFenced if what was leased in ``epoch`` is not ours any more."""
        if self.is_fenced or self.channel.welcome.epoch != epoch:
            raise NodeFenced(f"the engine's epoch {epoch} is over; it was silent for too long")

    @contextmanager
    def writing(self, epoch: int) -> Iterator[None]:
        """``with``: slots leased in ``epoch`` are written to. NodeFenced: they are not ours."""
        self.check_epoch(epoch)
        self._copying += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._copying -= 1
            if not self._copying:
                self._idle.set()

    async def idle(self) -> None:
        """Wait until no copy is under way: nothing of us writes to the node's memory."""
        await self._idle.wait()

    def close(self) -> None:
        """Let go of it; copies under way end first."""
        self.channel.close()
        self.copies.close()


async def attach(
    path: Path,
    hello: messages.Hello,
    device: BorrowedPool,
    layout: Layout,
    on_note: Callable[[Any], None],
    *,
    patience_s: float,
) -> Attached:
    """Attach to the node at ``path``.

    Raises:
        NodeLost: nobody serves there, or does not answer within ``patience_s``.
        NodeRefused: the node does not serve such pages.
    """
    channel, descriptor = await connect(path, hello, on_note, patience_s=patience_s)
    try:
        shared = replace(layout, num_pages=channel.welcome.num_pages)
        pinned = device.memory.device.type == "cuda" and torch.cuda.is_available()
        copies = Copies(device, memory.attach(descriptor, shared, pinned=pinned))
    except BaseException:
        channel.close()
        raise
    finally:
        os.close(descriptor)
    return Attached(channel, copies)
