# SPDX-License-Identifier: Apache-2.0
"""Who a page is: roots, shards, and the 32-byte keys chained from them (DESIGN.md, "Identity").

Two fields never run together: every field of a root is tagged and length-prefixed, every kind of
message has a BLAKE2b ``person`` of its own, and every key is keyed with the domain's secret.
"""

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache.errors import ConfigError, LayoutError
from bodocache.layout import Group
from bodocache.pages import KEY_NBYTES

_ROOT_PERSON = b"bodocache.root.1"
_PAGE_PERSON = b"bodocache.page.1"
_ENGINE_PERSON = b"bodocache.ekey.1"
_NO_EXTRA = struct.pack("<I", 0)

KeyArray = NDArray[np.uint8]  # [N, 32]


@dataclass(frozen=True, slots=True)
class Domain:
    """Tenants that may share pages. Keys of two domains never meet.

    Without a ``secret`` the domain's name stands for it: fine for one user, guessable by others.
    """

    name: str = "default"
    secret: bytes = b""

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("domain: the name is empty")
        if self.secret and not 16 <= len(self.secret) <= hashlib.blake2b.MAX_KEY_SIZE:
            raise ConfigError(
                f"domain {self.name}: a secret of {len(self.secret)} bytes; give 16 to 64"
            )

    @property
    def hash_key(self) -> bytes:
        """The key of every hash of this domain."""
        return self.secret or hashlib.blake2b(self.name.encode(), digest_size=32).digest()


@dataclass(frozen=True, slots=True)
class Shard:
    """What one page holds of a group: layers, KV heads and, under context parallelism, every
    ``token_stride``-th token from ``first_token`` on. A rank's number is not part of it.
    """

    layers: range
    heads: range
    first_token: int = 0
    token_stride: int = 1

    @classmethod
    def whole(cls, group: Group) -> "Shard":
        """All layers and heads of ``group``."""
        return cls(range(group.layers), range(group.heads))


class HeldShard(NamedTuple):
    """A shard that a rank holds; ``writes`` on the lowest rank that holds it, and only there."""

    shard: Shard
    writes: bool


