# SPDX-License-Identifier: Apache-2.0
"""What can be said, and what is refused: reuse, ranges, envelopes, surfaces of engines."""

import copy
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bodocache.errors import HintError
from bodocache.hints import (
    Demote,
    Leave,
    Outcome,
    Pin,
    Prefetch,
    Release,
    Retain,
    Reuse,
    Session,
    Span,
    Status,
    TokenRange,
    Unknown,
    Unpin,
    from_envelope,
    from_retention,
    session_of,
    to_envelope,
)
from bodocache.pages import Tier


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"probability": 1.1}, "probability = 1.1: expected 0 to 1"),
        ({"probability": math.nan}, "probability"),
        ({"expected_s": -1.0}, "expected_s = -1.0: expected seconds from now"),
        ({"keep_s": math.nan}, "keep_s"),
        ({"priority": 101}, "integer from 0"),
        ({"priority": True}, "integer from 0"),
        ({"priority": 3.5}, "integer from 0"),
        ({"priority_s": -2.0}, "priority_s"),
        ({"end_of_conversation": True, "probability": 0.5}, "say one"),
        ({"end_of_conversation": True, "expected_s": 5.0}, "say one"),
        ({"ranges": ((0, 5),)}, "tuple of TokenRange"),
    ],
)
def test_a_reuse_that_cannot_be_meant_is_refused(fields, message):
    with pytest.raises(HintError, match=message):
        Reuse(**fields)


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (5, 5), (9, 3)])
def test_a_range_of_no_tokens_is_refused(start, stop):
    with pytest.raises(HintError, match="0 <= start < stop"):
        TokenRange(start, stop)
    with pytest.raises(HintError, match="0 <= start < stop"):
        Span(np.arange(9), start, stop)


def test_what_is_said_of_the_next_use_is_a_chance_within_the_horizon():
    assert math.isnan(Reuse().chance(600.0))
    assert Reuse(end_of_conversation=True).chance(600.0) == 0.0
    assert Reuse(probability=0.5).chance(600.0) == 0.5
    assert Reuse(expected_s=0.0).chance(600.0) == 1.0
    assert Reuse(expected_s=600.0).chance(600.0) == pytest.approx(1 - math.exp(-1))
    assert Reuse(0.5, 600.0).chance(600.0) == pytest.approx(0.5 * (1 - math.exp(-1)))


@pytest.mark.parametrize(
    ("start", "stop", "pages"),
    [(0, None, [0, 1, 2]), (0, 8, [0]), (7, 9, [0, 1]), (8, 16, [1]), (20, 99, [2]), (50, 60, [])],
)
def test_a_range_has_the_pages_it_touches(start, stop, pages):
    assert list(TokenRange(start, stop).pages(8, 3)) == pages


GOOD = {
    "protocol_version": "1",
    "message_id": "m",
    "actions": [
        ("retain", {"session": "s", "keep_s": 30}),
        ("pin", {"tokens": [1, 2, 3], "start": 1, "stop": 3}),
        ("Unpin", {"session": "s"}),
        ("demote", {"session": "s", "to": "host"}),
        ("prefetch", {"session": "s", "deadline_s": 0.5}),
        ("release", {"session": "s", "leave": "at_once"}),
    ],
}
GOOD["actions"] = [
    {"action_id": str(i), "action_type": name, "action_version": 1, "payload": payload}
    for i, (name, payload) in enumerate(GOOD["actions"])
]


def changed(path, value):
    envelope = copy.deepcopy(GOOD)
    *parents, name = path
    inner = envelope
    for part in parents:
        inner = inner[part]
    if value is KeyError:
        del inner[name]
    else:
        inner[name] = value
    return envelope


def test_seconds_too_large_for_a_float_are_without_end():
    path = ("actions", 0, "payload", "keep_s")
    retain = from_envelope(changed(path, 10**400)).actions[0]
    assert retain.keep_s == math.inf
    ranges = [{"token_start": 0, "token_end": 2, "priority": 50, "duration_ms": 10**400}]
    reuse = from_retention({"token_range_retention_configs": ranges}, prompt_tokens=3)
    assert reuse.ranges[0].priority_s == math.inf


