# SPDX-License-Identifier: Apache-2.0
"""How long a simulated engine computes: from FLOPs for prefill, from bytes for decode.

With N active parameters, L layers, H query heads of dimension d and F = gpus * peak * mfu:

    token at position p:      a + s p = (2 N + 4 L H d p) / F        (DESIGN.md; papers.md 4.2, 2)
    n tokens from position p: a n + s (p n + n^2 / 2)
    a step:                   overhead + max(prefill, weights / B) + context * kv bytes / B

with B the device's bytes a second, times what decode reaches of it: a step reads the weights once,
and the pages of everything that it decodes. Prefill and the reading of the weights overlap.
"""

from dataclasses import dataclass

from bodocache.replay.simulate.profile import Profile


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds of compute of one engine."""

    token_s: float  # a
    slope_s: float  # s
    layers: int
    weights_s: float  # to read all weights once
    context_s: float  # to read one token's pages once
    overhead_s: float  # of each step

    @classmethod
    def of(cls, profile: Profile) -> "Speed":
        """What the profile comes to."""
        model, engine = profile.model, profile.engine
        flops = engine.gpus * engine.peak_flops * engine.mfu
        bytes_per_s = engine.gpus * engine.hbm_bytes_per_s * engine.hbm_efficiency
        return cls(
            token_s=2 * model.active_parameters / flops,
            slope_s=4 * model.layers * model.heads * model.head_dim / flops,
            layers=model.layers,
            weights_s=model.weight_bytes / bytes_per_s,
            context_s=model.kv_bytes_per_token / bytes_per_s,
            overhead_s=engine.step_overhead_s,
        )

    def prefill_s(self, start: int, tokens: int) -> float:
        """To compute ``tokens`` behind ``start`` others."""
        return self.token_s * tokens + self.slope_s * (start * tokens + tokens * tokens / 2)

    def step_s(self, prefill_s: float, context: float) -> float:
        """One step that prefills for ``prefill_s`` and decodes over ``context`` tokens in all."""
        return self.overhead_s + max(prefill_s, self.weights_s) + context * self.context_s
