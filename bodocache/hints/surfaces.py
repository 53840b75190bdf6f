# SPDX-License-Identifier: Apache-2.0
"""Hints as engines and gateways write them today: retention ranges, session headers."""

import math
from collections.abc import Mapping, Sequence

from bodocache.errors import HintError
from bodocache.hints.reuse import DEFAULT_PRIORITY, Reuse, TokenRange, seconds_of

# Headers, lower case; the first that is there counts. The last one says that it was the last.
SESSION_HEADERS = ("x-session-id", "x-dynamo-trajectory-id")
FINAL_HEADER = "x-dynamo-trajectory-final"

_RANGE = {"token_start", "token_end", "priority", "duration_ms"}
_RETENTION = {
    "token_range_retention_configs",
    "decode_retention_priority",
    "decode_duration_ms",
}


def from_retention(config: Mapping[str, object], *, prompt_tokens: int) -> Reuse:
    """TensorRT-LLM's retention configuration for a prompt of ``prompt_tokens``, as a Reuse.

    Ranges ``{token_start, token_end, priority, duration_ms}`` raise or lower what their pages are
    worth for so long (None: until they are evicted); ``decode_*`` does so behind the prompt.

    Raises:
        HintError: a field is unknown or out of range.
    """
    _check(config, _RETENTION, "retention")
    entries = config.get("token_range_retention_configs", ())
    if not isinstance(entries, Sequence) or isinstance(entries, str | bytes):
        raise HintError("retention.token_range_retention_configs: expected a list")
    ranges = [_range(entry) for entry in entries]
    priority = config.get("decode_retention_priority", DEFAULT_PRIORITY)
    if priority != DEFAULT_PRIORITY:
        duration_s = _duration_s(config.get("decode_duration_ms"))
        ranges.append(TokenRange(prompt_tokens, None, _integer(priority), duration_s))
    return Reuse(ranges=tuple(ranges))


def session_of(headers: Mapping[str, str]) -> tuple[str | None, Reuse | None]:
    """The session that request ``headers`` name, or None, and what they say of its next use."""
    named = {name.lower(): value.strip() for name, value in headers.items()}
    session = next((named[name] for name in SESSION_HEADERS if named.get(name)), None)
    is_final = named.get(FINAL_HEADER, "").lower() in ("1", "true")
    return session, Reuse(end_of_conversation=True) if is_final else None


def _range(entry: object) -> TokenRange:
    if not isinstance(entry, Mapping):
        raise HintError("retention range: expected a map")
    _check(entry, _RANGE, "retention range")
    if "priority" not in entry or "token_start" not in entry:
        raise HintError("retention range: expected token_start and priority")
    end = entry.get("token_end")
    stop = None if end is None else _integer(end)
    duration_s = _duration_s(entry.get("duration_ms"))
    return TokenRange(_integer(entry["token_start"]), stop, _integer(entry["priority"]), duration_s)


def _check(fields: Mapping[str, object], known: set[str], where: str) -> None:
    unknown = set(fields) - known
    if unknown:
        raise HintError(f"{where}: {len(unknown)} unknown fields; known: {sorted(known)}")


def _integer(value: object) -> int:
    if type(value) is not int:
        raise HintError("retention: expected integers for tokens and priorities")
    return value


def _duration_s(duration_ms: object) -> float:
    if duration_ms is None:
        return math.inf
    if isinstance(duration_ms, bool) or not isinstance(duration_ms, int | float):
        raise HintError("retention: duration_ms: expected milliseconds, or None for no end")
    return seconds_of(duration_ms) / 1000.0
