# SPDX-License-Identifier: Apache-2.0
"""Download of public traces by name: what we know of each, and a transfer that checks it.

A file appears under its name only after its checksum was found right; a failed transfer leaves
nothing behind. A trace is not ours: its licence and source are printed with it.
"""

import hashlib
import http.client
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

from bodocache.errors import ConfigError, TraceError

CHUNK_BYTES = 64 << 10
TIMEOUT_S = 30.0  # without a byte

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class NamedTrace:
    """A public trace: where it lies, whose it is, and what its bytes are."""

    url: str
    sha256: str
    nbytes: int
    licence: str
    note: str


NAMED = {
    "mooncake-conversation": NamedTrace(
        url=(
            "https://raw.githubusercontent.com/kvcache-ai/Mooncake/3b5a594"
            "/FAST25-release/traces/conversation_trace.jsonl"
        ),
        sha256="b8cbb061a85206d729d91cdc2981f43c9e0d99209dce588d3af5f7934408b9df",
        nbytes=3_029_533,
        licence="Apache-2.0",
        note="one hour of conversations, 12,031 requests (Mooncake, FAST '25)",
    ),
}


@dataclass(frozen=True, slots=True)
class Fetched:
    """Where a trace lies now, and whether it had to be downloaded."""

    path: Path
    trace: NamedTrace
    downloaded: bool


def find(name: str) -> NamedTrace:
    """Return the trace of this name, or raise ConfigError with the names there are."""
    if name not in NAMED:
        raise ConfigError(f"trace {name!r}: unknown, expected one of: {', '.join(sorted(NAMED))}")
    return NAMED[name]


def fetch(
    name: str,
    folder: Path,
    *,
    url: str | None = None,
    timeout_s: float = TIMEOUT_S,
    progress: Progress = lambda done, total: None,  # noqa: ARG005 -- a caller without a bar
) -> Fetched:
    """Put ``NAME.jsonl`` into ``folder``, from ``url`` (a mirror) or the trace's own.

    Nothing is downloaded where the right file already lies there. ``progress`` is told (bytes
    so far, of how many). ConfigError: unknown name, URL that is not http(s). TraceError: another
    file in the way, a transfer that fails or is silent for ``timeout_s``, a wrong checksum.
    """
    trace = find(name)
    source = _checked_url(url or trace.url)
    path = folder / f"{name}.jsonl"
    try:
        if path.exists():
            _expect(_sha256(path), trace, f"{path}: already there")
            return Fetched(path, trace, downloaded=False)
        folder.mkdir(parents=True, exist_ok=True)
        _download(source, path, trace, timeout_s, progress)
    except (OSError, URLError, http.client.HTTPException) as error:
        raise TraceError(f"{source} -> {path}: cannot be fetched: {error}") from error
    return Fetched(path, trace, downloaded=True)


def _checked_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"url {url!r}: got scheme {parts.scheme!r}, expected http or https")
    return url


def _download(
    source: str, path: Path, trace: NamedTrace, timeout_s: float, progress: Progress
) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            _expect(_transfer(source, file, trace.nbytes, timeout_s, progress), trace, source)
        partial.chmod(0o644)  # mkstemp's is for its owner alone
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _transfer(
    source: str, file: BinaryIO, nbytes: int, timeout_s: float, progress: Progress
) -> str:
    """Copy at most one byte more than expected (a wrong file fills no disk); return its sha256."""
    digest, done = hashlib.sha256(), 0
    with urlopen(source, timeout=timeout_s) as response:  # noqa: S310 -- _checked_url: http(s) only
        while chunk := response.read(min(CHUNK_BYTES, nbytes + 1 - done)):
            file.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            progress(done, nbytes)
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _expect(found: str, trace: NamedTrace, what: str) -> None:
    if found != trace.sha256:
        raise TraceError(
            f"{what}: sha256 {found}, expected {trace.sha256}; "
            "it is not that trace: move it away, or give the url of a true copy"
        )
