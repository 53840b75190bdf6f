# SPDX-License-Identifier: Apache-2.0
"""The bulk-copy kernel without a GPU: what it compiles to, its arguments, and its schedule.

The schedule runs twice: as a Python model with bulk copies that end in any order, and as the CUDA
source itself, compiled for the CPU with its PTX emulated (bulk_on_host.cpp).
"""

import ctypes
import os
import random
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from bodocache import env
from bodocache.errors import BackendError, BackendUnavailable
from bodocache.kernels import bulk, gpu, nvrtc
from bodocache.kernels.bulk import Ring
from bodocache.kernels.launch import device_table
from bodocache.kernels.reference.bulk_ring import Block, Piece, chunk_at, pieces_of
from bodocache.kernels.reference.gather import gather_pages
from bodocache.kernels.reference.scatter import scatter_pages
from bodocache.layout import Group, Layout, LayoutKind, PagedMemory

ARCHS = ["sm_90", "sm_100", "sm_120"]
SHARED_NBYTES = {
    "sm_90": 227 << 10,
    "sm_100": 227 << 10,
    "sm_120": 99 << 10,
}  # that a block may have
CPU = torch.device("cpu")
SEEDS = st.integers(0, 2**31 - 1)

pytestmark = pytest.mark.skipif(env.triton_interpreted(), reason="nothing here is Triton's")


@pytest.fixture(scope="module")
def source():
    return (nvrtc.SOURCES / bulk.SOURCE).read_text()


@pytest.fixture(scope="module")
def require_nvrtc():
    try:
        nvrtc.arch_of((9, 0))
    except BackendUnavailable as missing:
        pytest.skip(str(missing))


# -- what it compiles to ---------------------------------------------------------------------------


def cuobjdump(cubin, option, folder):
    triton = pytest.importorskip("triton")
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    (folder / "bulk.cubin").write_bytes(cubin)
    command = [tool, option, folder / "bulk.cubin"]
    ran = subprocess.run(command, check=False, capture_output=True, text=True)
    if "Cannot decode architecture" in ran.stderr:  # Triton 3.2's are of CUDA 12.4
        pytest.skip(ran.stderr.strip())
    ran.check_returncode()
    return ran.stdout


@pytest.mark.usefixtures("require_nvrtc")
@pytest.mark.parametrize("arch", ARCHS)
def test_it_compiles_without_spills_to_bulk_copies_both_ways(arch, tmp_path):
    cubin = nvrtc.compiled(bulk.SOURCE, arch)
    used = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", cuobjdump(cubin, "-res-usage", tmp_path)))
    assert used["STACK"] == used["LOCAL"] == "0"
    assert 0 < int(used["REG"]) <= 64
    code = cuobjdump(cubin, "-sass", tmp_path)
    assert "UBLKCP.S.G" in code  # global to shared
    assert "UBLKCP.G.S" in code
    assert "LDL" not in code
    assert "STL" not in code


@pytest.mark.parametrize("arch", ARCHS)
def test_the_ring_fits_the_shared_memory_of_a_block(arch):
    ring = bulk.ring_in(SHARED_NBYTES[arch])
    assert bulk.PENDING_STORES < ring.num_stages <= bulk.MAX_STAGES
    assert ring.shared_nbytes(ring.stage_nbytes) <= SHARED_NBYTES[arch]


def test_too_little_shared_memory_for_a_ring_is_said():
    with pytest.raises(BackendUnavailable, match="49152 bytes of shared memory a block"):
        bulk.ring_in(48 << 10)


# -- its arguments ---------------------------------------------------------------------------------


def offsets(dtype, prefix=""):
    for name, (field, offset) in dtype.fields.items():
        yield prefix + name, offset, field.itemsize
        if field.fields:
            for inner, place, nbytes in offsets(field, f"{prefix}{name}."):
                yield inner, offset + place, nbytes


CONSTANTS = ("MAX_STAGES", "PENDING_STORES", "BARRIERS_NBYTES", "UNIT_NBYTES")


def assertions(shift=0):
    """C++ that compiles only if the structs are bulk.py's dtypes and the constants its own."""
    facts = {"sizeof(Arguments)": bulk.ARGUMENTS.itemsize, "2 * LANES": bulk.THREADS}
    facts |= {name: getattr(bulk, name) for name in CONSTANTS}
    for name, offset, nbytes in offsets(bulk.ARGUMENTS):
        member = f"((Arguments*)0)->{name}"
        facts[f"__INTADDR__(&{member})"] = offset + shift  # NVRTC 13.0 lacks __builtin_offsetof
        facts[f"sizeof({member})"] = nbytes
    return "\n".join(
        f'static_assert({what} == {value}, "{what}");' for what, value in facts.items()
    )


