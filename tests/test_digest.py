# SPDX-License-Identifier: Apache-2.0
"""The digest against numbers worked out by hand: what every other implementation must give, too."""

import numpy as np

from bodocache.digest import digest_rows, seeded

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
