# SPDX-License-Identifier: Apache-2.0
"""A whole trace as columns, for compiled code; a file's, or the built-in workload's."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bodocache.errors import TraceError
from bodocache.replay.requests import TraceRequest, numbered_requests
from bodocache.replay.shapes import Workload
from bodocache.replay.workload import WorkloadConfig, generate

UNNAMED_TENANT = "default"
Source = Path | Workload | None  # a file, a workload by name, or the built-in one


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


def load_trace(source: Source = None, max_requests: int | None = None) -> Trace:
    """Load a file, or a generated workload, as columns.

    Reads no further than ``max_requests``. TraceError as in ``requests.read_trace``, and where
    there is no request or an id stands behind two different pages.
    """
    if isinstance(source, Path):
        return _collect(source.name, str(source), islice(numbered_requests(source), max_requests))
    if isinstance(source, Workload):
        return build_trace(f"workload {source.name}", islice(source.requests(), max_requests))
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
