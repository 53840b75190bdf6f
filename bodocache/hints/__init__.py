# SPDX-License-Identifier: Apache-2.0
"""What a caller may tell the cache of the future, and what the cache answers."""

from bodocache.hints.actions import (
    Action,
    Demote,
    Leave,
    Operation,
    Outcome,
    Pin,
    Prefetch,
    Release,
    Retain,
    Session,
    Span,
    Status,
    Unknown,
    Unpin,
)
from bodocache.hints.envelope import Envelope, from_envelope, to_envelope
from bodocache.hints.reuse import Reuse, TokenRange
from bodocache.hints.stats import HintStats, Reliability
from bodocache.hints.surfaces import from_retention, session_of

__all__ = [
    "Action",
    "Demote",
    "Envelope",
    "HintStats",
    "Leave",
    "Operation",
    "Outcome",
    "Pin",
    "Prefetch",
    "Release",
    "Reliability",
    "Retain",
    "Reuse",
    "Session",
    "Span",
    "Status",
    "TokenRange",
    "Unknown",
    "Unpin",
    "from_envelope",
    "from_retention",
    "session_of",
    "to_envelope",
]
