# SPDX-License-Identifier: Apache-2.0
"""What waits for a slot of the table (table.py): rows by deadline, then by arrival.

Rows that came together stay together, in one array: what the loop does here it does once a batch.
"""

import heapq

import numpy as np
from numpy.typing import NDArray


class Backlog:
    """ENTRY rows. Used on the loop."""

    __slots__ = ("_runs",)

    def __init__(self) -> None:
        # A heap by deadline and first id; the ids of two runs do not interleave.
        self._runs: list[tuple[float, int, NDArray[np.void]]] = []

    def push(self, rows: NDArray[np.void]) -> None:
        """Let ``rows`` wait: of one batch and one deadline, with ids that rise."""
        if len(rows):
            heapq.heappush(self._runs, (float(rows["deadline_s"][0]), int(rows["id"][0]), rows))

    def pop(self, count: int) -> list[NDArray[np.void]]:
        """Take the first ``count`` rows, or all there are."""
        taken = []
        while count > 0 and self._runs:
            deadline_s, _, rows = self._runs[0]
            taken.append(rows[:count])
            rest = rows[count:]
            count -= len(taken[-1])
            if len(rest):
                heapq.heapreplace(self._runs, (deadline_s, int(rest["id"][0]), rest))
            else:
                heapq.heappop(self._runs)
        return taken

    def withdraw(self, batch: int) -> list[int]:
        """Take the rows of ``batch``, -1 for all; return their ids."""
        mine = [run for run in self._runs if batch in {-1, int(run[2]["batch"][0])}]
        if mine:
            self._runs = [run for run in self._runs if not any(run is one for one in mine)]
            heapq.heapify(self._runs)
        ids: list[int] = [id_ for run in mine for id_ in run[2]["id"].tolist()]
        return ids
