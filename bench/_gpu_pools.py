# SPDX-License-Identifier: Apache-2.0
"""What ``gpu_checks.py`` checks with: pools between canaries, twins beside them, comparisons.

Every comparison is of whole memories: the named pages, all others, and the canaries at both ends.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from bodocache.kernels import CopyPath
from bodocache.layout import Group, Layout, LayoutKind, PagedMemory

PAGE_TOKENS = 16
PAGES = 24
CANARY_NBYTES = 4096  # at either end of a memory
GROUPS = (
    Group("gqa", layers=3, heads=8, head_dim=128, itemsize=2),
    Group("narrow", layers=2, heads=2, head_dim=16, itemsize=1),  # 16-byte rows
    Group("mla", layers=3, heads=1, head_dim=576, itemsize=2, kv=1),
)


class Skipped(Exception):
    """This machine cannot run the check."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Pages, and all bytes of the memory in which they lie between two canaries."""

    pages: PagedMemory
    memory: torch.Tensor
    layout: Layout

    @classmethod
    def of(cls, memory: torch.Tensor, layout: Layout) -> "Pool":
        """The pages in the middle of ``memory``."""
        inner = memory[CANARY_NBYTES : CANARY_NBYTES + layout.pool_nbytes]
        return cls(PagedMemory.of_layout(inner, layout), memory, layout)

    def twin(self, device: torch.device | None = None) -> "Pool":
        """A copy of everything, in the same kind of memory or on ``device``."""
        memory = self.memory.clone() if device is None else self.memory.to(device, copy=True)
        if device is None and self.memory.is_pinned():
            memory = memory.pin_memory()
        return Pool.of(memory, self.layout)


@dataclass(frozen=True, slots=True)
class Machine:
    """Where pools lie."""

    device: torch.device
    groups: tuple[Group, ...] = GROUPS

    @property
    def real(self) -> bool:
        """Whether this is a GPU, and not the interpreter on the CPU."""
        return self.device.type == "cuda"

    def pool(
        self, kind: LayoutKind, group: Group, *, on_host: bool = False, pages: int = PAGES
    ) -> Pool:
        """Random pages between random canaries."""
        layout = Layout(kind, group, PAGE_TOKENS, pages)
        memory = self.bytes(2 * CANARY_NBYTES + layout.pool_nbytes, on_host=on_host)
        return Pool.of(memory, layout)

    def bytes(self, nbytes: int, *, on_host: bool = False) -> torch.Tensor:
        """Random ones; pinned on the host."""
        memory = torch.randint(0, 256, (nbytes,), dtype=torch.uint8, device=self.device)
        return memory.cpu().pin_memory() if on_host and self.real else memory

    def rows(self, count: int, nbytes: int) -> tuple[torch.Tensor, torch.Tensor]:
        """All of a memory, and ``count`` rows in it with canaries between them."""
        memory = self.bytes((count + 2) * (nbytes + 64)).view(count + 2, nbytes + 64)
        return memory, memory[1:-1, 32:-32]

    def slots(self, count: int = 9, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """Distinct slots in no order."""
        return torch.randperm(PAGES)[:count].to(dtype).to(self.device)

    def wait(self) -> None:
        """Until the GPU has done everything."""
        if self.real:
            torch.cuda.synchronize(self.device)

    def need(self, path: CopyPath) -> None:
        """Skip where the machine has no such path."""
        if not self.real and path not in {CopyPath.TORCH, CopyPath.SM}:
            raise Skipped("it is for a GPU")
        if path is CopyPath.BULK and torch.cuda.get_device_capability(self.device) < (9, 0):
            raise Skipped("compute capability 9.0 is needed")


def changes_only(
    machine: Machine,
    written: torch.Tensor,
    expected: torch.Tensor,
    call: Callable[[], object],
    *read: torch.Tensor,
) -> None:
    """``call`` makes all of ``written`` equal ``expected``, and leaves what it reads alone."""
    before = [memory.clone() for memory in read]
    call()
    machine.wait()
    same(written, expected)
    for memory, was in zip(read, before, strict=True):
        same(memory, was)


def near(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Within twice the error that score_pages states for either."""
    found = found.cpu()
    finite = expected.isfinite()
    same(found[~finite], expected[~finite])
    bound = 2**-19 + 2**-23 * expected[finite].abs()
    worst = ((found[finite] - expected[finite]).abs() / bound).max()
    assert worst <= 1, f"scores differ by {worst:.2f} of the bound"


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Bit for bit."""
    assert found.shape == expected.shape, f"{list(found.shape)}, not {list(expected.shape)}"
    wrong = int((found != expected.to(found.device)).sum())
    assert not wrong, f"{wrong} of {found.numel()} elements differ"
