# SPDX-License-Identifier: Apache-2.0
"""What may go wrong in :class:`bodocache.testing.FakeCuFile`, by plan."""

from dataclasses import dataclass
from enum import IntEnum, StrEnum


class Code(IntEnum):
    """The errors that it raises, of CUfileOpError."""

    DRIVER_NOT_INITIALIZED = 5001
    INVALID_FILE_TYPE = 5018
    DIO_NOT_SET = 5020
    INVALID_VALUE = 5022
    MEMORY_ALREADY_REGISTERED = 5023
    MEMORY_NOT_REGISTERED = 5024
    DRIVER_ALREADY_OPEN = 5026
    HANDLE_NOT_REGISTERED = 5027
    HANDLE_ALREADY_REGISTERED = 5028
    GPU_MEMORY_PINNING_FAILED = 5036
    BATCH_FULL = 5037
    INTERNAL_BATCH_SETUP_ERROR = 5039
    INTERNAL_BATCH_SUBMIT_ERROR = 5040
    INTERNAL_BATCH_GETSTATUS_ERROR = 5041
    INTERNAL_BATCH_CANCEL_ERROR = 5042


class CuFileError(Exception):
    """What every function raises; ``status`` is the code."""

    def __init__(self, status: int, said: str = "") -> None:
        super().__init__(f"{Code(status).name} ({int(status)}): {said}")
        self.status = int(status)


class Trouble(StrEnum):
    """What may become of an operation."""

    FAILED = "failed"  # with an errno
    SHORT = "short"  # COMPLETE, with fewer bytes than asked for
    TIMEOUT = "timeout"
    CANCELED = "canceled"
    INVALID = "invalid"
    STUCK = "stuck"  # until released; then it moves its bytes and is COMPLETE


@dataclass(frozen=True, slots=True)
class OpFault:
    """Operations ``first`` to ``last`` (inclusive, from 0 by submission; None: for ever) fail.

    ``value`` is the errno of FAILED, and the bytes that SHORT moves.
    """

    trouble: Trouble
    first: int = 0
    last: int | None = None
    value: int = 5

    def hits(self, number: int) -> bool:
        """Whether operation ``number`` is one of them."""
        return self.first <= number and (self.last is None or number <= self.last)


@dataclass(frozen=True, slots=True)
class CallFault:
    """Calls ``first`` to ``last`` of ``function`` raise ``code``; all count, from 0."""

    function: str
    code: Code
    first: int = 0
    last: int | None = None

    def hits(self, function: str, number: int) -> bool:
        """Whether call ``number`` of ``function`` is one of them."""
        mine = function == self.function and self.first <= number
        return mine and (self.last is None or number <= self.last)
