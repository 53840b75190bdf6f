# SPDX-License-Identifier: Apache-2.0
"""What each part of the advised queue order gains, on a small queueing model of two engines.

Questions about documents, Poisson arrivals, three tenants of which one sends most. The engines
share a host; what one computes is announced to the other. A step takes as long as the longer of its
loads and its compute; each is followed by a decode step of what runs, unless one fits beside its
loads. It is a model: no engine ran. Times of Llama-3.1-8B on an H100 at
half its peak: 2 N / F a token and 4 L H d / F a token and position before it, F = 495e12; its KV,
131,072 bytes a token, comes at 48 GB/s from the host (Strata) and at 7 GB/s from a disk.
"""

import random
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import Any

from _common import Claim, interleaved, parser, write

from bodocache.plan.advise import Advice, QueueRules, Waiting, advise

TOKEN_S, SLOPE_S = 2 * 8.03e9 / 495e12, 4 * 32 * 4096 / 495e12
HOST_TOKEN_S, DISK_TOKEN_S = 131_072 / 48e9, 131_072 / 7e9
DECODE_S, STEP_OVERHEAD_S = 0.010, 0.002
DOCUMENTS, DOCUMENT_TOKENS = 400, (1_000, 24_000)
ON_DEVICE, ON_HOST = 4, 40  # documents that fit
QUESTION_TOKENS, ANSWER_TOKENS = (50, 1_000), (20, 200)
DEADLINES_S = (1.0, 1.0, 4.0)
TENANTS = (0, 0, 0, 0, 0, 0, 0, 0, 1, 2)  # the first sends most
REQUESTS, SEEDS, PER_S, ENGINES = 1_000, range(5), (6.0, 12.0, 16.0), 2
ON = QueueRules(steps=1, decode_s=DECODE_S)  # the engine takes one step, then asks again
PARTS = ("defers", "balances", "fills", "heeds_deadlines", "is_fair")
OFF = replace(ON, **dict.fromkeys(PARTS, False))
VARIANTS = {"arrival order": OFF, "all parts": ON} | {
    f"without {part}": replace(ON, **{part: False}) for part in PARTS
}
LONG_QUEUE = 2_000


@dataclass(slots=True)
class Request:
    """One question."""

    arrival_s: float
    document: int
    tokens: int
    answer: int
    tenant: int
    deadline_s: float
    passed: int = 0
    ttft_s: float = 0.0


def requests(seed: int, per_s: float) -> list[Request]:
    rng, now_s, out = random.Random(seed), 0.0, []
    for _ in range(REQUESTS):
        now_s += rng.expovariate(per_s)
        document = min(DOCUMENTS - 1, int(rng.paretovariate(0.5)) - 1)
        out.append(
            Request(
                now_s,
                document,
                rng.randint(*QUESTION_TOKENS),
                rng.randint(*ANSWER_TOKENS),
                rng.choice(TENANTS),
                rng.choice(DEADLINES_S),
            )
        )
    return out


def compute_s(first: int, tokens: int) -> float:
    return TOKEN_S * tokens + SLOPE_S * tokens * (first + tokens / 2)


@dataclass(slots=True)
class House:
    """What the engines share: documents that were stored, newest last, and since when."""

    sizes: list[int]
    found_s: OrderedDict[int, float] = field(default_factory=OrderedDict)

    def use(self, document: int, at_s: float) -> None:
        """Somebody has it on the device from ``at_s`` on, and stores it then."""
        self.found_s.setdefault(document, at_s)
        self.found_s.move_to_end(document)

    def load_s(self, document: int) -> float:
        """To the device, from the host or from disk."""
        is_on_host = document in list(self.found_s)[-ON_HOST:]
        return self.sizes[document] * (HOST_TOKEN_S if is_on_host else DISK_TOKEN_S)


@dataclass(slots=True)
class Engine:
    """One engine, its queue, and the documents on its device."""

    house: House
    rules: QueueRules
    now_s: float = 0.0
    queue: list[Request] = field(default_factory=list)
    on_device: OrderedDict[int, None] = field(default_factory=OrderedDict)
    running: list[int] = field(default_factory=list)  # tokens each has to decode

    def waiting(self, one: Request) -> Waiting:
        """What is known of a request now."""
        size, found_s = self.house.sizes[one.document], self.house.found_s.get(one.document)
        is_here, is_new = one.document in self.on_device, found_s is None or found_s > self.now_s
        return Waiting(
            arrival_s=one.arrival_s,
            compute_s=compute_s(size, one.tokens),
            load_s=0.0 if is_here or is_new else self.house.load_s(one.document),
            delayed_s=compute_s(0, size) if is_new else 0.0,
            ready_s=found_s - self.now_s if found_s is not None and is_new else 0.0,
            prefix=one.document if is_new else None,
            deadline_s=one.arrival_s + one.deadline_s - self.now_s,
            tenant=one.tenant,
            passed=one.passed,
        )

    def step(self) -> None:
        """Begin what is advised for now, and end it."""
        queue = self.queue
        advised = advise([self.waiting(one) for one in queue], self.rules)
        batch = [one for one in advised if one.step == 0]
        self.now_s += batch[0].start_s
        begun = {one.request: self.waiting(queue[one.request]) for one in batch}
        computes_s = sum(one.compute_s + one.delayed_s for one in begun.values())
        loads_s = sum({queue[i].document: one.load_s for i, one in begun.items()}.values())
        fit = min(batch[0].decode_steps, int(max(0.0, loads_s - computes_s) / DECODE_S))
        self.now_s += STEP_OVERHEAD_S + max(loads_s, computes_s)
        if self.running and not fit:
            self.now_s += DECODE_S
        self.decode(max(1, fit))
        for i in begun:
            self.end(queue[i])
        newest_s = [queue[i].arrival_s for i in begun]
        self.queue = [one for i, one in enumerate(queue) if i not in begun]
        for one in self.queue:
            one.passed += sum(arrival_s > one.arrival_s for arrival_s in newest_s)

    def end(self, one: Request) -> None:
        """Its first token is there."""
        one.ttft_s = self.now_s - one.arrival_s
        self.running.append(one.answer)
        self.house.use(one.document, self.now_s)
        self.on_device[one.document] = None
        self.on_device.move_to_end(one.document)
        while len(self.on_device) > ON_DEVICE:
            self.on_device.popitem(last=False)

    def decode(self, steps: int) -> None:
        """Let all that run decode."""
        self.running = [left - steps for left in self.running if left > steps]


