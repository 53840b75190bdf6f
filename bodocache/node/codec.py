# SPDX-License-Identifier: Apache-2.0
"""Messages as bytes: a header of 24 bytes, then the fields of a dataclass one after the other.

Integers are int64, floats float64, texts and arrays are preceded by their length, everything is
little-endian. What cannot be read is a WireError that says what is wrong.
"""

import struct
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np

from bodocache.errors import WireError

HEADER = struct.Struct("<IIQQ")
MOST_NBYTES = 64 << 20  # of a payload: the keys of two million pages

_INT, _FLOAT, _COUNT = struct.Struct("<q"), struct.Struct("<d"), struct.Struct("<I")


class Frame(NamedTuple):
    """One message as it travels."""

    kind: int
    number: int  # of the request that it is or answers; 0: a note, which nobody waits for
    epoch: int  # in which the engine was attached
    payload: memoryview


class Column(NamedTuple):
    """What is in a field that is an array: ``Annotated[..., Column(dtype, width)]``."""

    dtype: str
    width: int = 0  # of each element; 0: it is a number


class _Field(NamedTuple):
    """How a field travels: as a struct, or behind its length as a text or a column."""

    name: str
    number: struct.Struct | None
    dtype: np.dtype[Any] | None  # None: a text
    width: int


_known: dict[type[Any], tuple[_Field, ...]] = {}


def _fields_of(shape: type[Any]) -> tuple[_Field, ...]:
    """The fields of a message; looking at its annotations each time costs as much as all else."""
    if shape not in _known:
        _known[shape] = tuple(_field_of(it.name, it.type) for it in fields(shape))
    return _known[shape]


def _field_of(name: str, kind: Any) -> _Field:
    if kind is int or kind is float:
        return _Field(name, _INT if kind is int else _FLOAT, None, 0)
    if kind is str:
        return _Field(name, None, None, 0)
    (column,) = kind.__metadata__
    assert isinstance(column, Column), "a field is a number, a text or a column"
    return _Field(name, None, np.dtype(column.dtype), column.width)


def encode(kind: int, number: int, epoch: int, message: Any) -> bytes:
    """The bytes of ``message``, header and all. WireError: it is longer than a reader takes."""
    parts = [b""]
    for it in _fields_of(type(message)):
        value = getattr(message, it.name)
        if it.number is not None:
            parts.append(it.number.pack(value))
        elif it.dtype is None:
            text = value.encode()
            parts += (_COUNT.pack(len(text)), text)
        else:
            array = np.ascontiguousarray(value, it.dtype)
            parts += (_COUNT.pack(len(array)), array.tobytes())
    nbytes = sum(map(len, parts))
    if nbytes > MOST_NBYTES:
        raise WireError(f"{type(message).__name__}: {nbytes} bytes; at most {MOST_NBYTES} travel")
    parts[0] = HEADER.pack(nbytes, kind, number, epoch)
    return b"".join(parts)


def decode(shape: type[Any], payload: memoryview) -> Any:
    """The message of dataclass ``shape`` in ``payload``; arrays are copies, aligned and writable.

    Raises:
        WireError: it is too short or too long, or a text is none.
    """
    values, at = [], 0
    try:
        for it in _fields_of(shape):
            if it.number is not None:
                values.append(it.number.unpack_from(payload, at)[0])
                at += it.number.size
                continue
            (count,) = _COUNT.unpack_from(payload, at)
            at += 4
            if it.dtype is None:
                values.append(str(_cut(payload, at, count), "utf-8"))
                at += count
                continue
            nbytes = count * it.dtype.itemsize * (it.width or 1)
            array = np.frombuffer(bytearray(_cut(payload, at, nbytes)), it.dtype)
            values.append(array.reshape(count, it.width) if it.width else array)
            at += nbytes
    except (struct.error, UnicodeDecodeError) as error:
        raise WireError(f"{shape.__name__}: {error}") from error
    if at != len(payload):
        raise WireError(f"{shape.__name__}: {len(payload)} bytes; its fields end at {at}")
    return shape(*values)


def _cut(payload: memoryview, at: int, nbytes: int) -> memoryview:
    if at + nbytes > len(payload):
        raise WireError(f"a field of {nbytes} bytes at {at}; the message ends at {len(payload)}")
    return payload[at : at + nbytes]


class Splitter:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that ``data`` completes. WireError: a payload is longer than allowed."""
        self._bytes += data
        while len(self._bytes) >= HEADER.size:
            nbytes, kind, number, epoch = HEADER.unpack_from(self._bytes)
            if nbytes > MOST_NBYTES:
                raise WireError(f"a message of {nbytes} bytes; at most {MOST_NBYTES} travel")
            end = HEADER.size + nbytes
            if len(self._bytes) < end:
                return
            payload = memoryview(bytes(self._bytes[HEADER.size : end]))
            del self._bytes[:end]
            yield Frame(kind, number, epoch, payload)
