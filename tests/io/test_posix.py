# SPDX-License-Identifier: Apache-2.0
import errno
import mmap
import os

import pytest

from bodocache.errors import BackendError
from bodocache.io.posix import DataFile

NBYTES = 3 * 4096


@pytest.fixture
def file(tmp_path):
    (tmp_path / "data").write_bytes(bytes(range(256)) * (NBYTES // 256))
    folder = os.open(tmp_path, os.O_RDONLY)
    data = DataFile(str(tmp_path / "data"), folder, os.O_RDWR)
    os.close(folder)
    yield data
    data.close()


def aligned(nbytes=NBYTES):
    return memoryview(mmap.mmap(-1, nbytes))


def shortened(monkeypatch, name, limit):
    """Let a vectored call move ``limit`` bytes of its first buffer at most; count the calls."""
    single = {"preadv": os.preadv, "pwritev": os.pwritev}[name]
    calls = []

    def call(fd, buffers, offset):
        calls.append(offset)
        return single(fd, [buffers[0][:limit]], offset)

    monkeypatch.setattr(os, name, call)
    return calls


@pytest.mark.parametrize("limit", [1000, 4096, NBYTES - 1])
def test_short_reads_are_completed(file, monkeypatch, limit):
    shortened(monkeypatch, "preadv", limit)
    first, second = bytearray(5000), bytearray(NBYTES - 5000)
    views = [memoryview(first), memoryview(second)]
    assert file.read(views, 0, aligned=False) == NBYTES
    assert first + second == bytes(range(256)) * (NBYTES // 256)


@pytest.mark.parametrize("limit", [1000, 4096])
def test_short_writes_are_completed(file, monkeypatch, limit):
    shortened(monkeypatch, "pwritev", limit)
    views = [memoryview(b"a" * 5000), memoryview(b"b" * 3000)]
    assert file.write(views, 100, aligned=False) == 8000
    data = os.pread(file.fd, NBYTES, 0)
    assert data[100:8100] == b"a" * 5000 + b"b" * 3000


def test_a_short_direct_read_goes_on_where_it_must_be_buffered(file, monkeypatch):
    file.try_direct(writable=True)
    memory = aligned()
    calls = shortened(monkeypatch, "preadv", 1000)
    assert file.read([memory], 0, aligned=True) == NBYTES
    assert bytes(memory) == bytes(range(256)) * (NBYTES // 256)
    assert len(calls) > 1


@pytest.mark.parametrize("direct", [False, True])
def test_a_read_beyond_the_end_returns_what_there_was(file, direct):
    if direct:
        file.try_direct(writable=True)
    os.truncate(file.fd, 5001)
    assert file.read([aligned()], 0, aligned=True) == 5001
    assert file.read([aligned()], 8192, aligned=True) == 0


def test_a_transfer_that_o_direct_refuses_is_buffered(file):
    file.try_direct(writable=True)
    assert file.is_direct
    odd = aligned(NBYTES)[16:4112]
    assert file.read([odd], 0, aligned=True) == 4096
    assert bytes(odd) == bytes(range(256)) * 16


def test_a_file_system_without_o_direct_is_read_buffered(file, monkeypatch, caplog):
    def refuse(*args, **kwargs):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "open", refuse)
    file.try_direct(writable=True)
    monkeypatch.undo()
    assert not file.is_direct
    assert "transfers are buffered" in caplog.text
    assert file.read([aligned()], 0, aligned=True) == NBYTES


def test_an_error_other_than_alignment_is_raised(file, monkeypatch):
    def fail(fd, buffers, offset):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(OSError, match="Input/output"):
        file.read([aligned()], 0, aligned=True)


def test_closing_twice_is_harmless(file):
    file.try_direct(writable=True)
    file.close()
    file.close()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_regular_file_is_refused_without_hanging(tmp_path, make):
    make(tmp_path / "odd")
    folder = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises((BackendError, OSError)):
        DataFile(str(tmp_path / "odd"), folder, os.O_RDWR)
    os.close(folder)


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "target").write_bytes(b"")
    (tmp_path / "link").symlink_to("target")
    folder = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(OSError, match="link"):
        DataFile(str(tmp_path / "link"), folder, os.O_RDWR)
    os.close(folder)
