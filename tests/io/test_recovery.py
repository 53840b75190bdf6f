# SPDX-License-Identifier: Apache-2.0
"""What was done to a slab's files while it was closed is a miss with its reason."""

import os
from dataclasses import replace

import numpy as np
import pytest

from bodocache.io.backend import Status
from bodocache.io.header import SUPERBLOCK_NBYTES, Superblock
from bodocache.pages import Reason

LANDED = Reason.NONE


def flip_bit(path, bit):
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1 << bit % 8]))


def swap(path, a, b, nbytes):
    with path.open("r+b") as file:
        at_a, at_b = (os.pread(file.fileno(), nbytes, offset) for offset in (a, b))
        os.pwrite(file.fileno(), at_b, a)
        os.pwrite(file.fileno(), at_a, b)


@pytest.mark.parametrize("bit", [0, 7, 12345, 8192 * 8 - 1])
def test_a_flipped_bit_of_a_payload_is_a_corrupt_page(bench, bit):
    batch = bench.stored([1, 2, 3])
    flip_bit(bench.payload, int(batch["frame"][1]) * 8192 * 8 + bit)
    assert bench.reasons(batch) == [LANDED, Reason.CORRUPT, LANDED]


def test_two_swapped_payloads_are_foreign_pages(bench):
    batch = bench.stored([1, 2, 3])
    a, b = (int(frame) * 8192 for frame in batch["frame"][[0, 2]])
    swap(bench.payload, a, b, 8192)
    assert bench.reasons(batch) == [Reason.FOREIGN, LANDED, Reason.FOREIGN]


def test_two_swapped_headers_are_foreign_pages(bench):
    batch = bench.stored([1, 2, 3])
    a, b = (SUPERBLOCK_NBYTES + int(frame) * 512 for frame in batch["frame"][:2])
    swap(bench.headers, a, b, 512)
    assert bench.reasons(batch) == [Reason.FOREIGN, Reason.FOREIGN, LANDED]


def test_a_swapped_sector_of_two_payloads_is_corrupt(bench):
    batch = bench.stored([1, 2])
    a, b = (int(frame) * 8192 for frame in batch["frame"])
    swap(bench.payload, a, b, 512)
    assert bench.reasons(batch) == [Reason.CORRUPT, Reason.CORRUPT]


def test_a_failed_check_is_a_miss_ever_after_and_no_entry(bench):
    batch = bench.stored([1, 2])
    flip_bit(bench.payload, int(batch["frame"][0]) * 8192 * 8)

    async def scenario(backend):
        assert len(backend.entries().keys) == 2  # only a read can tell
        for _ in range(2):
            _, reasons = await bench.get(backend, batch)
            assert reasons == [Reason.CORRUPT, LANDED]
            assert len(backend.entries().keys) == 1

    bench.run(scenario)


@pytest.mark.parametrize("whole", [0, 1, 2])
@pytest.mark.parametrize("ragged", [0, 1, 4096, 8191])
def test_pages_beyond_the_end_of_a_truncated_file_are_misses(bench, whole, ragged):
    batch = bench.stored([1, 2, 3])
    assert batch["frame"].tolist() == [0, 1, 2]
    os.truncate(bench.payload, whole * 8192 + ragged)
    assert bench.reasons(batch) == [LANDED] * whole + [Reason.TRUNCATED] * (3 - whole)
    assert bench.payload.stat().st_size == 16 * 8192  # whole again, for what comes


@pytest.mark.parametrize("ragged", [0, 1, 4096, 8191])
def test_a_file_truncated_under_an_open_slab_is_a_miss(bench, ragged):
    async def scenario(backend):
        batch, _ = await bench.put(backend, [1, 2, 3])
        os.truncate(bench.payload, 8192 + ragged)
        _, reasons = await bench.get(backend, batch)
        assert reasons == [LANDED, Reason.TRUNCATED, Reason.TRUNCATED]

    bench.run(scenario)


def test_truncated_headers_are_misses(bench):
    batch = bench.stored([1, 2, 3])
    os.truncate(bench.headers, SUPERBLOCK_NBYTES + 700)
    assert bench.reasons(batch) == [LANDED, Reason.NEVER_STORED, Reason.NEVER_STORED]


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("magic", b"SOMEBODY", Reason.FOREIGN),
        ("version", 0, Reason.OLD_FORMAT),
        ("version", 2, Reason.OLD_FORMAT),
        ("form", 7, Reason.OLD_FORMAT),
        ("nbytes", 4096, Reason.OLD_FORMAT),
        ("slab", 7, Reason.FOREIGN),
        ("frame", 3, Reason.FOREIGN),
        ("key", 7, Reason.FOREIGN),  # a page we hold, but not the one that is asked for
        ("digest", 7, Reason.CORRUPT),
    ],
)
def test_a_well_sealed_header_of_something_else_has_its_reason(bench, field, value, reason):
    batch = bench.stored([1, 2])

    def change(row):
        row[field] = value

    bench.change_header(batch["frame"][1], change)
    assert bench.reasons(batch) == [LANDED, reason]


def test_a_header_with_a_broken_seal_is_corrupt(bench):
    batch = bench.stored([1, 2])

    def change(row):
        row["depth"] ^= 1

    bench.change_header(batch["frame"][1], change, sealed=False)
    assert bench.reasons(batch) == [LANDED, Reason.CORRUPT]


