# SPDX-License-Identifier: Apache-2.0
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("google.protobuf")

from bodocache.cluster import planner_pb2, schema
from bodocache.cluster.codec import (
    Window,
    decode_plan,
    decode_window,
    encode_plan,
    encode_window,
)
from bodocache.errors import WireError
from bodocache.pages import KEY_NBYTES, NOWHERE, PAGE
from bodocache.plan.loads import DECISION
from bodocache.plan.records import DEMAND, LINK, OP, REQUEST, TENANT, Fate, OpKind, Plan

NOW_S = 500.0
SCHEMAS = {
    "demands": schema.DEMANDS,
    "requests": schema.REQUESTS,
    "pages": schema.PAGES,
    "tenants": schema.TENANTS,
    "links": schema.LINKS,
    "ops": schema.OPS,
    "rows": schema.ROWS,
    "answers": schema.ANSWERS,
    "fates": schema.FATES,
    "decisions": schema.DECISIONS,
}


def some(generator, dtype, columns, count, sizes):
    """Random records that a reader accepts; times are near NOW_S, binary fractions of a second."""
    records = np.zeros(count, dtype)
    for column in columns:
        if column.name not in dtype.names:
            continue
        kind, shape = np.dtype(column.dtype), records[column.name].shape
        most = sizes[column.of] - 1 if column.of else min(column.most, 100)
        least = max(column.least, 0)
        values = generator.integers(int(least), int(most) + 1, shape).astype(kind)
        records[column.name] = NOW_S + values / 4 if column.moment else values
    return records


def some_window(seed, demands=7, pages=5, tenants=2):
    generator = np.random.default_rng(seed)
    sizes = {"pages": pages, "tenants": tenants}
    parts = [("demands", DEMAND, demands), ("requests", REQUEST, 2), ("pages", PAGE, pages)]
    parts += [("tenants", TENANT, tenants), ("links", LINK, 3)]
    of = {n: some(generator, dtype, SCHEMAS[n], count, sizes) for n, dtype, count in parts}
    of["demands"]["tenant"] %= max(tenants, 1)
    of["demands"]["kind"][of["demands"]["kind"] == OpKind.EVICT] = OpKind.LOAD
    of["demands"]["deadline_s"][::3] = np.inf
    of["requests"]["first"], of["requests"]["count"] = [0, 3], [3, demands - 3]
    of["pages"]["parent"], of["pages"]["depth"] = np.arange(pages) - 1, np.arange(pages)
    of["links"]["rate"] += 1
    keys = generator.integers(1, 256, (pages, KEY_NBYTES), np.uint8)
    return Window(of["demands"], of["requests"], of["pages"], keys, of["tenants"], of["links"])


def some_plan(seed, demands=7, pages=5):
    generator = np.random.default_rng(seed)
    ops = some(generator, OP, schema.OPS, 3, {})
    ops["first"], ops["count"], ops["cluster"] = [0, 1, 3], [1, 2, 1], [NOWHERE, 2, 0]
    fates = generator.integers(0, len(Fate), demands).astype(np.uint8)
    ready_s = np.where(fates == Fate.DEFERRED, NOW_S + 1.5, 0)
    rows, answers = generator.integers(0, pages, 4), np.array([0, 1, 2, 2, 4])
    decisions = some(generator, DECISION, schema.DECISIONS, 2, {})
    return Plan(ops, rows, np.array([6, 0, 3, 2]), answers, fates, ready_s, decisions)


def changed(message, table, change):
    """The bytes of ``message`` after ``change(columns by name, table)``."""
    part = getattr(message, table)
    change({column.name: column for column in part.columns}, part)
    return message.SerializeToString()


def window_with(table, change, window=None):
    data = encode_window(window or some_window(1), now_s=NOW_S)
    return changed(planner_pb2.Window.FromString(data), table, change)


def plan_with(table, change):
    data = encode_plan(some_plan(1), some_window(1).keys, now_s=NOW_S)
    return changed(planner_pb2.Plan.FromString(data), table, change)