@pytest.mark.usefixtures("require_nvrtc")
def test_the_struct_equals_its_dtype_byte_by_byte(source):
    nvrtc.compile_code((source + assertions()).encode(), "sm_90", "bulk_copy.cu")


@pytest.mark.usefixtures("require_nvrtc")
def test_a_struct_that_differs_would_be_seen(source):
    with pytest.raises(BackendError, match=r"static assertion failed.*__INTADDR__.*source\.slots"):
        nvrtc.compile_code((source + assertions(shift=8)).encode(), "sm_90", "bulk_copy.cu")


def test_a_packed_struct_is_that_dtype():
    fields = [name for name, *_ in offsets(bulk.ARGUMENTS) if name not in ("source", "destination")]
    packed = np.frombuffer(bulk.PACKED.pack(*range(len(fields))), bulk.ARGUMENTS)
    values = []
    for name in fields:
        value = packed
        for part in name.split("."):
            value = value[part]
        values.append(int(value[0]))
    assert values == list(range(len(fields)))


# -- its schedule ----------------------------------------------------------------------------------


def pool(kind, group, page_tokens, num_pages, heads=None):
    """A pool of ``group``, all of it or a shard of its heads, and its bytes."""
    if heads is not None:  # of a pool with a head more on either side
        group = Group("g", group.layers, group.heads + 2, group.head_dim, group.itemsize, group.kv)
    layout = Layout(kind, group, page_tokens, num_pages)
    memory = torch.randint(0, 256, (layout.pool_nbytes,), dtype=torch.uint8)
    return memory, PagedMemory.of_layout(memory, layout).only(heads=heads)


@st.composite
def copies(draw):
    """A copy between two pools of any layouts, with a ring too small for it."""
    group = Group(
        "g",
        layers=draw(st.integers(1, 3)),
        heads=draw(st.integers(1, 3)),
        head_dim=16 * draw(st.integers(1, 5)),
        itemsize=draw(st.sampled_from([1, 2])),
        kv=draw(st.sampled_from([1, 2])),
    )
    page_tokens = draw(st.integers(1, 5))
    torch.manual_seed(draw(SEEDS))
    shard = st.sampled_from([None, range(1, group.heads + 1)])
    _, source = pool(draw(st.sampled_from(LayoutKind)), group, page_tokens, 4, draw(shard))
    memory, destination = pool(
        draw(st.sampled_from(LayoutKind)), group, page_tokens, 7, draw(shard)
    )
    taken = draw(st.lists(st.integers(0, 3), min_size=1, max_size=6))
    given_ = draw(st.permutations(range(7)))[: len(taken)]
    dtypes = st.sampled_from([torch.int32, torch.int64])
    slots = torch.tensor(taken, dtype=draw(dtypes)), torch.tensor(given_, dtype=draw(dtypes))
    ring = Ring(draw(st.integers(2, 4)), 16 * draw(st.integers(1, 40)))
    planned = bulk.plan(source, destination, CPU, blocks=draw(st.integers(1, 3)), ring=ring)
    return planned, source, destination, memory, slots


def expected_bytes(source, destination, memory, slots):
    """What the destination's whole memory must hold: canary pages, heads and gaps as before."""
    before = memory.clone()
    pages = torch.empty((len(slots[0]), source.page_nbytes), dtype=torch.uint8)
    rows = torch.arange(len(slots[0]))
    gather_pages(source, slots[0], rows, pages)
    scatter_pages(pages, destination, slots[1], rows)
    expected = memory.clone()
    memory.copy_(before)
    return expected


def eagerly(_count):
    """Warps run as far ahead of the bulk copies as the barriers let them."""
    return 0


def unpacked(arguments):
    """A launch's struct as an array of one, which may be changed."""
    return np.frombuffer(arguments, bulk.ARGUMENTS).copy()


def run_model(planned, arguments, choose, **fault):
    for block in range(planned.blocks):
        Block(arguments[0], block, planned.blocks, **fault).run(choose)


@settings(max_examples=60, deadline=None)
@given(copies(), st.just(eagerly) | SEEDS.map(lambda seed: random.Random(seed).randrange))
def test_the_model_of_the_ring_moves_the_bytes_and_no_others(copy, choose):
    planned, source, destination, memory, slots = copy
    expected = expected_bytes(source, destination, memory, slots)
    run_model(planned, unpacked(planned.arguments(*slots)), choose)
    assert torch.equal(memory, expected)


