# SPDX-License-Identifier: Apache-2.0
"""One of two tensor-parallel ranks over the linker: ``python two_ranks.py RANK MEETING_FILE``.

Prints how many tokens were offered once rank 1 had lost half of them, and whether they came back.
"""

import sys

import conftest  # noqa: F401 -- stubs of what SGLang imports
import torch.distributed as dist
from linked_engine import PAGE, Engine, key, mha, published

from bodocache.hints import Leave, Release, Span


def main(rank: int, meeting: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    engine = Engine(published(), mha(), {}, ranks=dist.group.WORLD)
    prompt = list(range(10 * PAGE))
    computed = engine.compute(prompt)
    engine.settle()
    hashes = engine.tree.linker._tail_hashes(key(prompt), engine.match([], "none")[1], 0)
    engine.forget()

    async def lose(cache):
        match = await cache.match_engine_keys([bytes.fromhex(it) for it in hashes])
        assert match.pages == 10
        half = Span(match, 5 * PAGE, 10 * PAGE)
        (outcome,) = await cache.hint([Release(half, Leave.AT_ONCE)])
        assert outcome.pages == 5, outcome

    if rank == 1:
        engine.linker._cache.run(lose)
    dist.barrier()
    restored = engine.restore(prompt)
    same = all((a == b[: len(a)]).all() for a, b in zip(restored, computed, strict=True))
    sys.stdout.write(f"{len(restored[0])} {bool(same)}\n")
    dist.barrier()
    engine.linker.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
