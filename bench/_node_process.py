# SPDX-License-Identifier: Apache-2.0
"""A node that also measures the gaps of its own loop, for bench/node.py.

Arguments: configuration, socket. A line on standard input is answered with the gaps since the last;
after "sample" they are sampled, after any other line not, so that CPU time is the node's alone.
"""

import asyncio
import json
import sys
import time
from pathlib import Path

from bodocache.config import load_config
from bodocache.node.process import serve

EVERY_S = 0.002


class Gaps:
    """How late a timer of 2 ms fires: how long the loop did not turn."""

    def __init__(self) -> None:
        self.is_on = True
        self._late_s: list[float] = []
        self._cpu_s = time.process_time()

    async def sample(self) -> None:
        """Sample while it is on."""
        while self.is_on:
            begun_s = time.perf_counter()
            await asyncio.sleep(EVERY_S)
            self._late_s.append(time.perf_counter() - begun_s - EVERY_S)

    def take(self) -> dict[str, float]:
        """Percentiles in ms of what was sampled since the last call; CPU seconds of the process."""
        late, self._late_s = sorted(self._late_s), []
        at = {"p50": 0.5, "p99": 0.99, "p99_9": 0.999, "max": 1.0}
        late = late or [0.0]
        last = len(late) - 1
        figures = {f"{name}_ms": 1e3 * late[min(last, int(it * last))] for name, it in at.items()}
        before_s, self._cpu_s = self._cpu_s, time.process_time()
        return {"samples": len(late), **figures, "cpu_s": self._cpu_s - before_s}


async def _main(config: Path, path: Path) -> None:
    gaps, reader = Gaps(), asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with serve(load_config(config), path), asyncio.TaskGroup() as group:
        print("ready", flush=True)
        gaps.is_on = False
        while line := await reader.readline():
            print(json.dumps(gaps.take()), flush=True)
            if line == b"sample\n" and not gaps.is_on:
                gaps.is_on = True
                group.create_task(gaps.sample())
            elif line != b"sample\n":
                gaps.is_on = False
        gaps.is_on = False


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), Path(sys.argv[2])))
