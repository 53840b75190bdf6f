# SPDX-License-Identifier: Apache-2.0
"""Keyed frames: what was not made with the key is a miss, whatever its digest says."""

import math
from dataclasses import replace

import numpy as np
import pytest

from bodocache.digest import digest_rows, seeded
from bodocache.errors import ConfigError
from bodocache.io.backend import NativeCall, Status
from bodocache.io.config import OpenMode, keyed_form
from bodocache.io.header import HEADER
from bodocache.pages import Reason

KEY, OTHER = b"k" * 32, b"o" * 32


class Listener:
    """Told of landed pages in C, or in Python: with a key only the latter may happen."""

    native = NativeCall(1, 0)  # calling it would crash

    def __init__(self):
        self.told = []

    def __call__(self, positions):
        self.told += positions.tolist()


@pytest.fixture
def keyed(bench):
    bench.config = replace(bench.config, mac_key=KEY)
    return bench


def rewrite(bench, batch, number):
    """Put other bytes into page ``number``'s frame, with a digest and a checksum that fit."""
    page = np.full(bench.config.page_nbytes, 7, np.uint8)
    frame = int(batch["frame"][number])
    with bench.payload.open("r+b") as file:
        file.seek(frame * bench.config.frame_nbytes)
        file.write(page.tobytes())
    digest = seeded(digest_rows(page[None], np.zeros(1, np.int64)), batch["key"][number][None])
    bench.change_header(frame, lambda row: row["digest"].__setitem__(0, digest[0]))


def test_a_forged_page_with_a_right_digest_is_a_miss(keyed):
    batch = keyed.stored([1, 2, 3])
    rewrite(keyed, batch, 1)
    assert keyed.reasons(batch) == [0, Reason.FORGED, 0]


def test_without_a_key_the_same_forgery_is_believed(bench):
    batch = bench.stored([1, 2, 3])
    rewrite(bench, batch, 1)
    batch["digest"][1] = 0  # what the bench would compare with

    async def scenario(backend):
        transfer = backend.get(batch, bench.pages.buffers(3), deadline_s=math.inf)
        await transfer.drained()
        return transfer.statuses.tolist()

    assert bench.run(scenario) == [Status.LANDED] * 3


@pytest.mark.parametrize("field", ["key", "parent", "generation", "depth", "mac"])
def test_every_field_of_a_header_is_keyed(keyed, field):
    batch = keyed.stored([1, 2])

    def change(row):
        row[field].view(np.uint8).ravel()[0] ^= 1

    keyed.change_header(batch["frame"][0], change)
    if field == "key":
        batch["key"][0][0] ^= 1  # asked for under the name that the forger gave it
    reasons = keyed.reasons(batch)
    assert reasons[0] in (Reason.FORGED, Reason.CORRUPT)
    assert reasons[1] == 0


@pytest.mark.parametrize("key", [OTHER, b""])
@pytest.mark.parametrize("mode", list(OpenMode))
def test_frames_of_another_key_or_of_none_are_of_another_form(keyed, key, mode):
    batch = keyed.stored([1, 2])

    async def scenario(backend):
        assert not len(backend.entries().keys)
        assert (await keyed.get(backend, batch))[1] == [Reason.OLD_FORMAT] * 2

    keyed.run(scenario, mac_key=key, mode=OpenMode.READER)
    keyed.run(scenario, mac_key=key, mode=mode)


def test_headers_of_another_key_put_into_a_slab_are_not_listed(keyed):
    keyed.stored([1, 2])
    frames_form = keyed_form(keyed.config.form, OTHER)
    keyed.change_header(0, lambda row: row["form"].__setitem__(0, [*frames_form]))

    async def scenario(backend):
        assert backend.entries().frames.tolist() == [1]

    keyed.run(scenario)


def test_a_forged_header_is_listed_and_found_out_when_it_is_read(keyed):
    batch = keyed.stored([1, 2])
    keyed.change_header(0, lambda row: row["key"].fill(7))
    batch["key"][0] = 7

    async def scenario(backend):
        assert sorted(backend.entries().frames.tolist()) == [0, 1]
        assert (await keyed.get(backend, batch))[0][0] == Status.MISS
        assert backend.entries().frames.tolist() == [1]

    keyed.run(scenario)


def test_frames_without_a_key_are_not_believed_once_there_is_one(bench):
    batch = bench.stored([1, 2])
    assert bench.reasons(batch, mac_key=KEY) == [Reason.OLD_FORMAT] * 2


def test_nobody_is_told_of_a_page_before_its_mac_is_checked(keyed):
    batch = keyed.stored(range(6))
    rewrite(keyed, batch, 2)

    async def scenario(backend):
        listener = Listener()
        transfer = backend.get(
            batch, keyed.pages.buffers(6), deadline_s=math.inf, on_landed=listener
        )
        await transfer.drained()
        assert sorted(listener.told) == [0, 1, 3, 4, 5]

    keyed.run(scenario)


def test_a_forged_page_is_not_asked_for_twice(keyed):
    batch = keyed.stored([1])
    rewrite(keyed, batch, 0)

    async def scenario(backend):
        assert (await keyed.get(backend, batch))[1] == [Reason.FORGED]
        assert not len(backend.entries().keys)

    keyed.run(scenario)


@pytest.mark.parametrize("key", [b"short", b"x" * 65])
def test_a_key_of_a_wrong_length_is_refused_and_not_shown(keyed, key):
    with pytest.raises(ConfigError, match="mac_key"):
        replace(keyed.config, mac_key=key)
    assert "kkkk" not in repr(keyed.config)


def test_the_mac_lies_where_the_document_says():
    assert HEADER.fields["mac"] == (np.dtype(("u1", (32,))), 164)
