# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bodocache.errors import WireError
from bodocache.node import codec, messages

KEYS = np.arange(96, dtype=np.uint8).reshape(3, 32)
FETCH = messages.Fetch(
    load=7,
    first=1,
    end=3,
    due_s=0.5,
    deadline_s=np.inf,
    said='{"a": "é"}',
    missing=np.array([2, 3], np.uint8),
    keys=KEYS,
)


def frames_of(data, splitter=None):
    return list((splitter or codec.Splitter()).feed(data))


def encoded(message, number=5, epoch=9):
    return codec.encode(messages.KIND_OF[type(message)], number, epoch, message)


def same(one, other):
    return all(
        np.array_equal(getattr(one, it.name), getattr(other, it.name))
        for it in dataclasses.fields(one)
    )


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_messages_arrive_as_they_were_sent_however_the_bytes_are_cut(step):
    data, splitter, got = encoded(FETCH) * 3, codec.Splitter(), []
    for first in range(0, len(data), step):
        got += frames_of(data[first : first + step], splitter)
    assert [(it.number, it.epoch) for it in got] == [(5, 9)] * 3
    decoded = [codec.decode(messages.BY_KIND[it.kind], it.payload) for it in got]
    assert all(same(it, FETCH) for it in decoded)
    assert decoded[0].keys.flags.writeable
    assert decoded[0].keys.flags.aligned


@given(st.integers(0, 200), st.binary(max_size=8))
def test_a_message_that_was_cut_or_padded_is_an_error_and_nothing_else(kept, more):
    (frame,) = frames_of(encoded(FETCH))
    payload = bytes(frame.payload)
    changed = payload[: min(kept, len(payload))] + more
    if changed == payload:
        return
    try:
        message = codec.decode(messages.Fetch, memoryview(changed))
    except WireError:
        return
    assert not same(message, FETCH)


def test_a_message_longer_than_any_is_refused_before_it_is_read():
    header = codec.HEADER.pack(codec.MOST_NBYTES + 1, 1, 1, 1)
    with pytest.raises(WireError, match="at most"):
        frames_of(header)
