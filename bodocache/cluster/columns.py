# SPDX-License-Identifier: Apache-2.0
"""Packed columns: arrays to and from the Table messages of planner.proto, every value checked.

Nothing of a message is believed: each fault is a WireError that names table, column and row.
Arrays that come out are the caller's own.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache.cluster import messages
from bodocache.errors import WireError

FINITE = np.finfo(np.float64).max
BLOCK_ROWS = 2_048  # 256 KB of pages stay in L2 while field by field is copied: 2x (bench/wire.py)
MOST_ROWS = 1 << 26  # of one table: 8 GB of pages

Arrays = dict[str, NDArray[Any]]


class Column(NamedTuple):
    """What one column holds, and what a reader accepts in it."""

    name: str  # the record's field; of a moment without its _s
    dtype: str
    width: int = 1
    default: float | None = None  # where the writer did not send it; None: it has to
    least: float = -math.inf
    most: float = math.inf
    of: str | None = None  # the table whose rows it names
    moment: bool = False  # a point on the clock here, seconds from now on the wire
    version: int = 1

    @property
    def wire_name(self) -> str:
        """Its name in a message."""
        return f"{self.name.removesuffix('_s')}_in_s" if self.moment else self.name


class Sizes(NamedTuple):
    """Rows of the tables that columns may name."""

    demands: int = 0
    pages: int = 0
    tenants: int = 0


def pack(
    of: type[messages.Window] | type[messages.Plan],
    name: str,
    arrays: Mapping[str, NDArray[Any]],
    columns: Sequence[Column],
    now_s: float,
) -> list[bytes]:
    """Table ``name`` of a message with the ``columns`` that are in ``arrays``, all equally long.

    Each part is a message with one column; one after the other they are the message that has them
    all, as protobuf merges. Serialised in one piece a window of 10^6 pages takes twice as long.

    Raises:
        WireError: a column is of another dtype, width or length.
    """
    rows, parts = len(next(iter(arrays.values()))), []
    for column in columns:
        if column.name not in arrays:
            continue
        values = arrays[column.name]
        shape = (rows,) if column.width == 1 else (rows, column.width)
        if values.dtype != np.dtype(column.dtype) or values.shape != shape:
            raise WireError(
                f"{name}.{column.name}: {values.dtype.str}{list(values.shape)};"
                f" expected {column.dtype}{list(shape)}"
            )
        part = of()
        table: messages.Table = getattr(part, name)
        table.rows = rows
        table.columns.add(
            name=column.wire_name,
            version=column.version,
            dtype=column.dtype,
            width=column.width,
            data=(values - now_s if column.moment else values).tobytes(),
        )
        parts.append(part.SerializeToString())
    return parts


def unpack(
    name: str, table: messages.Table, columns: Sequence[Column], sizes: Sizes, now_s: float
) -> tuple[int, Arrays]:
    """The rows of ``table`` and the columns that it has; of the rest the default holds.

    Raises:
        WireError: a column is missing, malformed, or holds what it must not.
    """
    if table.rows > MOST_ROWS:
        raise WireError(f"{name}: {table.rows} rows; expected at most {MOST_ROWS}")
    sent = _newest(name, table, {column.wire_name: column for column in columns})
    found = {}
    for column in columns:
        message = sent.get(column.wire_name)
        if message is not None:
            values = _values(f"{name}.{column.wire_name}", message, column, table.rows)
            _check(f"{name}.{column.wire_name}", values, column, sizes)
            found[column.name] = values + now_s if column.moment else values
        elif column.default is None and table.rows:
            raise WireError(
                f"{name}.{column.wire_name}: not sent in version {column.version} or older;"
                f" expected {table.rows} rows"
            )
    return int(table.rows), found


def _newest(
    name: str, table: messages.Table, known: Mapping[str, Column]
) -> dict[str, messages.Column]:
    """Of every known column the newest version that this reader knows."""
    sent: dict[str, messages.Column] = {}
    for message in table.columns:
        column = known.get(message.name)
        if column is None or message.version > column.version:
            continue
        if message.version < 1:
            raise WireError(f"{name}.{message.name}: version 0; expected 1 or more")
        before = sent.get(message.name)
        if before is not None and before.version == message.version:
            raise WireError(f"{name}.{message.name}: version {message.version} was sent twice")
        if before is None or before.version < message.version:
            sent[message.name] = message
    return sent


def _values(where: str, message: messages.Column, column: Column, rows: int) -> NDArray[Any]:
    if (message.dtype, message.width) != (column.dtype, column.width):
        raise WireError(
            f"{where}: {message.width} values of {message.dtype!r} a row;"
            f" expected {column.width} of {column.dtype!r}"
        )
    expected = rows * column.width * np.dtype(column.dtype).itemsize
    if len(message.data) != expected:
        raise WireError(f"{where}: {len(message.data)} bytes; expected {expected}, {rows} rows")
    values = np.frombuffer(message.data, column.dtype)
    return values if column.width == 1 else values.reshape(rows, column.width)


def _check(where: str, values: NDArray[Any], column: Column, sizes: Sizes) -> None:
    least, most, expected = column.least, column.most, ""
    if column.of is not None:
        rows = getattr(sizes, column.of)
        most, expected = rows - 1, f" a row of {column.of}, {rows} of them:"
    if not values.size or (math.isinf(least) and math.isinf(most) and values.dtype.kind != "f"):
        return
    if values.min() >= least and values.max() <= most:  # false where one is NaN
        return
    wrong = ~((values >= least) & (values <= most))
    row = int(np.flatnonzero(wrong.reshape(len(values), -1).any(axis=1))[0])
    raise WireError(
        f"{where}[{row}] = {values[row].tolist()}: expected{expected} {least:g} to {most:g}"
    )


def split(records: NDArray[np.void]) -> Arrays:
    """The fields of ``records``, each an array of its own."""
    found = {name: np.empty_like(records[name], order="C") for name in records.dtype.names or ()}
    for begin in range(0, len(records), BLOCK_ROWS):
        block = slice(begin, begin + BLOCK_ROWS)
        for name, values in found.items():
            values[block] = records[name][block]
    return found


def joined(
    records: NDArray[np.void],
    found: Mapping[str, NDArray[Any]],
    columns: Sequence[Column],
    now_s: float,
) -> NDArray[np.void]:
    """``records`` with the columns that were found, and defaults in the others."""
    fields: dict[str, Any] = {}
    for column in columns:
        assert column.default is not None or column.name in found or not len(records), "unpack()"
        if column.name not in found and column.default is not None:
            fields[column.name] = column.default + (now_s if column.moment else 0)
    for begin in range(0, len(records), BLOCK_ROWS):
        block = slice(begin, begin + BLOCK_ROWS)
        for name, default in fields.items():
            records[name][block] = default
        for column in columns:
            if column.name in found:
                records[column.name][block] = found[column.name][block]
    return records
