# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N803 -- constexprs are UPPER_CASE
"""Codes of values and values of codes, on the device: what the quantising kernels share.

FP8 is rounded in integers: Triton casts to e4m3 from sm_89 on only, and one kernel serves all.
A word is an int32: two values of 16 bits, or four codes.
"""

import triton
import triton.language as tl

_INFINITE = tl.constexpr(0x7F800000)  # the bits of float32 infinity
_INVERSE_127 = tl.constexpr(1 / 127)
_LEAST_SCALE = tl.constexpr(2.0**-126)  # the least normal float32: its inverse is finite
_FIRST_GUESS = tl.constexpr(0x7EF311C7)  # less a number's bits: its inverse within 12 %
_TO_INTEGER = tl.constexpr(1.5 * 2.0**23)  # a float32 from here on has no fraction: adding rounds


@triton.jit  # type: ignore[untyped-decorator]
def value_of(bits: tl.tensor, BF16: tl.constexpr) -> tl.tensor:
    """float32 of the values in the low 16 bits of int32 ``bits``; the others are zero."""
    if BF16:
        value = (bits << 16).to(tl.float32, bitcast=True)
    else:
        value = bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return value


@triton.jit  # type: ignore[untyped-decorator]
def bits_of(value: tl.tensor, BF16: tl.constexpr) -> tl.tensor:
    """int32 whose low 16 bits are float32 ``value`` to nearest even, never infinite; else zero."""
    quiet: tl.constexpr = 0x7FC0 if BF16 else 0x7E00
    most: tl.constexpr = 3.3895313892515355e38 if BF16 else 65504.0
    size = tl.abs(value)
    size = tl.where(size > most, most, size)
    if BF16:
        wide = size.to(tl.int32, bitcast=True)
        bits = (wide + 0x7FFF + ((wide >> 16) & 1)) >> 16
    else:
        bits = size.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32)
    sign = (value.to(tl.int32, bitcast=True) >> 16) & 0x8000
    return tl.where(value == value, bits | sign, quiet)  # noqa: PLR0124 -- NaN is not equal to itself


@triton.jit  # type: ignore[untyped-decorator]
def magnitude_of(value: tl.tensor) -> tl.tensor:
    """``|value|`` where it is finite, else 0."""
    size = tl.abs(value)
    return tl.where(size.to(tl.int32, bitcast=True) < _INFINITE, size, 0.0)


@triton.jit  # type: ignore[untyped-decorator]
def scale_of(peak: tl.tensor, FP8: tl.constexpr) -> tl.tensor:
    """The scale of values of at most ``peak``."""
    if FP8:
        # The exponent goes up by one where the fraction is above 448's: 0x600000.
        biased = ((peak.to(tl.int32, bitcast=True) + 0x1FFFFF) >> 23) - 8
        scale = (tl.maximum(biased, 1) << 23).to(tl.float32, bitcast=True)
    else:
        scale = tl.maximum(peak * _INVERSE_127, _LEAST_SCALE)
    return scale


@triton.jit  # type: ignore[untyped-decorator]
def inverse_of(scale: tl.tensor, FP8: tl.constexpr) -> tl.tensor:
    """``1 / scale``: of FP8's powers of two exactly, else within 2^-22 of it.

    By Newton's steps: a division's rare cases are a call, around which Triton 3.2 spills on sm_80.
    """
    bits = scale.to(tl.int32, bitcast=True)
    if FP8:
        inverse = ((254 << 23) - bits).to(tl.float32, bitcast=True)
    else:
        inverse = (-bits + _FIRST_GUESS).to(tl.float32, bitcast=True)
        for _ in tl.static_range(4):
            inverse = inverse * (2.0 - scale * inverse)
    return inverse


@triton.jit  # type: ignore[untyped-decorator]
def encode(value: tl.tensor, inverse: tl.tensor, FP8: tl.constexpr) -> tl.tensor:
    """int32 codes 0..255 of float32 ``value``, whose head's scale is ``1 / inverse``."""
    bits = value.to(tl.int32, bitcast=True)
    finite = (bits & 0x7FFFFFFF) < _INFINITE
    scaled = tl.where(finite, value, 0.0) * inverse
    if FP8:
        size = tl.abs(scaled)
        wide = size.to(tl.int32, bitcast=True)
        # From 2^-6 on: rounded to 3 bits of fraction, the exponent's bias moved from 127 to 7.
        normal = ((wide + 0x7FFFF + ((wide >> 20) & 1)) >> 20) - (120 << 3)
        # Below: float32 numbers from 2^14 on are 2^-9 apart, as e4m3's subnormals are.
        subnormal = (size + 16384.0).to(tl.int32, bitcast=True) & 0xF
        code = tl.where(size < 0.015625, subnormal, normal)
        code = tl.where(finite, code | ((bits >> 24) & 0x80), 0x7F)
    else:
        code = (scaled + _TO_INTEGER).to(tl.int32, bitcast=True) & 0xFF
        code = tl.where(finite, code, 0x80)
    return code


@triton.jit  # type: ignore[untyped-decorator]
def decode(code: tl.tensor, scale: tl.tensor, FP8: tl.constexpr) -> tl.tensor:
    """float32 values of int32 codes 0..255."""
    if FP8:
        size = code & 0x7F
        normal = ((size << 20) + (120 << 23)).to(tl.float32, bitcast=True)
        step = tl.where(size < 8, size.to(tl.float32) * 0.001953125, normal)
        signed = step.to(tl.int32, bitcast=True) | ((code & 0x80) << 24)
        signed = tl.where(size == 0x7F, 0x7FC00000, signed)
        step = signed.to(tl.float32, bitcast=True)
    else:
        step = ((code << 24) >> 24).to(tl.float32)
        step = tl.where(code == 0x80, float("nan"), step)
    return step * scale


@triton.jit  # type: ignore[untyped-decorator]
def peak_of(words: tl.tensor, BF16: tl.constexpr) -> tl.tensor:
    """The greatest finite magnitude among the values of ``words`` [UNITS, 8]."""
    low = magnitude_of(value_of(words & 0xFFFF, BF16))
    high = magnitude_of(value_of((words >> 16) & 0xFFFF, BF16))
    return tl.max(tl.max(tl.maximum(low, high), 1), 0)


@triton.jit  # type: ignore[untyped-decorator]
def encode_words(
    words: tl.tensor, inverse: tl.tensor, FP8: tl.constexpr, BF16: tl.constexpr, UNITS: tl.constexpr
) -> tl.tensor:
    """int32 [UNITS, 4]: the codes of the values of ``words`` [UNITS, 8]."""
    low = encode(value_of(words & 0xFFFF, BF16), inverse, FP8)
    high = encode(value_of((words >> 16) & 0xFFFF, BF16), inverse, FP8)
    first, second = tl.split(tl.reshape(low | (high << 8), (UNITS, 4, 2)))
    return first | (second << 16)


@triton.jit  # type: ignore[untyped-decorator]
def decode_words(
    words: tl.tensor, scale: tl.tensor, FP8: tl.constexpr, BF16: tl.constexpr, UNITS: tl.constexpr
) -> tl.tensor:
    """int32 [UNITS, 8]: the values of the codes of ``words`` [UNITS, 4]."""
    pairs = tl.reshape(tl.join(words & 0xFFFF, (words >> 16) & 0xFFFF), (UNITS, 8))
    low = bits_of(decode(pairs & 0xFF, scale, FP8), BF16)
    high = bits_of(decode(pairs >> 8, scale, FP8), BF16)
    return low | (high << 16)
