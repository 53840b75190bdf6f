# SPDX-License-Identifier: Apache-2.0
"""What engines really take to compute tokens, learned from what they say of their steps.

n tokens behind p others take ``a n + s (p n + n^2 / 2)`` seconds (DESIGN.md, "tardiness"). The
configuration says a and s, and may be wrong by a third; each load says what its step computes in
any case (``compute_s``). Both are fitted by least squares of relative errors, the newest of some
hundred steps weighing most, held to the configuration as if that were a tenth of a step.
"""

import numpy as np

from bodocache.move.terms import Terms

KEPT = 1.0 - 1.0 / 128  # of what was learned, with each step
PRIOR = 0.1  # of a step: what is configured is off by 30 %, a step by 10 (tails of pages, batches)
LEAST_PAGES = 8  # of a step that says something: its tokens are known to within a page
MOST = 10.0  # times what is configured, or that part of it: a step that says more is no prefill


class Effort:
    """Seconds per token at position 0, and what each position adds, as they are learned."""

    __slots__ = ("_learned", "_said", "_seen", "_unit")

    def __init__(self, token_s: float, slope_s: float) -> None:
        """As configured."""
        self._said = np.array([token_s, slope_s])
        self._learned = self._said
        self._seen = np.zeros((2, 2))
        self._unit = np.zeros(2)

    @property
    def token_s(self) -> float:
        """a: seconds of a token at position 0."""
        return float(self._learned[0])

    @property
    def slope_s(self) -> float:
        """s: seconds that each position adds."""
        return float(self._learned[1])

    def recompute_s(self, tokens: int) -> float:
        """Seconds to compute the first ``tokens`` of a prompt."""
        return self.token_s * tokens + self.slope_s * tokens * tokens / 2

    def hear(self, terms: Terms, matched: int, pages: int, page_tokens: int) -> None:
        """A step that computes the pages from ``matched`` to ``pages`` takes what ``terms`` say."""
        new = pages - matched
        if not terms.is_layered or new < LEAST_PAGES:
            return
        if (seconds := float(terms.compute_s.sum())) > 0.0:
            self.computed(matched * page_tokens, new * page_tokens, seconds)

    def computed(self, first: int, tokens: int, seconds: float) -> None:
        """``tokens`` behind ``first`` others take a step of ``seconds``."""
        parts = self._said * (tokens, first * tokens + tokens * tokens / 2) / seconds
        if not 1 / MOST <= parts.sum() <= MOST:
            return
        self._seen = KEPT * self._seen + np.outer(parts, parts)
        self._unit = KEPT * self._unit + parts
        factors = np.linalg.solve(self._seen + PRIOR * np.eye(2), self._unit + PRIOR)
        self._learned = self._said * np.clip(factors, 1 / MOST, MOST)
