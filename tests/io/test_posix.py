# SPDX-License-Identifier: Apache-2.0
import errno
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


def test_a_file_system_without_o_direct_is_read_buffered(file, monkeypatch, caplog):
    def refuse(*args, **kwargs):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "open", refuse)
    file.try_direct(writable=True)
    monkeypatch.undo()
    assert not file.is_direct
    assert file.direct_fd == -1
    assert "transfers are buffered" in caplog.text


def test_a_process_without_a_descriptor_left_is_told_so_and_not_read_buffered(file, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        file.try_direct(writable=True)


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
