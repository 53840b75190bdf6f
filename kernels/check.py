# SPDX-License-Identifier: Apache-2.0
"""The one checker of every launcher: each says what it expects, and a LayoutError names both sides.

Indices are checked always on CPU; on a GPU that would stall the stream, so there only inside
:func:`checked_indices`.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from bodocache.errors import LayoutError
from bodocache.layout import PagedMemory

UNIT_NBYTES = 16  # what one GPU thread moves at a time; pieces and pages are whole units

Indices = torch.Tensor | NDArray[np.int32] | NDArray[np.int64]

_device_indices: ContextVar[bool] = ContextVar("device_indices", default=False)


class Spec(NamedTuple):
    """What a launcher expects of one tensor."""

    shape: tuple[int | str, ...]  # a name is a count that all operands of a call share
    dtypes: tuple[torch.dtype, ...]
    unit_nbytes: int = 1  # address, row stride and row length are multiples of this


INDEX_DTYPES = (torch.int32, torch.int64)
INDICES = Spec(("n",), INDEX_DTYPES)


def pages_spec(count: str, nbytes: int | str) -> Spec:
    """What is expected of uint8[count, nbytes] pages: contiguous rows of whole 16-byte units."""
    return Spec((count, nbytes), (torch.uint8,), UNIT_NBYTES)


def operands(op: str, home: str, device: torch.device, **sides: tuple[torch.Tensor, Spec]) -> None:
    """Check every ``name=(tensor, spec)`` of a call whose operand ``home`` lies on ``device``.

    Raises:
        LayoutError: the first shape, stride, dtype, device or alignment that does not fit.
    """
    bound: dict[str, tuple[int, str]] = {}
    for name, (tensor, spec) in sides.items():
        fault = _fault(tensor, spec, bound, name)
        if fault is None and tensor.device != device:
            fault = f"{home} is on {device}"
        if fault is not None:
            got = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
            raise LayoutError(f"{op}: {name} is {got} on {tensor.device}; {fault}")


def index_tensor(op: str, name: str, indices: object) -> torch.Tensor:
    """See ``indices`` (int32 or int64 [n], NumPy only for CPU pools) as a contiguous tensor."""
    if isinstance(indices, torch.Tensor):
        if indices.dtype in INDEX_DTYPES and indices.ndim == 1:
            return indices.contiguous()
    elif not isinstance(indices, np.ndarray):
        kind = type(indices).__name__
        raise LayoutError(f"{op}: {name} is a {kind}; expected int32 or int64 [n], NumPy or torch")
    elif indices.dtype in (np.int32, np.int64) and indices.ndim == 1:
        writable = indices if indices.flags.writeable else indices.copy()  # torch warns otherwise
        return torch.from_numpy(np.ascontiguousarray(writable))
    got = f"{str(indices.dtype).removeprefix('torch.')}{list(indices.shape)}"
    raise LayoutError(f"{op}: {name} is {got}; expected int32 or int64 [n]")


def plain_lists(
    device: torch.device, ours: Indices, theirs: Indices
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Both lists where they fit each other on a GPU, values unseen: in 2 us what else takes 12.

    None where a closer look has something to say, or to do.
    """
    if not (isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor)):
        return None
    index = device.index
    fits = (
        ours.get_device() == index == theirs.get_device()  # -1 on the CPU
        and ours.dtype is theirs.dtype
        and ours.dtype in INDEX_DTYPES
        and ours.dim() == theirs.dim() == 1
        and len(ours) == len(theirs)
        and ours.is_contiguous()
        and theirs.is_contiguous()
        and not _device_indices.get()
    )
    return (ours, theirs) if fits else None


def row_tensor(
    op: str, rows: Indices | None, slots: torch.Tensor, pages: torch.Tensor, of: str
) -> torch.Tensor:
    """``rows`` as :func:`index_tensor` sees it; by default 0..n-1, which ``of`` must have."""
    if rows is None:
        if len(slots) > len(pages):
            raise LayoutError(f"{op}: slots has {len(slots)} pages; {of} has {len(pages)}")
        return torch.arange(len(slots), dtype=slots.dtype, device=slots.device)
    tensor = index_tensor(op, "rows", rows)
    if tensor.dtype != slots.dtype:
        raise LayoutError(f"{op}: rows is {tensor.dtype}; slots is {slots.dtype}")
    return tensor


def in_range(op: str, name: str, indices: torch.Tensor, count: int, of: str) -> None:
    """Raise LayoutError unless every index is a page of ``of``, which has ``count``."""
    if is_checked(indices):
        values = indices.cpu().numpy()
        _bounds(op, name, int(values.min()), int(values.max()), count, of)


def distinct_in_range(op: str, name: str, indices: torch.Tensor, count: int, of: str) -> None:
    """Also raise LayoutError if two indices are equal: both would write to one page of ``of``."""
    if is_checked(indices):
        values = np.sort(indices.cpu().numpy())  # 2 us for 64 indices; torch takes 20
        _bounds(op, name, int(values[0]), int(values[-1]), count, of)
        twice = values[1:][values[1:] == values[:-1]]
        if len(twice):
            raise LayoutError(f"{op}: {name} has {twice[0]} twice; each page of {of} at most once")


def disjoint(op: str, **sides: torch.Tensor) -> None:
    """Raise LayoutError if a page of one memory is both read and written."""
    (ours, theirs), names = sides.values(), list(sides)
    if not (is_checked(ours) and is_checked(theirs)):
        return
    both = np.intersect1d(ours.cpu().numpy(), theirs.cpu().numpy())
    if len(both):
        raise LayoutError(
            f"{op}: {names[0]} and {names[1]} both have {both[0]}, of one memory; "
            "a page is read or written, not both"
        )


