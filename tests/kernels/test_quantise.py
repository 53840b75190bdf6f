# SPDX-License-Identifier: Apache-2.0
"""Quantised pages: what lies where, how far values move, and that the launchers are their twins.

Plain pytest runs the CPU path; test_quantise_interpreted.py runs this file on the Triton kernels.
"""

import functools
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bodocache import env
from bodocache.errors import LayoutError
from bodocache.kernels import digest_pages, launch, quantise
from bodocache.kernels.quantise import MAX_TILE_UNITS, gather_quantised, scatter_quantised
from bodocache.kernels.quantiser import QuantisedForm, Quantiser, quantised_nbytes
from bodocache.kernels.reference import quantise as twin
from bodocache.layout import Group, LayoutKind, PagedMemory

FP8, INT8 = Quantiser.FP8_E4M3, Quantiser.INT8
BF16, FP16 = torch.bfloat16, torch.float16
MODES = list(itertools.product(Quantiser, (BF16, FP16)))
ROUNDOFF = {BF16: 2.0**-8, FP16: 2.0**-11}
SUBNORMAL_STEP = {BF16: 2.0**-133, FP16: 2.0**-24}

# Halved, the greatest bf16 rounds up to 2^128 in the interpreter's NumPy, which warns.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered")


@pytest.fixture(params=MODES, ids=lambda mode: f"{mode[0]}-{str(mode[1])[6:]}")
def mode(request):
    """The keywords of a call."""
    quantiser, dtype = request.param
    return {"quantiser": quantiser, "dtype": dtype}


@pytest.fixture(params=zip(LayoutKind, itertools.cycle(MODES)), ids=lambda pair: pair[0])
def placed(request, make_pool):
    """Makes small pools of a kind, and the keywords: the interpreter takes 20 ms for each head."""
    kind, (quantiser, dtype) = request.param
    make = functools.partial(make_pool, kind, layers=2)
    return make, {"quantiser": quantiser, "dtype": dtype}


def memory_of(values):
    """A pool of one layer without V whose pages are ``values`` [pages, tokens, heads, head_dim]."""
    return PagedMemory.of_layers([values.flatten(0, 1)], None, page_tokens=values.shape[1])


def through(values, *, quantiser, dtype):
    """What comes back of ``values`` [pages, tokens, heads, head_dim], and their scales."""
    there = memory_of(values)
    back = torch.zeros_like(values)
    slots = torch.arange(len(values))
    pages, digests = gather_quantised(there, slots, quantiser=quantiser, dtype=dtype)
    landed = scatter_quantised(pages, memory_of(back), slots, quantiser=quantiser, dtype=dtype)
    assert torch.equal(landed, digests)
    scales = pages[:, : 4 * values.shape[2]].contiguous().view(torch.float32)
    return back, scales[:, None, :, None]


def copy_of(pool, make):
    """Another pool with the same bytes."""
    other = make()
    other.tensors[0].copy_(pool.tensors[0])
    return other


def bits(values):
    return values.view(torch.int16)


def every_value(dtype):
    """All 65,536 of them, as one page of 16 tokens and 16 heads."""
    return torch.arange(1 << 16).to(torch.int16).view(dtype).reshape(1, 16, 16, 256)


def test_names_and_versions_are_those_of_keys():
    assert [q.identity for q in Quantiser] == ["fp8_e4m3.1", "int8.1"]


@pytest.mark.parametrize(("kv", "heads", "padding"), [(2, 8, 0), (2, 1, 8), (1, 1, 12), (2, 3, 8)])
def test_a_page_is_as_long_as_its_scales_and_codes(kv, heads, padding):
    group = Group("g", layers=3, heads=heads, head_dim=48, itemsize=2, kv=kv)
    expected = 3 * (kv * heads * 4 + padding + kv * heads * 5 * 48)
    assert quantised_nbytes(group, page_tokens=5) == expected
    assert expected % 16 == 0


