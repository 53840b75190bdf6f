# SPDX-License-Identifier: Apache-2.0
"""SGLang's storage backend: ours beside SGLang's own HiCacheFile, as its controller calls each.

`make install-sglang`, then `.venv-sglang/bin/python bench/sglang_storage.py`. Both are made by
SGLang's own factory and serve the same real host pool (page_first), batch by batch in turns.

ours        exists, get and set of 128 pages by the v1 interface; every page digested and compared
HiCacheFile the same by flat pages, as the controller does for it: a tensor a page, copied once more

A cold get follows its exists and reads from the device: the files of theirs are dropped from the
page cache, ours are read with O_DIRECT, and a get counts as cold where the node read 95 % of its
pages from disk, which it counts. A warm get is the same once more. With four threads each has a
batch of its own. Ratios are of the same batch; their interval is 95 % of the log-mean.

Rows: {what: set | get, state, page_nbytes, threads, ours_gb_per_s, theirs_gb_per_s, ratio,
ratio_low, samples}; {what: exists, pages_stored, ours_us, theirs_us}; {what: damage, ...}: one
file, or one frame, with a flipped byte or cut short, and whether it was served.
"""

import hashlib
import math
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from _common import Claim, parser, write

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "peer" / "sglang"))
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import conftest as house
    import sglang
    import torch
    from sglang.srt.environ import envs
    from sglang.srt.mem_cache.hicache_storage import HiCacheFile

BATCH = 128
HEADS, HEAD_DIM, TOKENS = 8, 128, 16  # 64 KiB a layer
PAGES_NBYTES = (64 << 10, 256 << 10, 2 << 20)
THREADS = (1, 4)
TURNS = {64 << 10: 4, 256 << 10: 2, 2 << 20: 1}  # of four batches a thread each
HOST_BATCHES = 2  # of a thread each, in the node's memory while reads are cold
STORED = 1_000_000
EXISTS_CALLS = 200
MOSTLY = 0.95  # of a cold get's pages come from the device


class Side(NamedTuple):
    """One backend, as the controller uses it."""

    name: str
    backend: Any
    get: Callable[[list[str], torch.Tensor], int]  # pages that came
    set: Callable[[list[str], torch.Tensor], bool]


def ours(backend: Any) -> Side:
    def get(keys: list[str], indices: torch.Tensor) -> int:
        return sum(backend.batch_get_v1(keys, indices))

    return Side("ours", backend, get, lambda keys, at: all(backend.batch_set_v1(keys, at)))


def theirs(backend: Any, pool: Any) -> Side:
    """What HiCacheController._generic_page_get and _generic_page_set do."""

    def get(keys: list[str], indices: torch.Tensor) -> int:
        rooms = [pool.get_dummy_flat_data_page() for _ in keys]
        pages = backend.batch_get(keys, rooms)
        for number, page in enumerate(pages):
            if page is None:
                return number
            pool.set_from_flat_data_page(indices[number * TOKENS], page)
        return len(keys)

    def put(keys: list[str], indices: torch.Tensor) -> bool:
        pages = [pool.get_data_page(indices[i * TOKENS]) for i in range(len(keys))]
        return bool(backend.batch_set(keys, pages))

    return Side("theirs", backend, get, put)


class Bench(NamedTuple):
    """Both sides over one pool, each thread with a place to read from and one to land in."""

    pool: Any
    sides: tuple[Side, Side]
    files: Path
    sources: list[torch.Tensor]
    targets: list[torch.Tensor]
    page_nbytes: int


