# SPDX-License-Identifier: Apache-2.0
"""A share of the power-cut campaigns (bench/reliability.py), and what becomes of a page that was
not synced: ext4's shutdown drops it.
"""

import asyncio
from pathlib import Path

import pytest

from bodocache.clock import RealClock
from bodocache.io.backend import Durability, Status
from bodocache.io.slab import SlabBackend
from bodocache.pages import Reason

CUTS = 5

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]


@pytest.fixture
def power_cuts(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
    import _power_cuts

    return _power_cuts


def tally_of(power_cuts, campaign, folder):
    try:
        return campaign(folder, CUTS)
    except power_cuts.Unavailable as reason:
        pytest.skip(str(reason))


def test_durable_pages_survive_power_cuts_right_after_their_acknowledgement(tmp_path, power_cuts):
    tally = tally_of(power_cuts, power_cuts.cuts_after_acknowledgement, tmp_path)
    assert (tally.wrong_pages, tally.sync_lost) == (0, 0)
    assert tally.sync_acks == CUTS
    assert tally.cached_lost, "the cuts lost nothing: this test has no teeth"


def test_durable_pages_survive_power_cuts_under_load(tmp_path, power_cuts):
    tally = tally_of(power_cuts, power_cuts.cuts_under_load, tmp_path)
    assert (tally.wrong_pages, tally.sync_lost) == (0, 0)
    assert tally.sync_acks, "nothing durable was at stake"


def test_a_page_that_was_not_synced_is_whole_or_a_miss_after_a_power_cut(
    tmp_path, bench, power_cuts
):
    async def put_then_cut(config, disk, number):
        backend = await SlabBackend.open(config, clock=RealClock())
        try:
            batch, transfer = await bench.put(backend, [number], Durability.CACHE)
            assert transfer.statuses.tolist() == [Status.LANDED]
            disk.cut_power()
            return batch
        finally:
            await backend.close()

    try:
        with power_cuts.ext4(tmp_path) as disk:
            mounted, reasons = type(bench)(disk.point), []
            mounted.stored([100])
            for number in range(CUTS):
                batch = asyncio.run(put_then_cut(mounted.config, disk, number))
                disk.unmount()
                disk.mount()
                reasons += mounted.reasons(batch)
    except power_cuts.Unavailable as reason:
        pytest.skip(str(reason))
    assert set(reasons) <= {Reason.NONE, Reason.NEVER_STORED, Reason.CORRUPT}
    assert set(reasons) != {Reason.NONE}, "the cuts lost nothing: this test has no teeth"
