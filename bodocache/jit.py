# SPDX-License-Identifier: Apache-2.0
"""The only place that compiles Python: numba, cached by content, never on import.

numba's own cache serves stale code when a callee in another file changes, and fails at import
where no folder is writable. Here the folder's name is a hash of all sources that compiled code can
see, and where nothing is writable code is compiled in memory.
"""

import functools
import hashlib
import logging
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.extending import intrinsic

from bodocache import env

F = TypeVar("F", bound=Callable[..., Any])

KEPT_CACHES = 4  # older builds of a developer's machine; each is a few MB

_log = logging.getLogger(__name__)
_registry: list[tuple[Any, tuple[Any, ...]]] = []
_c_functions: list["CFunction"] = []
_warming = threading.Lock()

void = types.void
boolean = types.boolean
i4, i8 = types.int32, types.int64
u1, u4, u8 = types.uint8, types.uint32, types.uint64
f8 = types.float64


def array(element: Any, ndim: int = 1) -> Any:
    """The type of a C-ordered array that compiled code writes to; ``element``: dtype or type."""
    return types.Array(_element(element), ndim, "C")


def readonly(element: Any, ndim: int = 1) -> Any:
    """The type of a C-ordered array that compiled code only reads (wire bytes are read-only)."""
    return types.Array(_element(element), ndim, "C", readonly=True)


def record(dtype: np.dtype[Any]) -> Any:
    """The type of one record of a structured array."""
    return numba.from_dtype(dtype)


def named(cls: type[tuple[Any, ...]], *elements: Any) -> Any:
    """The type of a NamedTuple ``cls`` whose fields have the types ``elements``."""
    return types.BaseTuple.from_types(elements, cls)  # type: ignore[no-untyped-call]


def kernel(*arguments: Any, inline: bool = False) -> Callable[[F], F]:
    """Like :func:`compiled`, for code that allocates no array (it does not compile if it does).

    Without numba's atomic reference counts on every array a callee is handed, the eviction queues
    run 3x faster and compile in a quarter of the time. ``inline``: where it is called, which is
    worth it for what is short and takes many arrays: each is seven words on the stack of a call.
    """
    return compiled(*arguments, allocates=False, inline=inline)


def compiled(*arguments: Any, allocates: bool = True, inline: bool = False) -> Callable[[F], F]:
    """Decorate a function as compiled code that takes ``arguments`` (numba types), without the GIL.

    The result is a plain dispatcher: callable from Python and from other compiled code. It is
    compiled on first use, or by :func:`warm`.
    """

    def decorate(function: F) -> F:
        options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": allocates}
        options["forceinline"] = inline
        folder = cache_folder()
        settings: Any = numba.config
        before = settings.CACHE_DIR  # the engine's own, if it uses numba
        try:
            if folder is not None:
                settings.CACHE_DIR = str(folder)
            dispatcher = numba.njit(cache=folder is not None, **options)(function)
        finally:
            settings.CACHE_DIR = before
        _registry.append((dispatcher, arguments))
        return cast("F", dispatcher)

    return decorate


def warm() -> int:
    """Compile every decorated function of the modules imported so far; return how many.

    Afterwards none of them compiles again: another argument type is a TypeError, not a stall.
    """
    with _warming:
        fresh = [
            (function, types_)
            for function, types_ in _registry
            if function._can_compile  # noqa: SLF001
        ]
        for function, arguments in fresh:
            function.compile(arguments)
        for callback in _c_functions:
            assert callback.address
        for function, _ in fresh:
            function.disable_compile()
    return len(fresh)


