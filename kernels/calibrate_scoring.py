# SPDX-License-Identifier: Apache-2.0
"""Times scoring on the host, with the transfer of what comes out, and on one GPU.

The device's scores, keys and rows must first equal the host's.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from bodocache.kernels.coldest import coldest_pages
from bodocache.kernels.page_records import TIERS, DevicePages, Formula
from bodocache.kernels.score import score_pages
from bodocache.kernels.select import Place, Scored, Work
from bodocache.kernels.subtree import refresh_keys
from bodocache.pages import PAGE, Tier

NUM_PAGES = (10**4, 10**5, 10**6)
LEVELS = 64
TIER, NOW_S = int(Tier.HOST), 4000.0
FORMULA = Formula(600.0, 1.0, (0.0, 2e-5, 1e-4, 1e-2), (0.0, 2e-11, 2e-10, 1e-9))


def measure(
    device: torch.device,
    seconds: Callable[[Callable[[], object], torch.device], float],
    sizes: tuple[int, ...] = NUM_PAGES,
) -> Iterator[Scored | str]:
    """Seconds of each work and place; a str says what the device gets wrong, and is the last."""
    for num_pages in sizes:
        pages = forest(num_pages, torch.device("cpu"))
        sides = {Place.HOST: pages, Place.DEVICE: pages.on(device)}
        if why := _why_wrong(sides[Place.HOST], sides[Place.DEVICE]):
            yield f"{num_pages} pages: {why}"
            return
        for place, columns in sides.items():
            for work, call in _calls(columns, device).items():
                yield Scored(work, place, num_pages, seconds(call, device))


def forest(num_pages: int, device: torch.device) -> DevicePages:
    """Random pages: each one's parent is a random page of the level above."""
    random = np.random.default_rng(7)
    records = np.zeros(num_pages, PAGE)
    width = max(1, num_pages // LEVELS)
    depth = np.minimum(np.arange(num_pages) // width, LEVELS - 1)
    parent = (depth - 1) * width + random.integers(0, width, num_pages)
    records["depth"], records["parent"] = depth, np.where(depth > 0, parent, -1)
    records["stamp_s"] = random.uniform(0, NOW_S, num_pages)
    records["heat"] = random.exponential(2.0, num_pages) + 0.01
    records["recompute_s"] = random.uniform(1e-4, 1e-2, num_pages)
    records["nbytes"] = 2 << 20
    records["tiers"] = Tier.HOST.bit | (random.random(num_pages) < 0.5) * Tier.DISK.bit
    pages = DevicePages(num_pages, device)
    pages.update(np.arange(num_pages), records, np.zeros((num_pages, TIERS)))
    return pages


def _calls(pages: DevicePages, device: torch.device) -> dict[Work, Callable[[], object]]:
    keys = refresh_keys(pages, TIER, NOW_S, FORMULA)
    wanted = max(1, pages.capacity // 100)
    return {
        Work.SCORE: lambda: score_pages(pages, TIER, NOW_S, FORMULA).to(device),
        Work.REFRESH: lambda: refresh_keys(pages, TIER, NOW_S, FORMULA).to(device),
        Work.COLDEST: lambda: coldest_pages(pages, keys, wanted).rows.to(device),
    }


def _why_wrong(host: DevicePages, device: DevicePages) -> str | None:
    """Scores within both sides' bounds, and rows equal for equal keys."""
    for name, work in (("scores", score_pages), ("keys", refresh_keys)):
        expected = work(host, TIER, NOW_S, FORMULA)
        found = work(device, TIER, NOW_S, FORMULA).cpu()
        finite = expected.isfinite()
        beyond = (found - expected)[finite].abs() > 2**-19 + 2**-23 * expected[finite].abs()
        differing = found[~finite] != expected[~finite]
        if wrong := int(beyond.sum()) + int(differing.sum()):
            return f"{wrong} {name} beyond the bound"
    wanted = max(1, host.capacity // 100)
    rows = coldest_pages(device, found.to(device.device), wanted).rows.cpu()
    if not torch.equal(rows, coldest_pages(host, found, wanted).rows):
        return "other pages are the coldest"
    return None