class Gather(NamedTuple):
    """Checked operands of a gather."""

    slots: torch.Tensor
    rows: torch.Tensor
    out: torch.Tensor


def gather(
    op: str,
    source: PagedMemory,
    slots: Indices,
    rows: Indices | None,
    out: torch.Tensor | None,
    nbytes: int,
) -> Gather:
    """The operands of pages ``slots[i]`` of ``source`` to rows of ``nbytes``, new ones by default.

    Raises:
        LayoutError: shapes, strides, dtypes, devices, alignments or indices do not fit.
    """
    chosen = index_tensor(op, "slots", slots)
    if out is None:
        if rows is not None:
            raise LayoutError(f"{op}: rows are given without out; expected the pages they index")
        out = torch.empty((len(chosen), nbytes), dtype=torch.uint8, device=source.device)
    places = row_tensor(op, rows, chosen, out, "out")
    _rows_and_slots(op, "source", source, chosen, places, out=(out, pages_spec("M", nbytes)))
    in_range(op, "slots", chosen, source.num_pages, "source")
    if rows is not None:
        distinct_in_range(op, "rows", places, len(out), "out")
    return Gather(chosen, places, out)


class Scatter(NamedTuple):
    """Checked indices of a scatter."""

    slots: torch.Tensor
    rows: torch.Tensor


def scatter(
    op: str,
    pages: torch.Tensor,
    destination: PagedMemory,
    slots: Indices,
    rows: Indices | None,
    nbytes: int,
) -> Scatter:
    """The indices of rows of ``pages``, of ``nbytes``, to pages ``slots[i]`` of ``destination``.

    Raises:
        LayoutError: shapes, strides, dtypes, devices, alignments or indices do not fit.
    """
    chosen = index_tensor(op, "slots", slots)
    places = row_tensor(op, rows, chosen, pages, "pages")
    spec = pages_spec("M", nbytes)
    _rows_and_slots(op, "destination", destination, chosen, places, pages=(pages, spec))
    distinct_in_range(op, "slots", chosen, destination.num_pages, "destination")
    if rows is not None:
        in_range(op, "rows", places, len(pages), "pages")
    return Scatter(chosen, places)


def _rows_and_slots(
    op: str,
    home: str,
    memory: PagedMemory,
    slots: torch.Tensor,
    rows: torch.Tensor,
    **pages: tuple[torch.Tensor, Spec],
) -> None:
    operands(op, home, memory.device, slots=(slots, INDICES), rows=(rows, INDICES), **pages)


@contextlib.contextmanager
def checked_indices() -> Iterator[None]:
    """Debug mode: inside, indices on a GPU are checked too (each check waits for the stream)."""
    token = _device_indices.set(True)
    try:
        yield
    finally:
        _device_indices.reset(token)


def on_gpu(device: torch.device) -> bool:
    """Whether Triton kernels serve ``device``; tests replace this to interpret them."""
    return device.type == "cuda"  # ROCm's devices are called cuda, too


def is_pinned(memory: PagedMemory) -> bool:
    """Whether a GPU may read and write host ``memory`` by itself."""
    return all(tensor.is_pinned() for tensor in memory.tensors())


def is_checked(indices: torch.Tensor) -> bool:
    """Whether values of ``indices`` are looked at: on the CPU, or in debug mode."""
    return indices.numel() > 0 and (indices.device.type == "cpu" or _device_indices.get())


def _bounds(op: str, name: str, low: int, high: int, count: int, of: str) -> None:
    if low < 0 or high >= count:
        wrong = low if low < 0 else high
        raise LayoutError(f"{op}: {name} has {wrong}; {of} has {count} pages")


def _fault(
    tensor: torch.Tensor, spec: Spec, bound: dict[str, tuple[int, str]], name: str
) -> str | None:
    """What is wrong with the tensor alone or against the counts bound by earlier operands."""
    if tensor.dtype not in spec.dtypes:
        return f"expected {' or '.join(str(d).removeprefix('torch.') for d in spec.dtypes)}"
    if tensor.ndim != len(spec.shape):
        return f"expected the shape {_text(spec.shape)}"
    for extent, expected in zip(tensor.shape, spec.shape, strict=True):
        if isinstance(expected, str):
            count, by = bound.setdefault(expected, (extent, name))
            if extent != count:
                return f"expected {_text(spec.shape)} with {expected} = {count}, as in {by}"
        elif extent != expected:
            return f"expected the shape {_text(spec.shape)}"
    if tensor.numel() and tensor.stride(-1) != 1:
        return f"expected contiguous rows, its strides are {list(tensor.stride())}"
    return _misalignment(tensor, spec.unit_nbytes)


def _misalignment(tensor: torch.Tensor, unit: int) -> str | None:
    if unit == 1 or not tensor.numel():
        return None
    if tensor.data_ptr() % unit:
        return f"its address {tensor.data_ptr():#x} must be a multiple of {unit}"
    if tensor.stride(0) % unit or tensor.shape[1] % unit:
        row, stride = tensor.shape[1], tensor.stride(0)
        return f"rows of {row} bytes every {stride} bytes must be multiples of {unit}"
    if tensor.stride(0) < tensor.shape[1] and tensor.shape[0] > 1:
        return f"its rows overlap: {tensor.shape[1]} bytes every {tensor.stride(0)}"
    return None


def _text(shape: tuple[int | str, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"
