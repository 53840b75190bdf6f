# SPDX-License-Identifier: Apache-2.0
"""Twins of ``gather_quantised`` and ``scatter_quantised``, and how far values may move.

Let m be the greatest finite ``|value|`` of a head (of one page, layer, K or V), x a finite value,
x' what comes back and s the head's scale.

FP8: s is the least power of two with ``m <= 448 s`` and ``2^-126 <= s``; so scaling and its undoing
are exact and only the code rounds: by half an ulp of 4 bits where ``|x| >= 2^-6 s``, by half of the
subnormal step 2^-9 s below. The output does not round: a code's 4 bits fit wherever x's did.

    |x' - x| <= max(2^-4 |x|, 2^-10 s)    and    2^-10 s <= max(m / 229376, 2^-136)

INT8: s is m / 127, at least 2^-126. The code rounds by half a step s, and a hair more: 1/s is taken
within 2^-22 and two products round in float32: together 127 (2^-22 + 2^-23) steps at most. Then
the output rounds by its unit roundoff u (bf16 2^-8, fp16 2^-11) or by half of its subnormal step d
(bf16 2^-133, fp16 2^-24).

    |x' - x| <= s (1/2 + 2^-14) + max(u |x'|, d / 2)

Both: zero stays zero (FP8 keeps its sign). NaN and infinities come back as NaN and touch no other
value. No finite value comes back infinite: beyond the output's range it is the greatest finite one.
Values that went through once go through again unchanged.
"""

from typing import NamedTuple

import torch
from torch.nn.functional import pad

from bodocache.kernels.quantiser import SCALE_NBYTES, QuantisedForm, Quantiser
from bodocache.kernels.reference.digest import digest_pages
from bodocache.kernels.reference.views import page_views
from bodocache.layout import PagedMemory

_LEAST_SCALE = 2.0**-126  # the least normal float32: its inverse is finite
_INT8_NAN = -128
_QUIET_NAN = {torch.bfloat16: 0x7FC0, torch.float16: 0x7E00}  # torch's own bits differ by CPU


class Quantised(NamedTuple):
    """Codes of values [.., tokens, head_dim] and a scale for each of their matrices."""

    codes: torch.Tensor  # uint8[.., tokens, head_dim]
    scales: torch.Tensor  # float32[..]


def gather_quantised(
    source: PagedMemory,
    slots: torch.Tensor,
    rows: torch.Tensor,
    out: torch.Tensor,
    *,
    dtype: torch.dtype,
    quantiser: Quantiser,
) -> torch.Tensor:
    """Quantise pages ``slots`` of ``source`` into ``rows`` of ``out``; return their digests."""
    form = QuantisedForm.of(source)
    pieces = [view[slots.long()].view(dtype) for view in page_views(source)]
    layers = [torch.stack(pieces[n : n + form.kv], 1) for n in range(0, len(pieces), form.kv)]
    values = torch.stack(layers, dim=1).transpose(3, 4)
    codes, scales = encode(values, quantiser)
    padding = form.scales_nbytes // SCALE_NBYTES - form.scales
    words = pad(scales.flatten(2), (0, padding)).view(torch.uint8)
    pages = torch.cat((words, codes.flatten(2)), dim=2).flatten(1)
    out[rows.long()] = pages
    return digest_pages(pages)


def scatter_quantised(
    pages: torch.Tensor,
    destination: PagedMemory,
    slots: torch.Tensor,
    rows: torch.Tensor,
    *,
    dtype: torch.dtype,
    quantiser: Quantiser,
) -> torch.Tensor:
    """Restore ``rows`` of ``pages`` to pages ``slots``; return the digests of the stored bytes."""
    form = QuantisedForm.of(destination)
    chosen = pages[rows.long()]
    blocks = chosen.reshape(len(slots), form.layers, form.layer_nbytes)
    shape = (len(slots), form.layers, form.kv, form.heads)
    scales = blocks[..., : form.scales * SCALE_NBYTES].contiguous().view(torch.float32)
    codes = blocks[..., form.scales_nbytes :].reshape(*shape, form.page_tokens, form.head_dim)
    values = decode(Quantised(codes, scales.reshape(shape)), dtype, quantiser)
    pieces = values.transpose(3, 4).contiguous().view(torch.uint8).flatten(1, 2).unbind(1)
    for view, piece in zip(page_views(destination), pieces, strict=True):
        view[slots.long()] = piece
    return digest_pages(chosen)


def encode(values: torch.Tensor, quantiser: Quantiser) -> Quantised:
    """Codes of bf16 or fp16 ``values`` [.., tokens, head_dim], a scale per matrix of them."""
    wide, finite = values.float(), values.isfinite()
    peaks = torch.where(finite, wide.abs(), 0.0).amax((-2, -1))
    if quantiser == Quantiser.FP8_E4M3:
        mantissas, exponents = torch.frexp(peaks.clamp(min=_LEAST_SCALE))  # 448 = 0.875 * 2^9
        biased = (exponents - 9 + (mantissas > 0.875).int() + 127).clamp(min=1)
        scales, inverses = ((n << 23).view(torch.float32) for n in (biased, 254 - biased))
        scaled = torch.where(finite, wide * inverses[..., None, None], torch.nan)
        codes = scaled.to(torch.float8_e4m3fn).view(torch.uint8)
    else:
        scales = (peaks * (1 / 127)).clamp(min=_LEAST_SCALE)
        steps = (wide * inverse_of(scales)[..., None, None]).round()  # half to even
        codes = torch.where(finite, steps, _INT8_NAN).to(torch.int8).view(torch.uint8)
    return Quantised(codes, scales)


def inverse_of(scales: torch.Tensor) -> torch.Tensor:
    """``1 / scales`` within 2^-22, by the kernel's own steps (see ``codes.inverse_of``)."""
    inverses = (0x7EF311C7 - scales.view(torch.int32)).view(torch.float32)
    for _ in range(4):
        inverses = inverses * (2.0 - scales * inverses)
    return inverses


def decode(quantised: Quantised, dtype: torch.dtype, quantiser: Quantiser) -> torch.Tensor:
    """The values of codes, in ``dtype``; NaN is quiet and positive."""
    codes, scales = quantised
    if quantiser == Quantiser.FP8_E4M3:
        steps = codes.view(torch.float8_e4m3fn).float()
    else:
        signed = codes.view(torch.int8)
        steps = torch.where(signed == _INT8_NAN, torch.nan, signed.float())
    wide = steps * scales[..., None, None]
    most = torch.finfo(dtype).max
    bits = wide.clamp(-most, most).to(dtype).view(torch.int16)
    return torch.where(wide.isnan(), _QUIET_NAN[dtype], bits).to(torch.int16).view(dtype)
