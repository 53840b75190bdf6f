# SPDX-License-Identifier: Apache-2.0
"""What a caller could say of each request of a trace, made as right as wanted: is it continued?

A request is *continued* if a later one touches its last page but one. The very last is rarely
filled, so what goes on has another in its place. A hint is a probability of that, one a request.
Hints are made here with the whole trace in sight, as the caller's knowledge of its users; policies
are told one with each request. Equal seeds give equal hints.
"""

from statistics import NormalDist

import numpy as np
from numpy.random import PCG64, Generator
from numpy.typing import NDArray

from bodocache.replay.policies.model import Floats, Touches

Flags = NDArray[np.bool_]


def continued(touches: Touches) -> Flags:
    """Whether a later request touches the last page but one, or the only one, of each request."""
    begins, ends = touches.offsets[:-1], touches.offsets[1:]
    requests = np.arange(len(begins))
    last_use = np.full(len(touches.parents), -1)
    np.maximum.at(last_use, touches.ids, np.repeat(requests, ends - begins))
    found = np.zeros(len(begins), np.bool_)
    some = ends > begins
    asked = touches.ids[np.maximum(begins, ends - 2)[some]]
    found[some] = last_use[asked] > requests[some]
    return found


def perfect(touches: Touches) -> Floats:
    """1 for a request that is continued, else 0."""
    return continued(touches).astype(np.float64)


def noisy(truth: Flags, auc: float, seed: int) -> Floats:
    """Probabilities as good as ``auc``: the chance that of two requests the continued one has more.

    Binormal: the caller sees x ~ N(mu, 1) of a continued request and N(0, 1) of another, with
    ``mu = sqrt(2) * Phi^-1(auc)`` (Green and Swets, 1966), and says Bayes' probability,
    ``1 / (1 + (1 - q) / q * exp(mu^2 / 2 - mu * x))``, q being the share of requests continued.

    Raises:
        ValueError: ``auc`` is not in [0.5, 1).
    """
    if not 0.5 <= auc < 1:
        raise ValueError(f"auc: got {auc}, expected 0.5 <= auc < 1; perfect() has 1")
    mu = 2**0.5 * NormalDist().inv_cdf(auc)
    seen = Generator(PCG64(seed)).standard_normal(len(truth)) + mu * truth
    share = truth.mean()
    said: Floats = share / (share + (1 - share) * np.exp(mu**2 / 2 - mu * seen))
    return said


def useless(truth: Flags, auc: float, seed: int) -> Floats:
    """The hints of :func:`noisy`, dealt to the requests at random: as sure, and never knowing."""
    return Generator(PCG64(seed)).permutation(noisy(truth, auc, seed + 1))


def measured_auc(truth: Flags, hints: Floats) -> float:
    """Of all pairs, one continued and one not: the share where the former has more; ties half.

    ``(R - P (P + 1) / 2) / (P N)``, R the sum of the P continued ones' ranks among all P + N
    (Mann-Whitney). NaN where there is no such pair.
    """
    _, places, counts = np.unique(hints, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    yes, no = int(truth.sum()), int((~truth).sum())
    if yes == 0 or no == 0:
        return float("nan")
    return float((ranks[truth].sum() - yes * (yes + 1) / 2) / (yes * no))
