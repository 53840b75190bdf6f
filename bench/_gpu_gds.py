# SPDX-License-Identifier: Apache-2.0
"""A round trip between device memory and a slab by the real cuFile, in a process of its own.

``python bench/_gpu_gds.py direct|compat [DIRECTORY]``: exits with SKIPPED and says why where cuFile
cannot be used. A process: compat mode is one of the whole process, and a driver may hang.
"""

import asyncio
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

try:
    import numba  # noqa: F401 -- GPU images have torch and triton; a slab needs this, too
except ModuleNotFoundError as error:
    print(error)
    sys.exit(77)

from bodocache.clock import RealClock
from bodocache.errors import BackendError
from bodocache.io.backend import Backend, Durability, Status, Transfer
from bodocache.io.config import SlabConfig
from bodocache.io.gds.backend import GdsBackend, GdsConfig, probe
from bodocache.io.slab import SlabBackend
from bodocache.move.device_digest import digest_device_rows
from bodocache.pages import Reason
from bodocache.testing import NumberedPages

SKIPPED = 77
PAGE_NBYTES = 64 << 10
PAGES = 300  # more than one batch
CANARY = 0xA5
LOG_LINES = 40


def device_buffers() -> torch.Tensor:
    """Canaries, u8[PAGES, PAGE_NBYTES] on the device, from a 4 KiB boundary on."""
    whole = torch.full((PAGES * PAGE_NBYTES + 4096,), CANARY, dtype=torch.uint8, device="cuda")
    skip = -whole.data_ptr() % 4096
    return whole[skip : skip + PAGES * PAGE_NBYTES].view(PAGES, PAGE_NBYTES)


async def ended(transfer: Transfer) -> tuple[set[int], set[int]]:
    """The statuses and reasons of ``transfer``."""
    await transfer.drained()
    return set(transfer.statuses.tolist()), set(transfer.reasons.tolist())


async def through_gds(config: GdsConfig) -> NDArray[np.void]:
    """Put every page, get each into another slot; misses, a deadline, an abandoned load."""
    pages, numbers = NumberedPages(PAGE_NBYTES), list(range(PAGES))
    backend = await GdsBackend.open(config, clock=RealClock(), digest=digest_device_rows)
    checked: Backend = cast("Backend", backend)  # its buffers may be tensors, too
    payloads = pages.buffers(PAGES)
    pages.fill(payloads, numbers)
    source = device_buffers()
    source.copy_(torch.from_numpy(payloads))
    torch.cuda.synchronize()
    batch = pages.batch(numbers, checked.reserve(PAGES, after=-1))
    put = backend.put(batch, source, deadline_s=math.inf, durability=Durability.SYNC)
    assert await ended(put) == ({Status.LANDED}, {Reason.NONE})
    wanted = device_buffers()
    shuffled = batch.copy()
    shuffled["slot"] = np.random.default_rng(7).permutation(PAGES)
    assert (await ended(backend.get(shuffled, wanted, deadline_s=math.inf)))[0] == {Status.LANDED}
    assert torch.equal(wanted[torch.from_numpy(shuffled["slot"].copy()).cuda()], source)
    wanted.fill_(CANARY)
    late = backend.get(batch, wanted, deadline_s=0.0)
    assert await ended(late) == ({Status.LATE}, {Reason.LATE})
    assert bool((wanted == CANARY).all())
    left = backend.get(batch, wanted, deadline_s=math.inf)
    left.abandon()
    assert (await ended(left))[0] <= {Status.LANDED, Status.LATE}
    wanted.fill_(CANARY)
    torch.cuda.synchronize()
    await asyncio.sleep(0.2)
    assert bool((wanted == CANARY).all()), "bytes came after a drained transfer"
    with (config.slab.directory / "payload.slab").open("r+b") as file:
        os.pwrite(file.fileno(), b"\0" * 4096, int(batch["frame"][1]) * PAGE_NBYTES + 4096)
        os.fsync(file.fileno())
    damaged = backend.get(batch[1:2], wanted, deadline_s=math.inf)
    assert await ended(damaged) == ({Status.MISS}, {Reason.CORRUPT})
    await backend.close()
    return batch


async def through_slab(config: SlabConfig, batch: NDArray[np.void]) -> None:
    """The engine without a GPU reads what cuFile wrote, but for the page that was damaged."""
    pages = NumberedPages(PAGE_NBYTES)
    backend = await SlabBackend.open(config, clock=RealClock())
    buffers = pages.buffers(PAGES)
    transfer = backend.get(batch, buffers, deadline_s=math.inf)
    await ended(transfer)
    assert np.flatnonzero(transfer.statuses != Status.LANDED).tolist() == [1]
    assert all((buffers[i] == pages.payload(i)).all() for i in range(PAGES) if i != 1)
    await backend.close()


def main() -> int:
    mode, *folders = sys.argv[1:]
    found = probe(compat=mode == "compat")
    if not found.available:
        print(found.reason)
        return SKIPPED
    with tempfile.TemporaryDirectory(dir=folders[0] if folders else None) as folder:
        capacity_nbytes = 4096 + PAGES * (PAGE_NBYTES + 512)
        slab = SlabConfig(Path(folder) / "slab", capacity_nbytes, PAGE_NBYTES, b"g" * 32)
        os.chdir(folder)  # cuFile leaves a log
        os.environ.setdefault("CUFILE_LOGGING_LEVEL", "TRACE")
        config = GdsConfig(slab, device=torch.cuda.current_device(), compat=mode == "compat")
        try:
            batch = asyncio.run(through_gds(config))
        except BackendError:
            log = Path("cufile.log")  # says more than its codes
            lines = log.read_text().splitlines() if log.exists() else ["cuFile left no log"]
            print(*lines[-LOG_LINES:], sep="\n")
            raise
        asyncio.run(through_slab(slab, batch))
    return 0


if __name__ == "__main__":
    sys.exit(main())
