# SPDX-License-Identifier: Apache-2.0
"""Starts a host's node where none is: the engine that holds a lock does, the others wait for it.

The node ends by itself when no engine has been attached for a while (``bodocache node --linger``).
"""

import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bodocache.errors import NodeError

_LOOK_S = 0.05
_LOG_TAIL_NBYTES = 2000
_started: list[subprocess.Popen[bytes]] = []  # kept: a node may outlive whoever started it


@dataclass(frozen=True, slots=True)
class NodePlace:
    """Where a node lives: its socket, configuration and log lie in one folder."""

    folder: Path

    @property
    def socket(self) -> Path:
        """Where engines attach."""
        return self.folder / "node.sock"

    @property
    def config(self) -> Path:
        """What it was started with."""
        return self.folder / "node.toml"

    @property
    def log(self) -> Path:
        """What it says."""
        return self.folder / "node.log"


def ensure(place: NodePlace, values: Mapping[str, Any], *, linger_s: float, start_s: float) -> None:
    """Return when a node serves ``place``; one is started with the configuration ``values``.

    A first start compiles: give it minutes.

    Raises:
        NodeError: it did not start, or not within ``start_s``; its log is quoted.
    """
    until_s = time.monotonic() + start_s
    place.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    while not _serves(place.socket):
        with _lock(place.folder / "start.lock") as is_ours:
            if is_ours and not _serves(place.socket):
                _start(place, values, linger_s=linger_s, until_s=until_s)
        if time.monotonic() > until_s:
            raise NodeError(f"{place.folder}: no node serves it after {start_s:g} s")
        time.sleep(_LOOK_S)


def toml_of(values: Mapping[str, Any], section: str = "") -> str:
    """``values`` as TOML: texts, numbers, booleans, lists of texts, and sections of these."""
    tables = {name: it for name, it in values.items() if isinstance(it, Mapping)}
    lines = [
        f"{name} = {json.dumps(it)}"  # TOML's basic strings, numbers and booleans are JSON's
        for name, it in values.items()
        if name not in tables
    ]
    text = "".join(f"{line}\n" for line in lines)
    text = f"[{section}]\n{text}" if section and lines else text
    return text + "".join(
        toml_of(it, f"{section}.{name}" if section else name) for name, it in tables.items()
    )


def _start(place: NodePlace, values: Mapping[str, Any], *, linger_s: float, until_s: float) -> None:
    """Start a node and wait until it serves. Returns too when another one is still ending."""
    place.config.touch(mode=0o600)  # it may hold a key
    place.config.write_text(toml_of(values), encoding="utf-8")
    arguments = ["node", "--config", str(place.config), "--socket", str(place.socket)]
    with place.log.open("ab") as log:
        node = subprocess.Popen(  # noqa: S603 -- ourselves
            [sys.executable, "-m", "bodocache.cli", *arguments, "--linger", str(linger_s)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # what ends the engine does not end the node
        )
    _started.append(node)
    while not _serves(place.socket):
        if node.poll() is not None:
            with _lock(place.socket.with_name("node.sock.lock")) as is_free:
                if not is_free:  # the node before it writes what was admitted, and then it ends
                    return
            raise NodeError(f"{place.folder}: the node ended at its start: {_tail(place.log)}")
        if time.monotonic() > until_s:
            node.terminate()
            raise NodeError(f"{place.folder}: the node does not serve yet: {_tail(place.log)}")
        time.sleep(_LOOK_S)


def _serves(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        try:
            peer.connect(str(path))
        except OSError as error:
            if "too long" in str(error):
                raise NodeError(
                    f"{path}: {error}; choose a directory with a shorter name"
                ) from error
            return False
    return True


@contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Whether the lock at ``path`` is ours inside ``with``."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _tail(log: Path) -> str:
    return log.read_bytes()[-_LOG_TAIL_NBYTES:].decode(errors="replace").strip()