def write(name, row, value, dtype):
    """A change of one value of a column."""

    def change(columns, _):
        values = np.frombuffer(columns[name].data, dtype).copy()
        values[row] = value
        columns[name].data = values.tobytes()

    return change


@pytest.mark.parametrize("seed", range(5))
def test_a_window_comes_back_as_it_was(seed):
    window = some_window(seed)
    found = decode_window(encode_window(window, now_s=NOW_S), now_s=NOW_S)
    for name, sent, received in zip(Window._fields, window, found, strict=True):
        np.testing.assert_array_equal(received, sent, err_msg=name)


@pytest.mark.parametrize("seed", range(5))
def test_a_plan_comes_back_as_it_was_with_the_keys_of_its_clusters(seed):
    plan, keys = some_plan(seed), some_window(seed).keys
    data = encode_plan(plan, keys, now_s=NOW_S)
    found, ids = decode_plan(data, now_s=NOW_S, window=some_window(1))
    assert not ids[0].any()
    np.testing.assert_array_equal(ids[1:], keys[[2, 0]])
    assert (found.ops["cluster"] == NOWHERE).all()
    found.ops["cluster"] = plan.ops["cluster"]
    for name, sent, received in zip(Plan._fields, plan, found, strict=True):
        np.testing.assert_array_equal(received, sent, err_msg=name)


def test_every_field_travels_but_the_padding():
    for dtype, columns in (
        (DEMAND, schema.DEMANDS), (REQUEST, schema.REQUESTS), (PAGE, schema.PAGES),
        (TENANT, schema.TENANTS), (LINK, schema.LINKS), (OP, schema.OPS),
        (DECISION, schema.DECISIONS),
    ):  # fmt: skip
        assert set(dtype.names) - {column.name for column in columns} <= {"cluster"}


def test_times_are_durations_on_the_wire():
    window = some_window(1)
    found = decode_window(encode_window(window, now_s=NOW_S), now_s=NOW_S + 64)
    np.testing.assert_array_equal(found.demands["deadline_s"], window.demands["deadline_s"] + 64)
    np.testing.assert_array_equal(found.pages["stamp_s"], window.pages["stamp_s"] + 64)
    assert np.isinf(found.demands["deadline_s"][0])


def test_nothing_travels_and_comes_back():
    empty = Window(
        *(np.zeros(0, d) for d in (DEMAND, REQUEST, PAGE)),
        np.zeros((0, KEY_NBYTES), np.uint8),
        np.zeros(0, TENANT),
        np.zeros(0, LINK),
    )
    found = decode_window(encode_window(empty, now_s=NOW_S), now_s=NOW_S)
    assert [len(part) for part in found] == [0] * 6
    assert [len(part) for part in decode_window(b"", now_s=NOW_S)] == [0] * 6


# Version skew


def test_a_column_that_the_reader_does_not_know_is_passed_over():
    def add(_, table):
        table.columns.add(name="colour", version=1, dtype="<c16", width=3, data=b"?")
        table.columns.add(name="kind", version=2, dtype="<u8", width=1, data=b"?")  # a newer one

    found = decode_window(window_with("demands", add), now_s=NOW_S)
    np.testing.assert_array_equal(found.demands, some_window(1).demands)


@pytest.mark.parametrize("table", list(SCHEMAS)[:5])
def test_a_column_that_an_older_writer_did_not_send_has_its_default(table):
    optional = {c.wire_name: c for c in SCHEMAS[table] if c.default is not None}

    def forget(columns, part):
        kept = [column for name, column in columns.items() if name not in optional]
        del part.columns[:]
        part.columns.extend(kept)

    window = some_window(1, tenants=0) if table == "demands" else some_window(1)
    found = getattr(decode_window(window_with(table, forget, window), now_s=NOW_S), table)
    assert optional
    for column in optional.values():
        expected = column.default + (NOW_S if column.moment else 0)
        assert (found[column.name] == expected).all(), column.name