def test_what_lies_where(placed):
    make, mode = placed
    memory = make(heads=3).memory
    pages, digests = gather_quantised(memory, torch.tensor([4, 1]), **mode)
    form = QuantisedForm.of(memory)
    assert pages.shape == (2, form.page_nbytes)
    assert torch.equal(digests, digest_pages(pages))
    values = torch.stack([view[[4, 1]] for view in twin.page_views(memory)], 1).view(mode["dtype"])
    for page, layer, kv, head in itertools.product(range(2), range(2), range(2), range(3)):
        block = pages[page].chunk(2)[layer]
        codes, scale = twin.encode(values[page, 2 * layer + kv, :, head], mode["quantiser"])
        first = 32 + (3 * kv + head) * 48
        assert torch.equal(block[first : first + 48], codes.flatten())
        place = 4 * (3 * kv + head)
        assert torch.equal(block[place : place + 4], scale.reshape(1).view(torch.uint8))
        assert not block[24:32].any()


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_launchers_equal_their_twins(placed, index):
    make, mode = placed
    pool, other = make(), make()
    third = copy_of(other, make)
    slots, rows = torch.tensor([4, 0, 2], dtype=index), torch.arange(3)
    pages, digests = gather_quantised(pool.memory, slots, **mode)
    expected = torch.empty_like(pages)
    assert torch.equal(digests, twin.gather_quantised(pool.memory, slots, rows, expected, **mode))
    assert torch.equal(pages, expected)
    assert torch.equal(scatter_quantised(pages, other.memory, slots.flip(0), **mode), digests)
    twin.scatter_quantised(pages, third.memory, slots.flip(0), rows, **mode)
    assert torch.equal(other.bytes(), third.bytes())


def test_any_bytes_restore_to_what_the_twin_says(make_pool, mode):
    """Scales, too, are random: subnormal, infinite, negative, NaN."""
    pool, other = (make_pool(LayoutKind.PAGE, layers=1) for _ in range(2))
    nbytes = QuantisedForm.of(pool.memory).page_nbytes
    pages = torch.randint(0, 256, (5, nbytes), dtype=torch.uint8)
    digests = scatter_quantised(pages, pool.memory, torch.arange(5), **mode)
    twin.scatter_quantised(pages, other.memory, torch.arange(5), torch.arange(5), **mode)
    assert torch.equal(pool.bytes(), other.bytes())
    assert torch.equal(digests, digest_pages(pages))


def test_latent_pages_of_several_tiles(make_pool, mode):
    pool = make_pool(
        LayoutKind.PAGE_FIRST, kv=1, heads=1, head_dim=576, page_tokens=9, layers=2, num_pages=2
    )
    assert MAX_TILE_UNITS * 16 < 9 * 576
    slots, rows = torch.tensor([1, 0]), torch.arange(2)
    pages, digests = gather_quantised(pool.memory, slots, **mode)
    expected = torch.empty_like(pages)
    assert torch.equal(digests, twin.gather_quantised(pool.memory, slots, rows, expected, **mode))
    assert torch.equal(pages, expected)
    assert torch.equal(scatter_quantised(pages, pool.memory, rows, **mode), digests)
    assert torch.equal(gather_quantised(pool.memory, rows, **mode).pages, pages)


@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_fp8_codes_are_torchs_for_every_value(dtype):
    values = every_value(dtype)
    values[values.abs() > 448] = 0  # beyond, scales are not 1
    values[0, 0, :, 0] = 448  # the scale of every head is 1
    pages, _ = gather_quantised(memory_of(values), torch.tensor([0]), quantiser=FP8, dtype=dtype)
    finite = torch.where(values.isfinite(), values.float(), torch.nan)
    expected = finite.to(torch.float8_e4m3fn).view(torch.uint8).transpose(1, 2)
    assert torch.equal(pages[:, :64].contiguous().view(torch.float32), torch.ones(1, 16))
    assert torch.equal(pages[:, 64:], expected.flatten(1))


