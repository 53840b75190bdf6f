# SPDX-License-Identifier: Apache-2.0
"""Pages whose every byte follows from their key, and the check that nothing else is in them.

Written and read through plain views of the pool's memory, not through our kernels: a fault that
gather and scatter shared would show.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.layout import LayoutKind
from bodocache.pools import OwnedPool

WORD_NBYTES = 8
_STEP = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, as in SplitMix64


def seeds(keys: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """One seed per key (u8[N, 32])."""
    return np.ascontiguousarray(keys[:, :8]).view("<u8").ravel()


def words_of(pool: OwnedPool) -> NDArray[np.uint64]:
    """A layer-first CPU pool as u64[kv, layers, pages, words of one piece]."""
    assert pool.layout.kind is LayoutKind.LAYER_FIRST, "the engine's device pool is layer-first"
    group = pool.layout.group
    words = pool.buffer[: pool.layout.pool_nbytes].numpy().view(np.uint64)
    return words.reshape(group.kv, group.layers, pool.num_pages, -1)


@jit.compiled(jit.array("u8", 4), jit.readonly("i8"), jit.readonly("u8"))
def fill(pool: Any, slots: Any, seeds: Any) -> None:
    """Write page i, as its seed says, to ``slots[i]`` of ``pool`` (:func:`words_of`)."""
    kvs, layers, _, words = pool.shape
    for i in range(len(slots)):
        for layer in range(layers):
            for kv in range(kvs):
                piece = pool[kv, layer, slots[i]]
                first = np.uint64((layer * kvs + kv) * words)
                for word in range(words):
                    piece[word] = _word(seeds[i], first + np.uint64(word))


@jit.compiled(jit.readonly("u8", 4), jit.readonly("i8"), jit.readonly("u8"))
def count_wrong_bytes(pool: Any, slots: Any, seeds: Any) -> Any:
    """Bytes of ``slots`` that are not what their pages' seeds say."""
    kvs, layers, _, words = pool.shape
    wrong = 0
    for i in range(len(slots)):
        for layer in range(layers):
            for kv in range(kvs):
                piece = pool[kv, layer, slots[i]]
                first = np.uint64((layer * kvs + kv) * words)
                differs = np.uint64(0)
                for word in range(words):
                    differs |= piece[word] ^ _word(seeds[i], first + np.uint64(word))
                if differs:
                    wrong += _wrong_in(piece, seeds[i], first)
    return wrong


@jit.compiled(jit.readonly("u8"), jit.u8, jit.u8)
def _wrong_in(piece: Any, seed: Any, first: Any) -> Any:
    wrong = 0
    for word in range(len(piece)):
        differs = piece[word] ^ _word(seed, first + np.uint64(word))
        while differs:
            wrong += 1 if differs & np.uint64(0xFF) else 0
            differs >>= np.uint64(8)
    return wrong


@jit.compiled(jit.u8, jit.u8)
def _word(seed: Any, index: Any) -> Any:
    """Word ``index`` of a page: cheap, and no two words of a page or of two pages agree."""
    mixed = seed + index * _STEP
    return mixed ^ (mixed >> np.uint64(29))
