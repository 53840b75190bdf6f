# SPDX-License-Identifier: Apache-2.0
import os

import pytest

from bodocache.io.backend import Extent
from bodocache.replay import plain_reader
from bodocache.replay.plain_reader import (
    PlainReader,
    Read,
    queue_depth_of,
    read_blocks,
    read_same_extents,
)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "payload"
    path.write_bytes(os.urandom(5 << 20))
    return path


def extent(path, block, batch, *, seconds=1.0):
    return Extent(str(path), block * 4096, 8192, 0.0, seconds, 2, writes=False, batch=batch)


def test_the_same_extents_are_read_each_once(file):
    extents = [extent(file, block, batch) for block, batch in ((0, 1), (8, 2), (4, 1), (2, 3))]
    rate = read_same_extents(extents, threads=2)
    assert rate.nbytes == 4 * 8192
    assert rate.bytes_per_s > 0
    assert 0 < rate.queue_depth <= 2


def test_what_is_read_lies_in_the_memory_part_after_part(file):
    with PlainReader(2, memory_nbytes=4 * 8192, largest=8192) as reader:
        reader.read([Read(str(file), offset, 8192) for offset in (8192, 0)])
        reader.read([Read(str(file), 4096, 8192)])
        content = file.read_bytes()
        parts = reader._memory.tobytes()
    assert parts[: 3 * 8192] == content[8192:16384] + content[:8192] + content[4096:12288]


def test_a_file_that_ends_too_early_is_an_error(file):
    with PlainReader(1) as reader, pytest.raises(OSError, match="ends before"):
        reader.read([Read(str(file), 4 << 20, 2 << 20)])


def test_a_read_larger_than_a_part_of_the_memory_is_refused(file):
    with PlainReader(1, largest=4096) as reader, pytest.raises(ValueError, match="more than 4096"):
        reader.read([Read(str(file), 0, 8192)])


def test_no_more_is_read_than_gives_a_rate(file, monkeypatch):
    monkeypatch.setattr(plain_reader, "READ_AT_MOST_NBYTES", 8192)
    extents = [extent(file, block, batch=block) for block in range(5)]
    assert read_same_extents(extents, threads=1).nbytes == 8192


def test_whole_blocks_are_read(file):
    assert read_blocks(file, threads=2).nbytes == 2 * (2 << 20)


def test_queue_depth_is_the_mean_number_in_flight(file):
    extents = [extent(file, 0, 1, seconds=2.0), extent(file, 1, 1, seconds=1.0)]
    assert queue_depth_of(extents, busy_s=2.0) == 1.5
    assert queue_depth_of([], busy_s=0.0) == 0.0


def test_a_file_that_is_gone_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_same_extents([extent(tmp_path / "gone", 0, 1)], threads=1)
