# SPDX-License-Identifier: Apache-2.0
"""The GPU's checks, run in Triton's interpreter: they pass here, and find a kernel that lies."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"
SCRIPT = """
import sys
sys.path.insert(0, {bench!r})
import torch
import gpu_checks
from bodocache.kernels import check, move
check.on_gpu = lambda device: True
lie = {lie!r}
if lie:
    launch = move.launch
    def wrong(source, target, slots, *rest, **options):
        return launch(source, target, (slots[0], slots[1].flip(0).contiguous()), *rest, **options)
    move.launch = wrong
torch.manual_seed(7)
machine = gpu_checks.Machine(torch.device("cpu"), groups=gpu_checks.GROUPS[1:2])
rows = list(gpu_checks.run(machine, gpu_checks.CHECKS))
failed = [row["check"] for row in rows if row["outcome"] == "FAILED"]
passed = [row["check"] for row in rows if row["outcome"] == "passed"]
print("RESULT", len(passed), len(failed))
assert lie or "quantise" in gpu_checks.proven(rows, "sm_90")
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("lie", [False, True])
def test_checks_pass_and_find_a_kernel_that_lies(lie):
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(bench=str(BENCH), lie=lie)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    passed, failed = map(int, ran.stdout.rsplit("RESULT", 1)[1].split()[:2])
    if lie:
        assert failed >= 3, ran.stdout
    else:
        assert (passed, failed) == (6, 0), ran.stdout + ran.stderr
