# SPDX-License-Identifier: Apache-2.0
"""The cache as it is meant to be used: the engine says when it is free, the cache cuts."""

from bodocache.replay.simulate.engine import Engine
from bodocache.replay.simulate.job import Job


class Predicted:
    """Loads with all that an engine can say; starts when the load is whole, or was cut."""

    steps_aside = True

    def begin(self, engine: Engine, job: Job) -> None:
        """Say when the engine is free, and what it computes in any case."""
        assert job.match is not None
        speed, matched = engine.speed, job.matched
        new_s = speed.prefill_s(matched, job.tokens - matched)
        start_s = engine.backlog_s(job)
        behind = engine.behind(job)
        # A recompute of all that was matched, from when the engine is free, costs half of that: the
        # cache cuts long before, unless what it predicts is wrong.
        latest_s = start_s + 2.0 * (1.0 + behind) * speed.prefill_s(0, matched)
        job.load = engine.cache.load(
            job.match,
            start_s=start_s,
            compute_s=[new_s / speed.layers] * speed.layers,
            n_waiting=behind,
            deadline_s=latest_s,
        )
        job.load.on_settled(engine.poke)

    def is_ready(self, engine: Engine, job: Job) -> bool:
        """When nothing more will come; if not, the engine is free, or will be, by now."""
        assert job.load is not None
        if not job.load.done:
            job.load.expect(start_s=engine.backlog_s(job), n_waiting=engine.behind(job))
        return job.load.done

    def commit(self, engine: Engine, job: Job) -> None:
        """The range is final."""
        assert job.load is not None
        committed = job.load.commit()
        engine.take(job, len(committed) // engine.profile.model.page_tokens)