class CFunction:
    """A function of numbers that returns nothing, as C code calls it: at :attr:`address`.

    It is compiled on first use, or by :func:`warm`, like a :func:`compiled` one.
    """

    __slots__ = ("_arguments", "_code", "py_func")

    def __init__(self, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self.py_func = function
        self._arguments = arguments
        self._code: Any = None  # owns the machine code

    @property
    def address(self) -> int:
        """Where the code is."""
        if self._code is None:
            folder, settings = cache_folder(), cast("Any", numba.config)
            before = settings.CACHE_DIR
            try:
                if folder is not None:
                    settings.CACHE_DIR = str(folder)
                made = numba.cfunc(void(*self._arguments), cache=folder is not None)
                self._code = made(self.py_func)
            finally:
                settings.CACHE_DIR = before
        return int(self._code.address)


def c_function(*arguments: Any) -> Callable[[Callable[..., None]], CFunction]:
    """Decorate a function of ``arguments`` (numba types) as one that C code calls."""

    def decorate(function: Callable[..., None]) -> CFunction:
        _c_functions.append(CFunction(function, arguments))
        return _c_functions[-1]

    return decorate


def external(name: str, result: Any, *arguments: Any) -> Any:
    """The C function ``name`` of libc, for compiled code."""
    return types.ExternalFunction(name, result(*arguments))


def pointer_to(element: Any) -> Any:
    """``pointer(address)`` for compiled code: an int64 as a pointer to ``element``, for carray."""

    def pointer(typingctx: Any, address: Any) -> Any:  # noqa: ARG001 -- numba's protocol
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(element)(types.int64), emit  # type: ignore[no-untyped-call]

    return intrinsic(pointer)


def _prefetch(typingctx: Any, records: Any, row: Any) -> Any:  # noqa: ARG001 -- numba's protocol
    """``prefetch(records, row)`` for compiled code: ask for a record's cache lines, whatever row.

    It reads nothing, so a row outside the array does no harm.
    """

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind, byte, word = signature.args[0], ir.PointerType(ir.IntType(8)), ir.IntType(32)
        first = context.make_array(kind)(context, builder, arguments[0]).data
        record = builder.bitcast(builder.gep(first, [arguments[1]]), byte)
        form = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        insert: Any = cgutils.get_or_insert_function
        fetch = insert(builder.module, form, "llvm.prefetch.p0")
        for line in range(0, context.get_abi_sizeof(context.get_data_type(kind.dtype)), 64):
            there = builder.gep(record, [ir.Constant(ir.IntType(64), line)])
            builder.call(fetch, [there, word(0), word(3), word(1)])  # to read, keep, data
        return context.get_dummy_value()

    return types.void(records, types.int64), emit


prefetch: Any = intrinsic(_prefetch)


@functools.cache
def cache_folder() -> Path | None:
    """The folder of this build's compiled code, or None (with one log line) if none is writable."""
    root = env.jit_cache_root()
    folder = root / f"bodocache-{build_hash()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        folder.touch()
    except OSError as error:
        _log.warning("no folder for compiled code (%s): it is compiled in memory", error)
        return None
    _forget_old_builds(root)
    return folder


@functools.cache
def build_hash() -> str:
    """Hash of the sources of compiled code, numba's version and whether Bodo's JIT is loaded."""
    digest = hashlib.blake2b(digest_size=8)
    for name, text in sorted(sources().items()):
        digest.update(name.encode() + b"\0" + text.encode())
    digest.update(numba.__version__.encode())
    digest.update(b"bodo" if "bodo.decorators" in sys.modules else b"numba")
    return digest.hexdigest()


def sources() -> dict[str, str]:
    """Our modules that have compiled code, and those that these import names of: name -> text.

    Compiled code holds what it uses of other modules, and numba looks at its own file alone. What
    no compiled code can see may change without compiling anything again: half a minute and more.
    """
    package = Path(__file__).parent
    texts = {
        _module(source.relative_to(package.parent)): source.read_text(encoding="utf-8")
        for folder in (package, package / "kernels", package / "io")  # may be links: not followed
        for source in folder.rglob("*.py")
    }
    found: dict[str, str] = {}
    waiting = [name for name, text in texts.items() if "@jit." in text]
    while waiting:
        name = waiting.pop()
        if name not in found and name in texts:
            found[name] = texts[name]
            waiting += _imported(texts[name], texts)
    return found


_IMPORT = re.compile(r"^\s*from (bodocache[\w.]*) import (\([^)]*\)|[^\n]*)", re.MULTILINE)


def _module(file: Path) -> str:
    return ".".join(file.with_suffix("").parts).removesuffix(".__init__")


def _imported(text: str, modules: Mapping[str, str]) -> Iterator[str]:
    """Modules named by ``from bodocache... import ...``: the names, or what they are taken from."""
    for found in _IMPORT.finditer(text):
        for name in re.findall(r"\w+", found[2]):
            inner = f"{found[1]}.{name}"
            yield inner if inner in modules else found[1]


def _element(element: Any) -> Any:
    return element if isinstance(element, types.Type) else numba.from_dtype(np.dtype(element))


def _forget_old_builds(root: Path) -> None:
    builds = sorted(root.glob("bodocache-*"), key=_age, reverse=True)
    for build in builds[KEPT_CACHES:]:
        shutil.rmtree(build, ignore_errors=True)


def _age(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:  # another process forgot it first
        return 0.0


_CLOCK_MONOTONIC = 1
_clock_gettime = external("clock_gettime", i4, i4, i8)


@compiled(array(i8))
def now_s(scratch: Any) -> Any:
    """The clock of time.monotonic, in seconds; ``scratch`` has room for two words.

    An array, not an address: numba frees an array after the last use of its name.
    """
    _clock_gettime(_CLOCK_MONOTONIC, scratch.ctypes.data)
    return np.float64(scratch[0]) + 1e-9 * np.float64(scratch[1])
