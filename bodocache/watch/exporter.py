# SPDX-License-Identifier: Apache-2.0
"""A small HTTP server on loopback: metrics for Prometheus, the timeline, and what a page's fate is.

It runs on the cache's own loop, so that what it reads stands still meanwhile; text is made in a
thread. Connections, their headers and their time are bounded. It answers GET, and changes nothing.
"""

import asyncio
import json
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from bodocache.errors import ConfigError
from bodocache.pages import KEY_NBYTES
from bodocache.watch.metrics import Watched, collected, exposition
from bodocache.watch.recording import Recording, page_document

HOST = "127.0.0.1"
HEADER_S = 5.0  # for a request's headers
ANSWER_S = 60.0  # for making the answer, and for who reads it
MOST_CONNECTIONS = 16
MOST_HEADER_NBYTES = 8192
LEAST_PREFIX_NBYTES = 8  # of a key that is asked for: shorter ones would find others, too

_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_JSON = "application/json"
_WORDS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed"}


class Exporter:
    """Serves one cache, or node, until closed."""

    _server: asyncio.Server

    def __init__(self, watched: Watched) -> None:
        """Use :meth:`open`."""
        self._watched = watched
        self._serving: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(cls, watched: Watched, port: int) -> Self:
        """Listen on ``port`` of loopback; 0 is any that is free.

        Raises:
            ConfigError: somebody else listens there.
        """
        exporter = cls(watched)
        try:
            # Not serving yet: one that is cancelled as it begins to would be lost while it listens.
            server = await asyncio.start_server(
                *(exporter.begin, HOST, port), limit=MOST_HEADER_NBYTES, start_serving=False
            )
        except OSError as error:
            raise ConfigError(
                f"metrics.port = {port}: {error.strerror or error}; choose another, or 0 for none"
            ) from error
        exporter._server = server
        try:
            await server.start_serving()
        except BaseException:
            server.close()
            raise
        return exporter

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Somebody has connected."""
        if len(self._serving) >= MOST_CONNECTIONS:
            writer.close()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def close(self) -> None:
        """Stop listening, and end what is being served."""
        self._server.close()
        serving = list(self._serving)
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(HEADER_S):
                head = await reader.readuntil(b"\r\n\r\n")
            async with asyncio.timeout(ANSWER_S):
                status, kind, body = await self._answer(head)
                writer.write(_head(status, kind, len(body)) + body)
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever asked is gone, slow or talks something else
        finally:
            writer.close()

    async def _answer(self, head: bytes) -> tuple[int, str, bytes]:
        method, _, rest = head.partition(b" ")
        target = urlsplit(rest.partition(b" ")[0].decode("latin-1"))
        if method != b"GET":
            return 405, _TEXT, b"only GET\n"
        if target.path == "/metrics":
            families = collected(self._watched)
            return 200, _TEXT, await asyncio.to_thread(exposition, families)
        if target.path == "/timeline":
            return 200, _JSON, await self._timeline()
        if target.path == "/page":
            return self._page(parse_qs(target.query).get("key", [""])[0])
        return 404, _TEXT, b"here are /metrics, /timeline and /page?key=HEX\n"

    async def _timeline(self) -> bytes:
        recording = Recording.of(self._watched.mover)
        return await asyncio.to_thread(lambda: _packed(recording.document()))

    def _page(self, key: str) -> tuple[int, str, bytes]:
        try:
            prefix = bytes.fromhex(key)
        except ValueError:
            prefix = b""
        if not LEAST_PREFIX_NBYTES <= len(prefix) <= KEY_NBYTES:
            least, most = 2 * LEAST_PREFIX_NBYTES, 2 * KEY_NBYTES
            return 400, _TEXT, f"key: expected {least} to {most} hex digits, in pairs\n".encode()
        mover = self._watched.mover
        found = page_document(mover.residency, prefix)
        return 200, _JSON, _packed({"taken_s": mover.now_s(), "pages": found})


def _packed(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _head(status: int, kind: str, nbytes: int) -> bytes:
    lines = (
        f"HTTP/1.1 {status} {_WORDS[status]}",
        f"Content-Type: {kind}",
        f"Content-Length: {nbytes}",
        "Connection: close",
    )
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