def test_an_envelope_becomes_its_actions():
    envelope = from_envelope(GOOD, tenant=7)
    retain, pin, unpin, demote, prefetch, release = envelope.actions
    assert (retain.on, retain.keep_s, retain.action_id) == (Session("s", 7), 30.0, "0")
    assert (pin.on.prompt.tolist(), pin.on.start, pin.on.stop) == ([1, 2, 3], 1, 3)
    assert (pin.on.tenant, pin.keep_s) == (7, math.inf)
    assert demote.to is Tier.HOST
    assert prefetch.deadline_s == 0.5
    assert release.leave is Leave.AT_ONCE
    kinds = [type(action) for action in envelope.actions]
    assert kinds == [Retain, Pin, Unpin, Demote, Prefetch, Release]
    assert unpin.action_id == "2"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("protocol_version",), "2", "protocol_version"),
        (("protocol_version",), True, "protocol_version"),
        (("protocol_version",), [1], "protocol_version"),
        (("message_id",), "", "message_id"),
        (("message_id",), KeyError, "missing"),
        (("more",), 1, "1 unknown"),
        (("actions",), "retain", "expected a list"),
        (("actions",), [None], "expected a map"),
        (("actions", 0, "action_id"), KeyError, "missing"),
        (("actions", 0, "action_id"), "1", "twice"),
        (("actions",), GOOD["actions"] * 200, "at most 1024"),
    ],
)
def test_an_envelope_that_cannot_be_answered_is_an_error(path, value, message):
    with pytest.raises(HintError, match=message):
        from_envelope(changed(path, value))


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        (("action_type",), "share", "unknown action type"),
        (("action_version",), 2, "unknown version"),
        (("action_version",), {}, "unknown version"),
        (("payload",), None, "expected a map"),
        (("payload",), {}, "one of them"),
        (("payload", "session"), "", "session"),
        (("payload", "tokens"), [1], "one of them"),
        (("payload", "start"), 1, "belong to tokens"),
        (("payload", "keep_s"), -1, "keep_s"),
        (("payload", "keep_s"), "30", "keep_s"),
        (("payload", "keep_s"), KeyError, "keep_s"),
        (("payload", "keep"), 1, "1 unknown fields"),
        (("payload",), {"tokens": [1, -1], "keep_s": 1}, "integers"),
        (("payload",), {"tokens": [], "keep_s": 1}, "list of token ids"),
        (("payload",), {"tokens": [1], "start": 1.0, "keep_s": 1}, "start"),
    ],
)
def test_an_action_that_cannot_be_executed_is_answered_and_the_others_go_on(path, value, why):
    actions = from_envelope(changed(("actions", 0, *path), value)).actions
    assert isinstance(actions[0], Unknown)
    assert why in actions[0].why
    assert actions[0].action_id == "0"
    assert not any(isinstance(action, Unknown) for action in actions[1:])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
PATHS = st.sampled_from(
    [
        *((name,) for name in GOOD),
        *(("actions", i) for i in range(6)),
        *(("actions", i, name) for i in range(6) for name in GOOD["actions"][0]),
        *(
            ("actions", i, "payload", name)
            for i in range(6)
            for name in GOOD["actions"][i]["payload"]
        ),
    ]
)


@given(PATHS, JSON)
def test_whatever_stands_in_an_envelope_it_is_read_or_a_hint_error(path, value):
    envelope = changed(path, value)
    try:
        actions = from_envelope(envelope).actions
    except HintError:
        return
    assert len(actions) == len(envelope["actions"])


def test_outcomes_go_out_as_json():
    outcomes = [Outcome("1", "retain", Status.CLIPPED, "why", 3, 5, 60.0)]
    answer = json.loads(json.dumps(to_envelope("m", outcomes)))
    assert answer == {
        "protocol_version": "1",
        "message_id": "m",
        "outcomes": [
            {
                "action_id": "1",
                "action_type": "retain",
                "outcome": "clipped",
                "reason": "why",
                "pages": 3,
                "asked_pages": 5,
                "until_s": 60.0,
            }
        ],
    }


def test_retention_ranges_are_read():
    config = {
        "token_range_retention_configs": [
            {"token_start": 0, "token_end": 100, "priority": 80, "duration_ms": 30_000},
            {"token_start": 100, "priority": 10},
        ],
        "decode_retention_priority": 0,
        "decode_duration_ms": 500,
    }
    assert from_retention(config, prompt_tokens=150) == Reuse(
        ranges=(
            TokenRange(0, 100, 80, 30.0),
            TokenRange(100, None, 10, math.inf),
            TokenRange(150, None, 0, 0.5),
        )
    )


@pytest.mark.parametrize(
    "config",
    [
        {"ranges": []},
        {"token_range_retention_configs": "all"},
        {"token_range_retention_configs": [{"token_start": 0}]},
        {"token_range_retention_configs": [{"token_start": 0, "priority": 200}]},
        {"token_range_retention_configs": [{"token_start": 0, "priority": 5, "duration_ms": "1"}]},
        {"token_range_retention_configs": [{"token_start": "0", "priority": 5}]},
        {"decode_retention_priority": 5.5},
    ],
)
def test_retention_that_is_none_is_refused(config):
    with pytest.raises(HintError):
        from_retention(config, prompt_tokens=10)


def test_headers_name_the_session_and_its_end():
    assert session_of({}) == (None, None)
    assert session_of({"X-Session-ID": " a "}) == ("a", None)
    headers = {"x-dynamo-trajectory-id": "t", "X-Dynamo-Trajectory-Final": "true"}
    assert session_of(headers) == ("t", Reuse(end_of_conversation=True))
