# SPDX-License-Identifier: Apache-2.0
"""Peers that keep one file a page: LMCache's LocalDisk and fs_native, vLLM's fs tier.

All of them bypass the page cache. They move the first FILES_MAX pages of a point at most: small
files take long to make.
"""

import asyncio
import os
import select
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from _listio_peers import FILES_MAX, imported
from _listio_point import Numbers, Pages, Point, memory

FILES_NBYTES = 256 << 20
TASKS = 16  # LMCache's fs_native spreads a task's keys over its workers; more tasks, better spread
JOB_PAGES = 16  # of one vLLM job: a run


class Files:
    """What the file-per-page peers have in common."""

    def __init__(self, point: Point, folder: Path) -> None:
        self.count = min(point.count, FILES_MAX, max(1, FILES_NBYTES // point.page_nbytes))
        self.folder = folder
        self.folder.mkdir()
        self.point = point
        # As they lie in the engine's pool: page i in row slots[i], mapped in one piece.
        self.numbers = range(self.count)

    def clear(self) -> None:
        """Remove every file: what is there already would not be written."""
        for path in self.folder.rglob("*"):
            if path.is_file() and path.name != "config.json":
                path.unlink()

    def landed(self) -> tuple[Pages, Numbers]:
        """In its slots."""
        return self.point.target, self.point.slots[: self.count]

    def views(self, pages: Pages) -> list[memoryview]:
        """The memory of every page."""
        return [memoryview(pages[slot]) for slot in self.point.slots[: self.count]]


class LocalDisk(Files):
    """LMCache's LocalDisk backend with O_DIRECT, its four threads, its own memory objects."""

    name = "LMCache LocalDisk"

    def __init__(self, point: Point, folder: Path) -> None:
        os.environ["LMCACHE_TRACK_USAGE"] = "false"
        os.environ.setdefault("LMCACHE_LOG_LEVEL", "ERROR")
        storage = "lmcache.v1.storage_backend"
        disk = imported(f"{storage}.local_disk_backend", "lmcache")
        cpu = imported(f"{storage}.local_cpu_backend", "lmcache")
        config = imported("lmcache.v1.config", "lmcache").LMCacheEngineConfig
        allocator = imported("lmcache.v1.memory_allocators.mixed_memory_allocator", "lmcache")
        self._torch = imported("torch", "torch")
        self._format = imported("lmcache.v1.memory_management", "lmcache").MemoryFormat.KV_2LTD
        super().__init__(point, folder)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        made = config.from_defaults(
            local_cpu=False,
            local_disk=str(folder),
            max_local_disk_size=1e6,  # it never counts down what was removed
            extra_config={"use_odirect": True},
        )
        nbytes = 2 * self.count * point.page_nbytes + (64 << 20)
        pool = allocator.MixedMemoryAllocator(nbytes)
        self._cpu = cpu.LocalCPUBackend(made, memory_allocator=pool, dst_device="cpu")
        self._disk = disk.LocalDiskBackend(made, self._loop, self._cpu, dst_device="cpu")
        key = imported("lmcache.utils", "lmcache").CacheEngineKey
        self._keys = [key("m", 1, 0, i, self._torch.uint8) for i in self.numbers]
        self._objects = [self._allocate() for _ in self.numbers]
        for made_object, view in zip(self._objects, self.views(point.source), strict=True):
            made_object.tensor.copy_(self._torch.frombuffer(view, dtype=self._torch.uint8))
        self._found: list[Any] = []

    def _allocate(self) -> Any:
        shape = self._torch.Size([self.point.page_nbytes])
        return self._cpu.allocate(shape, self._torch.uint8, self._format)

    def clear(self) -> None:
        """Remove every page through the backend."""
        for key in self._keys:
            self._disk.remove(key)

    def write(self) -> None:
        """One batched put."""
        left, lock, ended = [self.count], threading.Lock(), threading.Event()

        def completed(_: Any) -> None:
            with lock:
                left[0] -= 1
                if not left[0]:
                    ended.set()

        self._disk.batched_submit_put_task(
            self._keys, self._objects, on_complete_callback=completed
        )
        if not ended.wait(120):
            raise RuntimeError(f"{self.name}: {left[0]} puts did not end in 120 s")

    def read(self) -> None:
        """One batched get."""
        self._release()
        self._found = self._disk.batched_get_blocking(self._keys)

    def landed(self) -> tuple[Pages, Numbers]:
        """In memory objects of its own, copied out of them."""
        pages = np.zeros((self.count, self.point.page_nbytes), np.uint8)
        for page, found in zip(pages, self._found, strict=False):
            page[:] = found.tensor.numpy()
        return pages, np.arange(self.count)

    def close(self) -> None:
        """Close the backend and its loop."""
        self._release()
        self._disk.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        shutil.rmtree(self.folder)

    def _release(self) -> None:
        for found in self._found:
            found.ref_count_down()
        self._found = []


class FsNative(Files):
    """LMCache's fs_native: C++ workers behind its L2 adapter, with O_DIRECT."""

    name = "LMCache fs_native"

    def __init__(self, point: Point, folder: Path) -> None:
        os.environ["LMCACHE_TRACK_USAGE"] = "false"
        client = imported("lmcache.lmcache_fs", "lmcache").LMCacheFSClient
        adapters = "lmcache.v1.distributed.l2_adapters"
        adapter = imported(f"{adapters}.native_connector_l2_adapter", "lmcache")
        key = imported("lmcache.v1.distributed.api", "lmcache").ObjectKey
        super().__init__(point, folder)
        self._adapter = adapter.NativeConnectorL2Adapter(client(str(folder), 4, "", True, 0))  # noqa: FBT003
        self._keys = [key(i.to_bytes(8, "big"), "m", 0) for i in self.numbers]
        self._objects = tuple(
            [SimpleNamespace(byte_array=view) for view in self.views(pages)]
            for pages in (point.target, point.source)
        )

    def write(self) -> None:
        """Sixteen tasks at once."""
        adapter, done = self._adapter, 0
        wanted = self._submit(adapter.submit_store_task, self._objects[True])
        while done < len(wanted):
            _wait(adapter.get_store_event_fd())
            done += len(adapter.pop_completed_store_tasks())

    def read(self) -> None:
        """Sixteen tasks at once."""
        adapter = self._adapter
        wanted = self._submit(adapter.submit_load_task, self._objects[False])
        while wanted:
            _wait(adapter.get_load_event_fd())
            wanted = [task for task in wanted if adapter.query_load_result(task) is None]

    def close(self) -> None:
        """Close the adapter."""
        self._adapter.close()
        shutil.rmtree(self.folder)

    def _submit(self, submit: Callable[..., Any], objects: list[Any]) -> list[Any]:
        tasks = min(TASKS, self.count)
        return [submit(self._keys[i::tasks], objects[i::tasks]) for i in range(tasks)]


class VllmFs(Files):
    """The Python path of vLLM's fs tier: 16 read and 16 write threads, jobs of 16 pages."""

    name = "vLLM fs tier"

    def __init__(self, point: Point, folder: Path) -> None:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        tier = imported("vllm.v1.kv_offload.tiering.fs.manager", "vllm").FileSystemTierManager
        self._job = imported("vllm.v1.kv_offload.tiering.base", "vllm").TransferJob
        super().__init__(point, folder)
        self._pages = memory(point.count, point.page_nbytes)  # it has one memory, for both
        self._pages[:] = point.source
        self._tier = tier(_vllm_spec(), memoryview(self._pages), "fs", str(folder))
        self._keys = [(i * 0x9E3779B97F4A7C15 % 2**64).to_bytes(32, "little") for i in self.numbers]
        self._keys = [key + bytes(4) for key in self._keys]

    def clear(self) -> None:
        """Remove every file, and have the bytes again that are written."""
        super().clear()
        self._pages[:] = self.point.source

    def write(self) -> None:
        """All jobs at once."""
        self._run(self._tier.submit_store, is_promotion=False)

    def read(self) -> None:
        """All jobs at once."""
        self._run(self._tier.submit_load, is_promotion=True)

    def landed(self) -> tuple[Pages, Numbers]:
        """In the tier's primary memory."""
        return self._pages, self.point.slots[: self.count]

    def close(self) -> None:
        """Shut the tier down."""
        self._tier.shutdown()
        shutil.rmtree(self.folder)

    def _run(self, submit: Callable[[Any], None], *, is_promotion: bool) -> None:
        for first in range(0, self.count, JOB_PAGES):
            chosen = slice(first, min(first + JOB_PAGES, self.count))
            slots = self.point.slots[chosen]
            submit(self._job(first, self._keys[chosen], slots, is_promotion, None))
        self._tier.drain_jobs()
        if not all(result.success for result in self._tier.get_finished_jobs()):
            raise RuntimeError(f"{self.name}: a job failed")


def _vllm_spec() -> Any:
    """What the tier reads of an offloading spec."""
    parallel = SimpleNamespace(
        tp_size=1, pp_size=1, pcp_size=1, dcp_size=1, rank=0, is_parallelism_agnostic=True
    )
    config = SimpleNamespace(
        groups=[],
        model=SimpleNamespace(name="m", dtype="u8"),
        cache=SimpleNamespace(tokens_per_hash=16),
        parallel=parallel,
        canonical_layout=False,
        replicated_layout=False,
        kv_cache_layout=None,
    )
    return SimpleNamespace(config=config, blocks_per_chunk=1)


def _wait(event_fd: int) -> None:
    """Until an adapter says that something has ended."""
    select.select([event_fd], [], [])
    os.read(event_fd, 8)
