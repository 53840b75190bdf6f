# SPDX-License-Identifier: Apache-2.0
"""Were the cuts right? The same seed again, with one decision the other way.

A load that was cut is run again with nothing cut; one that was not is run again as one that starts
with what has landed when the engine has room. What counts is the wait for the first token, summed
over the request and all that arrived before it had its own, in either run: a recompute delays
everyone behind it.
"""

from dataclasses import dataclass, replace

import numpy as np

from bodocache.pages import Tier
from bodocache.replay.simulate.baselines import BEST_EFFORT, WAIT_COMPLETE
from bodocache.replay.simulate.engine import Engine, Policy
from bodocache.replay.simulate.job import Job
from bodocache.replay.simulate.policies import POLICIES
from bodocache.replay.simulate.profile import Profile
from bodocache.replay.simulate.run import Run, Scenario, simulate
from bodocache.replay.trace import Trace

TOLERANCE = 0.01  # of the summed wait: a smaller gain is none
PATIENCE_S = 10.0  # the other decision may take so much longer, and as long again as the first


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of a sample of decisions, how many the other one would have bettered."""

    cuts_judged: int
    false_cuts: int
    non_cuts_judged: int
    missed_cuts: int


@dataclass(slots=True)
class Otherwise:
    """One policy for all requests but one."""

    usual: Policy
    number: int
    other: Policy

    @property
    def steps_aside(self) -> bool:
        """As usual."""
        return self.usual.steps_aside

    def begin(self, engine: Engine, job: Job) -> None:
        """As whoever decides about it does."""
        self._of(job).begin(engine, job)

    def is_ready(self, engine: Engine, job: Job) -> bool:
        """Idem."""
        return self._of(job).is_ready(engine, job)

    def commit(self, engine: Engine, job: Job) -> None:
        """Idem."""
        self._of(job).commit(engine, job)

    def _of(self, job: Job) -> Policy:
        return self.other if job.number == self.number else self.usual


def judge(
    trace: Trace, profile: Profile, policy: str, scenario: Scenario, run: Run, sample: int
) -> Verdict:
    """Judge up to ``sample`` cuts and as many non-cuts of ``run``, chosen by its seed."""
    random = np.random.default_rng([scenario.seed, 0x70D9E])
    cuts = _sample(random, [job for job in run.jobs if job.cut], sample)
    others = _sample(random, [job for job in run.jobs if not job.cut and _moved(job)], sample)

    def is_worse(job: Job, other: Policy) -> bool:
        usual = POLICIES[policy]()
        chosen = replace(scenario, stop_after=_enough(run, job))
        with_other = simulate(trace, profile, Otherwise(usual, job.number, other), chosen)
        return _other_is_better(run, with_other, job)

    return Verdict(
        cuts_judged=len(cuts),
        false_cuts=sum(is_worse(job, WAIT_COMPLETE) for job in cuts),
        non_cuts_judged=len(others),
        missed_cuts=sum(is_worse(job, BEST_EFFORT) for job in others),
    )


def _moved(job: Job) -> bool:
    """Whether anything of it lay below the device."""
    return job.match is not None and bool((job.match.tiers[: job.match.pages] > Tier.DEVICE).any())


def _sample(random: np.random.Generator, jobs: list[Job], sample: int) -> list[Job]:
    chosen = random.permutation(len(jobs))[:sample]
    return [jobs[i] for i in sorted(chosen.tolist())]


def _enough(run: Run, job: Job) -> int:
    """So many requests of the run that all are there that it may delay, however it is decided."""
    until_s = job.first_token_s + job.ttft_s + PATIENCE_S
    return sum(other.arrived_s <= until_s for other in run.jobs)


def _other_is_better(run: Run, other: Run, job: Job) -> bool:
    index = next(i for i, one in enumerate(run.jobs) if one.number == job.number)
    ends_s = max(run.jobs[index].first_token_s, other.jobs[index].first_token_s)
    behind = range(index, len(other.jobs))
    touched = [i for i in behind if run.jobs[i].arrived_s <= ends_s]
    before_s = sum(run.jobs[i].ttft_s for i in touched)
    after_s = sum(other.jobs[i].ttft_s for i in touched)
    return after_s < before_s * (1.0 - TOLERANCE)
