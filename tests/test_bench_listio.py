# SPDX-License-Identifier: Apache-2.0
"""bench/listio.py: that it runs, checks bytes, and says what is missing instead of failing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"
OURS = "bodocache slab"
KEYS = ("direction", "layout", "page_nbytes")


@pytest.fixture
def modules(monkeypatch):
    """The scripts' folder, from which they import each other."""
    monkeypatch.syspath_prepend(str(BENCH))


def run(tmp_path, *arguments):
    file = tmp_path / "listio.json"
    command = [sys.executable, str(BENCH / "listio.py"), "--json", str(file), *arguments]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []  # nothing left behind
    return json.loads(file.read_text())


@pytest.mark.timeout(180)
def test_every_engine_reports_or_says_why_not(tmp_path):
    said = run(tmp_path, "--quick", "--plot", str(tmp_path / "plot.svg"))
    rows = [row for row in said["rows"] if "engine" in row]
    for row in rows:
        assert ("make peers" in row["note"]) if "note" in row else (row["gb_per_s"] > 0)
    points = {(row["direction"], row["layout"], row["page_nbytes"]) for row in rows}
    assert len(points) == 8
    for point in points:
        there = {r["engine"]: r for r in rows if tuple(r[k] for k in KEYS) == point}
        assert {OURS, "per page, 8 Python threads", "aiofiles, per page"} <= set(there)
        assert sum(row.get("is_best_raw", False) for row in there.values()) == 1
    assert {"vLLM fs tier", "LMCache LocalDisk"} <= {row["engine"] for row in rows}
    names = " ".join(claim["name"] for claim in said["claims"])
    assert all(word in names for word in ("digest", "Python a page", "CPU per GB", "write, 64 KiB"))
    assert "<svg" in (tmp_path / "plot.svg").read_text()


@pytest.mark.timeout(120)
def test_a_soak_leaves_nothing_behind_and_loses_nothing(tmp_path):
    said = run(tmp_path, "--soak", "20000")
    claims = {claim["name"]: claim["met"] for claim in said["claims"]}
    claims.pop("RSS, second half")  # 20,000 operations are too few to tell
    assert all(claims.values()), claims
    done = said["rows"][0]["operations"]
    assert all(done[kind] > 0 for kind in ("put", "get", "release", "cancel"))


@pytest.mark.usefixtures("modules")
def test_an_engine_that_reads_other_bytes_is_found_out():
    from _listio_point import Point, in_turns

    point = Point.of(4096, 2, 4 << 12)

    class Liar:
        name, count = "liar", point.count

        def read(self):
            point.target[:] = point.source
            point.target[0, 7] ^= 1

        def landed(self):
            return point.target, point.slots

    with pytest.raises(RuntimeError, match="liar: read other bytes"):
        in_turns(point, [Liar()], writes=False, repetitions=1)


@pytest.mark.usefixtures("modules")
def test_ratios_are_taken_turn_by_turn():
    from listio import paired

    assert paired([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