@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_every_fp8_code_is_restored_as_torch_does(dtype):
    codes = torch.arange(256).to(torch.uint8)
    back = torch.empty((4, 1, 64), dtype=dtype)
    memory = PagedMemory.of_layers([back], None, page_tokens=4)
    page = torch.cat((torch.tensor([1.0, 0, 0, 0]).view(torch.uint8), codes))[None]
    scatter_quantised(page, memory, torch.tensor([0]), quantiser=FP8, dtype=dtype)
    expected = codes.view(torch.float8_e4m3fn).float()
    numbers = ~expected.isnan()
    assert torch.equal(bits(back.flatten())[numbers], bits(expected.to(dtype))[numbers])
    assert numbers.sum() == 254
    assert back.flatten()[~numbers].isnan().all()


@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_every_int8_code_is_restored_as_its_integer(dtype):
    codes = torch.arange(256).to(torch.uint8)
    back = torch.empty((4, 1, 64), dtype=dtype)
    memory = PagedMemory.of_layers([back], None, page_tokens=4)
    page = torch.cat((torch.tensor([0.5, 0, 0, 0]).view(torch.uint8), codes))[None]
    scatter_quantised(page, memory, torch.tensor([0]), quantiser=INT8, dtype=dtype)
    expected = codes.view(torch.int8).to(dtype) / 2
    numbers = codes != 128
    assert torch.equal(back.flatten()[numbers], expected[numbers])
    assert back.flatten()[128].isnan()


def test_what_is_not_finite_comes_back_as_nan_and_touches_nothing_else(mode):
    clean = torch.randn(2, 4, 2, 16).to(mode["dtype"])
    broken = clean.clone()
    places = torch.rand(clean.shape) < 0.3
    places[:, 0, :, 0] = False
    clean[:, 0, :, 0] = 100  # the maximum is not among the broken ones
    clean[places] = 0
    broken = clean.clone()
    broken[places] = torch.tensor([torch.nan, torch.inf, -torch.inf])[
        torch.arange(int(places.sum())) % 3
    ].to(mode["dtype"])
    back, scales = through(broken, **mode)
    expected, clean_scales = through(clean, **mode)
    assert torch.equal(scales, clean_scales)
    assert torch.equal(back.isnan(), places)
    assert torch.equal(back[~places], expected[~places])


def test_zeros_and_heads_without_a_finite_value(mode):
    values = torch.zeros((1, 2, 3, 16), dtype=mode["dtype"])
    values[0, 0, 0] = -0.0
    values[0, :, 2] = torch.inf
    back, scales = through(values, **mode)
    assert (scales == 2.0**-126).all()
    assert (back[:, :, :2] == 0).all()
    assert bool(torch.signbit(back[0, 0, 0]).all()) == (mode["quantiser"] == FP8)
    assert back[:, :, 2].isnan().all()


def test_the_greatest_values_stay_finite(mode):
    most = torch.finfo(mode["dtype"]).max
    values = torch.full((1, 2, 1, 16), most, dtype=mode["dtype"])
    values[0, 1] = -most
    back, _ = through(values, **mode)
    assert torch.equal(back, values)


def error_bound(values, back, scales, *, quantiser, dtype):
    """The bound of the twin's docstring, in float64."""
    if quantiser == FP8:
        return torch.maximum(values.abs() / 16, scales / 1024)
    rounded = (back.abs() * ROUNDOFF[dtype]).clamp(min=SUBNORMAL_STEP[dtype] / 2)
    return scales * (0.5 + 2.0**-14) + rounded


def assert_bounded(values, **mode):
    """The bound holds, the scales are as said, and a second time changes nothing."""
    back, scales = through(values, **mode)
    wide, again, steps = values.double(), back.double(), scales.double()
    assert ((again - wide).abs() <= error_bound(wide, again, steps, **mode)).all()
    peaks = wide.abs().amax((1, 3), keepdim=True)
    if mode["quantiser"] == FP8:
        assert (torch.frexp(scales).mantissa == 0.5).all()
        assert (peaks <= 448 * steps).all()
        assert ((steps < peaks / 224) | (steps == 2.0**-126)).all()
    else:
        expected = (peaks / 127).clamp(min=2.0**-126)
        assert ((steps - expected).abs() <= expected * 2.0**-22).all()
    twice, _ = through(back, **mode)
    assert torch.equal(twice, back)