@contextmanager
def bench_of(page_nbytes: int, folder: Path, *, threads: int) -> Iterator[Bench]:
    house.LAYERS, house.HEAD_DIM, house.TOKENS = page_nbytes // (64 << 10), HEAD_DIM, TOKENS
    pool = house.mha_pool("page_first", pages=2 * threads * BATCH + 1, heads=HEADS)
    assert pool.get_size_per_token() * TOKENS == page_nbytes
    host = HOST_BATCHES * threads * BATCH * page_nbytes
    kept = 2 * (2 + HOST_BATCHES) * threads * BATCH * page_nbytes + (64 << 20)
    (folder / "files").mkdir(exist_ok=True)
    with envs.SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR.override(str(folder / "files")):
        file = HiCacheFile(house.storage_config(folder))
    config = house.storage_config(
        folder / "ours",
        host_bytes=host,
        capacity_bytes=kept,
        read_deadline_s=60.0,
        write_deadline_s=60.0,
        read_ahead_share=0.9,
    )
    backend = house.created(config)
    backend.register_mem_pool_host(pool)
    try:
        yield Bench(
            pool,
            (ours(backend), theirs(file, pool)),
            folder / "files",
            [house.slots(pool, BATCH) for _ in range(threads)],
            [house.slots(pool, BATCH) for _ in range(threads)],
            page_nbytes,
        )
    finally:
        backend.close()
        house.until(lambda: house.node_is_gone(folder / "ours"), within_s=120)


def keys_of(batch: int) -> list[str]:
    return [hashlib.sha256(f"{batch}/{page}".encode()).hexdigest() for page in range(BATCH)]


def together(threads: int, work: Callable[[int], Any]) -> float:
    """Seconds until ``work(i)`` of every thread is done."""
    if threads == 1:
        begun_s = time.perf_counter()
        work(0)
        return time.perf_counter() - begun_s
    gate, ends, errors = threading.Barrier(threads + 1), [], []

    def run(number: int) -> None:
        gate.wait()
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 -- raised below
            errors.append(error)
        ends.append(time.perf_counter())

    started = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for thread in started:
        thread.start()
    gate.wait()
    begun_s = time.perf_counter()
    for thread in started:
        thread.join()
    if errors:
        raise errors[0]
    return max(ends) - begun_s


def settle(bench: Bench, pages: int) -> None:
    """Wait until what was set lies on the device, of both, and out of the page cache."""
    house.written(bench.sides[0].backend, pages)
    os.sync()
    for file in bench.files.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_pages(bench: Bench) -> int:
    """Pages that the node has read from its disk."""
    figures = bench.sides[0].backend._nodes["kv"].line.figures(within_s=30)  # noqa: SLF001
    return int(figures["links"]["disk->host"]["pages"])


def check(bench: Bench, landed: int, source: int, target: int) -> None:
    """Every byte that a get brought."""
    assert landed == BATCH, f"{landed} of {BATCH} pages came"
    mine, back = (
        house.page_bytes(bench.pool, at) for at in (bench.sources[source], bench.targets[target])
    )
    assert torch.equal(mine, back)


def rows_of(bench: Bench, threads: int, turns: int) -> Iterator[dict[str, Any]]:
    """Turns of: set all batches, settle, then get each twice; the first turn warms up."""
    took: dict[str, list[dict[str, float]]] = {"set": [], "cold": [], "warm": []}
    for turn in range(turns + 1):
        if turn == 1:
            for seconds in took.values():
                seconds.clear()
        for side in bench.sides:
            side.backend.clear()
        groups = [range(threads * i, threads * (i + 1)) for i in range(HOST_BATCHES + 2)]
        sides = bench.sides if turn % 2 else bench.sides[::-1]
        for group in groups:
            took["set"].append({side.name: timed_set(bench, side, group) for side in sides})
        settle(bench, len(groups) * threads * BATCH)
        for group in groups:
            for state in ("cold", "warm"):
                before = read_pages(bench)
                both = {side.name: timed_get(bench, side, group) for side in sides}
                share = (read_pages(bench) - before) / (threads * BATCH)
                # Half of the batches still lay in the node's memory at the first time.
                if share >= MOSTLY if state == "cold" else share == 0:
                    took[state].append(both)
    for what, seconds in took.items():
        yield row_of(bench, threads, what, seconds)


