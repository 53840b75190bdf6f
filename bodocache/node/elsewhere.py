# SPDX-License-Identifier: Apache-2.0
"""What an engine on a node leaves to it: hints, and what only the node can count."""

from bodocache.errors import NodeError
from bodocache.hints.actions import Action, Outcome
from bodocache.hints.reuse import Said
from bodocache.hints.stats import HintStats
from bodocache.move.residency import KeyArray, RowArray
from bodocache.move.windows import Unplanned


class Elsewhere:
    """Hints are carried out by the node. Implements :class:`bodocache.move.mover.Hearer`."""

    def loaded(self, keys: KeyArray, rows: RowArray, said: Said) -> None:
        """The node knows by the load."""

    def execute(self, action: Action, keys: KeyArray | None) -> Outcome:  # noqa: ARG002 -- one signature
        """Never asked: :meth:`bodocache.node.client.NodeCache.hint` asks the node."""
        raise NodeError(f"{type(action).__name__}: only the node carries out actions")

    def forget_all(self) -> None:
        """The node knows by the rotation."""

    def stats(self) -> HintStats:
        """Nothing is counted here."""
        return HintStats()


class Uncounted:
    """What the node plans, reads, charges for and writes: it counts that (node/host.py)."""

    @property
    def unplanned(self) -> dict[Unplanned, int]:
        """Windows that were not planned."""
        return {}

    @property
    def joined(self) -> int:
        """Pages that were on their way for another load."""
        return 0

    @property
    def credit_waits(self) -> int:
        """Chunks that waited for credits."""
        return 0

    @property
    def not_admitted(self) -> int:
        """Pages that were not written to disk."""
        return 0
