# SPDX-License-Identifier: Apache-2.0
"""What a node and an engine must agree on before a byte is shared: what a page is, and whose."""

import json
from dataclasses import fields

import numpy as np

from bodocache.config import CacheConfig, NodeConfig
from bodocache.errors import ConfigError, NodeRefused
from bodocache.identity import Domain, KeyChain, Root
from bodocache.layout import Group, Layout, LayoutKind
from bodocache.node.messages import PROTOCOL, Bytes, Hello

_SECRET = ("salt", "weights_version")  # one is not shown, the other may differ


def layout_for(config: CacheConfig) -> Layout:
    """The pages that a node's configuration says it serves; ``num_pages`` is 1.

    Raises:
        ConfigError: it does not say.
    """
    node = config.node
    if node is None:
        names = ", ".join(it.name for it in fields(NodeConfig) if it.name != "silence_s")
        raise ConfigError(f"node: missing; a node must be told what a page is: {names}")
    group = Group(
        node.group, node.layers, node.heads, node.head_dim, itemsize=node.itemsize, kv=node.kv
    )
    return Layout(LayoutKind.PAGE, group, node.page_tokens, 1)


def hello_of(domain: Domain, root: Root, layout: Layout) -> Hello:
    """What an engine says of itself."""
    pages = {it.name: str(getattr(root, it.name)) for it in fields(root) if it.name not in _SECRET}
    pages |= {"domain": domain.name, "group": str(layout.group)}
    anonymous = KeyChain(domain, root.with_weights("")).key_0
    weights = KeyChain(domain, root).key_0
    return Hello(PROTOCOL, json.dumps(pages), _bytes(anonymous), _bytes(weights))


def check(hello: Hello, ours: Hello) -> None:
    """Raise NodeRefused, with both sides named, unless ``hello`` is of an engine like ``ours``."""
    if hello.protocol != ours.protocol:
        raise NodeRefused(
            f"the engine speaks protocol {hello.protocol}, the node {ours.protocol}: run both from"
            " one version of bodocache"
        )
    theirs, mine = json.loads(hello.pages), json.loads(ours.pages)
    differs = sorted(name for name in theirs.keys() | mine.keys() if _differs(name, theirs, mine))
    if differs:
        said = "; ".join(
            f"{it}: engine {theirs.get(it)!r}, node {mine.get(it)!r}" for it in differs
        )
        raise NodeRefused(f"the engine's pages are not the node's: {said}")
    if hello.identity.tobytes() != ours.identity.tobytes():
        raise NodeRefused(
            "the engine's keys are not the node's, though all that may be shown agrees: compare"
            " identity.domain_secret_hex and identity.salt of both configurations"
        )


def _differs(name: str, theirs: dict[str, str], mine: dict[str, str]) -> bool:
    return theirs.get(name) != mine.get(name)


def _bytes(key: bytes) -> Bytes:
    return np.frombuffer(bytearray(key), np.uint8)
