# SPDX-License-Identifier: Apache-2.0
"""``bodocache node``: what it says, and how it ends."""

import asyncio
import os
import signal
import sys

import pytest
from typer.testing import CliRunner

from bodocache import cli
from bodocache.errors import NodeLost

TOML = """
[identity]
model = "m"
dtype = "bytes"

[tiers.host]
capacity_bytes = "64 KiB"

[node]
page_tokens = 8
layers = 4
heads = 1
head_dim = 32
itemsize = 2
group = "kv"
"""


def run(*arguments):
    return CliRunner().invoke(cli.app, ["node", *map(str, arguments)])


def end_of_main(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["bodocache", "node", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, capsys.readouterr().err


def test_help_says_how_engines_attach():
    shown = " ".join(run("--help").output.split())
    assert "--socket" in shown
    assert "NodeCache.attach" in shown
    assert "SIGTERM" in shown


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (TOML.replace("[node]", "[nodes]"), "nodes: unknown key"),
        (TOML.partition("[node]")[0], "a node must be told what a page is"),
        (TOML.replace("64 KiB", "100"), "at least one page, 4096 bytes"),
        (TOML.replace("layers = 4", "layers = 0"), "node.layers = 0"),
    ],
)
def test_a_wrong_configuration_is_one_line_and_status_2(tmp_path, monkeypatch, capsys, text, says):
    (tmp_path / "node.toml").write_text(text)
    arguments = ("--config", tmp_path / "node.toml", "--socket", tmp_path / "s")
    status, shown = end_of_main(monkeypatch, capsys, *arguments)
    assert status == 2
    assert says in shown
    assert not (tmp_path / "s").exists()


def test_a_socket_in_no_folder_is_an_error_that_names_it(tmp_path, monkeypatch, capsys):
    (tmp_path / "node.toml").write_text(TOML)
    arguments = ("--config", tmp_path / "node.toml", "--socket", tmp_path / "none" / "s")
    status, shown = end_of_main(monkeypatch, capsys, *arguments)
    assert status == 2
    assert "the folder must be there" in shown


@pytest.mark.timeout(150)
def test_the_command_serves_until_sigterm_and_takes_its_socket_away(tmp_path, house):
    async def scenario():
        (tmp_path / "node.toml").write_text(TOML)
        arguments = ("--config", tmp_path / "node.toml", "--socket", tmp_path / "s")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bodocache.cli", "node", *map(str, arguments)),
            stderr=asyncio.subprocess.PIPE,
            env=dict(os.environ),
        )
        try:
            await house.until((tmp_path / "s").exists, within_s=120)
            async with house.attach(tmp_path / "s", house.settings()) as it:
                assert await it.serve(house.prompt(3)) == 0
                assert await it.serve(house.prompt(3)) == 3
                assert (await it.cache.node_stats())["tiers"]["host"]["pages"] == 3
            process.send_signal(signal.SIGTERM)
            _, log = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0
        assert "serving at" in log.decode()
        assert "16 host pages of 4096 bytes" in log.decode()
        assert not (tmp_path / "s").exists()
        with pytest.raises(NodeLost):
            async with house.attach(tmp_path / "s", house.settings()):
                pass

    asyncio.run(scenario())
