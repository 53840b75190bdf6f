# SPDX-License-Identifier: Apache-2.0
"""The node's side of the socket: accepts engines, reads their requests, answers each.

Everything happens on one event loop; nothing here waits for an engine. A request that is wrong, or
of an epoch that is over, is answered as failed; bytes that are no message end the connection.
"""

import asyncio
import json
import logging
import os
import socket
import struct
from functools import partial
from typing import Any

from bodocache.clock import Clock
from bodocache.errors import BodoCacheError, NodeFenced, NodeRefused, WireError
from bodocache.node import codec, messages, terms
from bodocache.node.answers import Answers
from bodocache.node.codec import Frame
from bodocache.node.memory import Shared
from bodocache.node.session import Session

_log = logging.getLogger(__name__)

Message = Any


class Door:
    """Lets engines in, and keeps count of them."""

    def __init__(
        self,
        answers: Answers,
        ours: messages.Hello,
        memory: Shared,
        *,
        silence_s: float,
        clock: Clock,
    ) -> None:
        """``memory``: the host pool's, which every engine gets a descriptor of."""
        self.answers = answers
        self.silence_s = silence_s
        self.memory = memory
        self.connections: set[Connection] = set()
        self.gone: set[Connection] = set()  # disconnected; their processes are not over
        self.fenced = 0  # engines that were too silent, or left without a word
        self.now_s = clock.now_s
        self._ours = ours
        self._epoch = 0

    def next_epoch(self) -> int:
        """The number of an attachment that begins now."""
        self._epoch += 1
        return self._epoch

    def connect(self) -> "Connection":
        """For an engine that knocks."""
        return Connection(self)

    def admit(self, hello: Message) -> int:
        """The version of the weights of an engine that may come in. NodeRefused: it may not."""
        if not isinstance(hello, messages.Hello):
            raise WireError(f"{type(hello).__name__} before Hello")
        try:
            terms.check(hello, self._ours)
        except (ValueError, AttributeError) as error:
            raise WireError(f"hello: {error}") from error
        return self.answers.version_of(hello.weights.tobytes())

    def welcome(self, epoch: int) -> messages.Welcome:
        """What an engine is told."""
        pages = self.answers.host.residency.host.num_pages
        return messages.Welcome(epoch, pages, self.silence_s, self.memory.table_words)

    def describe(self) -> dict[str, object]:
        """Figures of the node and its engines."""
        engines = [
            {
                "pid": it.session.pid,
                "epoch": it.session.epoch,
                "fenced": it.session.is_fenced,
                "loads": len(it.session.fetches),
                "stores": len(it.session.stages),
                "quarantined_slots": it.session.quarantined,
            }
            for it in self.connections | self.gone
            if it.session is not None
        ]
        return {**self.answers.host_figures(), "engines": engines, "fenced": self.fenced}

    def close(self) -> None:
        """End every connection. What engines wrote is not looked at any more."""
        for connection in list(self.connections | self.gone):
            connection.abort()