def test_a_field_that_the_reader_does_not_know_survives_parse_and_serialise():
    unknown = b"\xfa\x3e\x05later"  # field 1007, five bytes
    data = encode_window(some_window(1), now_s=NOW_S) + unknown
    message = planner_pb2.Window.FromString(data)
    assert unknown in message.SerializeToString()
    np.testing.assert_array_equal(decode_window(data, now_s=NOW_S).pages, some_window(1).pages)


def test_of_two_versions_of_a_column_the_newest_that_is_known_counts(monkeypatch):
    newer = tuple(c._replace(version=2) if c.name == "node" else c for c in schema.DEMANDS)

    def both(columns, table):
        second = table.columns.add()
        second.CopyFrom(columns["node"])
        second.version, second.data = 2, np.full(7, 9, "<u2").tobytes()

    data = window_with("demands", both)
    assert not (decode_window(data, now_s=NOW_S).demands["node"] == 9).all()
    monkeypatch.setattr(schema, "DEMANDS", newer)
    assert (decode_window(data, now_s=NOW_S).demands["node"] == 9).all()


# What is malformed


def remove(columns, table, name):
    kept = [column for column in columns.values() if column.name != name]
    del table.columns[:]
    table.columns.extend(kept)


WRONG = {
    "demands.page[2] = 5: expected a row of pages, 5 of them": write("page", 2, 5, "<i8"),
    "demands.page[2] = -1: expected": write("page", 2, -1, "<i8"),
    "demands.tenant[0] = 2: expected a row of tenants, 2 of them": write("tenant", 0, 2, "<u4"),
    "demands.deadline_in_s[6] = nan": write("deadline_in_s", 6, np.nan, "<f8"),
    "demands.arrival_in_s[0] = inf": write("arrival_in_s", 0, np.inf, "<f8"),
    "demands.kind[1] = 5": write("kind", 1, OpKind.ABORT, "u1"),
    "demands.kind[1] = 3: expected": write("kind", 1, OpKind.EVICT, "u1"),
    "requests.count[1] = 9: expected a run of 7 demands": write("count", 1, 9, "<i8"),
    "requests.token_s[0] = -1": write("token_s", 0, -1, "<f8"),
    "pages.cluster[0] = -3": write("cluster", 0, -3, "<i4"),
    "pages.parent[3] = 5": write("parent", 3, 5, "<i4"),
    "pages.depth[3] = 0: expected more than that of the parent": write("depth", 3, 0, "<u4"),
    "pages.heat[4] = inf": write("heat", 4, np.inf, "<f4"),
    "pages.children: 3 values of '<u4' a row; expected 4": lambda columns, _: setattr(
        columns["children"], "width", 3
    ),
    "tenants.lend[1] = 2": write("lend", 1, 2, "<f4"),
    "links.rate[0] = 0": write("rate", 0, 0, "<f8"),
    "links.source[2] = 4": write("source", 2, 4, "<u2"),
    "pages.key: not sent": lambda columns, table: remove(columns, table, "key"),
    "demands.page: 48 bytes; expected 56, 7 rows": lambda columns, _: setattr(
        columns["page"], "data", columns["page"].data[:-8]
    ),
    "demands.page: 1 values of '<i2' a row": lambda columns, _: setattr(
        columns["page"], "dtype", "<i2"
    ),
    "demands.page: version 0": lambda columns, _: setattr(columns["page"], "version", 0),
    "demands.page: version 1 was sent twice": lambda columns, table: table.columns.add().CopyFrom(
        columns["page"]
    ),
    "links: 1152921504606846976 rows; expected at most": lambda _, table: setattr(
        table, "rows", 1 << 60
    ),
}


@pytest.mark.parametrize("says", WRONG)
def test_a_malformed_window_is_an_error_that_names_column_and_row(says):
    table = re.split("[.:]", says)[0]
    with pytest.raises(WireError, match="^" + re.escape(says)):
        decode_window(window_with(table, WRONG[says]), now_s=NOW_S)


