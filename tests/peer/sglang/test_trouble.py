# SPDX-License-Identifier: Apache-2.0
"""What happens when the node stands still, is killed, or a page is damaged; and after a restart."""

import os
import signal
import threading
import time

import pytest
import torch

SLACK_S = 1.5  # on a machine that has other things to do


@pytest.fixture
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("own")


def test_a_get_ends_in_time_and_nothing_lands_after_it(house, open_backend, directory):
    pool = house.mha_pool(pages=65)
    backend = open_backend(pool, directory, read_deadline_s=0.5, host_bytes="80 KiB")
    keys, source = house.hashes(32), house.slots(pool, 32)
    for first in range(0, 32, 8):  # more than lie in host memory: they come from disk again
        some = slice(first * house.TOKENS, (first + 8) * house.TOKENS)
        backend.batch_set_v1(keys[first : first + 8], source[some])
        house.written(backend, first + 8)
    target = house.slots(pool, 32)
    pid = house.node_pid(directory)
    os.kill(pid, signal.SIGSTOP)
    try:
        begun_s = time.monotonic()
        came = backend.batch_get_v1(keys, target)
        assert time.monotonic() - begun_s < 0.5 + SLACK_S
        assert not all(came)
        canary = torch.full_like(house.page_bytes(pool, target), 0xA5)
        memory = pool.kv_buffer.view(torch.uint8)
        memory[:, target] = 0xA5  # the slots are another's now
        assert torch.equal(house.page_bytes(pool, target), canary)
    finally:
        os.kill(pid, signal.SIGCONT)
    house.until(lambda: backend.batch_exists(keys) > 0)
    time.sleep(0.3)  # for what would land late
    assert torch.equal(house.page_bytes(pool, target), canary)


def test_no_call_waits_for_a_node_that_stands_still(house, open_backend, directory):
    pool = house.mha_pool()
    backend = open_backend(
        pool, directory, read_deadline_s=0.3, write_deadline_s=0.3, patience_s=0.3
    )
    keys, indices = house.hashes(4), house.slots(pool, 4)
    pid = house.node_pid(directory)
    os.kill(pid, signal.SIGSTOP)
    try:
        for call, answer in (
            (lambda: backend.batch_exists(keys), 0),
            (lambda: backend.batch_get_v1(keys, indices), [False] * 4),
            (lambda: backend.batch_set_v1(keys, indices), [False] * 4),
        ):
            begun_s = time.monotonic()
            assert call() == answer
            assert time.monotonic() - begun_s < 0.3 + SLACK_S
    finally:
        os.kill(pid, signal.SIGCONT)
    house.until(lambda: backend.batch_set_v1(keys, indices) == [True] * 4)
    assert backend.batch_exists(keys) == 4


def test_pages_are_found_again_after_a_restart(house, open_backend, directory):
    pool = house.mha_pool()
    backend = open_backend(pool, directory)
    keys, indices = house.hashes(8), house.slots(pool, 8)
    backend.batch_set_v1(keys, indices)
    before = house.page_bytes(pool, indices)
    backend.close()
    house.until(lambda: house.node_is_gone(directory))
    other = house.mha_pool()
    backend, target = open_backend(other, directory), house.slots(other, 8)
    assert backend.batch_exists(keys) == 8
    assert backend.batch_get_v1(keys, target) == [True] * 8
    assert torch.equal(before, house.page_bytes(other, target))


def test_a_killed_node_is_started_again(house, open_backend, directory):
    pool = house.mha_pool()
    backend = open_backend(pool, directory)
    keys, indices = house.hashes(8), house.slots(pool, 8)
    backend.batch_set_v1(keys, indices)
    house.written(backend, 8)
    before, pid = house.page_bytes(pool, indices), house.node_pid(directory)
    os.kill(pid, signal.SIGKILL)
    house.until(lambda: backend.batch_exists(keys) == 0)
    house.until(lambda: backend.batch_exists(keys) == 8, within_s=60)
    target = house.slots(pool, 8)
    assert backend.batch_get_v1(keys, target) == [True] * 8
    assert torch.equal(before, house.page_bytes(pool, target))
    assert house.node_pid(directory) != pid


@pytest.mark.parametrize("damage", ["flipped", "truncated"])
def test_a_damaged_page_is_a_miss(house, open_backend, directory, damage):
    pool = house.mha_pool()
    backend = open_backend(pool, directory)
    keys, indices = house.hashes(8), house.slots(pool, 8)
    backend.batch_set_v1(keys, indices)
    before = house.page_bytes(pool, indices)
    backend.close()
    house.until(lambda: house.node_is_gone(directory))
    payload = directory / "kv" / "payload.slab"
    if damage == "flipped":
        content = bytearray(payload.read_bytes())
        at = content.index(before[3].numpy().tobytes()[:256])
        content[at + 100] ^= 1
        payload.write_bytes(content)
    else:
        at = payload.read_bytes().index(before[3].numpy().tobytes()[:256])
        os.truncate(payload, at + 100)
    backend, target = open_backend(pool, directory), house.slots(pool, 8)
    came = backend.batch_get_v1(keys, target)
    assert came[:3] == [True] * 3
    assert not came[3]
    landed = house.page_bytes(pool, target)
    assert all(torch.equal(landed[i], before[i]) for i, ok in enumerate(came) if ok)


def test_ranks_that_start_together_have_one_node(house, directory):
    pools = [house.mha_pool() for _ in range(3)]
    ranks = [
        house.created(house.storage_config(directory, tp_rank=rank, tp_size=3)) for rank in range(3)
    ]
    threads = [
        threading.Thread(target=rank.register_mem_pool_host, args=(pool,))
        for rank, pool in zip(ranks, pools, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    try:
        figures = ranks[0]._nodes["kv"].line.figures(within_s=5)
        assert [it["pid"] for it in figures["engines"]] == [os.getpid()] * 3
    finally:
        for rank in ranks:
            rank.close()
    house.until(lambda: house.node_is_gone(directory))


def test_a_cleared_storage_is_empty(house, open_backend):
    pool = house.mha_pool()
    backend = open_backend(pool)
    keys, indices = house.hashes(8), house.slots(pool, 8)
    backend.batch_set_v1(keys, indices)
    house.written(backend, 8)
    assert backend.clear()
    assert backend.batch_exists(keys) == 0
    assert backend.batch_set_v1(keys, indices) == [True] * 8
    assert backend.batch_exists(keys) == 8
