# SPDX-License-Identifier: Apache-2.0
"""What a tenant's hints are worth: what was said, counted against what came.

A hint says with which chance its pages are used again within a horizon; it falls into one of
BUCKETS. Of each bucket we count how many were said and how many came, each by its pages over the
tenant's mean (1 at least), so that many small truths do not pay for a large lie; the newest MEMORY
outcomes weigh most (each outcome makes all earlier ones (1 - 1/MEMORY) of what they were)::

    base  b = (came + BASE_PRIOR * BASE_COUNT) / (said + BASE_COUNT)            all buckets
    chance q = (came_k + b * SHRINKAGE) / (said_k + SHRINKAGE)                  bucket k

The gain G is the log score, in bits, of q over b, each outcome predicted before it is counted
(prequential: Dawid 1984): ``log2(q/b)`` if it came, ``log2((1-q)/(1-b))`` if not. 2^G is the
likelihood ratio of "these hints tell something" to "they do not"; with DOUBT_BITS against it, the
weight ``w = max(0, tanh(ln 2 / 2 * (G - DOUBT_BITS)))`` is 0 until the evidence is for the hints.
Were b the true rate, useless ones would bring G past DOUBT_BITS with a chance of at most
2^-DOUBT_BITS (Ville). It is an estimate, by pages: where long prompts come back oftener than short
ones, or the rate falls, useless hints pass far more often than that.

A hint multiplies the value of its pages by ``(q/(1-q) * (1-b)/b)^w``, the ratio of the odds: one
whose bucket is like all others changes nothing. The odds, as the longer a page waits unused the
likelier it never is, and the chance of that falls behind in proportion to them.
"""

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan.records import Int

END, SILENT = 0, 9  # buckets of "it has ended" (chance 0) and of a request that came with no hint
LEVELS = 8  # buckets 1 to 8: equal widths of the chance that was said
BUCKETS = LEVELS + 2

MEMORY = 1024  # outcomes
SHRINKAGE = 8.0  # outcomes a bucket must have before it outweighs the base rate
BASE_PRIOR, BASE_COUNT = 0.25, 4.0  # about what the conversation trace's pages have
DOUBT_BITS = 7.0
FORGIVEN_ENDS = 1.0  # wrong ends before they are held against a tenant

# One tenant's record; zeroed memory is a tenant of whom nothing is known.
TRUST = np.dtype(
    [
        ("said", "<f8", (BUCKETS,)),  # decayed counts
        ("came", "<f8", (BUCKETS,)),
        ("mean_pages", "<f8"),  # of a request
        ("gain_bits", "<f8"),
        ("outcomes", "<u8"),  # counted, undecayed
    ],
    align=True,
)
_TRUSTS = jit.array(TRUST)


@jit.kernel(jit.f8)
def bucket_of(chance: float) -> int:
    """The bucket of a said chance in [0, 1]; SILENT for NaN."""
    if np.isnan(chance):
        return SILENT
    if chance <= 0.0:
        return END
    return 1 + min(int(chance * LEVELS), LEVELS - 1)


@jit.kernel(_TRUSTS, jit.i8)
def base_rate(trusts: NDArray[np.void], row: Int) -> float:
    """How often anything of this tenant is used again within the horizon."""
    said, came = 0.0, 0.0
    for bucket in range(BUCKETS):
        said += trusts[row]["said"][bucket]
        came += trusts[row]["came"][bucket]
    return float((came + BASE_PRIOR * BASE_COUNT) / (said + BASE_COUNT))


@jit.kernel(_TRUSTS, jit.i8, jit.i8)
def chance(trusts: NDArray[np.void], row: Int, bucket: Int) -> float:
    """How often what this tenant said with ``bucket`` was used again, shrunk to its base rate."""
    trust = trusts[row]
    prior = base_rate(trusts, row) * SHRINKAGE
    return float((trust["came"][bucket] + prior) / (trust["said"][bucket] + SHRINKAGE))


@jit.kernel(_TRUSTS, jit.i8)
def weight(trusts: NDArray[np.void], row: Int) -> float:
    """What the tenant's hints are worth, in [0, 1]; 0 while nothing speaks for them."""
    evidence_bits = trusts[row]["gain_bits"] - DOUBT_BITS
    return float(max(0.0, np.tanh(0.5 * np.log(2.0) * evidence_bits)))


@jit.kernel(_TRUSTS, jit.i8, jit.i8)
def favour(trusts: NDArray[np.void], row: Int, bucket: Int) -> float:
    """log2 of what a hint of ``bucket`` multiplies the value of its pages by."""
    trusted = weight(trusts, row)
    if trusted == 0.0:
        return 0.0
    said, base = chance(trusts, row, bucket), base_rate(trusts, row)
    return float(trusted * np.log2(said / (1.0 - said) * (1.0 - base) / base))


@jit.kernel(_TRUSTS, jit.i8)
def heeds_end(trusts: NDArray[np.void], row: Int) -> bool:
    """Whether "it has ended" is taken at its word: ended ones come at most half as often as all.

    It is until it was wrong more than FORGIVEN_ENDS times, as nobody says it by accident.
    """
    trust = trusts[row]
    allowed = 0.5 * base_rate(trusts, row) * trust["said"][END]
    return bool(trust["came"][END] <= FORGIVEN_ENDS + allowed)


@jit.kernel(_TRUSTS, jit.i8, jit.i8, jit.boolean, jit.i8)
def count(
    trusts: NDArray[np.void],
    row: Int,
    bucket: Int,
    came: bool,  # noqa: FBT001
    pages: Int,
) -> None:
    """One outcome of a hint of ``bucket``: whether its ``pages`` came within the horizon."""
    base, said = base_rate(trusts, row), chance(trusts, row, bucket)
    gain_bits = np.log2(said / base) if came else np.log2((1.0 - said) / (1.0 - base))
    trust = trusts[row]
    kept = 1.0 - 1.0 / MEMORY
    for other in range(BUCKETS):
        trust["said"][other] *= kept
        trust["came"][other] *= kept
    known = min(np.float64(trust["outcomes"]), MEMORY - 1.0)
    trust["mean_pages"] += (pages - trust["mean_pages"]) / (known + 1.0)
    told = max(1.0, pages / trust["mean_pages"])
    trust["said"][bucket] += told
    trust["came"][bucket] += told if came else 0.0
    trust["gain_bits"] = kept * trust["gain_bits"] + gain_bits
    trust["outcomes"] += np.uint64(1)
