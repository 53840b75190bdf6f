# SPDX-License-Identifier: Apache-2.0
import math
import re
from pathlib import Path

import pytest

pytest.importorskip("google.protobuf")

from bodocache.cluster import schema

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


@pytest.mark.parametrize("table", TABLES)
def test_a_default_is_a_value_that_a_reader_accepts(table):
    for column in getattr(schema, table.upper()):
        if column.default is not None:
            assert column.least <= column.default <= column.most, column.name