@pytest.fixture
def long_copy():
    """One block, many more chunks than stages, several pieces each on both sides."""
    group = Group("g", layers=2, heads=2, head_dim=16, itemsize=2)
    _, source = pool(LayoutKind.PAGE_HEAD, group, 4, 3)
    memory, destination = pool(LayoutKind.LAYER_FIRST, group, 4, 3)
    planned = bulk.plan(source, destination, CPU, blocks=1, ring=Ring(2, 256))
    return planned, source, destination, memory, (torch.arange(3), torch.arange(3))


def test_the_model_sees_a_ring_without_a_spare_stage(long_copy):
    planned, *_, slots = long_copy
    arguments = unpacked(planned.arguments(*slots))
    arguments["num_stages"] = 1
    with pytest.raises(AssertionError, match="waits for ever"):
        run_model(planned, arguments, eagerly)


def test_the_model_sees_a_stage_handed_back_too_early(long_copy):
    planned, *_, slots = long_copy
    with pytest.raises(AssertionError, match="overwritten before it was drained"):
        run_model(planned, unpacked(planned.arguments(*slots)), eagerly, pending_stores=2)


@pytest.fixture(scope="module")
def compiler():
    found = os.environ.get("CXX") or shutil.which("g++")
    if found is None:
        pytest.skip("no C++ compiler: set CXX or install g++")
    return found


@pytest.fixture(scope="module")
def on_host(compiler, source, tmp_path_factory):
    """The CUDA source, compiled for the CPU with 4 lanes a warp."""
    return compile_for_host(compiler, source, tmp_path_factory.mktemp("bulk"))


def compile_for_host(compiler, source, folder):
    before, rest = source.replace("LANES = 32", "LANES = 4").split("// -- PTX")
    after = rest[rest.index("// -- the kernel") :]
    (folder / "before.inc").write_text(before)
    (folder / "after.inc").write_text(after)
    command = [compiler, "-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", "-Wall", "-Werror"]
    command += [f'-DSOURCE_BEFORE_PTX="{folder}/before.inc"']
    command += [f'-DSOURCE_AFTER_PTX="{folder}/after.inc"']
    command += [Path(__file__).with_name("bulk_on_host.cpp"), "-o", folder / "bulk.so"]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(folder / "bulk.so"))


def run_on_host(library, planned, arguments, seed):
    library.run.restype = ctypes.c_bool
    assert library.run(ctypes.c_char_p(arguments), planned.blocks, seed)


@settings(max_examples=40, deadline=None, phases=[Phase.generate])  # a shrinking hang lasts
@given(copy=copies(), seed=SEEDS)
def test_the_source_itself_moves_the_bytes_and_no_others(on_host, copy, seed):
    planned, source, destination, memory, slots = copy
    expected = expected_bytes(source, destination, memory, slots)
    run_on_host(on_host, planned, planned.arguments(*slots), seed)
    assert torch.equal(memory, expected)


PIECE = np.dtype([("address", np.uint64), ("first_unit", np.uint32), ("num_units", np.uint32)])


