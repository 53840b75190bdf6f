# SPDX-License-Identifier: Apache-2.0
import math
import re
from pathlib import Path

import pytest

pytest.importorskip("google.protobuf")

from bodocache.cluster import schema
from bodocache.cluster.columns import FINITE

DOCUMENT = Path(__file__).parents[2] / "docs" / "wire.md"
TABLES = (
    *("demands", "requests", "pages", "tenants", "links"),
    *("ops", "rows", "answers", "fates", "decisions"),
)


def said(column):
    """Dtype and default of a column, as the document writes them."""
    dtype = column.dtype if column.width == 1 else f"{column.dtype} x {column.width}"
    if column.default is None:
        return dtype, "needed"
    if column.moment:
        return dtype, "never" if column.default == math.inf else "now"
    return dtype, f"{column.default:g}"


@pytest.mark.parametrize("table", TABLES)
def test_every_column_is_documented_with_its_default(table):
    pattern = rf"^\| `{table}\.(\w+)` \| `(.+?)` \| (.+?) \|"
    found = re.findall(pattern, DOCUMENT.read_text(), re.MULTILINE)
    columns = getattr(schema, table.upper())
    assert found == [(column.wire_name, *said(column)) for column in columns]


def accepted(column):
    """What a reader accepts in a column, as the document writes it."""
    least, most = float(column.least), float(column.most)
    if column.of is not None:
        more = {0: "", -1: " or -1", -2: ", -1 or -2"}[least]
        return f"a row of {column.of}{more}"
    if most == math.inf:
        return {
            -math.inf: "not NaN" if column.dtype[1] == "f" else "any number",
            -FINITE: "not NaN, not -inf",
        }.get(least, f"{least:g} or more")
    if most == FINITE:
        return {
            -math.inf: "a finite number or -inf",
            -FINITE: "finite" if column.moment else "a finite number",
            0.0: "0 or more, finite",
        }.get(least, "above 0, finite")
    return f"{least:g} to {most:g}"


@pytest.mark.parametrize("table", TABLES)
def test_what_a_reader_accepts_is_documented(table):
    pattern = rf"^\| `{table}\.\w+` \| .+? \| .+? \| (.+?) \|$"
    found = re.findall(pattern, DOCUMENT.read_text(), re.MULTILINE)
    assert found == [accepted(column) for column in getattr(schema, table.upper())]


@pytest.mark.parametrize("table", TABLES)
def test_a_default_is_a_value_that_a_reader_accepts(table):
    for column in getattr(schema, table.upper()):
        if column.default is not None:
            assert column.least <= column.default <= column.most, column.name