WRONG_PLAN = {
    "ops.count[2] = 9: expected a run of 4 rows": write("count", 2, 9, "<u4"),
    "ops.count[0] = 0": write("count", 0, 0, "<u4"),
    "ops.first[1] = -3": write("first", 1, -3, "<i8"),
    "ops.predicted_finish_in_s[1] = nan": write("predicted_finish_in_s", 1, np.nan, "<f8"),
    "rows.page[3] = 5: expected a row of pages": write("page", 3, 5, "<i8"),
    "rows.answers: 7 in all; expected the rows of answers, 4": write("answers", 1, 4, "<i8"),
    "answers.demand[0] = 7: expected a row of demands": write("demand", 0, 7, "<i8"),
    "decisions.verdict[1] = 3": write("verdict", 1, 3, "<u4"),
    "fates.fate[5] = 6": write("fate", 5, 6, "u1"),
    "fates.ready_in_s[5] = nan": write("ready_in_s", 5, np.nan, "<f8"),
}


@pytest.mark.parametrize("says", WRONG_PLAN)
def test_a_malformed_plan_is_an_error_that_names_column_and_row(says):
    data = plan_with(says.partition(".")[0], WRONG_PLAN[says])
    with pytest.raises(WireError, match="^" + re.escape(says)):
        decode_plan(data, now_s=NOW_S, window=some_window(1))


def test_a_plan_of_another_window_is_an_error():
    data = encode_plan(some_plan(1), some_window(1).keys, now_s=NOW_S)
    with pytest.raises(WireError, match="fates: 7 rows; expected 8, as the window has"):
        decode_plan(data, now_s=NOW_S, window=some_window(1, demands=8))
    fewer = some_window(1)._replace(requests=some_window(1).requests[:1])
    with pytest.raises(WireError, match="decisions: 2 rows; expected 1"):
        decode_plan(data, now_s=NOW_S, window=fewer)


def test_records_of_another_dtype_are_not_sent():
    window = some_window(1)
    with pytest.raises(WireError, match=r"key: .*expected u1"):
        encode_window(window._replace(keys=window.keys[:, :16]), now_s=NOW_S)


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_no_damage_does_more_than_a_wire_error(data):
    seed = data.draw(st.integers(0, 3))
    whole = [
        encode_window(some_window(seed), now_s=NOW_S),
        encode_plan(some_plan(seed), some_window(seed).keys, now_s=NOW_S),
    ]
    sent = bytearray(data.draw(st.sampled_from(whole)))
    places = st.integers(0, len(sent) - 1)
    for place in data.draw(st.lists(places, max_size=6)):
        sent[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(sent), data.draw(places)]))
    for decode in (
        lambda part: decode_window(part, now_s=NOW_S),
        lambda part: decode_plan(part, now_s=NOW_S, window=some_window(1)),
    ):
        try:
            found = decode(bytes(sent[:cut]))
        except WireError:
            continue
        assert_sound(found)


def assert_sound(found):
    """What came through can be planned or executed without leaving any table."""
    if isinstance(found, Window):
        assert (found.demands["page"] < len(found.pages)).all()
        assert (found.pages["parent"] < len(found.pages)).all()
        assert not np.isnan(found.demands["deadline_s"]).any()
        return
    ends = found.plan.ops["first"] + found.plan.ops["count"]
    assert (ends <= len(found.plan.rows)).all()
    assert found.plan.answers[-1] == len(found.plan.demands)
    assert (found.plan.rows < 5).all()


def test_a_page_that_was_released_travels():
    """The cache writes -inf where no use is expected: such a page goes first, by its planner."""
    window = some_window(3)
    window.pages["forecast"][1] = -np.inf
    decoded = decode_window(encode_window(window, now_s=NOW_S), now_s=NOW_S)
    assert decoded.pages["forecast"][1] == -np.inf
    window.pages["rank"][1] = -np.inf
    with pytest.raises(WireError, match=r"pages.rank\[1\] = -inf"):
        decode_window(encode_window(window, now_s=NOW_S), now_s=NOW_S)