def test_inverses_are_within_the_bound_that_the_error_builds_on():
    mantissas = torch.arange(1 << 23, (1 << 24) + 1, 5)
    for exponent in (-149, 0, 97):
        scales = torch.ldexp(mantissas.double(), torch.tensor(exponent)).float()
        assert (twin.inverse_of(scales).double() * scales.double() - 1).abs().max() <= 2.0**-22


EXPONENTS = {BF16: (-140, 128), FP16: (-26, 16)}
EXAMPLES = 4 if env.triton_interpreted() else 100


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(data=st.data(), choice=st.sampled_from(MODES), seed=st.integers(0, 2**32 - 1))
def test_no_value_moves_further_than_the_twins_bound(data, choice, seed):
    quantiser, dtype = choice
    low, high = EXPONENTS[dtype]
    top = data.draw(st.integers(low, high))
    spread = data.draw(st.integers(0, 40))
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 5, 2, 16)
    exponents = torch.randint(max(low, top - spread), top + 1, shape, generator=generator)
    values = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
    most = torch.finfo(dtype).max
    values = (values * torch.exp2(exponents.double())).clamp(-most, most).to(dtype)
    assert_bounded(values, quantiser=quantiser, dtype=dtype)


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(
    choice=st.sampled_from(MODES),
    patterns=st.lists(st.integers(0, 2**16 - 1), min_size=32, max_size=32),
)
def test_no_bit_pattern_moves_further_than_the_twins_bound(choice, patterns):
    quantiser, dtype = choice
    values = torch.tensor(patterns).to(torch.int16).view(dtype).reshape(1, 2, 1, 16)
    values = torch.where(values.isfinite(), values, 0)
    assert_bounded(values, quantiser=quantiser, dtype=dtype)


def test_a_range_of_layers_is_a_range_of_bytes(placed):
    make, mode = placed
    pool, other = make(), make()
    third, slots = copy_of(other, make), torch.tensor([3, 1])
    whole = gather_quantised(pool.memory, slots, **mode).pages
    blocks = whole.chunk(2, dim=1)
    part = gather_quantised(pool.memory, slots, layers=range(1, 2), **mode)
    assert torch.equal(part.pages, blocks[1])
    for layer, block in enumerate(blocks):
        chosen = range(layer, layer + 1)
        digests = scatter_quantised(block, other.memory, slots, layers=chosen, **mode)
        assert torch.equal(digests, digest_pages(block))
    scatter_quantised(whole, third.memory, slots, **mode)
    assert torch.equal(other.bytes(), third.bytes())


