# SPDX-License-Identifier: Apache-2.0
"""What is best for one load as things stand, and what a rank proposes to do about it."""

from enum import StrEnum
from typing import NamedTuple


class Choice(NamedTuple):
    """What is best for one load."""

    pages: int  # to load, all in all
    is_whole: bool  # nothing is cut
    is_demoted: bool  # its link cannot serve it and others in time: it goes last
    cut_at: int  # tokens at which it would be cut if the next look agrees; -1: nowhere
    finish_s: float  # F: nine of ten finish sooner; on the cache's clock
    late_s: float  # behind when its last byte is due
    step_s: float  # until its step has computed, from now
    head_layers: int  # N: whole before its step should start; 0: it is not streamed by layer
    layers_ahead: int  # N+


class Why(StrEnum):
    """What a load is to be cut for."""

    BEFORE = "before"  # the engine computes it sooner; nothing has begun
    TARDY = "tardy"  # the same was found while it was under way
    DEADLINE = "deadline"  # it has passed
    UNPAID = "unpaid"  # its tenant will not have the credits in time; nothing has begun


class Proposal(NamedTuple):
    """What this rank would do with a load."""

    pages: int  # to keep; they have landed, or will
    why: Why
