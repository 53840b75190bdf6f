# SPDX-License-Identifier: Apache-2.0
"""What can be named on the command line; it imports nothing heavy."""

from importlib.resources import files

OURS, ORACLE = "bodocache", "oracle"
BASELINES = (
    "wait_complete",
    "best_effort",
    "timeout",
    "static_timeout",
    "load_always",
    "recompute_always",
)
WEATHERS = ("steady", "bursty", "drifting", "failing", "hung")


def shipped() -> list[str]:
    """Names of the profiles that come with the package."""
    names = [item.name for item in files(__package__).joinpath("profiles").iterdir()]
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))
