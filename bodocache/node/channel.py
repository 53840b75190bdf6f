# SPDX-License-Identifier: Apache-2.0
"""The engine's side of the socket: requests are pipelined, each is a future; notes are handed on.

It pings its node several times in ``silence_s``, so that a living engine is never taken for a dead
one as long as its loop turns.
"""

import asyncio
import socket
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from bodocache import errors
from bodocache.errors import NodeError, NodeLost, NodeRefused, WireError
from bodocache.node import codec, messages
from bodocache.node.codec import Frame

PINGS = 4.0  # in the time after which a silent engine is fenced

Message = Any


class Channel(asyncio.Protocol):
    """A connection to the node."""

    def __init__(self, welcome: messages.Welcome, on_note: Callable[[Message], None]) -> None:
        """Made by :func:`connect`."""
        self.welcome = welcome
        self.on_fenced: Callable[[], None] = lambda: None
        self.on_lost: Callable[[], None] = lambda: None
        self._on_note = on_note
        self._splitter = codec.Splitter()
        self._waiting: list[bytes] = []  # to be written with what is said in this turn
        self._answers: dict[int, asyncio.Future[Message]] = {}
        self._numbers = count(2)  # the hello was 1
        self._transport: asyncio.Transport
        self._loop = asyncio.get_running_loop()
        self._pings: asyncio.TimerHandle | None = None
        self._closed: asyncio.Future[None] = self._loop.create_future()

    @property
    def is_open(self) -> bool:
        """Whether anything that is sent may arrive."""
        return not self._closed.done()

    def request(self, message: Message) -> "asyncio.Future[Message]":
        """Send ``message``; its answer, or the error that the node says or that the node is lost.

        A future that nobody awaits may fail unheard.
        """
        answer: asyncio.Future[Message] = self._loop.create_future()
        answer.add_done_callback(_look_at)
        if not self.is_open:
            answer.set_exception(NodeLost("the node is gone"))
            return answer
        number = next(self._numbers)
        self._answers[number] = answer
        answer.add_done_callback(lambda _: self._answers.pop(number, None))
        self._send(number, message)
        return answer

    def note(self, message: Message) -> None:
        """Send what needs no answer."""
        if self.is_open:
            self._send(0, message)

    def close(self) -> None:
        """End the connection; requests without an answer fail."""
        self._flush()
        self._transport.close()

    async def closed(self) -> None:
        """Wait until the connection is over."""
        await asyncio.shield(self._closed)

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The node said welcome before."""
        assert isinstance(transport, asyncio.Transport), "unix sockets have such transports"
        self._transport = transport
        self._ping_later()

    def data_received(self, data: bytes) -> None:
        """Hand on what is complete of it."""
        try:
            for frame in self._splitter.feed(data):
                self._receive(frame)
        except WireError:
            self._transport.abort()
            raise

    def connection_lost(self, exc: Exception | None) -> None:
        """The node is gone."""
        if self._pings is not None:
            self._pings.cancel()
        self._closed.set_result(None)
        for answer in list(self._answers.values()):
            if not answer.done():
                why = "" if exc is None else f": {exc}"
                answer.set_exception(NodeLost(f"the node is gone{why}"))
        self.on_lost()

    def _send(self, number: int, message: Message) -> None:
        kind, epoch = messages.KIND_OF[type(message)], self.welcome.epoch
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(codec.encode(kind, number, epoch, message))

    def _flush(self) -> None:
        """Write what was said in one turn of the loop: a call of the system costs 10 us."""
        if self._waiting:
            self._transport.write(b"".join(self._waiting))
            self._waiting.clear()

    def _receive(self, frame: Frame) -> None:
        message = decoded(frame)
        if not frame.number:
            self._on_note(message)
            return
        answer = self._answers.get(frame.number)
        if isinstance(message, messages.Failed):
            error = error_of(message)
            if answer is not None and not answer.done():
                answer.set_exception(error)
            if isinstance(error, errors.NodeFenced):
                self.on_fenced()
        elif answer is not None and not answer.done():
            answer.set_result(message)

    def _ping_later(self) -> None:
        self._pings = self._loop.call_later(self.welcome.silence_s / PINGS, self._ping)

    def _ping(self) -> None:
        self.request(messages.Ping())
        self._ping_later()


async def connect(
    path: Path,
    hello: messages.Hello,
    on_note: Callable[[Message], None],
    *,
    patience_s: float,
) -> tuple[Channel, int]:
    """A channel to the node at ``path``, and the descriptor of its memory, which is the caller's.

    Raises:
        NodeLost: nobody serves there, or does not answer within ``patience_s``.
        NodeRefused: the node does not serve such pages.
    """
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    peer.setblocking(False)  # noqa: FBT003 -- the socket's own signature
    received: list[int] = []
    try:
        async with asyncio.timeout(patience_s):
            welcome = await _greet(peer, path, hello, received)
        loop = asyncio.get_running_loop()
        _, channel = await loop.create_unix_connection(lambda: Channel(welcome, on_note), sock=peer)
    except BaseException as error:
        peer.close()
        for descriptor in received:
            socket.close(descriptor)
        if isinstance(error, TimeoutError):
            raise NodeLost(f"{path}: the node does not answer within {patience_s:g} s") from error
        if isinstance(error, OSError):
            raise NodeLost(
                f"{path}: {error}; start one: bodocache node --config FILE --socket {path}"
            ) from error
        raise
    return channel, received[0]


async def _greet(
    peer: socket.socket, path: Path, hello: messages.Hello, received: list[int]
) -> messages.Welcome:
    """Say who we are; descriptors that come with the answer go to ``received``."""
    loop = asyncio.get_running_loop()
    await loop.sock_connect(peer, str(path))
    kind = messages.KIND_OF[type(hello)]
    await loop.sock_sendall(peer, codec.encode(kind, 1, 0, hello))
    answer = decoded(await _first_frame(peer, received))
    if isinstance(answer, messages.Failed):
        raise error_of(answer)
    if not isinstance(answer, messages.Welcome) or len(received) != 1:
        raise NodeRefused(f"{path}: what serves there is no node of ours")
    return answer


async def _first_frame(peer: socket.socket, received: list[int]) -> Frame:
    """The node's first message; the descriptors beside it go to ``received``."""
    splitter = codec.Splitter()
    while True:
        await _readable(peer)
        data, descriptors, *_ = socket.recv_fds(peer, 1 << 16, 4)
        received += descriptors
        if not data:
            raise NodeRefused("the node ended the connection; its log says why")
        for frame in splitter.feed(data):
            return frame


async def _readable(peer: socket.socket) -> None:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(peer, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(peer)


def decoded(frame: Frame) -> Message:
    """The message in ``frame``. WireError: it is none of ours."""
    shape = messages.BY_KIND.get(frame.kind)
    if shape is None:
        raise WireError(f"a message of kind {frame.kind}; known: 1 to {len(messages.BY_KIND)}")
    return codec.decode(shape, frame.payload)


def error_of(failed: messages.Failed) -> Exception:
    """What the node says was wrong, as it would be raised here."""
    kind = getattr(errors, failed.error, None) if failed.error in _KNOWN else None
    return NodeError(failed.text) if kind is None else kind(failed.text)


def _look_at(answer: "asyncio.Future[Message]") -> None:
    """So that a failure which nobody awaits is not complained of."""
    if not answer.cancelled():
        answer.exception()


_KNOWN = {
    name
    for name, it in vars(errors).items()
    if isinstance(it, type) and issubclass(it, errors.BodoCacheError)
}
