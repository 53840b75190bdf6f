# SPDX-License-Identifier: Apache-2.0
"""The engine's side of the socket for threads: no event loop, no thread that only listens.

Whoever waits reads the socket for all others too, and hands them what it read. So an answer wakes
one thread, not two, which is what counts beside an engine whose Python is busy. Waiting holds no
Python lock, and ends when its time is up, whatever the node does.
"""

import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, Self

from bodocache.errors import NodeFenced, NodeLost, NodeRefused, WireError
from bodocache.node import codec, messages
from bodocache.node.channel import decoded, error_of

Message = Any

_RECEIVE_NBYTES = 1 << 18


class Dialog:
    """A connection to the node that any thread may use."""

    def __init__(
        self,
        peer: socket.socket,
        welcome: messages.Welcome,
        on_arrived: Callable[[messages.Arrived], None],
        *,
        patience_s: float,
    ) -> None:
        """Made by :meth:`connect`. ``on_arrived`` is called under the lock of :meth:`listen`."""
        self.welcome = welcome
        self.is_open = True
        self.is_fenced = False
        self._peer = peer
        self._on_arrived = on_arrived
        self._patience_s = patience_s
        self._splitter = codec.Splitter()
        self._numbers = count(2)  # the hello was 1
        self._answers: dict[int, Message | Exception | None] = {}  # of those who wait
        self._turn = threading.Condition()
        self._is_read = False  # by a thread that waits
        self._sending = threading.Lock()

    @classmethod
    def connect(
        cls,
        path: Path,
        hello: messages.Hello,
        on_arrived: Callable[[messages.Arrived], None],
        *,
        patience_s: float,
    ) -> tuple[Self, int]:
        """A connection to the node at ``path``, and its memory's descriptor, the caller's.

        Raises:
            NodeLost: nobody serves there, or does not answer within ``patience_s``.
            NodeRefused: the node does not serve such pages.
        """
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        received: list[int] = []
        try:
            peer.settimeout(patience_s)
            peer.connect(str(path))
            peer.sendall(codec.encode(messages.KIND_OF[type(hello)], 1, 0, hello))
            welcome = _welcome(path, peer, received)
            peer.setblocking(False)  # noqa: FBT003 -- the socket's own signature
        except BaseException as error:
            peer.close()
            for descriptor in received:
                socket.close(descriptor)
            if isinstance(error, TimeoutError):
                raise NodeLost(f"{path}: the node does not answer in {patience_s:g} s") from error
            if isinstance(error, OSError):
                raise NodeLost(f"{path}: {error}; is a node there?") from error
            raise
        return cls(peer, welcome, on_arrived, patience_s=patience_s), received[0]

    @property
    def epoch(self) -> int:
        """In which this engine is attached."""
        return self.welcome.epoch

    @contextmanager
    def locked(self) -> Iterator[None]:
        """``with``: nothing is handed out; for who changes what ``on_arrived`` changes."""
        with self._turn:
            yield

    def ask(self, message: Message, within_s: float) -> Message:
        """The answer to ``message``.

        Raises:
            NodeLost: the node is gone, or does not answer within ``within_s``.
            NodeFenced: this engine was silent for too long.
            BodoCacheError: what else the node says was wrong.
        """
        number = next(self._numbers)
        with self._turn:
            self._answers[number] = None
        try:
            self._send(number, message)
            until_s = time.monotonic() + within_s
            if not self.listen(lambda: self._answers[number] is not None, until_s):
                raise NodeLost(f"the node did not answer in {within_s:g} s")
        finally:
            with self._turn:
                answer = self._answers.pop(number)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def tell(self, message: Message) -> None:
        """Send what nobody waits for the answer of. NodeLost: as for :meth:`ask`."""
        is_note = isinstance(message, messages.EndFetch)
        self._send(0 if is_note else next(self._numbers), message)

    def listen(self, is_done: Callable[[], bool], until_s: float) -> bool:
        """Wait until ``is_done()``, which is asked under a lock; False when the time is up.

        Raises:
            NodeLost: the node is gone.
        """
        with self._turn:
            while not is_done():
                if not self.is_open:
                    raise NodeLost("the node is gone")
                left_s = until_s - time.monotonic()
                if left_s <= 0:
                    return False
                if self._is_read:
                    self._turn.wait(left_s)
                else:
                    self._read(left_s)
            return True

    def close(self) -> None:
        """End the connection; who waits gets NodeLost."""
        with self._turn:
            self.is_open = False
            with suppress(OSError):  # it is over already
                self._peer.shutdown(socket.SHUT_RDWR)  # wakes who reads
            while self._is_read:  # the descriptor's number must not be another's meanwhile
                self._turn.wait()
            self._turn.notify_all()
        with self._sending:
            self._peer.close()

    def _read(self, within_s: float) -> None:
        """Read once, without the lock; with it again, hand out what came."""
        self._is_read = True
        self._turn.release()
        try:
            data = self._received(within_s)
        finally:
            self._turn.acquire()
            self._is_read = False
            self._turn.notify_all()
        if data == b"":
            self.is_open = False
            return
        for frame in self._splitter.feed(data or b""):
            self._take(frame.number, decoded(frame))

    def _received(self, within_s: float) -> bytes | None:
        """What came; nothing when the node is gone, None when the time is up."""
        try:
            if not _is_ready(self._peer, select.POLLIN, within_s):
                return None
            return self._peer.recv(_RECEIVE_NBYTES)
        except BlockingIOError:
            return None
        except (OSError, ValueError):  # closed by us meanwhile, too
            return b""

    def _take(self, number: int, message: Message) -> None:
        if isinstance(message, messages.Arrived):
            self._on_arrived(message)
        answer: Message | Exception = message
        if isinstance(message, messages.Failed):
            answer = error_of(message)
            self.is_fenced |= isinstance(answer, NodeFenced)
        if number in self._answers:
            self._answers[number] = answer

    def _send(self, number: int, message: Message) -> None:
        data = memoryview(
            codec.encode(messages.KIND_OF[type(message)], number, self.epoch, message)
        )
        if not self._sending.acquire(timeout=self._patience_s):
            raise NodeLost(f"the node took nothing for {self._patience_s:g} s")
        try:
            self._send_all(data)
        except (OSError, ValueError) as error:
            self.is_open = False
            raise NodeLost(f"the node is gone: {error}") from error
        finally:
            self._sending.release()

    def _send_all(self, data: memoryview) -> None:
        first = len(data)
        while data:
            try:
                data = data[self._peer.send(data) :]
            except BlockingIOError:
                if _is_ready(self._peer, select.POLLOUT, self._patience_s):
                    continue
                self.is_open = self.is_open and len(data) == first  # else: half a message
                raise NodeLost(f"the node took nothing for {self._patience_s:g} s") from None


def _is_ready(peer: socket.socket, event: int, within_s: float) -> bool:
    poll = select.poll()
    poll.register(peer, event)
    return bool(poll.poll(1e3 * within_s))


def _welcome(path: Path, peer: socket.socket, received: list[int]) -> messages.Welcome:
    """The node's first message; descriptors that come with it go to ``received``."""
    splitter = codec.Splitter()
    while True:
        data, descriptors, *_ = socket.recv_fds(peer, 1 << 16, 4)
        received += descriptors
        if not data:
            raise NodeRefused(f"{path}: the node ended the connection; its log says why")
        for frame in splitter.feed(data):
            answer = decoded(frame)
            if isinstance(answer, messages.Failed):
                raise error_of(answer)
            if not isinstance(answer, messages.Welcome) or len(received) != 1:
                raise WireError(f"{path}: what serves there is no node of ours")
            return answer
