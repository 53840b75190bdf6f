# SPDX-License-Identifier: Apache-2.0
"""Which code serves CPU tensors: compiled loops where numba is, else the plain-PyTorch twins."""

import functools
import importlib
from typing import Any, Protocol, cast

import torch

from bodocache.kernels.runs import Runs


class HostPath(Protocol):
    """The compiled loops of ``cpu.py``; operands are checked, digests are int64[n, 2]."""

    def gather(
        self, runs: Runs, slots: torch.Tensor, rows: torch.Tensor, out: torch.Tensor
    ) -> torch.Tensor:
        """Copy pages ``slots`` to ``rows`` of ``out``; return their digests."""

    def scatter(
        self, runs: Runs, slots: torch.Tensor, rows: torch.Tensor, pages: torch.Tensor
    ) -> torch.Tensor:
        """Copy ``rows`` of ``pages`` to pages ``slots``; return their digests."""

    def gather_plain(
        self, runs: Runs, slots: torch.Tensor, rows: torch.Tensor, out: torch.Tensor
    ) -> None:
        """Copy pages ``slots`` to ``rows`` of ``out``."""

    def scatter_plain(
        self, runs: Runs, slots: torch.Tensor, rows: torch.Tensor, pages: torch.Tensor
    ) -> None:
        """Copy ``rows`` of ``pages`` to pages ``slots``."""

    def copy(
        self, pair: tuple[Runs, Runs], source_slots: torch.Tensor, destination_slots: torch.Tensor
    ) -> None:
        """Copy pages of the first memory to pages of the second."""

    def digest(self, pages: torch.Tensor) -> torch.Tensor:
        """Return the digests of ``pages``."""


@functools.cache
def compiled() -> HostPath | None:
    """The compiled loops, or None where numba is not installed (engines' minimal images)."""
    try:
        return cast("HostPath", importlib.import_module("bodocache.kernels.cpu"))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "numba":
            raise
        return None


@functools.cache
def lists() -> Any:
    """Module ``lists``, or None where numba is not installed."""
    return None if compiled() is None else importlib.import_module("bodocache.kernels.lists")
