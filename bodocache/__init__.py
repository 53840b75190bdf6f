# SPDX-License-Identifier: Apache-2.0
"""BodoCache: a hierarchical KV cache for LLM inference. Names are resolved on first use."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bodocache.blocking import BlockingCache
    from bodocache.cache import Cache, CacheStats
    from bodocache.config import CacheConfig, load_config
    from bodocache.errors import (
        BackendError,
        BackendLocked,
        BackendUnavailable,
        BodoCacheError,
        CacheClosed,
        ConfigError,
        HintError,
        LayoutError,
        LeaseError,
        LoadFailed,
        NodeError,
        NodeFenced,
        NodeLost,
        NodeRefused,
        TierFull,
        TraceError,
    )
    from bodocache.hints import Reuse
    from bodocache.layout import Group, KVShape, Layout, LayoutKind, PagedMemory
    from bodocache.match import Match
    from bodocache.move.announced import Announcement
    from bodocache.move.load import Load, Loaded
    from bodocache.move.queued import Queued
    from bodocache.move.store import Store, Stored
    from bodocache.node.client import NodeCache
    from bodocache.pages import Reason, Tier
    from bodocache.plan.advise import Advice, QueueRules
    from bodocache.pools import BorrowedPool, OwnedPool

__all__ = [
    "Advice",
    "Announcement",
    "BackendError",
    "BackendLocked",
    "BackendUnavailable",
    "BlockingCache",
    "BodoCacheError",
    "BorrowedPool",
    "Cache",
    "CacheClosed",
    "CacheConfig",
    "CacheStats",
    "ConfigError",
    "Group",
    "HintError",
    "KVShape",
    "Layout",
    "LayoutError",
    "LayoutKind",
    "LeaseError",
    "Load",
    "LoadFailed",
    "Loaded",
    "Match",
    "NodeCache",
    "NodeError",
    "NodeFenced",
    "NodeLost",
    "NodeRefused",
    "OwnedPool",
    "PagedMemory",
    "QueueRules",
    "Queued",
    "Reason",
    "Reuse",
    "Store",
    "Stored",
    "Tier",
    "TierFull",
    "TraceError",
    "load_config",
]

if not TYPE_CHECKING:  # so that mypy still rejects a misspelt name
    _HOMES = {
        "blocking": ("BlockingCache",),
        "cache": ("Cache", "CacheStats"),
        "config": ("CacheConfig", "load_config"),
        "hints": ("Reuse",),
        "layout": ("Group", "KVShape", "Layout", "LayoutKind", "PagedMemory"),
        "match": ("Match",),
        "move.announced": ("Announcement",),
        "move.load": ("Load", "Loaded"),
        "move.queued": ("Queued",),
        "move.store": ("Store", "Stored"),
        "node.client": ("NodeCache",),
        "pages": ("Reason", "Tier"),
        "plan.advise": ("Advice", "QueueRules"),
        "pools": ("BorrowedPool", "OwnedPool"),
    }
    _HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = importlib.import_module(f"{__name__}.{_HOME_OF.get(name, 'errors')}")
        value = getattr(home, name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
