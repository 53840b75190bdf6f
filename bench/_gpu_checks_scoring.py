# SPDX-License-Identifier: Apache-2.0
"""Checks of who leaves first: scores, keys and the coldest pages against the twins."""

import numpy as np
import torch
from _gpu_pools import Machine, near, same
from numpy.typing import NDArray

from bodocache.kernels import DevicePages, Formula, coldest_pages, refresh_keys, score_pages
from bodocache.kernels.page_records import DEPTH
from bodocache.kernels.reference import coldest as coldest_twin
from bodocache.kernels.reference import score as score_twin
from bodocache.kernels.reference import subtree as subtree_twin
from bodocache.pages import PAGE, Tier

NOW_S, RESIDENCE_S = 2.0, 0.5
FORMULA = Formula(60.0, RESIDENCE_S, (0.0, 1e-5, 1e-4, 1e-3), (0.0, 1e-11, 1e-10, 1e-9))


def check_scores_and_the_coldest(machine: Machine) -> None:
    """The same scores, keys and chosen rows as the twins, in two tiers."""
    count = 20_000 if machine.real else 400
    records, since_s = forest(count)
    ours, theirs = (DevicePages(count, device) for device in (machine.device, torch.device("cpu")))
    for pages in (ours, theirs):
        pages.update(np.arange(count), records, since_s)
    for tier in (Tier.DEVICE, Tier.HOST):
        compare(machine, ours, theirs, tier)
    same(ours.words, theirs.words)
    same(ours.times, theirs.times)


def forest(count: int) -> tuple[NDArray[np.void], NDArray[np.float64]]:
    """Records of ``count`` pages, and since when they are in each tier.

    First a chain of a tenth of them, the last of which is worth most: its key takes every round to
    the root. Then small trees; in every second one a page in ten each is pinned, too young, in
    other tiers only, or nowhere. Some were never used. Many a last copy has a child elsewhere.
    """
    rng = np.random.default_rng(7)
    records, rows = np.zeros(count, PAGE), np.arange(count)
    since_s = rng.uniform(0, NOW_S - 2 * RESIDENCE_S, (count, len(Tier)))
    chain, tree = count // 10, rows // 20
    near_by = rows - rng.integers(1, 5, count)
    parents = np.where(near_by // 20 == tree, near_by, -1)
    parents[:chain] = rows[:chain] - 1
    parents[chain : (chain // 20 + 1) * 20] = -1
    records["parent"] = parents
    for row in range(count):
        records["depth"][row] = 0 if parents[row] < 0 else records["depth"][parents[row]] + 1
    records["nbytes"] = rng.integers(1, 64, count) * 4096
    records["heat"], records["recompute_s"] = rng.random((2, count)) + 1e-3
    records["stamp_s"] = rng.uniform(0, NOW_S, count)
    records["tiers"] = Tier.DEVICE.bit | rng.integers(0, 8, count) * Tier.HOST.bit
    records["heat"][:chain] = np.geomspace(1e-3, 1e3, chain)
    records["tiers"][:chain] |= Tier.HOST.bit | Tier.DISK.bit
    varied = (tree % 2 == 1) & (rows >= chain)
    kind = np.where(varied, rng.integers(0, 10, count), -1)
    records["pins"][kind == 0] = 1
    since_s[kind == 1] = NOW_S - RESIDENCE_S / 2
    records["tiers"][kind == 2] = Tier.DISK.bit
    records["tiers"][kind == 3] = 0
    records["heat"][(rng.random(count) < 0.05) & (rows >= chain)] = 0
    alone = (rng.random(count) < 0.2) & (kind < 0) & (rows >= chain)
    records["tiers"][alone] = Tier.DEVICE.bit
    return records, since_s


def compare(machine: Machine, ours: DevicePages, theirs: DevicePages, tier: Tier) -> None:
    """One tier, between canaries."""
    count = ours.capacity
    guarded = torch.full((count + 32,), 7.0, device=machine.device)
    scores = score_pages(ours, tier, NOW_S, FORMULA, out=guarded[16:-16])
    near(scores, score_twin.score_pages(theirs, tier, NOW_S, FORMULA))
    expected = scores.cpu().clone()
    keys = refresh_keys(ours, tier, NOW_S, FORMULA, out=guarded[16:-16])
    subtree_twin.refresh_keys(theirs, tier, expected)
    same(keys, expected)
    assert bool((guarded[:16] == 7).all() and (guarded[-16:] == 7).all()), "a canary is gone"
    for wanted in (1, count // 10, count):
        chosen = coldest_pages(ours, keys, wanted)
        rows = coldest_twin.coldest_pages(expected, theirs.words[DEPTH], wanted).to(torch.int32)
        same(chosen.num_pages, torch.tensor([len(rows)], dtype=torch.int32))
        same(chosen.rows, torch.nn.functional.pad(rows, (0, wanted - len(rows)), value=-1))
    same(keys, expected)
