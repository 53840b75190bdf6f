# SPDX-License-Identifier: Apache-2.0
"""How long it takes to derive the keys of a prompt of 131,072 tokens, on one core.

Beside it, in turns: a chain of unkeyed SHA-256 over the same bytes, as engines make their keys.
"""

import hashlib
import os
from collections.abc import Callable
from typing import Any

import _common
import numpy as np
from numpy.typing import NDArray

from bodocache.identity import Domain, KeyChain, Root, Shard
from bodocache.layout import Group

TOKENS = 131_072
PAGE_TOKENS = (16, 32, 64, 256, 512)
LIMITS_MS = {16: 7.0, 512: 1.0}
IMAGES = 8  # pages with extras, in the row "extras"
RUNS = 51


def main() -> None:
    arguments = _common.parser(__doc__).parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    tokens = np.random.default_rng(0).integers(0, 128_256, TOKENS, np.uint32)
    rows = [row for page_tokens in PAGE_TOKENS for row in measure(tokens, page_tokens)]
    median = {(row["page_tokens"], row["call"]): row["median_ms"] for row in rows}
    claims = [
        _common.Claim.at_most(f"pages of {size} tokens", median[size, "keys"], limit, "ms")
        for size, limit in LIMITS_MS.items()
    ]
    _common.write(arguments.json, rows, claims, seed=0, tokens=TOKENS)


def measure(tokens: NDArray[np.uint32], page_tokens: int) -> list[dict[str, Any]]:
    """One row per call."""
    pages = TOKENS // page_tokens
    timed = _common.interleaved(calls(tokens, page_tokens), runs=RUNS)
    return [
        {
            "page_tokens": page_tokens,
            "pages": pages,
            "call": name,
            "median_ms": round(timing.median_s * 1e3, 3),
            "p99_ms": round(timing.p99_s * 1e3, 3),
            "us_per_page": round(timing.median_s / pages * 1e6, 3),
        }
        for name, timing in timed.items()
    ]


def calls(tokens: NDArray[np.uint32], page_tokens: int) -> dict[str, Callable[[], object]]:
    group = Group("attention", layers=32, heads=8, head_dim=128, itemsize=2)
    root = Root("model", page_tokens, group.name, Shard.whole(group), "bfloat16", "page")
    chain = KeyChain(Domain("default", b"0123456789abcdef"), root)
    extras = {page: bytes([page]) * 32 for page in range(IMAGES)}
    return {
        "keys": lambda: chain.page_keys(tokens),
        "extras": lambda: chain.page_keys(tokens, extras),
        "sha256": lambda: sha256_chain(tokens, page_tokens),
    }


def sha256_chain(tokens: NDArray[np.uint32], page_tokens: int) -> list[bytes]:
    """The least a chain of SHA-256 can cost in Python."""
    payload, nbytes, key = tokens.tobytes(), 4 * page_tokens, b""
    keys = []
    for begin in range(0, len(payload), nbytes):
        key = hashlib.sha256(key + payload[begin : begin + nbytes]).digest()
        keys.append(key)
    return keys


if __name__ == "__main__":
    main()
