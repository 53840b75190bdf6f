# SPDX-License-Identifier: Apache-2.0
"""Every policy by its name: ours, what others do, and the oracle."""

from collections.abc import Callable

from bodocache.replay.simulate import baselines
from bodocache.replay.simulate.engine import Policy
from bodocache.replay.simulate.names import ORACLE, OURS
from bodocache.replay.simulate.oracle import Oracle
from bodocache.replay.simulate.ours import Predicted

POLICIES: dict[str, Callable[[], Policy]] = {
    OURS: Predicted,
    "wait_complete": lambda: baselines.WAIT_COMPLETE,  # SGLang HiCache
    "best_effort": lambda: baselines.BEST_EFFORT,  # idem
    "timeout": lambda: baselines.TIMEOUT,  # idem
    "static_timeout": lambda: baselines.STATIC_TIMEOUT,
    "load_always": lambda: baselines.LOAD_ALWAYS,
    "recompute_always": lambda: baselines.RECOMPUTE_ALWAYS,
    ORACLE: Oracle,
}