def shards_of_rank(
    group: Group, *, tp_rank: int, tp_size: int, shard_heads: int | None = None
) -> tuple[HeldShard, ...]:
    """The shards of ``group`` (all heads of the model) that tensor-parallel rank ``tp_rank`` holds.

    With more ranks than heads, heads are replicated (MLA: one head). ``shard_heads`` splits a
    rank's heads so that ranks of another TP size meet on the same keys.

    Raises:
        LayoutError: heads, ranks and shard_heads do not divide.
    """
    if not 0 <= tp_rank < tp_size:
        raise LayoutError(f"tp_rank {tp_rank}: expected 0..{tp_size - 1}")
    more, fewer = max(group.heads, tp_size), min(group.heads, tp_size)
    if more % fewer:
        raise LayoutError(f"group {group.name}: {group.heads} heads over {tp_size} ranks")
    copies = max(1, tp_size // group.heads)  # ranks that hold the same heads
    count = max(1, group.heads // tp_size)
    first = tp_rank // copies * count
    step = shard_heads or count
    if count % step:
        raise LayoutError(f"shard_heads {step}: does not divide the {count} heads of a rank")
    return tuple(
        HeldShard(
            Shard(range(group.layers), range(head, head + step)), writes=tp_rank % copies == 0
        )
        for head in range(first, first + count, step)
    )


@dataclass(frozen=True, slots=True)
class Root:
    """Everything that makes equal tokens different bytes. All of it is in every key."""

    model: str
    page_tokens: int
    group: str
    shard: Shard
    dtype: str
    form: str  # byte order of the payload: layout.LayoutKind, as a rule
    kv: str = "kv"  # or "latent"
    revision: str = ""
    weights_version: str = ""
    quantiser: str = ""
    rope: str = ""
    lora: str = ""
    salt: str = ""

    def encode(self) -> bytes:
        """Tag, length and value of every field, in a fixed order."""
        return b"".join(_tagged(field.name, getattr(self, field.name)) for field in fields(self))

    def with_weights(self, weights_version: str) -> "Root":
        """The same root under other weights."""
        return replace(self, weights_version=weights_version)


class KeyChain:
    """Derives the keys of one root in one domain. Pure CPU work: call it off the loop."""

    __slots__ = ("_engine_hash", "_page_hash", "key_0", "root")

    def __init__(self, domain: Domain, root: Root) -> None:
        self.root = root
        encoded = root.encode()
        key = domain.hash_key
        self.key_0 = _hash(key, _ROOT_PERSON, encoded).digest()
        self._page_hash = _hash(key, _PAGE_PERSON)
        self._engine_hash = _hash(key, _ENGINE_PERSON, encoded)

    def page_keys(
        self, tokens: NDArray[np.uint32], extras: Mapping[int, bytes] | None = None
    ) -> KeyArray:
        """Keys u8[N, 32] of the N whole pages of ``tokens`` (u32[T]); a tail has no key.

        ``extras`` maps a page's number to what its tokens do not say: the content hash of an image
        or clip behind placeholder tokens, embeddings, an engine's extra keys.

        Raises:
            LayoutError: tokens are no one-dimensional array of integers of 32 bits, or an extra is
                for a page that is not there.
        """
        page_tokens = self.root.page_tokens
        checked = _checked(tokens)
        count = len(checked) // page_tokens
        if extras and not all(0 <= page < count for page in extras):
            raise LayoutError(f"extras for pages {sorted(extras)}: the prompt has {count}")
        words = np.ascontiguousarray(checked[: count * page_tokens], "<u4")
        payload = memoryview(words.view(np.uint8).data) if count else memoryview(b"")
        nbytes = 4 * page_tokens
        heads = {page: struct.pack("<I", len(e)) + e for page, e in (extras or {}).items()}
        key, keys, copy = self.key_0, [], self._page_hash.copy
        for page in range(count):
            digest = copy()
            digest.update(key + heads.get(page, _NO_EXTRA))
            digest.update(payload[page * nbytes : (page + 1) * nbytes])
            key = digest.digest()
            keys.append(key)
        return _as_keys(keys)

    def engine_keys(self, engine_keys: Sequence[bytes]) -> KeyArray:
        """Keys u8[N, 32] for pages that an engine already has keys for (already chained)."""
        keys = []
        for engine_key in engine_keys:
            digest = self._engine_hash.copy()
            digest.update(engine_key)
            keys.append(digest.digest())
        return _as_keys(keys)


def _checked(tokens: NDArray[np.integer[Any]]) -> NDArray[np.integer[Any]]:
    """Integers that u32 holds exactly: a cast would give two prompts one key."""
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise LayoutError(f"tokens: {tokens.dtype}{list(tokens.shape)}; expected integers [T]")
    if tokens.dtype != np.uint32 and len(tokens):
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= 1 << 32:
            raise LayoutError(f"tokens: {low} to {high}; expected 0 to {(1 << 32) - 1}")
    return tokens


def _hash(key: bytes, person: bytes, message: bytes = b"") -> "hashlib.blake2b":
    return hashlib.blake2b(message, digest_size=KEY_NBYTES, key=key, person=person)


def _as_keys(keys: list[bytes]) -> KeyArray:
    # A bytearray: compiled code takes writable arrays 10 times as fast as read-only ones.
    return np.frombuffer(bytearray().join(keys), np.uint8).reshape(-1, KEY_NBYTES)


def _tagged(name: str, value: object) -> bytes:
    if isinstance(value, Shard):
        spans = (value.layers.start, value.layers.stop, value.heads.start, value.heads.stop)
        encoded = struct.pack("<6Q", *spans, value.first_token, value.token_stride)
    else:
        encoded = str(value).encode()
    return struct.pack("<II", len(name), len(encoded)) + name.encode() + encoded
