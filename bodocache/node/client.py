# SPDX-License-Identifier: Apache-2.0
"""A cache whose host memory, storage and planner are a node's: the same methods as Cache.

Keys are made here, so tokens and the domain's secret never travel. When the node is gone, loads are
misses and stores are refused until it is back; what cannot be a miss raises NodeLost.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bodocache.cache import Cache, KeyArray, warm
from bodocache.clock import Clock, RealClock
from bodocache.config import CacheConfig, load_config
from bodocache.errors import NodeError
from bodocache.hints.actions import Action, Outcome
from bodocache.hints.reuse import Said
from bodocache.identity import Domain, Root
from bodocache.layout import Group
from bodocache.match import Expected, Finding
from bodocache.move.decide import Decide
from bodocache.node import messages, terms
from bodocache.node.announced import NodeAnnouncements
from bodocache.node.attached import attach
from bodocache.node.engine import Engine
from bodocache.node.said import actions_to_json, outcome_from_json
from bodocache.pages import KEY_NBYTES, Reason, Tier
from bodocache.pools import BorrowedPool
from bodocache.wiring import layout_of, root_of

PATIENCE_S = 1.0  # with a node that does not answer: then pages are misses


class NodeCache(Cache):
    """A cache over one device pool, attached to the host's node process."""

    def __init__(self, engine: Engine, domain: Domain, root: Root, patience_s: float) -> None:
        """Use :meth:`attach`."""
        super().__init__(engine, domain, root)
        self._engine = engine
        self._announcements = NodeAnnouncements(engine, engine.now_s)
        self._patience_s = patience_s

    @classmethod
    async def attach(
        cls,
        path: Path,
        config: CacheConfig | Path,
        pool: BorrowedPool,
        *,
        group: Group | None = None,
        clock: Clock | None = None,
        patience_s: float = PATIENCE_S,
        decide: Decide | None = None,
    ) -> "NodeCache":
        """Attach to the node at the socket ``path``, to serve the device pool ``pool``.

        Of ``config``, ``identity`` is used, and it must be the node's, weights_version aside;
        ``planner`` weighs what leaves the device first. ``group``: as for :meth:`Cache.open`.
        ``patience_s``: how long to wait for an answer that has no deadline of its own. ``decide``:
        as for :meth:`Cache.open`.

        Raises:
            NodeLost: nobody serves there, or does not answer within ``patience_s``.
            NodeRefused: the node serves other pages, or is of another version; both are named.
            LayoutError: ``group`` is missing, or not what the pool's memory holds.
        """
        if isinstance(config, Path):
            config = load_config(config)
        # Compiled here and at once: a cold compile may take longer than the node is patient.
        warm()
        layout = layout_of(pool, group)
        root, domain = root_of(config, layout), config.identity.tenant_domain
        engine = Engine(config, pool, layout, clock or RealClock())
        if decide is not None:
            engine.decider.consult(decide)
        cache = cls(engine, domain, root, patience_s)

        async def reach() -> Any:
            hello = terms.hello_of(domain, cache._chain.root, layout)
            return await attach(path, hello, pool, layout, engine.heard, patience_s=patience_s)

        await engine.open(reach)
        return cache

    @property
    def trouble(self) -> NodeError | None:
        """What went wrong with the node last; None if nothing ever did."""
        return self._engine.trouble

    async def hint(self, actions: Sequence[Action]) -> tuple[Outcome, ...]:
        """See :meth:`Cache.hint`; pages on the device stay there.

        Raises:
            NodeLost: there is no node to ask.
        """
        self._check_open()
        matches = [await self._match_of(action) for action in actions]
        mine = [
            match.keys
            if match and match.version == self._version
            else np.empty((0, KEY_NBYTES), np.uint8)
            for match in matches
        ]
        act = messages.Act(
            actions_to_json(list(actions)),
            np.array([len(keys) for keys in mine], np.int64),
            np.concatenate([np.empty((0, KEY_NBYTES), np.uint8), *mine]),
        )
        told = await self._engine.request(act, within_s=self._patience_s)
        outcomes = [outcome_from_json(it) for it in json.loads(told.text)]
        return tuple(self._with_operation(*it) for it in outcomes)

    def rotate(self, weights_version: str) -> None:
        """See :meth:`Cache.rotate`: of this engine. Others rotate by themselves."""
        super().rotate(weights_version)
        weights = np.frombuffer(bytearray(self._chain.key_0), np.uint8)
        self._engine.note(messages.Rotate(weights))

    async def node_stats(self) -> dict[str, Any]:
        """Figures of the node: tiers, links, engines (docs/node.md).

        Raises:
            NodeLost: there is no node to ask.
        """
        self._check_open()
        told = await self._engine.request(messages.Ask(), within_s=self._patience_s)
        figures: dict[str, Any] = json.loads(told.text)
        return figures

    async def _find(self, keys: KeyArray, said: Said) -> Finding:
        engine, residency = self._engine, self._engine.residency
        announced, due_s = 0, 0.0
        find = messages.Find(said.request, said.tenant, engine.take_spent_s(), keys)
        try:
            found = await engine.request(find, within_s=self._patience_s)
            tiers, reasons = found.tiers, found.reasons
            announced, due_s = found.announced, engine.now_s() + found.due_s
            engine.disk.hear(found.disk)
            engine.disk.hear_credits(said.tenant, found.credits)
            engine.worth.is_aside = bool(found.is_aside)
        except NodeError:
            engine.worth.is_aside = False
            tiers = np.empty(0, np.uint8)
            reasons = np.full(len(keys), Reason.UNAVAILABLE, np.uint8)
        here = len(residency.leading(keys))
        beyond = max(0, here - len(tiers))
        tiers = np.concatenate((np.full(here, Tier.DEVICE, np.uint8), tiers[here:]))
        return Finding(tiers, reasons[beyond:], Expected(max(0, announced - beyond), due_s))

    async def _holds(self, keys: KeyArray) -> NDArray[np.bool_]:
        held = await self._engine.request(messages.Holds(keys), within_s=self._patience_s)
        present: NDArray[np.bool_] = held.present != 0
        return present | self._engine.residency.holds(keys)

    def _with_operation(self, outcome: Outcome, number: int) -> Outcome:
        operation = self._engine.operation(number) if number else None
        return replace(outcome, operation=operation)