def row_of(
    bench: Bench, threads: int, what: str, seconds: list[dict[str, float]]
) -> dict[str, Any]:
    nbytes = threads * BATCH * bench.page_nbytes
    ratio, low = ratio_of(seconds)
    rates = {
        f"{name}_gb_per_s": nbytes / statistics.median(it[name] for it in seconds) / 1e9
        for name in ("ours", "theirs")
    }
    return {
        "what": "set" if what == "set" else "get",
        "state": "" if what == "set" else what,
        "page_nbytes": bench.page_nbytes,
        "threads": threads,
        **rates,
        "ratio": ratio,
        "ratio_low": low,
        "samples": len(seconds),
    }


def timed_set(bench: Bench, side: Side, group: range) -> float:
    def work(i: int) -> None:
        assert side.set(keys[i], bench.sources[i])

    keys = [keys_of(batch) for batch in group]
    return together(len(group), work)


def timed_get(bench: Bench, side: Side, group: range) -> float:
    """As SGLang does: it asks what is there, then it gets that; every byte is looked at after."""
    landed = [0] * len(group)

    def work(i: int) -> None:
        side.backend.batch_exists(keys[i])
        landed[i] = side.get(keys[i], bench.targets[i])

    keys = [keys_of(batch) for batch in group]
    seconds = together(len(group), work)
    for i in range(len(group)):
        check(bench, landed[i], i, i)
        bench.pool.kv_buffer.view(torch.uint8)[:, bench.targets[i]] = 0
    return seconds


def ratio_of(seconds: list[dict[str, float]]) -> tuple[float, float]:
    """How many times faster ours is, and the lower end of 95 % of it."""
    logs = [math.log(it["theirs"] / it["ours"]) for it in seconds]
    mean = statistics.fmean(logs)
    spread = statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean - 1.96 * spread)


