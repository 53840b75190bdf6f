# SPDX-License-Identifier: Apache-2.0
"""The parts of a cache, as a configuration and a device pool describe them."""

import hashlib
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bodocache.clock import Clock
from bodocache.config import CacheConfig
from bodocache.errors import ConfigError, LayoutError
from bodocache.identity import Root, Shard
from bodocache.io.backend import Backend, Durability
from bodocache.io.disk import open_disk
from bodocache.layout import Group, Layout, LayoutKind
from bodocache.move.residency import RecomputeModel
from bodocache.move.writer import WriteRules
from bodocache.pages import Tier
from bodocache.plan.heat import NEVER_FADES_S
from bodocache.plan.records import POLICY, Feature
from bodocache.pools import BorrowedPool, OwnedPool


def layout_of(pool: BorrowedPool, group: Group | None) -> Layout:
    """The pages of ``pool``, each as one piece: how they lie outside the device."""
    if isinstance(pool, OwnedPool):
        group = pool.layout.group
    memory = pool.memory
    if group is None:
        raise LayoutError("a borrowed pool: say which group its pages hold (group=)")
    said = (group.layers, group.kv, group.heads, group.row_nbytes)
    held = (*memory.bases.shape, memory.heads, memory.row_nbytes)
    if said != held:
        raise LayoutError(
            f"group {group.name}: layers, K/V, heads and row bytes {said}; the pool's: {held}"
        )
    return Layout(LayoutKind.PAGE, group, memory.page_tokens, memory.num_pages)


def root_of(config: CacheConfig, layout: Layout) -> Root:
    """The root of every key: what the engine said, and what the pool holds."""
    identity, group = config.identity, layout.group
    return Root(
        model=identity.model,
        page_tokens=layout.page_tokens,
        group=group.name,
        shard=Shard.whole(group),
        dtype=identity.dtype,
        form=LayoutKind.PAGE,
        kv="kv" if group.kv == 2 else "latent",
        revision=identity.revision,
        weights_version=identity.weights_version,
        quantiser=identity.quantiser,
        rope=identity.rope,
        lora=identity.lora,
        salt=identity.salt,
    )


def host_pool(config: CacheConfig, layout: Layout) -> OwnedPool:
    """The host tier. ConfigError: it is too small for one page."""
    page_nbytes = layout.page_nbytes
    num_pages = config.tiers.host.capacity_bytes // page_nbytes
    if num_pages < 1:
        raise ConfigError(
            f"tiers.host.capacity_bytes = {config.tiers.host.capacity_bytes}: expected at least one"
            f" page, {page_nbytes} bytes"
        )
    return OwnedPool(replace(layout, num_pages=num_pages), name="host")


async def disk_tier(
    config: CacheConfig, layout: Layout, root: Root, clock: Clock
) -> Backend | None:
    """The disk tier, opened; None where the configuration has none."""
    disk = config.tiers.disk
    if disk is None:
        return None
    # What the bytes are, not whose: models share a directory, and their keys never meet.
    form = (root.form, root.dtype, root.kv, root.quantiser, layout.page_tokens, layout.group)
    digest = hashlib.blake2b(repr(form).encode(), digest_size=32).digest()
    return await open_disk(disk, page_nbytes=layout.page_nbytes, form=digest, clock=clock)


def rules_of(config: CacheConfig) -> WriteRules:
    """Which pages are written to disk, and what they survive there."""
    disk = config.tiers.disk
    is_durable = disk is not None and disk.durable
    return WriteRules(config.features.admit, Durability.SYNC if is_durable else Durability.CACHE)


def policy_of(config: CacheConfig) -> NDArray[np.void]:
    """The planner's view of the configuration: POLICY[1]."""
    planner, policy = config.planner, np.zeros(1, POLICY)
    policy["half_life_s"] = planner.half_life_s if config.features.heat else NEVER_FADES_S
    policy["features_off"] = sum(
        feature for feature in Feature if not getattr(config.features, str(feature.name).lower())
    )
    policy["min_residence_s"] = planner.min_residence_s
    policy["churn_share"], policy["churn_s"] = planner.churn_share, planner.churn_s
    per_byte, latency, write = (
        policy["load_s_per_byte"],
        policy["load_latency_s"],
        policy["write_s_per_byte"],
    )
    per_byte[0, Tier.HOST] = 1 / planner.host_bytes_per_s
    per_byte[0, Tier.DISK] = 1 / planner.disk_bytes_per_s
    latency[0, Tier.DISK] = planner.disk_latency_s
    write[0, Tier.HOST] = 1 / planner.host_bytes_per_s
    write[0, Tier.DISK] = 1 / planner.disk_write_bytes_per_s
    policy["chunk_nbytes"] = config.tiers.disk.chunk_bytes if config.tiers.disk else 2 << 20
    return policy


def recompute_of(config: CacheConfig, layout: Layout) -> RecomputeModel:
    """What computing a page again costs the engine."""
    planner = config.planner
    per_token_s, slope_s = planner.recompute_s_per_token, planner.recompute_slope_s
    return RecomputeModel(layout.page_tokens, per_token_s, slope_s)
