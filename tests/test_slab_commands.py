# SPDX-License-Identifier: Apache-2.0
"""``bodocache slab``: what it prints, what it writes as JSON, its errors and exit statuses."""

import asyncio
import json
import math
import sys

import pytest
from typer.testing import CliRunner

from bodocache import cli, jit
from bodocache.clock import RealClock
from bodocache.io.config import SlabConfig
from bodocache.io.slab import SlabBackend
from bodocache.testing import NumberedPages

jit.warm()  # here, not in a test: a cold compile is not part of any test's time

PAGE_NBYTES, FRAMES, PAGES = 8192, 64, 40
CAPACITY = 4096 + FRAMES * (PAGE_NBYTES + 512)
CHECK_JSON = {
    *("frames", "whole", "duplicates", "changed", "reasons", "damaged", "nbytes", "seconds"),
}
STATS_JSON = {
    *("pages", "frames", "fill", "reasons", "page_nbytes", "frame_nbytes", "nbytes_on_disk"),
    *("capacity_nbytes", "first_pages", "orphans", "children", "adjacent", "adjacent_share"),
    *("extent_pages", "free_runs", "depths", "ages", "generation", "version", "form", "slab"),
}


async def using(directory, scenario):
    config = SlabConfig(directory, CAPACITY, PAGE_NBYTES, b"f" * 32)
    backend = await SlabBackend.open(config, clock=RealClock())
    try:
        return await scenario(backend)
    finally:
        await backend.close()


async def fill(backend):
    pages = NumberedPages(PAGE_NBYTES)
    buffers = pages.buffers(PAGES)
    pages.fill(buffers, list(range(PAGES)))
    batch = pages.batch(list(range(PAGES)), backend.reserve(PAGES, after=-1))
    await backend.put(batch, buffers, deadline_s=math.inf).drained()


@pytest.fixture
def slab(tmp_path):
    """A directory with 40 pages of one prompt in 64 frames."""
    asyncio.run(using(tmp_path / "slab", fill))
    return tmp_path / "slab"


def run(*arguments, status=0, answer=None):
    words = ["slab", *map(str, arguments)]
    result = CliRunner().invoke(cli.app, words, input=answer)
    assert result.exit_code == status, result.output
    return result


def damage(slab, frames):
    with (slab / "payload.slab").open("r+b") as file:
        for frame in frames:
            file.seek(frame * PAGE_NBYTES + 100)
            file.write(b"\x12\x34")


def test_a_sound_slab_is_checked(slab, tmp_path):
    text = run("check", slab, "--json", tmp_path / "check.json").stdout
    found = json.loads((tmp_path / "check.json").read_text())
    assert set(found) == CHECK_JSON
    assert (found["whole"], found["reasons"]) == (PAGES, {"never_stored": FRAMES - PAGES})
    assert found["nbytes"] == PAGES * PAGE_NBYTES
    for part in (
        "whole pages",
        "40",
        "never stored",
        "24",
        "bytes read",
        f"{PAGES * PAGE_NBYTES:,} in",
    ):
        assert part in text
    assert "damaged" not in text


def test_damage_is_named_and_is_status_1(slab):
    damage(slab, [3, 7])
    result = run("check", slab, "--json", "-", status=1)
    found = json.loads(result.stdout)
    keys = [bytes(NumberedPages(PAGE_NBYTES).key(number)[:8]).hex() for number in (3, 7)]
    assert found["damaged"] == [
        {"frame": frame, "reason": "corrupt", "key": key}
        for frame, key in zip((3, 7), keys, strict=True)
    ]
    assert f"damaged: frame 3: corrupt, key {keys[0]}..." in result.stderr
    assert found["reasons"]["corrupt"] == 2


def test_much_damage_is_named_in_part(slab):
    damage(slab, range(25))
    text = run("check", slab, status=1).stdout
    assert text.count("damaged: frame") == 20
    assert "and 5 more; --json FILE has all" in text