def exists_row(folder: Path, stored: int) -> dict[str, Any]:
    """``exists`` of 128 pages that are there, among ``stored``; pages of 4 KiB."""
    house.LAYERS, house.HEAD_DIM, house.TOKENS = 1, 64, TOKENS
    pool = house.mha_pool("page_first", pages=BATCH + 1, heads=1)
    assert pool.get_size_per_token() * TOKENS == 4096
    (folder / "files").mkdir(exist_ok=True)
    with envs.SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR.override(str(folder / "files")):
        file = HiCacheFile(house.storage_config(folder))
    config = house.storage_config(
        folder / "ours",
        host_bytes="256 MiB",
        capacity_bytes=stored * 5120 + (64 << 20),
        write_deadline_s=60.0,
    )
    backend = house.created(config)
    backend.register_mem_pool_host(pool)
    sides, at = (ours(backend), theirs(file, pool)), house.slots(pool, BATCH)
    batches = [keys_of(batch) for batch in range(-(-stored // BATCH))]
    try:
        for number, keys in enumerate(batches):
            assert sides[0].set(keys, at)
            for key in keys:  # an empty file is there, too, and a thousand times faster made
                (folder / "files" / f"{file._get_suffixed_key(key)}.bin").touch()  # noqa: SLF001
            if number % 64 == 63:
                house.written(backend, (number + 1) * BATCH)
        house.written(backend, len(batches) * BATCH)
        took: dict[str, list[float]] = {"ours": [], "theirs": []}
        for call in range(EXISTS_CALLS):
            keys = batches[(call * 7919) % len(batches)]
            for side in sides:
                begun_s = time.perf_counter()
                found = side.backend.batch_exists(keys)
                took[side.name].append(time.perf_counter() - begun_s)
                assert found == BATCH
            time.sleep(0.002)  # what was named is read meanwhile
        us = {name: 1e6 * statistics.median(it) for name, it in took.items()}
        return {
            "what": "exists",
            "pages_stored": len(batches) * BATCH,
            "ours_us": us["ours"],
            "theirs_us": us["theirs"],
        }
    finally:
        backend.close()
        house.until(lambda: house.node_is_gone(folder / "ours"), within_s=600)


def damage_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """A page whose bytes changed on the device, or whose file is shorter: is it served?"""
    for damage in ("flipped", "truncated"):
        there = folder / damage
        there.mkdir()
        with bench_of(64 << 10, there, threads=1) as bench:
            keys, right = keys_of(0), house.page_bytes(bench.pool, bench.sources[0])
            for side in bench.sides:
                assert side.set(keys, bench.sources[0])
            settle(bench, BATCH)
        wanted = right[3].numpy().tobytes()
        (file,) = (it for it in bench.files.iterdir() if it.name.startswith(keys[3]))
        for spoilt in (file, there / "ours" / "kv" / "payload.slab"):
            spoil(spoilt, wanted, damage)
        with bench_of(64 << 10, there, threads=1) as bench:
            for side in bench.sides:
                try:
                    came = side.get(keys[3:4], bench.targets[0][:TOKENS]) == 1
                except OSError:
                    came = False
                page = house.page_bytes(bench.pool, bench.targets[0][:TOKENS])[0]
                yield {
                    "what": "damage",
                    "damage": damage,
                    "side": side.name,
                    "served": came,
                    "wrong_bytes": int((page != right[3]).sum()) if came else 0,
                }


def spoil(file: Path, wanted: bytes, damage: str) -> None:
    """Flip a bit in the middle of the page ``wanted``, or cut the file there."""
    at = file.read_bytes().index(wanted[:4096]) + len(wanted) // 2
    if damage == "truncated":
        os.truncate(file, at)
        return
    with file.open("r+b") as content:
        content.seek(at)
        (byte,) = content.read(1)
        content.seek(at)
        content.write(bytes([byte ^ 1]))


def claims_of(rows: list[dict[str, Any]]) -> list[Claim]:
    """What was promised."""
    claims = []
    for row in rows:
        if row["what"] in ("get", "set"):
            kind = " ".join(filter(None, (row["what"], row["state"])))
            name = f"{kind}, {row['page_nbytes'] >> 10} KiB pages, {row['threads']} threads"
            text = f"{name}: lower end of ours over HiCacheFile's rate"
            claims.append(Claim.at_least(text, row["ratio_low"], 0.95, ""))
            if row["state"] == "cold" and row["page_nbytes"] == 64 << 10:
                claims.append(Claim.at_least(f"{name}: ours over theirs", row["ratio"], 3.0, ""))
        elif row["what"] == "exists":
            text = f"exists of {BATCH} keys among {row['pages_stored']} pages"
            claims.append(Claim.at_most(text, row["ours_us"], 100.0, "us"))
        elif row["side"] == "ours":
            claims.append(Claim.at_most(f"{row['damage']} page served", row["served"], 0, ""))
    return claims


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--quick", action="store_true", help="small and short: does it run?")
    options = arguments.parse_args()
    rows: list[dict[str, Any]] = []
    sizes = PAGES_NBYTES[:1] if options.quick else PAGES_NBYTES
    with tempfile.TemporaryDirectory(prefix=".sgl", dir=Path.cwd()) as folder:
        for row in all_rows(Path(folder), sizes, is_quick=options.quick):
            rows.append(row)
            print(row, file=sys.stderr)
            if options.json != "-":  # what there is, should this be stopped
                write(options.json, rows, claims_of(rows), sglang=sglang.__version__)
    write(options.json, rows, claims_of(rows), sglang=sglang.__version__)


def all_rows(folder: Path, sizes: tuple[int, ...], *, is_quick: bool) -> Iterator[dict[str, Any]]:
    yield from damage_rows(emptied(folder / "damage"))
    yield exists_row(emptied(folder / "exists"), 20_000 if is_quick else STORED)
    shutil.rmtree(folder / "exists")
    for page_nbytes in sizes:
        for threads in THREADS:
            there = emptied(folder / f"{page_nbytes}-{threads}")
            with bench_of(page_nbytes, there, threads=threads) as bench:
                yield from rows_of(bench, threads, 1 if is_quick else TURNS[page_nbytes])
            shutil.rmtree(there)


def emptied(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    main()
