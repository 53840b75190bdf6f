# SPDX-License-Identifier: Apache-2.0
"""Requests of a trace on disk: one JSON object a line, in the format Mooncake published.

A request lists the pages of its prompt; ids are prefix-chained (equal id = equal prefix up to and
including that page), and the last page of a prompt, filled or not, has an id of its own. Reading
streams; a line that cannot be read is a TraceError that names file, line and field.
"""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, BinaryIO, cast

from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from bodocache.errors import TraceError

LINE_LIMIT_BYTES = (
    64 << 20
)  # a prompt of 1e6 tokens takes 20 KB; this ends the read of a wrong file

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


def read_trace(path: Path) -> Iterator[TraceRequest]:
    """Yield the requests of a ``.jsonl`` or ``.jsonl.gz`` file; TraceError at the first bad line.

    Fields we do not know are left out; blank lines are skipped.
    """
    return (request for _, request in numbered_requests(path))


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


def numbered_requests(path: Path) -> Iterator[tuple[int, TraceRequest]]:
    """Yield each request with the number of its line."""
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