@st.composite
def wide_chunks(draw):
    """Arguments of memories of any size, a chunk of theirs, and what the arguments point to."""
    count = st.integers(1, 6)
    bases = np.array(draw(st.lists(st.integers(0, 2**43), min_size=1, max_size=6)), np.int64)
    tokens, heads = draw(count), draw(count)
    page_runs = len(bases) * tokens * heads
    run_units = draw(st.integers(1, bulk.MAX_PAGE_UNITS // page_runs))
    page_units = page_runs * run_units
    slots = np.full(min(5000, 2**33 // page_units + 1), draw(SEEDS), np.int32)
    total_units = len(slots) * page_units
    chunk_units = draw(st.integers(max(1, total_units >> 31), bulk.STAGE_NBYTES // 16))
    strides = draw(st.tuples(*[st.integers(0, 2**28)] * 3))
    runs = (run_units, heads, tokens * heads, page_runs)
    side = (bases.ctypes.data, *strides, *runs, slots.ctypes.data, slots.itemsize)
    chunks = -(-total_units // chunk_units)
    arguments = np.array(
        [(side, side, total_units, page_units, chunk_units, chunks, 2)], bulk.ARGUMENTS
    )
    return arguments, draw(st.integers(0, chunks - 1)), (bases, slots)


@settings(max_examples=100, deadline=None)
@given(chunk=wide_chunks())
def test_the_source_cuts_pieces_as_the_model_does_beyond_32_bits(on_host, chunk):
    arguments, index, _kept = chunk
    expected = list(pieces_of(arguments["source"][0], chunk_at(arguments[0], index)))
    pieces = np.zeros(len(expected) + 1, PIECE)
    address = ctypes.c_void_p(arguments.ctypes.data)  # also of its first field, the source's side
    count = on_host.pieces(address, address, index, ctypes.c_void_p(pieces.ctypes.data))
    assert [Piece(*piece) for piece in pieces[:count].tolist()] == expected


def test_the_host_run_sees_a_stage_handed_back_too_early(compiler, source, long_copy, tmp_path):
    broken = source.replace("PENDING_STORES = 1", "PENDING_STORES = 2")
    library = compile_for_host(compiler, broken, tmp_path)
    planned, *pools, memory, slots = long_copy
    expected = expected_bytes(*pools, memory, slots)
    arguments = planned.arguments(*slots)
    right = 0
    for seed in range(20):
        memory.fill_(0)
        run_on_host(library, planned, arguments, seed)
        right += torch.equal(memory, expected)
    assert right < 20


# -- its plan --------------------------------------------------------------------------------------

RING = Ring(bulk.NUM_STAGES, bulk.STAGE_NBYTES)


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (256, 32 << 10),
        (4 << 10, 32 << 10),
        (18 << 10, 18 << 10),  # an MLA page of 16 tokens: 576 latent bf16
        (48 << 10, 24 << 10),
        (1 << 20, 32 << 10),
    ],
)
def test_chunks_of_a_large_copy_are_whole_runs_or_equal_parts(run, expected):
    assert bulk.chunk_nbytes(run, 1 << 30, 4, RING) == expected


def test_a_small_copy_is_spread_over_blocks_and_stages_but_not_too_fine():
    assert bulk.chunk_nbytes(4 << 10, 192 << 10, 4, RING) == 8 << 10
    assert bulk.chunk_nbytes(128, 64 << 10, 4, RING) == bulk.MIN_CHUNK_NBYTES


@given(
    st.integers(1, 1 << 16),
    st.integers(1, 1 << 30),
    st.integers(1, 64),
    st.integers(2, 8),
    st.integers(1, 4096),
)
def test_a_chunk_is_whole_units_and_fits_its_stage(run, total, blocks, stages, stage):
    chunk = bulk.chunk_nbytes(16 * run, 16 * total, blocks, Ring(stages, 16 * stage))
    assert 0 < chunk <= 16 * stage
    assert chunk % 16 == 0


class FakeFunction:
    def __init__(self):
        self.launches = []

    def launch(self, arguments, **options):
        self.launches.append((unpacked(arguments), options))


def test_a_launch_asks_for_the_blocks_and_the_memory_it_uses(make_pool):
    source, destination = make_pool(LayoutKind.PAGE), make_pool(LayoutKind.LAYER_FIRST)
    function = FakeFunction()
    planned = bulk.plan(
        source.memory, destination.memory, CPU, blocks=64, ring=RING, function=function
    )
    planned.launch(torch.tensor([1]), torch.tensor([4], dtype=torch.int32))
    planned.launch(torch.tensor([], dtype=torch.int64), torch.tensor([], dtype=torch.int64))
    ((arguments, options),) = function.launches
    assert options["num_blocks"] == arguments["num_chunks"][0] == 1
    chunk = int(arguments["chunk_units"][0]) * 16
    assert options["shared_nbytes"] == bulk.BARRIERS_NBYTES + bulk.NUM_STAGES * chunk
    assert arguments["source"]["slot_nbytes"] == 8
    assert arguments["destination"]["slot_nbytes"] == 4


def test_an_older_gpu_is_refused_with_what_is_needed(make_pool, monkeypatch):
    memory = replace(make_pool(LayoutKind.PAGE).memory, device=torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
    with pytest.raises(BackendUnavailable, match=r"cuda:0 has compute capability 8\.9; 9\.0 is"):
        bulk.prepared(memory, memory)


@pytest.mark.parametrize(("where", "blocks"), [("cuda:0", 132), ("cpu", bulk.BLOCKS)])
def test_a_copy_takes_few_blocks_over_a_link_and_all_within_a_device(
    make_pool, monkeypatch, where, blocks
):
    memory = make_pool(LayoutKind.PAGE).memory
    device = replace(memory, device=torch.device("cuda", 0))
    other = replace(memory, device=torch.device(where))
    properties = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(gpu, "max_shared_nbytes", lambda _: SHARED_NBYTES["sm_90"])
    monkeypatch.setattr(nvrtc, "function", lambda *_, shared_nbytes: shared_nbytes)
    monkeypatch.setattr(bulk, "device_table", lambda runs, _: device_table(runs, CPU))
    copy = bulk.prepared(other, device)
    assert copy.blocks == blocks
    assert copy.ring == RING
    assert copy.function == RING.shared_nbytes(RING.stage_nbytes)
