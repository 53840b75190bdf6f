# SPDX-License-Identifier: Apache-2.0
"""Traces of requests: one JSON object a line, in the format Mooncake published.

A request lists the pages of its prompt; ids are prefix-chained (equal id = equal prefix up to and
including that page), and the last page of a prompt, filled or not, has an id of its own. Reading
streams; a line that cannot be read is a TraceError that names file, line and field.
"""

import gzip
import json
import zlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from bodocache.errors import TraceError

LINE_LIMIT_BYTES = (
    64 << 20
)  # a prompt of 1e6 tokens takes 20 KB; this ends the read of a wrong file
UNNAMED_TENANT = "default"

_EXPECTED = {
    "timestamp": "an integer >= 0 (milliseconds)",
    "input_length": "an integer >= 1 (tokens)",
    "output_length": "an integer >= 0 (tokens)",
    "hash_ids": "a list of at least one page id",
    "tenant": "a name or null",
}
_Count = Annotated[int, Field(ge=0, lt=2**53)]  # exact as a float64, too


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request of a trace; lengths in tokens, ``hash_ids`` one id per page of the prompt."""

    timestamp_ms: Annotated[_Count, Field(alias="timestamp")]
    input_length: Annotated[int, Field(ge=1, lt=2**53)]
    output_length: _Count
    hash_ids: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    tenant: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """A whole trace as read-only columns; R requests, T page touches, D distinct pages.

    Pages are numbered 0..D-1 by first appearance, so ``parent[page] < page`` always.
    """

    name: str
    pages: NDArray[np.int64]  # [T] page of each touch
    offsets: NDArray[np.int64]  # [R+1] request r touches pages[offsets[r]:offsets[r+1]]
    timestamps_s: NDArray[np.float64]  # [R] never decreasing
    input_lengths: NDArray[np.int64]  # [R] tokens
    output_lengths: NDArray[np.int64]  # [R] tokens
    tenants: NDArray[np.int64]  # [R] index into tenant_names
    tenant_names: tuple[str, ...]
    parent: NDArray[np.int64]  # [D] the page before it in every prompt, -1 for a first page
    depth: NDArray[np.int64]  # [D] pages before it

    @property
    def num_requests(self) -> int:
        """R, the number of requests."""
        return len(self.timestamps_s)

    @property
    def touches(self) -> int:
        """T, the number of page touches of all requests."""
        return len(self.pages)

    @property
    def distinct(self) -> int:
        """D, the number of distinct pages."""
        return len(self.parent)


def read_trace(path: Path) -> Iterator[TraceRequest]:
    """Yield the requests of a ``.jsonl`` or ``.jsonl.gz`` file; TraceError at the first bad line.

    Fields we do not know are left out; blank lines are skipped.
    """
    return (request for _, request in _numbered(path))


def write_trace(path: Path, requests: Iterable[TraceRequest]) -> int:
    """Write the file :func:`read_trace` reads (``.gz`` is compressed); return how many requests."""
    count = 0
    with path.open("wb") as file, _compressor(file, path) as stream:
        for count, request in enumerate(requests, 1):  # noqa: B007 -- the count is the result
            stream.write(format_request(request).encode() + b"\n")
    return count


def format_request(request: TraceRequest) -> str:
    """Return the line of a request, without its newline."""
    fields: dict[str, object] = {
        "timestamp": request.timestamp_ms,
        "input_length": request.input_length,
        "output_length": request.output_length,
        "hash_ids": request.hash_ids,
    }
    if request.tenant is not None:
        fields["tenant"] = request.tenant
    return json.dumps(fields)


def load_trace(path: Path | None = None, max_requests: int | None = None) -> Trace:
    """Load a file, or the built-in workload where ``path`` is None, as columns.

    Reads no further than ``max_requests``. TraceError as in :func:`read_trace`, and where there is
    no request or an id stands behind two different pages.
    """
    if path is not None:
        return _collect(path.name, str(path), islice(_numbered(path), max_requests))
    from bodocache.replay.workload import WorkloadConfig, generate  # it yields our TraceRequest

    return build_trace("built-in workload", islice(generate(WorkloadConfig()), max_requests))


def build_trace(name: str, requests: Iterable[TraceRequest]) -> Trace:
    """Collect requests made in memory; errors name the request's number as the line."""
    return _collect(name, name, enumerate(requests, 1))