class Connection(asyncio.Protocol):
    """One engine on the socket."""

    def __init__(self, door: Door) -> None:
        self.session: Session | None = None
        self._door = door
        self._splitter = codec.Splitter()
        self._pidfd = -1
        self._heard_s = door.now_s()
        self._watch: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """An engine knocks."""
        assert isinstance(transport, asyncio.Transport), "unix sockets have such transports"
        self._transport = transport
        self._door.connections.add(self)
        self._heard_s = self._door.now_s()
        self._listen()

    def data_received(self, data: bytes) -> None:
        """Answer what is complete of it."""
        self._heard_s = self._door.now_s()
        try:
            for frame in self._splitter.feed(data):
                self._receive(frame)
        except WireError as error:
            _log.warning("an engine is sent away: %s", error)
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The engine left, or died: nothing of it may land any more."""
        self._door.connections.discard(self)
        if self._watch is not None:
            self._watch.cancel()
        if self.session is None:
            self._forget()
            return
        if self.session.is_fenced:
            _log.info("engine %d (pid %d) is gone", self.session.epoch, self.session.pid)
        else:
            self._fence("left without a word" if exc is None else str(exc))
        if self.session.quarantined:
            self._door.gone.add(self)
            self._await_its_end()
        else:
            self._forget()

    # Life and death

    def abort(self) -> None:
        """The node ends: so do its sessions."""
        self._transport.abort()
        if self.session is not None:
            self.session.fence()
            self.session.free()
        self._forget()

    def _listen(self) -> None:
        """Look again when the engine could have been silent for too long."""
        loop, door = asyncio.get_running_loop(), self._door
        silent_s = door.now_s() - self._heard_s
        if silent_s < door.silence_s:
            self._watch = loop.call_later(door.silence_s - silent_s, self._listen)
            return
        if self.session is None:
            self._transport.abort()
            return
        if not self.session.is_fenced:
            self._fence(f"silent for {silent_s:.1f} s")
            if self.session.quarantined:
                self._await_its_end()
        self._watch = loop.call_later(door.silence_s, self._listen)

    def _fence(self, why: str) -> None:
        assert self.session is not None, "only who was let in holds anything"
        self._door.fenced += 1
        self.session.fence()
        _log.warning("engine %d (pid %d): %s; fenced", self.session.epoch, self.session.pid, why)

    def _await_its_end(self) -> None:
        """Quarantined slots go back when the process is over."""
        if self._pidfd < 0:
            self._process_ended()
        else:
            asyncio.get_running_loop().add_reader(self._pidfd, self._process_ended)

    def _process_ended(self) -> None:
        """Nothing of the engine writes any more."""
        if self.session is not None:
            self.session.free()
        self._forget()

    def _forget(self) -> None:
        self._door.gone.discard(self)
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    # Messages

    def send(self, number: int, message: Message) -> None:
        """Send an answer to request ``number``, or a note (0)."""
        if self._transport.is_closing() or self.session is None:
            return
        kind = messages.KIND_OF[type(message)]
        self._transport.write(codec.encode(kind, number, self.session.epoch, message))

    def _receive(self, frame: Frame) -> None:
        shape = messages.BY_KIND.get(frame.kind)
        if shape is None:
            raise WireError(f"a message of kind {frame.kind}; known: 1 to {len(messages.BY_KIND)}")
        message = codec.decode(shape, frame.payload)
        if self.session is None:
            self._let_in(frame.number, message)
            return
        try:
            self._check_epoch(self.session, frame, message)
            self._answer(self.session, frame.number, message)
        except BodoCacheError as error:
            self._fail(frame.number, error)

    def _check_epoch(self, session: Session, frame: Frame, message: Message) -> None:
        if isinstance(message, messages.Resume | messages.Bye):
            return
        if session.is_fenced or frame.epoch != session.epoch:
            raise NodeFenced(
                f"{type(message).__name__}: the engine's epoch {frame.epoch} is over; it was silent"
                f" for more than node.silence_s = {self._door.silence_s:g} s, and what it held is"
                " others' now; resume, and load and store again"
            )

    def _answer(self, session: Session, number: int, message: Message) -> None:
        match message:
            case messages.Ping():
                self.send(number, messages.Done())
            case messages.Resume():
                session.resume(self._door.next_epoch())
                self.send(number, self._door.welcome(session.epoch))
            case messages.Bye():
                self._door.answers.host.nursery.spawn(self._part(session, number))
            case messages.Ask():
                self.send(number, messages.Told(json.dumps(self._door.describe())))
            case _:
                later = self._door.answers.answer(session, message, partial(self.send, 0))
                self._deliver(number, later)

    async def _part(self, session: Session, number: int) -> None:
        """The engine leaves: answered when nothing is held of it, and it is not one of ours."""
        operations = list(session.operations.values())
        session.fence()
        session.free()
        await session.drained()
        for operation in operations:
            await operation
        self.send(number, messages.Done())
        self._door.connections.discard(self)
        self._transport.close()

    def _deliver(self, number: int, later: Message) -> None:
        """An answer, None for a note's, or a coroutine that gives one."""
        if asyncio.iscoroutine(later):
            self._door.answers.host.nursery.spawn(self._deliver_later(number, later))
        elif later is not None:
            self.send(number, later)

    async def _deliver_later(self, number: int, later: Any) -> None:
        try:
            self.send(number, await later)
        except BodoCacheError as error:
            self._fail(number, error)

    def _fail(self, number: int, error: BodoCacheError) -> None:
        if number:
            self.send(number, messages.Failed(type(error).__name__, str(error)))
        elif not isinstance(error, NodeFenced):
            raise error  # notes are made by our own code: a wrong one is a WireError

    def _let_in(self, number: int, hello: Message) -> None:
        epoch = self._door.next_epoch()
        host = self._door.answers.host
        try:
            version = self._door.admit(hello)
            pid, self._pidfd = _process_of(self._transport)
        except NodeRefused as error:
            _log.warning("an engine is refused: %s", error)
            failed = messages.Failed(type(error).__name__, str(error))
            self._transport.write(_encoded(number, epoch, failed))
            self._transport.close()
            return
        self.session = Session(epoch, pid, host.fetcher, host.stager)
        self.session.version = version
        answer = _encoded(number, epoch, self._door.welcome(epoch))
        _send_with(self._transport, answer, self._door.memory.descriptor)
        _log.info("engine %d (pid %d) is attached", epoch, pid)


def _encoded(number: int, epoch: int, message: Message) -> bytes:
    return codec.encode(messages.KIND_OF[type(message)], number, epoch, message)


def _process_of(transport: asyncio.Transport) -> tuple[int, int]:
    """The engine's process, and a descriptor that says when it has ended.

    Raises:
        NodeRefused: the system does not tell, so that its writes could never be known to be over.
    """
    peer = transport.get_extra_info("socket")
    packed = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid = struct.unpack("3i", packed)[0]
    try:
        return pid, os.pidfd_open(pid)
    except OSError as error:
        raise NodeRefused(
            f"the engine's process {pid} cannot be watched: {error}; run engine and node in one"
            " PID namespace"
        ) from error


def _send_with(transport: asyncio.Transport, data: bytes, descriptor: int) -> None:
    """Send the first answer with a descriptor beside it; nothing was sent before."""
    with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as peer:
        sent = socket.send_fds(peer, [data], [descriptor])
    if sent < len(data):
        transport.write(data[sent:])