def test_a_zeroed_header_was_never_stored(bench):
    batch = bench.stored([1])
    bench.change_header(batch["frame"][0], lambda row: row.view(np.uint8).fill(0), sealed=False)
    assert bench.reasons(batch) == [Reason.NEVER_STORED]


def changed_superblock(bench, **changes):
    with bench.headers.open("r+b") as file:
        superblock = Superblock.decode(file.read(SUPERBLOCK_NBYTES))
        file.seek(0)
        file.write(replace(superblock, **changes).encode())


def test_a_slab_of_an_older_version_is_made_anew(bench, caplog):
    batch = bench.stored([1, 2])
    changed_superblock(bench, version=0)
    assert bench.reasons(batch) == [Reason.OLD_FORMAT] * 2
    assert "old_format: the slab is made anew" in caplog.text
    assert bench.reasons(batch) == [Reason.NEVER_STORED] * 2


@pytest.mark.parametrize("changes", [{"form": b"g" * 32}, {"page_nbytes": 4096}])
def test_a_slab_of_another_form_is_made_anew(bench, changes):
    batch = bench.stored([1, 2])

    async def scenario(backend):
        assert not len(backend.entries().keys)
        assert backend.usage.used_frames == 0

    bench.run(scenario, **changes)
    assert bench.reasons(batch) == [Reason.OLD_FORMAT] * 2  # and back again


def test_a_damaged_superblock_is_a_corrupt_slab(bench):
    batch = bench.stored([1])
    flip_bit(bench.headers, 200)
    assert bench.reasons(batch) == [Reason.CORRUPT]


def test_the_headers_of_another_slab_do_not_bring_its_pages(bench, tmp_path):
    batch = bench.stored([1])
    kept = bench.headers.read_bytes()[SUPERBLOCK_NBYTES:]
    for path in (bench.payload, bench.headers):
        path.unlink()
    bench.stored([2])
    with bench.headers.open("r+b") as file:
        file.seek(SUPERBLOCK_NBYTES)
        file.write(kept)
    assert bench.reasons(batch) == [Reason.FOREIGN]


def test_a_slab_grows_and_keeps_its_pages(bench):
    batch = bench.stored([1, 2])
    assert bench.reasons(batch, capacity_nbytes=2 * bench.config.capacity_nbytes) == [LANDED] * 2
    assert bench.reasons(batch) == [LANDED] * 2


def test_a_slab_shrinks_and_keeps_the_pages_that_fit(bench):
    batch = bench.stored(list(range(16)))
    small = 4096 + 4 * (8192 + 512)
    reasons = bench.reasons(batch, capacity_nbytes=small)
    assert reasons == [LANDED] * 4 + [Reason.NEVER_STORED] * 12
    assert bench.payload.stat().st_size + bench.headers.stat().st_size <= small


def test_a_page_stored_anew_elsewhere_is_one_entry_after_a_restart(bench):
    async def scenario(backend):
        old, _ = await bench.put(backend, [1])
        backend.release(old["frame"])
        backend.reserve(1, after=-1)  # so that the page goes elsewhere
        new, _ = await bench.put(backend, [1])
        assert new["frame"] != old["frame"]
        return new

    new = bench.run(scenario)

    async def later(backend):
        entries = backend.entries()
        assert entries.frames.tolist() == new["frame"].tolist()
        assert backend.usage.used_frames == 1
        assert (await bench.get(backend, new))[1] == [LANDED]

    bench.run(later)


def test_a_page_has_its_owner_after_a_restart_and_one_of_an_old_slab_has_none(bench):
    batch = bench.stored([1, 2, 3])
    bench.change_header(batch["frame"][2], lambda row: row.__setitem__("owner", 0))

    async def later(backend):
        assert backend.entries().owners.tolist() == [2, 3, 0]
        assert (await bench.get(backend, batch))[1] == [LANDED] * 3

    bench.run(later)


def test_a_released_page_that_comes_back_has_the_right_bytes(bench):
    async def scenario(backend):
        batch, _ = await bench.put(backend, [1])
        backend.release(batch["frame"])
        return batch

    batch = bench.run(scenario)
    assert bench.reasons(batch) == [LANDED]


def test_generations_go_on_after_a_restart(bench):
    bench.stored([1])
    bench.stored([1])  # in another frame, later

    async def scenario(backend):
        assert backend.entries().frames.tolist() == [1]

    bench.run(scenario)


def test_every_word_of_a_payload_counts(bench):
    batch = bench.stored([1])
    rng = np.random.default_rng(5)
    for word in rng.choice(2048, 20, replace=False).tolist():
        flip_bit(bench.payload, word * 32 + 9)
        assert bench.reasons(batch) == [Reason.CORRUPT]
        flip_bit(bench.payload, word * 32 + 9)
    assert bench.reasons(batch) == [LANDED]


@pytest.mark.parametrize("generation", [2**64 - 1, 2**64 - 3, 2**62])
def test_a_forged_generation_is_a_miss_and_stops_no_put(bench, generation):
    batch = bench.stored([1, 2])
    bench.change_header(batch["frame"][0], lambda row: row["generation"].fill(generation))
    assert bench.reasons(batch) == [Reason.CORRUPT, LANDED]

    async def scenario(backend):
        for number in (3, 4):
            _, transfer = await bench.put(backend, [number])
            assert transfer.statuses.tolist() == [Status.LANDED]

    bench.run(scenario)
