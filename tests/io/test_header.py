# SPDX-License-Identifier: Apache-2.0
import numpy as np

from bodocache.io import header
from bodocache.io.backend import TRANSFER
from bodocache.io.header import HEADER, HEADER_NBYTES, SUPERBLOCK_NBYTES, Superblock
from bodocache.pages import Reason

SUPERBLOCK = Superblock(8192, 8192, 100, b"f" * 32, b"s" * 16)


def encoded(count):
    rng = np.random.default_rng(3)
    records = np.frombuffer(rng.bytes(count * TRANSFER.itemsize), TRANSFER).copy()
    records["frame"] = np.arange(count)
    records["nbytes"] = 8192
    return records, header.encode(records, np.arange(count, dtype=np.uint64), SUPERBLOCK)


def test_a_header_keeps_what_was_put_into_it():
    records, rows = encoded(10)
    assert rows.nbytes == 10 * HEADER_NBYTES
    for name in ("key", "parent", "digest", "frame", "depth", "nbytes", "owner"):
        assert (rows[name] == records[name]).all()
    assert (header.judge(rows, 0, SUPERBLOCK) == Reason.NONE).all()


def test_every_single_flipped_bit_of_a_header_is_noticed():
    _, rows = encoded(8 * HEADER_NBYTES)
    data = rows.view(np.uint8).reshape(len(rows), HEADER_NBYTES)
    bits = np.arange(len(rows))
    data[bits, bits // 8] ^= (1 << bits % 8).astype(np.uint8)
    assert (header.judge(rows, 0, SUPERBLOCK) != Reason.NONE).all()


def test_a_header_of_before_owners_were_kept_is_one_of_nobodys_page():
    _, rows = encoded(4)
    rows["owner"] = 0  # what lay there before, under the same checksum
    rows["checksum"] = header.checksums(rows)
    assert (HEADER.fields["owner"][1], HEADER.fields["reserved"][1]) == (196, 204)
    assert (header.judge(rows, 0, SUPERBLOCK) == Reason.NONE).all()


def test_headers_never_written_are_blank():
    assert (header.judge(np.zeros(3, HEADER), 0, SUPERBLOCK) == Reason.NEVER_STORED).all()


def test_a_stray_byte_in_an_empty_header_is_foreign():
    rows = np.zeros(1, HEADER)
    rows["depth"] = 1
    assert header.judge(rows, 0, SUPERBLOCK).tolist() == [Reason.FOREIGN]


def test_a_header_at_another_frame_is_foreign():
    _, rows = encoded(4)
    assert (header.judge(rows, 1, SUPERBLOCK) == Reason.FOREIGN).all()


def test_a_superblock_comes_back_as_it_was():
    data = SUPERBLOCK.encode()
    assert len(data) == SUPERBLOCK_NBYTES
    assert Superblock.decode(data) == SUPERBLOCK


def test_no_damaged_superblock_is_believed():
    data = SUPERBLOCK.encode()
    for place in (*range(96), *range(4080, 4096)):
        damaged = bytearray(data)
        damaged[place] ^= 0x10
        assert Superblock.decode(bytes(damaged)) is None
    assert Superblock.decode(data[:-1]) is None
    assert Superblock.decode(b"") is None
