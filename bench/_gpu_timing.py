# SPDX-License-Identifier: Apache-2.0
"""Timing on a GPU: device events, interleaved, with the calls' own submission hidden or counted.

Hidden: a spinning kernel keeps the stream busy while the host submits, so the events see the device
alone. Counted: the stream is idle when the call begins, so what Python, the driver and the host's
own work take is in the time. Where there is no GPU a stand-in runs every call once and returns one
second: never a figure.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from _common import Timing, timing

Call = Callable[[int], object]  # with the index of the repeat: inputs rotate by it
Load = Callable[[torch.cuda.Stream | None], object]

CYCLES_PER_S = 2.0e9  # of a Hopper multiprocessor at its highest clock: a spin is never too short
SPIN_FLOOR_S, SPIN_CAP_S = 100e-6, 0.25


@dataclass(slots=True)
class Timed:
    """What was measured of several calls, and why others were not."""

    timings: dict[str, Timing] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


class Timer(Protocol):
    """Times calls that put work on torch's current stream."""

    def interleaved(self, calls: Mapping[str, Call], *, hidden: bool) -> Timed:
        """Time all ``calls`` in turns; one that raises is left out, with its reason."""
        ...

    def beside(self, load: Load | None, compute: Callable[[], object]) -> tuple[float, bool]:
        """Seconds of ``compute`` while ``load`` runs on a stream of its own.

        Also whether ``load`` lasted until ``compute`` had ended (True where there is none).
        """
        ...

    def submission_s(self, call: Callable[[], object]) -> float:
        """Seconds of the host a call of ``call`` takes, nothing waited for: a median of means."""
        ...

    def finish(self) -> None:
        """Wait until the device has done everything; raises what it failed of."""
        ...


@dataclass(frozen=True, slots=True)
class EventTimer:
    """CUDA events on the current stream, which must not be the legacy one (copies in batches)."""

    device: torch.device
    side: torch.cuda.Stream
    budget_s: float  # of each call: repeats end there
    runs: tuple[int, int]  # at least, at most

    def interleaved(self, calls: Mapping[str, Call], *, hidden: bool) -> Timed:
        """Rounds over all calls until each has had its runs or its time."""
        said = Timed()
        spins: dict[str, float] = {}
        for name, call in calls.items():
            try:
                self._once(call, 0, None)
                spins[name] = self._submission(call) if hidden else 0.0
            except Exception as error:  # noqa: BLE001 -- a row says why
                said.failures[name] = explain(error)
        spent = dict.fromkeys(spins, 0.0)
        samples: dict[str, list[float]] = {name: [] for name in spins}
        for index in range(self.runs[1]):
            for name in [n for n in spins if n not in said.failures]:
                if index >= self.runs[0] and spent[name] > self.budget_s:
                    continue
                begun = time.perf_counter()
                try:
                    samples[name].append(self._once(calls[name], index, spins[name]))
                except Exception as error:  # noqa: BLE001 -- a row says why
                    said.failures[name] = explain(error)
                spent[name] += time.perf_counter() - begun
        said.timings = {n: timing(s) for n, s in samples.items() if n not in said.failures}
        return said

    def beside(self, load: Load | None, compute: Callable[[], object]) -> tuple[float, bool]:
        """Median of five; a spin on both streams lets the host submit everything first."""
        spin_s, samples, lasted = 0.0, [], True
        for repeat in range(6):
            torch.cuda.synchronize(self.device)
            current = torch.cuda.current_stream(self.device)
            begin, end, load_end = (torch.cuda.Event(enable_timing=True) for _ in range(3))
            submitted = time.perf_counter()
            if repeat:
                spin(spin_s)
            begin.record(current)
            self.side.wait_event(begin)
            if load is not None:
                load(self.side)
            load_end.record(self.side)
            compute()
            end.record(current)
            if not repeat:  # warms up, and says how long a submission takes
                spin_s = _spin_for(time.perf_counter() - submitted)
            torch.cuda.synchronize(self.device)
            if repeat:
                samples.append(begin.elapsed_time(end) / 1e3)
                lasted &= load is None or end.elapsed_time(load_end) >= 0
        return timing(samples).median_s, lasted

    def submission_s(self, call: Callable[[], object]) -> float:
        """20 times 50 calls: no launch queue is ever full, so none waits for the device."""
        means = []
        for _ in range(21):
            torch.cuda.synchronize(self.device)
            begun = time.perf_counter()
            for _ in range(50):
                call()
            means.append((time.perf_counter() - begun) / 50)
        torch.cuda.synchronize(self.device)
        return timing(means[1:]).median_s

    def finish(self) -> None:
        """Wait for the device."""
        torch.cuda.synchronize(self.device)

    def _submission(self, call: Call) -> float:
        torch.cuda.synchronize(self.device)
        begun = time.perf_counter()
        call(0)
        spin_s = _spin_for(time.perf_counter() - begun)
        torch.cuda.synchronize(self.device)
        return spin_s

    def _once(self, call: Call, index: int, spin_s: float | None) -> float:
        torch.cuda.synchronize(self.device)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if spin_s:
            spin(spin_s)
        begin.record()
        call(index)
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3


@dataclass(frozen=True, slots=True)
class StandInTimer:
    """Runs each call once on the CPU; every time it returns is one second."""

    def interleaved(self, calls: Mapping[str, Call], *, hidden: bool) -> Timed:  # noqa: ARG002
        """One run each."""
        said = Timed()
        for name, call in calls.items():
            try:
                call(0)
                said.timings[name] = timing([1.0])
            except Exception as error:  # noqa: BLE001 -- a row says why
                said.failures[name] = explain(error)
        return said

    def beside(self, load: Load | None, compute: Callable[[], object]) -> tuple[float, bool]:
        """Both, one after the other."""
        if load is not None:
            load(None)
        compute()
        return 1.0, True

    def submission_s(self, call: Callable[[], object]) -> float:
        """One call."""
        call()
        return 1.0

    def finish(self) -> None:
        """Nothing runs by itself."""


def spin(seconds: float) -> None:
    """Keep the current stream busy for about ``seconds``, or a little longer."""
    torch.cuda._sleep(int(seconds * CYCLES_PER_S))  # noqa: SLF001 -- has no public name


def explain(error: BaseException) -> str:
    """One line of an error, for a row."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


def _spin_for(submission_s: float) -> float:
    return min(SPIN_CAP_S, max(SPIN_FLOOR_S, 1.5 * submission_s))