@dataclass(slots=True)
class _Columns:
    """The columns while they grow, at 8 bytes a value."""

    source: str
    rows: dict[int, int] = field(default_factory=dict)
    tenant_rows: dict[str, int] = field(default_factory=dict)
    pages: "array[int]" = field(default_factory=lambda: array("q"))
    offsets: "array[int]" = field(default_factory=lambda: array("q", [0]))
    timestamps_s: "array[float]" = field(default_factory=lambda: array("d"))
    inputs: "array[int]" = field(default_factory=lambda: array("q"))
    outputs: "array[int]" = field(default_factory=lambda: array("q"))
    tenants: "array[int]" = field(default_factory=lambda: array("q"))
    parent: "array[int]" = field(default_factory=lambda: array("q"))
    depth: "array[int]" = field(default_factory=lambda: array("q"))

    def add(self, line: int, request: TraceRequest) -> None:
        self._add_pages(line, request.hash_ids)
        self.offsets.append(len(self.pages))
        self.timestamps_s.append(request.timestamp_ms / 1000)
        self.inputs.append(request.input_length)
        self.outputs.append(request.output_length)
        tenant = request.tenant or UNNAMED_TENANT
        self.tenants.append(self.tenant_rows.setdefault(tenant, len(self.tenant_rows)))

    def _add_pages(self, line: int, hash_ids: tuple[int, ...]) -> None:
        before = -1
        for position, page_id in enumerate(hash_ids):
            row = self.rows.setdefault(page_id, len(self.parent))
            if row == len(self.parent):
                self.parent.append(before)
                self.depth.append(position)
            elif self.parent[row] != before:
                raise TraceError(
                    f"{self.source}:{line}: field hash_ids[{position}]: id {page_id} stood behind "
                    f"another page before, expected one page before each id (ids are chained)"
                )
            self.pages.append(row)
            before = row


def _collect(name: str, source: str, requests: Iterable[tuple[int, TraceRequest]]) -> Trace:
    columns = _Columns(source)
    for line, request in requests:
        columns.add(line, request)
    if not columns.tenants:
        raise TraceError(f"{source}: no requests, expected at least one line")
    return Trace(
        name=name,
        pages=_column(columns.pages),
        offsets=_column(columns.offsets),
        timestamps_s=_column(columns.timestamps_s),
        input_lengths=_column(columns.inputs),
        output_lengths=_column(columns.outputs),
        tenants=_column(columns.tenants),
        tenant_names=tuple(columns.tenant_rows),
        parent=_column(columns.parent),
        depth=_column(columns.depth),
    )


def _column(values: "array[int] | array[float]") -> NDArray[Any]:
    column = np.array(values)  # a copy: the array may still grow
    column.setflags(write=False)
    return column


def _numbered(path: Path) -> Iterator[tuple[int, TraceRequest]]:
    previous_ms = 0
    for number, line in _lines(path):
        request = _parse(line, f"{path}:{number}")
        if request.timestamp_ms < previous_ms:
            raise TraceError(
                f"{path}:{number}: field timestamp: got {request.timestamp_ms}, "
                f"expected at least {previous_ms} (a trace is in order of time)"
            )
        previous_ms = request.timestamp_ms
        yield number, request


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        with _open(path) as stream:
            for line in iter(partial(stream.readline, LINE_LIMIT_BYTES), b""):
                number += 1
                if stripped := line.strip():
                    yield number, stripped
    except (OSError, EOFError, zlib.error) as error:
        place = f"{path}:{number + 1}" if number else str(path)
        raise TraceError(f"{place}: cannot be read: {error}") from error


def _open(path: Path) -> BinaryIO:
    return cast("BinaryIO", gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _compressor(file: BinaryIO, path: Path) -> BinaryIO:
    if path.suffix != ".gz":
        return file
    return cast("BinaryIO", gzip.GzipFile("", "wb", fileobj=file, mtime=0))  # same bytes every time


_requests: TypeAdapter[TraceRequest] = TypeAdapter(TraceRequest)


def _parse(line: bytes, where: str) -> TraceRequest:
    try:
        return _requests.validate_json(line, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise TraceError(f"{where}: {_explain(first)}") from None


def _explain(error: ErrorDetails) -> str:
    if error["type"] == "json_invalid":
        reason = str(error["ctx"]["error"]).replace(" at line 1 column", " at column")
        return f"not JSON: {reason}; expected one object a line"
    if not error["loc"]:
        return f"got {_kind(error['input'])}, expected an object, one a line"
    name, *positions = error["loc"]
    place = f"{name}" + "".join(f"[{position}]" for position in positions)
    expected = "an integer >= 0 (a page id)" if positions else _EXPECTED[str(name)]
    found = "it is missing" if error["type"] == "missing" else f"got {_kind(error['input'])}"
    return f"field {place}: {found}, expected {expected}"


def _kind(value: object) -> str:
    """Say what was found; text is not repeated, it may be a tenant's."""
    if value is None or isinstance(value, bool | int | float):
        return f"{value}" if len(f"{value}") < 40 else "a number out of range"
    if isinstance(value, str):
        return f"text of {len(value)} characters"
    if isinstance(value, dict):
        return "an object"
    return "a list" if value else "an empty list"
