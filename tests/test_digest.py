# SPDX-License-Identifier: Apache-2.0
"""The digest against numbers worked out by hand: what every other implementation must give, too."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bodocache.digest import add_part, digest_rows, of_sums, seeded

KEY = bytes(range(32))


def digest(words, key):
    page = np.array([words], "<u4").view(np.uint8)
    raw = digest_rows(page, np.zeros(1, np.int64))
    return seeded(raw, np.frombuffer(key, np.uint8)[None])[0].tolist()


def test_the_golden_vector_of_a_seeded_digest():
    # s1 = 1+2+3+4 + 4 words, s2 = 1+4+9+16 + 4; and the key's first two words of 8 bytes
    assert digest([1, 2, 3, 4], KEY) == [0x0706050403020100 + 14, 0x0F0E0D0C0B0A0908 + 34]


def test_the_golden_vector_of_sums_that_wrap():
    # s1 = 4 * (2**32 - 1) + 4, s2 = 10 * (2**32 - 1) + 4; a seed of ones is one less
    assert digest([0xFFFFFFFF] * 4, b"\xff" * 32) == [2**34 - 1, 10 * (2**32 - 1) + 3]


def test_only_the_first_sixteen_bytes_of_a_key_are_the_seed():
    one = digest([1, 2, 3, 4], KEY)
    assert digest([1, 2, 3, 4], KEY[:16] + bytes(16)) == one
    assert digest([1, 2, 3, 4], bytes(16) + KEY[16:]) != one


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(0, 2**32 - 1))
def test_parts_of_a_payload_give_its_digest(units, seed):
    """The algebra of the module's docstring, over parts of 16 bytes and more."""
    sizes = [16 * it for it in units]
    payload = np.random.default_rng(seed).integers(0, 256, (3, sum(sizes)), np.uint8)
    sums, first = np.zeros((3, 2), np.uint64), 0
    for nbytes in sizes:
        part = np.ascontiguousarray(payload[:, first : first + nbytes])
        add_part(sums, digest_rows(part, np.arange(3)), first, nbytes)
        first += nbytes
    whole = digest_rows(payload, np.arange(3))
    assert (of_sums(sums, sum(sizes)) == whole).all()
