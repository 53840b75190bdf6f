# SPDX-License-Identifier: Apache-2.0
"""SGLang's own failure injector around our backend: no call hangs, no byte is wrong."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from sglang.srt.environ import envs

ROUNDS, BATCH, TRIES = 10, 4, 4


@pytest.fixture
def injected():
    with (
        envs.SGLANG_TEST_HICACHE_BACKEND_RANDOM_DELAY.override(0.01),
        envs.SGLANG_TEST_HICACHE_BACKEND_RANDOM_FAILURE.override(0.2),
    ):
        yield


def write(house, backend, sources):
    """Every batch several times; how often it was stored."""
    stored = 0
    for number, indices in enumerate(sources * TRIES):
        keys = house.hashes(BATCH, number % ROUNDS)
        stored += all(backend.batch_set_v1(keys, indices))
    return stored


def read(house, backend, pool, targets, kept):
    """Every batch several times; how many pages landed, every one of which is right."""
    landed = 0
    for number, indices in enumerate(targets * TRIES):
        keys = house.hashes(BATCH, number % ROUNDS)
        backend.batch_exists(keys)
        came = backend.batch_get_v1(keys, indices)
        pages = house.page_bytes(pool, indices)
        for page, right, ok in zip(pages, kept[number % ROUNDS], came, strict=True):
            assert not ok or torch.equal(page, right)
            landed += ok
    return landed


def test_delays_and_failures_never_give_a_wrong_byte(house, injected, open_backend):
    pool = house.mha_pool(pages=2 * ROUNDS * BATCH + 1)
    backend = open_backend(pool)
    assert type(backend).__name__ == "HiCacheStorageFailureInjector"
    sources, targets = ([house.slots(pool, BATCH) for _ in range(ROUNDS)] for _ in range(2))
    kept = [house.page_bytes(pool, it) for it in sources]
    with ThreadPoolExecutor(2) as threads:
        writing = threads.submit(write, house, backend, sources)
        reading = threads.submit(read, house, backend, pool, targets, kept)
        assert ROUNDS < writing.result(60) < ROUNDS * TRIES  # some failed
        reading.result(60)
    landed = read(house, backend, pool, targets, kept)
    assert ROUNDS * BATCH < landed < ROUNDS * TRIES * BATCH
