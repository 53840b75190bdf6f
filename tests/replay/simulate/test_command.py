# SPDX-License-Identifier: Apache-2.0
import json

import pytest
from typer.testing import CliRunner

from bodocache import cli
from bodocache.cache import warm
from bodocache.replay.requests import TraceRequest, write_trace

warm()

SIMULATE = ("--simulate", "h100-llama-3.1-8b", "--load", "0.1")


def run(*arguments, status=0):
    result = CliRunner().invoke(cli.app, ["replay", *map(str, arguments)])
    assert result.exit_code == status, result.output
    return result


def test_every_asked_policy_has_its_figures(tmp_path):
    trace = tmp_path / "trace.jsonl"
    write_trace(trace, [TraceRequest(3000 * n, 1024, 5, (n % 3, 10 + n)) for n in range(12)])
    found = json.loads(run(trace, *SIMULATE, "--against", "timeout", "--json", "-").stdout)
    assert [*found["policies"]] == ["bodocache", "timeout"]
    for figures in found["policies"].values():
        assert figures["requests"] == 12
        assert figures["wrong_pages"] == 0
        assert figures["ttft_mean_s"] > 0


def test_engines_on_the_command_line_go_before_the_profiles(tmp_path):
    trace = tmp_path / "trace.jsonl"
    write_trace(trace, [TraceRequest(3000 * n, 1024, 5, (n % 3, 10 + n)) for n in range(12)])
    found = json.loads(run(trace, *SIMULATE, "--engines", 2, "--json", "-").stdout)
    assert found["engines"] == 2
    assert found["policies"]["bodocache"]["requests"] == 12


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--load", "0.5"), "--load: only with --simulate"),
        (("--engines", "2"), "--engines: only with --simulate"),
        ((*SIMULATE, "--in-flight", "2"), "--in-flight: not with --simulate"),
        ((*SIMULATE, "--policy-only"), "choose one of"),
        ((*SIMULATE, "--against", "magic"), "'magic' not known; known are wait_complete"),
        ((*SIMULATE, "--weather", "fog"), "'fog' not known"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments, says):
    assert says in run(*arguments, status=2).output
