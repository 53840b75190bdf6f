# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

from bodocache.kernels.targets import PROVEN, TARGETS

RESULTS = Path(__file__).parents[2] / "bench" / "results"


def test_what_is_proven_is_what_committed_results_say():
    committed = {}
    for file in RESULTS.glob("gpu*.json"):
        for kernel, targets in json.loads(file.read_text()).get("proven", {}).items():
            committed.setdefault(kernel, set()).update(targets)
    assert {kernel: set(targets) for kernel, targets in PROVEN.items()} == committed
    assert set().union(*committed.values()) <= set(TARGETS)
