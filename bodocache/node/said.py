# SPDX-License-Identifier: Apache-2.0
"""What callers say with requests, and actions on pages, as JSON between an engine and its node.

Targets of actions travel as they are, but for the tokens of a span: the engine sends its keys.
"""

import json
from dataclasses import asdict
from enum import Enum
from typing import Any

import numpy as np

from bodocache.errors import WireError
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
    Status,
    Target,
    Unknown,
    Unpin,
)
from bodocache.hints.reuse import REQUESTS_PER_ENGINE, Reuse, Said, TokenRange
from bodocache.pages import Tier

_ACTIONS: dict[str, Any] = {
    kind.__name__: kind for kind in (Retain, Pin, Unpin, Demote, Prefetch, Release)
}
_ENUMS: dict[str, type[Enum]] = {"to": Tier, "leave": Leave}


def said_to_json(said: Said) -> str:
    """``said`` as text."""
    return json.dumps(asdict(said))


def said_from_json(text: str, epoch: int) -> Said:
    """What the engine of ``epoch`` said. WireError: it is none."""
    try:
        values = json.loads(text)
        reuse = values["reuse"]
        if reuse is not None:
            ranges = tuple(TokenRange(**it) for it in reuse.pop("ranges"))
            reuse = Reuse(**reuse, ranges=ranges)
        request = epoch % (1 << 20) * REQUESTS_PER_ENGINE + values["request"]
        return Said(request).overridden(reuse, values["session"], values["tenant"])
    except (ValueError, TypeError, KeyError) as error:
        raise WireError(f"said: {error}") from error


def actions_to_json(actions: list[Action]) -> str:
    """``actions`` as text."""
    return json.dumps([_of_action(action) for action in actions])


def _of_action(action: Action) -> dict[str, object]:
    if isinstance(action, Unknown):
        return {"kind": "Unknown", "name": action.name, "why": action.why, "id": action.action_id}
    names = [name for name in type(action).__slots__ if name not in ("on", "action_id")]
    values = {name: getattr(action, name) for name in names}
    values = {name: it.value if isinstance(it, Enum) else it for name, it in values.items()}
    on, target = action.on, dict[str, object]()
    if isinstance(on, Session):
        target |= {"session": on.name, "tenant": on.tenant}
    else:
        target |= {"start": on.start, "stop": on.stop, "tenant": on.tenant}
    kind = type(action).__name__
    return {"kind": kind, "on": target, "values": values, "id": action.action_id}


def actions_from_json(text: str) -> list[Action]:
    """The actions in ``text``; a span has no tokens here. WireError: it is none."""
    try:
        return [_action(it) for it in json.loads(text)]
    except (ValueError, TypeError, KeyError) as error:
        raise WireError(f"actions: {error}") from error


def _action(it: dict[str, Any]) -> Action:
    if it["kind"] == "Unknown":
        return Unknown(it["name"], it["why"], it["id"])
    values: dict[str, Any] = {
        name: _ENUMS[name](value) if name in _ENUMS else value
        for name, value in it["values"].items()
    }
    action: Action = _ACTIONS[it["kind"]](_target(it["on"]), **values, action_id=it["id"])
    return action


def _target(on: dict[str, Any]) -> Target:
    if "session" in on:
        return Session(on["session"], on["tenant"])
    return Span(np.empty(0, np.uint32), **on)


def outcome_to_json(outcome: Outcome, operation: int) -> dict[str, object]:
    """``outcome`` as JSON can say it; ``operation`` is its number, 0 where there is none."""
    return {
        "action_id": outcome.action_id,
        "action": outcome.action,
        "status": outcome.status.value,
        "reason": outcome.reason,
        "pages": outcome.pages,
        "asked_pages": outcome.asked_pages,
        "until_s": outcome.until_s,
        "operation": operation,
    }


def outcome_from_json(values: dict[str, Any]) -> tuple[Outcome, int]:
    """The outcome and the number of its operation."""
    operation = values.pop("operation")
    return Outcome(**{**values, "status": Status(values["status"])}), operation
