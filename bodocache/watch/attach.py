# SPDX-License-Identifier: Apache-2.0
"""The other side of the exporter: what ``bodocache top`` and ``why`` read from a running cache."""

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

from bodocache.errors import WatchError

PATIENCE_S = 10.0
MOST_NBYTES = 256 << 20  # of an answer


def address(at: str) -> tuple[str, int]:
    """Host and port of ``at``: "9477", "127.0.0.1:9477" or "http://127.0.0.1:9477".

    Raises:
        WatchError: it is none of them.
    """
    text = f"127.0.0.1:{at}" if at.isdigit() else at
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        if parts.scheme == "http" and parts.hostname and parts.port:
            return parts.hostname, parts.port
    except ValueError:
        pass
    raise WatchError(f"{at!r}: expected a port or a URL, as in 9477 or http://127.0.0.1:9477")


def fetch(at: str, target: str) -> bytes:
    """The exporter's answer to GET ``target``.

    Raises:
        WatchError: nobody listens there, or it is no cache.
    """
    host, port = address(at)
    where = f"{host}:{port}"
    connection = http.client.HTTPConnection(host, port, timeout=PATIENCE_S)
    try:
        connection.request("GET", target)
        answer = connection.getresponse()
        body = answer.read(MOST_NBYTES)
    except TimeoutError as error:
        raise WatchError(f"{where}: no answer in {PATIENCE_S:g} s; its loop may hang") from error
    except ConnectionRefusedError as error:
        raise WatchError(
            f"{where}: nobody listens; a cache or node does with [metrics] port = {port} in its"
            f" configuration, `bodocache replay` with --metrics-port {port}"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise WatchError(f"{where}: {error or type(error).__name__}; is it a cache?") from error
    finally:
        connection.close()
    if answer.status != http.client.OK:
        said = body[:200].decode("utf-8", "replace").strip()
        raise WatchError(f"{where}{target}: {answer.status} {answer.reason}: {said}")
    return body


def fetch_json(at: str, target: str) -> Any:
    """The same, where the answer is JSON."""
    try:
        return json.loads(fetch(at, target))
    except ValueError as error:
        raise WatchError(f"{at}: not what a cache answers ({error}); another program?") from error
