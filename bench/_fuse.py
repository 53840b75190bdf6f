# SPDX-License-Identifier: Apache-2.0
"""A file system that hands on what is asked of it to a folder, and stands still when it is told to.

Arguments: the folder, and where to mount. A line on standard input is "hang" (reads are not
answered any more) or "go on" (all are, those that hung too). It speaks the kernel's FUSE protocol
(linux/fuse.h) as far as a slab whose files exist needs it. Needs root, to mount. When it ends, what
still hangs fails.
"""

import ctypes
import errno
import os
import struct
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

IN_HEADER, OUT_HEADER = struct.Struct("<IIQQIIIHH"), struct.Struct("<IiQ")
READ_IN, OPEN_OUT = struct.Struct("<QQIIQII"), struct.Struct("<QII")  # of a write, too
LOOKUP, FORGET, GETATTR, SETATTR, OPEN, READ, WRITE = 1, 2, 3, 4, 14, 15, 16
STATFS, RELEASE, FSYNC, FLUSH, INIT, OPENDIR, RELEASEDIR, FSYNCDIR = 17, 18, 20, 25, 26, 27, 29, 30
INTERRUPT, DESTROY, BATCH_FORGET, FALLOCATE = 36, 38, 42, 43
SILENT = {FORGET, BATCH_FORGET, INTERRUPT}
DONE = {RELEASE, FSYNC, FLUSH, RELEASEDIR, FSYNCDIR, FALLOCATE, DESTROY}
MAX_WRITE, DIRECT_IO, ASYNC_READ, BIG_WRITES = 128 << 10, 1, 1, 1 << 5
ROOT, DETACH, SIZE = 1, 2, 8
THREADS = 32


class Folder:
    """Serves one folder without subfolders."""

    def __init__(self, folder: Path, device: int) -> None:
        self._folder, self._device = folder, device
        self._files: dict[int, Path] = {ROOT: folder}
        self._descriptors: dict[int, int] = {}
        self._hung: list[tuple[int, int, int, int]] | None = None
        self._lock = threading.Lock()
        self._answerers = ThreadPoolExecutor(THREADS)

    def obey(self, line: str) -> None:
        """Do as the line says."""
        with self._lock:
            waiting, self._hung = self._hung or [], [] if line.strip() == "hang" else None
        for read in waiting:
            self._answerers.submit(self._read, *read)

    def serve(self) -> None:
        """Until it is unmounted."""
        while True:
            try:
                request = os.read(self._device, MAX_WRITE + (1 << 16))
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                raise
            _, code, unique, node, *_ = IN_HEADER.unpack_from(request)
            if code in SILENT:
                continue
            body = request[IN_HEADER.size :]
            if code == READ:
                self._take(unique, *READ_IN.unpack_from(body)[:3])
                continue
            try:
                self._reply(unique, self._answer(code, node, body))
            except OSError as error:
                self._reply(unique, b"", -(error.errno or errno.EIO))

    def _answer(self, code: int, node: int, body: bytes) -> bytes:
        answers = {
            INIT: self._begin,
            LOOKUP: self._look_up,
            GETATTR: self._state,
            SETATTR: self._change,
            OPEN: self._open,
            OPENDIR: lambda *_: OPEN_OUT.pack(0, 0, 0),
            WRITE: self._write,
            STATFS: self._room,
        }
        if code in DONE:
            return b""
        if code not in answers:
            raise OSError(errno.ENOSYS, "none of ours")
        return answers[code](node, body)

    def _begin(self, _: int, body: bytes) -> bytes:
        major, minor, ahead, flags = struct.unpack_from("<IIII", body)
        known = flags & (ASYNC_READ | BIG_WRITES)
        head = (major, min(minor, 31), ahead, known, 64, 48, MAX_WRITE, 1)
        return struct.pack("<IIIIHHII", *head).ljust(64, b"\0")

    def _look_up(self, _: int, body: bytes) -> bytes:
        path = self._folder / body.rstrip(b"\0").decode()
        node = path.stat().st_ino
        self._files[node] = path
        return struct.pack("<QQQQII", node, 0, 0, 0, 0, 0) + self._attributes(node)

    def _attributes(self, node: int) -> bytes:
        it = self._files[node].stat()
        times = (int(it.st_atime), int(it.st_mtime), int(it.st_ctime), 0, 0, 0)
        whose = (it.st_mode, it.st_nlink, it.st_uid, it.st_gid, 0, 4096, 0)
        return struct.pack("<QQQQQQIIIIIIIIII", node, it.st_size, it.st_blocks, *times, *whose)

    def _state(self, node: int, _: bytes) -> bytes:
        return struct.pack("<QII", 0, 0, 0) + self._attributes(node)

    def _change(self, node: int, body: bytes) -> bytes:
        if struct.unpack_from("<I", body)[0] & SIZE:
            os.truncate(self._files[node], struct.unpack_from("<Q", body, 16)[0])
        return self._state(node, body)

    def _open(self, node: int, _: bytes) -> bytes:
        if node not in self._descriptors:
            self._descriptors[node] = os.open(self._files[node], os.O_RDWR)
        return OPEN_OUT.pack(self._descriptors[node], DIRECT_IO, 0)

    def _write(self, _: int, body: bytes) -> bytes:
        descriptor, offset, *_rest = READ_IN.unpack_from(body)
        return struct.pack("<II", os.pwrite(descriptor, body[READ_IN.size :], offset), 0)

    def _room(self, *_: object) -> bytes:
        it = os.statvfs(self._folder)
        counts = (it.f_blocks, it.f_bfree, it.f_bavail, it.f_files, it.f_ffree)
        rest = (it.f_bsize, 255, it.f_frsize, 0)
        return struct.pack("<QQQQQIIII", *counts, *rest).ljust(80, b"\0")

    def _take(self, unique: int, descriptor: int, offset: int, nbytes: int) -> None:
        with self._lock:
            if self._hung is not None:
                self._hung.append((unique, descriptor, offset, nbytes))
                return
        self._answerers.submit(self._read, unique, descriptor, offset, nbytes)

    def _read(self, unique: int, descriptor: int, offset: int, nbytes: int) -> None:
        self._reply(unique, os.pread(descriptor, nbytes, offset))

    def _reply(self, unique: int, data: bytes, error: int = 0) -> None:
        header = OUT_HEADER.pack(OUT_HEADER.size + len(data), error, unique)
        try:
            os.write(self._device, header + data)
        except OSError as failure:
            if failure.errno not in (errno.ENOENT, errno.ENODEV):  # interrupted, or unmounted
                raise


def main(folder: Path, point: Path) -> None:
    """Mount, serve until standard input ends, unmount."""
    libc = ctypes.CDLL(None, use_errno=True)
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
    if libc.mount(b"slow", os.fsencode(point), b"fuse", 0, options.encode()):
        number = ctypes.get_errno()
        raise SystemExit(f"cannot be mounted: {os.strerror(number)}")
    served = Folder(folder, device)
    thread = threading.Thread(target=served.serve, daemon=True)
    thread.start()
    try:
        print("mounted", flush=True)
        for line in sys.stdin:
            served.obey(line)
            print("done", flush=True)
    finally:
        served.obey("go on")
        libc.umount2(os.fsencode(point), DETACH)
    os._exit(0)  # whatever still hangs fails with the device


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