def test_nothing_beside_the_named_rows_and_pages_is_written(placed):
    make, mode = placed
    pool = make()
    nbytes = QuantisedForm.of(pool.memory).page_nbytes
    wide = torch.full((4, nbytes + 48), 9, dtype=torch.uint8)
    slots, rows = torch.tensor([2, 4]), torch.tensor([3, 1])
    gathered = gather_quantised(pool.memory, slots, out=wide[:, 16:-32], rows=rows, **mode)
    alone = gather_quantised(pool.memory, slots, **mode)
    assert torch.equal(wide[rows, 16:-32], alone.pages)
    assert torch.equal(gathered.digests, alone.digests)
    wide[rows, 16:-32] = 9
    assert (wide == 9).all()
    other, untouched = make(), torch.tensor([0, 2, 4])
    before = [view[untouched].clone() for view in twin.page_views(other.memory)]
    scatter_quantised(alone.pages, other.memory, torch.tensor([1, 3]), rows=rows // 2, **mode)
    for view, kept in zip(twin.page_views(other.memory), before, strict=True):
        assert torch.equal(view[untouched], kept)


def test_interleaved_tensors_with_gaps_and_a_shard_of_the_heads(mode):
    cache = torch.randn(8, 2, 5, 32).to(mode["dtype"])  # (tokens, kv, heads, dim)
    memory = PagedMemory.of_layers([cache[:, 0]], [cache[:, 1]], page_tokens=4)
    heads, kept = range(1, 4), cache.clone()
    pages, digests = gather_quantised(memory, np.array([1], np.int32), heads=heads, **mode)
    landed = scatter_quantised(pages, memory, torch.tensor([0]), heads=heads, **mode)
    assert torch.equal(landed, digests)
    assert torch.equal(cache[4:], kept[4:])
    assert torch.equal(cache[:4, :, [0, 4]], kept[:4, :, [0, 4]])
    moved = (cache[:4, :, 1:4] - kept[4:, :, 1:4]).abs().max() / kept[4:].abs().max()
    assert moved <= 1 / 16


def test_slots_may_repeat_or_be_none(make_pool, mode):
    pool = make_pool(LayoutKind.PAGE)
    pages, digests = gather_quantised(pool.memory, torch.tensor([3, 3]), **mode)
    assert torch.equal(pages[0], pages[1])
    assert torch.equal(digests[0], digests[1])
    none = torch.empty(0, dtype=torch.int64)
    gathered = gather_quantised(pool.memory, none, **mode)
    assert gathered.pages.shape == (0, pages.shape[1])
    assert scatter_quantised(gathered.pages, pool.memory, none, **mode).shape == (0, 2)


def test_what_does_not_fit_is_refused(make_pool):
    pool, mode = make_pool(LayoutKind.PAGE), {"quantiser": FP8, "dtype": BF16}
    slots = torch.tensor([0, 1])
    pages = gather_quantised(pool.memory, slots, **mode).pages
    narrow = make_pool(LayoutKind.PAGE, head_dim=8).memory
    bytes_ = Group("g", 1, 1, 16, itemsize=1)
    calls = {
        "dtype is torch.float32; expected": lambda: gather_quantised(
            pool.memory, slots, quantiser=FP8, dtype=torch.float32
        ),
        "quantiser is 'int4'; expected": lambda: scatter_quantised(
            pages, pool.memory, slots, quantiser="int4", dtype=BF16
        ),
        "head_dim 8; must be a multiple of 16": lambda: gather_quantised(narrow, slots, **mode),
        "itemsize 1; only 2": lambda: quantised_nbytes(bytes_, 4),
        "rows are given without out": lambda: gather_quantised(
            pool.memory, slots, rows=slots, **mode
        ),
        "slots has 5; source has 5 pages": lambda: gather_quantised(
            pool.memory, torch.tensor([5]), **mode
        ),
        "slots has 1 twice": lambda: scatter_quantised(
            pages, pool.memory, torch.tensor([1, 1]), **mode
        ),
        "rows has 0 twice": lambda: gather_quantised(
            pool.memory, slots, out=pages, rows=torch.tensor([0, 0]), **mode
        ),
        r"expected the shape \[M, 624\]": lambda: scatter_quantised(
            pages[:, 16:], pool.memory, slots, **mode
        ),
    }
    for message, call in calls.items():
        with pytest.raises(LayoutError, match=message):
            call()


def test_interpreted_processes_run_the_kernels(make_pool, monkeypatch):
    launches = []
    monkeypatch.setattr(launch.Launch, "run", lambda _: launches.append(1))
    memory, mode = make_pool(LayoutKind.PAGE).memory, {"quantiser": INT8, "dtype": FP16}
    pages = gather_quantised(memory, torch.tensor([1]), **mode).pages
    scatter_quantised(pages, memory, torch.tensor([1]), **mode)
    assert len(launches) == 2 * int(env.triton_interpreted())


def test_every_specialisation_has_a_name_of_its_own():
    names = [name for name, _ in quantise.specialisations()]
    assert len(set(names)) == len(names) == 2 * 2 * 2 * 3  # kernels, quantisers, dtypes, shapes
    assert {name.partition("_")[0] for name in names} == {"quantise", "restore"}
