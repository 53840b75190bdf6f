# SPDX-License-Identifier: Apache-2.0
import asyncio
from dataclasses import dataclass, field

import pytest

from bodocache.replay.simulate.router import Router


@dataclass
class FakeEngine:
    backlog: float = 0.0
    decoding: list[int] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)
    closed: bool = False

    def backlog_s(self):
        return self.backlog

    async def submit(self, job):
        self.jobs.append(job)
        self.backlog += 1.0

    def close(self):
        self.closed = True


@pytest.mark.parametrize(
    ("backlogs", "decoding", "chosen"),
    [
        ((2.0, 0.5, 1.0), (0, 9, 0), 1),  # the least loaded, whatever it decodes
        ((1.0, 1.0, 1.0), (3, 2, 2), 1),  # of equals, that which decodes for the fewest
        ((0.0, 0.0, 0.0), (0, 0, 0), 0),  # of equals, the first
    ],
)
def test_a_request_goes_where_the_least_is_to_do(backlogs, decoding, chosen):
    engines = [FakeEngine(s, [0] * n) for s, n in zip(backlogs, decoding, strict=True)]
    assert Router(engines).choose() is engines[chosen]


def test_requests_at_once_are_spread_and_all_engines_are_closed():
    engines = [FakeEngine() for _ in range(3)]
    router = Router(engines)

    async def send():
        for number in range(6):
            await router.submit(f"job {number}")

    asyncio.run(send())
    router.close()
    assert [len(engine.jobs) for engine in engines] == [2, 2, 2]
    assert all(engine.closed for engine in engines)