def test_stats_are_a_table_and_the_names_of_the_json_are_stable(slab):
    text = run("stats", slab).stdout
    for part in (
        "40 of 64 (62.5%)",
        "39 of 39 (100.0%)",
        "40.00",
        "16 to 31",
        "6666666666666666...",
    ):
        assert part in text
    found = json.loads(run("stats", slab, "--json", "-").stdout)
    assert set(found) == STATS_JSON
    assert (found["pages"], found["adjacent"], found["extent_pages"]) == (40, 39, 40)
    assert found["free_runs"][-1] == {"from": 16, "to": 31, "count": 1}
    assert [row["count"] for row in found["depths"]] == [1, 1, 2, 4, 8, 16, 8]
    assert found["capacity_nbytes"] == CAPACITY


def test_check_and_stats_work_beside_a_running_cache(slab):
    async def scenario(_):
        return await asyncio.to_thread(
            lambda: [run(command, slab).stdout for command in ("check", "stats")]
        )

    check, stats = asyncio.run(using(slab, scenario))
    assert "whole pages" in check
    assert "40 of 64" in stats


def test_a_dry_run_says_what_a_trim_then_frees(slab):
    before = (slab / "payload.slab").stat().st_blocks
    text = run("trim", slab, "--dry-run").stdout
    assert "dry run: about" in text
    assert (slab / "payload.slab").stat().st_blocks == before
    text = run("trim", slab).stdout
    freed = 512 * (before - (slab / "payload.slab").stat().st_blocks)
    assert f"{freed:,} bytes freed" in text
    assert freed >= (FRAMES - PAGES - 1) * PAGE_NBYTES
    assert json.loads(run("check", slab, "--json", "-").stdout)["whole"] == PAGES


@pytest.mark.parametrize(
    ("options", "answer", "status", "left"),
    [((), "n\n", 1, 40), ((), "", 1, 40), ((), "y\n", 0, 10), (("--yes",), None, 0, 10)],
)
def test_pages_are_lost_only_by_consent(slab, options, answer, status, left):
    size = 4096 + 10 * (PAGE_NBYTES + 512)
    text = run("trim", slab, "--to", size, *options, answer=answer, status=status).output
    assert ("30 pages lie beyond" in text) == (not options)
    assert json.loads(run("stats", slab, "--json", "-").stdout)["pages"] == left


def test_a_size_may_have_a_unit(slab):
    text = run("trim", slab, "--dry-run", "--to", "100 KiB").stdout
    assert "64 -> 11" in text
    assert "pages lost" in text


@pytest.mark.parametrize("size", ["much", "-5", "8 bits"])
def test_a_size_that_is_none_is_refused(slab, size):
    assert "expected bytes" in run("trim", slab, f"--to={size}", status=2).output


def test_a_running_cache_is_not_trimmed(slab, monkeypatch, capsys):
    async def scenario(_):
        return error_of(monkeypatch, capsys, "trim", slab)

    assert "writes to it; close that one" in asyncio.run(using(slab, scenario))


@pytest.mark.parametrize("command", ["check", "stats", "trim"])
@pytest.mark.parametrize("there", [False, True])
def test_an_error_is_one_line_and_status_2(monkeypatch, capsys, tmp_path, command, there):
    directory = tmp_path / "[none]"
    if there:
        directory.mkdir()
    text = error_of(monkeypatch, capsys, command, directory)
    assert str(directory) in text
    assert ("it is empty" if there else "No such file or directory") in text


def error_of(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["bodocache", "slab", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    text = capsys.readouterr().err
    assert ended.value.code == 2
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    return text


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        ("check", ["bodocache slab check /cache --json", "Exit status 1", "as changed, not"]),
        ("stats", ["bodocache slab stats /cache --json -", "Age counts pages written since"]),
        ("trim", ['--to "50 GiB"', "--dry-run", "fills the holes as it writes", "are lost"]),
    ],
)
def test_the_help_teaches(command, parts):
    text = " ".join(run(command, "--help").stdout.replace("│", " ").split())
    assert all(part in text for part in parts), text
