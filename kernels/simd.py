# SPDX-License-Identifier: Apache-2.0
"""The inner loops of the CPU path as vector code: copy, fold or both, one load per 16 or 64 bytes.

The fold needs no multiplication. Over u64 lanes q (two words each) it keeps four running sums: A of
q, H of q >> 32, and the sums of A and of H over all steps; ``cpu.py`` turns them into the digest.
5 operations per 64 bytes: 73 to 80 GB/s in cache on one Zen 4 core, where the same sums with
multiplications reach 38. Only ``cpu.py`` imports this: it needs numba.
"""

from typing import Any, NamedTuple

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.extending import intrinsic

_I64 = ir.IntType(64)


class _Loop(NamedTuple):
    """What one loop does with each vector of ``lanes`` u64."""

    lanes: int
    copies: bool = False
    folds: bool = False
    streams: bool = False  # stores bypass the caches and spare reading what they overwrite


def _operation(name: str, loop: _Loop) -> Any:
    """The loop as ``name(target, source, nbytes, ahead, state)``, all int64, for compiled code.

    It prefetches ``nbytes`` from ``ahead``: what the next call reads.
    """

    # numba counts the arguments of this signature; what they hold is known when emit runs.
    def operation(
        typingctx: Any,  # noqa: ARG001
        target: Any,  # noqa: ARG001
        source: Any,  # noqa: ARG001
        nbytes: Any,  # noqa: ARG001
        ahead: Any,  # noqa: ARG001
        state: Any,  # noqa: ARG001
    ) -> Any:
        def emit(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
            _emit(builder, loop, *arguments)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), emit

    operation.__name__ = operation.__qualname__ = name
    return intrinsic(operation)


def _emit(
    b: Any, loop: _Loop, target: Any, source: Any, nbytes: Any, ahead: Any, state: Any
) -> None:
    vector = ir.VectorType(_I64, loop.lanes)
    reads, writes, nexts, kept = (
        b.inttoptr(address, vector.as_pointer()) for address in (source, target, ahead, state)
    )
    places = [b.gep(kept, [_I64(n)]) for n in range(4)] if loop.folds else []
    running = [_variable(b, _load(b, place, 8)) for place in places]
    with cgutils.for_range(b, b.udiv(nbytes, _I64(8 * loop.lanes))) as step:
        _prefetch(b, b.gep(nexts, [step.index]))
        value = _load(b, b.gep(reads, [step.index]), 16)
        if loop.copies:
            _store(b, loop, value, b.gep(writes, [step.index]))
        if loop.folds:
            _fold(b, vector, value, running)
    for place, total in zip(places, running, strict=True):
        b.store(b.load(total), place).align = 8


def _load(b: Any, pointer: Any, align: int) -> Any:
    value = b.load(pointer)
    value.align = align
    return value


def _prefetch(b: Any, pointer: Any) -> None:
    """Ask for the line at ``pointer`` in L2; an address that is not mapped is ignored."""
    byte, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
    signature = ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32])
    prefetch = b.module.declare_intrinsic("llvm.prefetch", [byte], signature)
    b.call(prefetch, [b.bitcast(pointer, byte), i32(0), i32(2), i32(1)])


def _variable(b: Any, value: Any) -> Any:
    return cgutils.alloca_once_value(b, value)  # type: ignore[no-untyped-call]


def _store(b: Any, loop: _Loop, value: Any, pointer: Any) -> None:
    store = b.store(value, pointer)
    store.align = 8 * loop.lanes if loop.streams else 16
    if loop.streams:
        store.set_metadata("nontemporal", b.module.add_metadata([ir.IntType(32)(1)]))


def _fold(b: Any, vector: Any, value: Any, running: list[Any]) -> None:
    """Add to the running sums (A, H, sum of A, sum of H), which end up in registers."""
    high = b.lshr(value, vector([_I64(32)] * vector.count))
    for n, addend in enumerate((value, high)):
        total = b.add(b.load(running[n]), addend)
        b.store(total, running[n])
        b.store(b.add(b.load(running[n + 2]), total), running[n + 2])


# Runs are multiples of 64 bytes almost always; the narrow loops serve those of 16, 32 and 48.
# Streams also need targets at multiples of 64.
WIDE, NARROW = 8, 2  # lanes
fold = _operation("fold", _Loop(WIDE, folds=True))
fold_narrow = _operation("fold_narrow", _Loop(NARROW, folds=True))
copy = _operation("copy", _Loop(WIDE, copies=True))
copy_fold = _operation("copy_fold", _Loop(WIDE, copies=True, folds=True))
copy_fold_narrow = _operation("copy_fold_narrow", _Loop(NARROW, copies=True, folds=True))
stream = _operation("stream", _Loop(WIDE, copies=True, streams=True))
stream_fold = _operation("stream_fold", _Loop(WIDE, copies=True, folds=True, streams=True))


def _fence(typingctx: Any) -> Any:  # noqa: ARG001 -- numba's protocol
    def emit(context: Any, builder: Any, _: Any, __: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), emit


# Makes streamed bytes visible to other cores before anything this thread does next.
fence: Any = intrinsic(_fence)
