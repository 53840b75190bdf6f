# SPDX-License-Identifier: Apache-2.0
"""Actions as gateways send them, in a versioned envelope, and the outcomes as they are answered.

``{protocol_version, message_id, actions: [{action_id, action_type, action_version, payload}]}``, as
Dynamo's KvHintsEnvelope. A payload names its target, ``{"session": name}`` or ``{"tokens": [...],
"start": 0, "stop": n}``, and what the action takes. Whose it is says the caller, not the payload.
An envelope that cannot be answered is a HintError; an action that cannot be executed is answered.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bodocache.errors import HintError
from bodocache.hints.actions import (
    Action,
    Demote,
    Leave,
    Outcome,
    Pin,
    Prefetch,
    Release,
    Retain,
    Session,
    Span,
    Target,
    Unknown,
    Unpin,
)
from bodocache.hints.reuse import checked_tenant, seconds_of
from bodocache.pages import Tier

PROTOCOL_VERSIONS = (1, "1", "1.0")
ACTION_VERSIONS = (1, "1", "1.0")
MAX_ACTIONS = 1024  # an envelope is worked off in one go

_TARGET = {"session", "tokens", "start", "stop"}
_TIERS = {"host": Tier.HOST, "disk": Tier.DISK}


@dataclass(frozen=True, slots=True)
class Envelope:
    """One message of actions."""

    message_id: str
    actions: tuple[Action, ...]


def from_envelope(envelope: Mapping[str, object], *, tenant: int = 0) -> Envelope:
    """The actions of an ``envelope`` that ``tenant`` sent.

    An action of an unknown type or version, or with a payload that is wrong, becomes an
    :class:`Unknown`, which is answered as rejected.

    Raises:
        HintError: the envelope has another version, or is not one, or there is no such tenant: it
            says what is wrong.
    """
    tenant = checked_tenant(tenant)
    if not isinstance(envelope, Mapping):
        raise HintError(f"envelope: {type(envelope).__name__}; expected a mapping")
    _check_keys("envelope", envelope, {"protocol_version", "message_id", "actions"})
    version = envelope["protocol_version"]
    if not _is_one_of(version, PROTOCOL_VERSIONS):
        raise HintError(f"envelope.protocol_version: expected one of {PROTOCOL_VERSIONS}")
    message_id, entries = _text(envelope, "message_id"), envelope["actions"]
    if not isinstance(entries, Sequence) or isinstance(entries, str | bytes):
        raise HintError("envelope.actions: expected a list")
    if len(entries) > MAX_ACTIONS:
        raise HintError(f"envelope.actions: {len(entries)}; send at most {MAX_ACTIONS} at once")
    actions = tuple(_action(i, entry, tenant) for i, entry in enumerate(entries))
    if len({action.action_id for action in actions}) < len(actions):
        raise HintError("envelope.actions: an action_id stands twice; number them apart")
    return Envelope(message_id, actions)


def to_envelope(message_id: str, outcomes: Sequence[Outcome]) -> dict[str, object]:
    """The answer to the envelope ``message_id``, made of what JSON can say."""
    answers = [
        {
            "action_id": outcome.action_id,
            "action_type": outcome.action,
            "outcome": outcome.status.value,
            "reason": outcome.reason,
            "pages": outcome.pages,
            "asked_pages": outcome.asked_pages,
            "until_s": outcome.until_s,
        }
        for outcome in outcomes
    ]
    return {"protocol_version": "1", "message_id": message_id, "outcomes": answers}


def _action(position: int, entry: object, tenant: int) -> Action:
    where = f"envelope.actions[{position}]"
    if not isinstance(entry, Mapping):
        raise HintError(f"{where}: expected a map")
    _check_keys(where, entry, {"action_id", "action_type", "action_version", "payload"})
    action_id, name = _text(entry, "action_id"), _text(entry, "action_type").lower()
    version, payload = entry["action_version"], entry["payload"]
    if name not in _READERS:
        why = f"unknown action type; known: {', '.join(sorted(_READERS))}"
        return Unknown(name, why, action_id)
    if not _is_one_of(version, ACTION_VERSIONS):
        return Unknown(name, f"unknown version of {name}; known: {ACTION_VERSIONS}", action_id)
    if not isinstance(payload, Mapping):
        return Unknown(name, "payload: expected a map", action_id)
    try:
        return _READERS[name](payload, tenant, action_id)
    except HintError as error:
        return Unknown(name, str(error), action_id)


def _is_one_of(version: object, known: tuple[int | str, ...]) -> bool:
    return type(version) in (int, str) and version in known


def _target(payload: Mapping[str, object], tenant: int, more: set[str]) -> Target:
    unknown = set(payload) - _TARGET - more
    if unknown:
        raise HintError(f"payload: {len(unknown)} unknown fields; known: {_known(more)}")
    if ("session" in payload) == ("tokens" in payload):
        raise HintError("payload: expected a session or tokens, one of them")
    if "session" in payload:
        if "start" in payload or "stop" in payload:
            raise HintError("payload: start and stop belong to tokens, not to a session")
        return Session(_text(payload, "session"), tenant)
    stop = None if payload.get("stop") is None else _whole(payload, "stop")
    start = _whole(payload, "start") if "start" in payload else 0
    return Span(_tokens(payload["tokens"]), start, stop, tenant)


def _known(more: set[str]) -> str:
    return ", ".join(sorted(_TARGET | more))


def _tokens(tokens: object) -> "np.ndarray[tuple[int], np.dtype[np.uint32]]":
    if not isinstance(tokens, Sequence) or isinstance(tokens, str | bytes) or not tokens:
        raise HintError("payload.tokens: expected a list of token ids")
    if not all(type(token) is int and 0 <= token < 1 << 32 for token in tokens):
        raise HintError("payload.tokens: expected integers from 0 to 4294967295")
    return np.array(tokens, np.uint32)


def _text(fields: Mapping[str, object], name: str) -> str:
    value = fields[name]
    if not isinstance(value, str) or not value:
        raise HintError(f"{name}: expected a text that is not empty")
    return value


def _whole(fields: Mapping[str, object], name: str) -> int:
    value = fields[name]
    if type(value) is not int:
        raise HintError(f"{name}: expected an integer")
    return value


def _seconds(fields: Mapping[str, object], name: str) -> float:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise HintError(f"{name}: expected seconds from now, >= 0")
    return seconds_of(value)


def _check_keys(where: str, fields: Mapping[str, object], expected: set[str]) -> None:
    missing, unknown = expected - set(fields), set(fields) - expected
    if missing or unknown:
        raise HintError(
            f"{where}: missing {sorted(missing)}, {len(unknown)} unknown;"
            f" expected {sorted(expected)}"
        )


def _retain(payload: Mapping[str, object], tenant: int, action_id: str) -> Action:
    target = _target(payload, tenant, {"keep_s"})
    return Retain(target, _seconds(payload, "keep_s"), action_id)


def _pin(payload: Mapping[str, object], tenant: int, action_id: str) -> Action:
    target = _target(payload, tenant, {"keep_s"})
    keep_s = _seconds(payload, "keep_s") if "keep_s" in payload else math.inf
    return Pin(target, keep_s, action_id)


def _unpin(payload: Mapping[str, object], tenant: int, action_id: str) -> Action:
    return Unpin(_target(payload, tenant, set()), action_id)


def _demote(payload: Mapping[str, object], tenant: int, action_id: str) -> Action:
    target, to = _target(payload, tenant, {"to"}), payload.get("to", "disk")
    if not isinstance(to, str) or to not in _TIERS:
        raise HintError(f"payload.to: expected one of {', '.join(_TIERS)}")
    return Demote(target, _TIERS[to], action_id)


def _prefetch(payload: Mapping[str, object], tenant: int, action_id: str) -> Action:
    target = _target(payload, tenant, {"deadline_s"})
    deadline_s = _seconds(payload, "deadline_s") if "deadline_s" in payload else math.inf
    return Prefetch(target, deadline_s, action_id)


def _release(payload: Mapping[str, object], tenant: int, action_id: str) -> Action:
    target, leave = _target(payload, tenant, {"leave"}), payload.get("leave", "when_needed")
    ways = {way.value: way for way in Leave}
    if not isinstance(leave, str) or leave not in ways:
        raise HintError(f"payload.leave: expected one of {', '.join(ways)}")
    return Release(target, ways[leave], action_id)


_Reader = Callable[[Mapping[str, object], int, str], Action]
_READERS: dict[str, _Reader] = {
    "retain": _retain,
    "pin": _pin,
    "unpin": _unpin,
    "demote": _demote,
    "prefetch": _prefetch,
    "release": _release,
}