def serve(seed: int, per_s: float, rules: QueueRules) -> list[Request]:
    """Every request, served; each engine is asked as its clock is the least."""
    rng = random.Random(seed)
    house = House([rng.randint(*DOCUMENT_TOKENS) for _ in range(DOCUMENTS)])
    engines = [Engine(house, rules) for _ in range(ENGINES)]
    served = requests(seed + 1, per_s)
    coming = list(reversed(served))
    while coming or any(engine.queue for engine in engines):
        now_s = min(engine.now_s for engine in engines)
        while coming and coming[-1].arrival_s <= now_s:
            rng.choice(engines).queue.append(coming.pop())
        engine = min(engines, key=lambda one: one.now_s)
        if engine.queue:
            engine.step()
        elif engine.running:
            engine.now_s += DECODE_S
            engine.decode(1)
        else:  # nothing to do until somebody comes, here or there
            others_s = [one.now_s for one in engines if one is not engine and one.now_s > now_s]
            comes_s = [coming[-1].arrival_s] if coming else []
            engine.now_s = min([*others_s, *comes_s], default=now_s + DECODE_S)
    return served


def figures(served: list[Request]) -> dict[str, float]:
    def p99(seconds: list[float]) -> float:
        return sorted(seconds)[int(0.99 * len(seconds))] if seconds else 0.0

    ttfts_s = [one.ttft_s for one in served]
    return {
        "mean_ttft_s": round(sum(ttfts_s) / len(ttfts_s), 4),
        "p99_ttft_s": round(p99(ttfts_s), 4),
        "slo_misses": round(sum(one.ttft_s > one.deadline_s for one in served) / len(served), 4),
        "p99_ttft_of_small_tenants_s": round(p99([one.ttft_s for one in served if one.tenant]), 4),
        "most_passed": max(one.passed for one in served),
    }


def measured() -> list[dict[str, Any]]:
    """A row for each load and variant, and for each part what it gains: negative where it costs."""
    rows: list[dict[str, Any]] = []
    for per_s in PER_S:
        found = {
            name: figures([one for seed in SEEDS for one in serve(seed, per_s, rules)])
            for name, rules in VARIANTS.items()
        }
        rows += [{"requests_per_s": per_s, "order": name} | row for name, row in found.items()]
        for part in PARTS:
            without, whole = found[f"without {part}"], found["all parts"]
            gains = {
                f"less_{key}": round(1 - whole[key] / without[key], 4) if without[key] else 0.0
                for key in without
                if key != "most_passed"
            }
            said = "gains" if max(gains.values()) > 0.01 else "gains nothing"
            rows.append({"requests_per_s": per_s, "part": part, "verdict": said} | gains)
    return rows


def long_queue() -> float:
    """Seconds to advise a long queue, eight steps ahead."""
    engine = Engine(House([8_000] * DOCUMENTS), ON)
    some = requests(9, 1.0)
    described = [engine.waiting(some[i % REQUESTS]) for i in range(LONG_QUEUE)]
    advised: list[tuple[Advice, ...]] = []
    timed = interleaved({"advise": lambda: advised.append(advise(described))}, runs=5, warmups=1)
    return timed["advise"].median_s


def main() -> None:
    chosen = parser(__doc__).parse_args()
    rows = measured()
    of = {(row["requests_per_s"], row["order"]): row for row in rows if "order" in row}
    long_s = long_queue()
    rows.append({"queue": LONG_QUEUE, "advise_ms": round(1e3 * long_s, 2)})
    claims = [
        Claim.at_most(
            "requests that any one was passed over by, the most",
            max(row["most_passed"] for row in of.values()),
            ON.max_passed,
            "",
        )
    ]
    for per_s in PER_S:
        ours, theirs = of[per_s, "all parts"], of[per_s, "arrival order"]
        share = ours["mean_ttft_s"] / theirs["mean_ttft_s"]
        name = f"mean TTFT against the order of arrival, {per_s:g} requests/s"
        claims.append(Claim.at_most(name, share, 1.0, ""))
    write(chosen.json, rows, claims)


if __name__ == "__main__":
    main()
