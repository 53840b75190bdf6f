# SPDX-License-Identifier: Apache-2.0
"""How pages are quantised, and what lies where in a quantised page.

A quantised page is one block per layer, and nothing else. A block is, in this order::

    scales   float32[kv, heads]                       then zeros up to a multiple of 16 bytes
    codes    uint8[kv, heads, page_tokens, head_dim]  one code per value

K and V, each layer and each head have a scale of their own: over all tokens of one page. All of it
is little-endian. A range of layers is a range of bytes, so layers can be restored one by one.
"""

from dataclasses import dataclass
from enum import StrEnum

from bodocache.errors import LayoutError
from bodocache.kernels.check import UNIT_NBYTES
from bodocache.layout import Group, PagedMemory

VALUE_NBYTES = 2  # bf16 and fp16; a code takes one byte
SCALE_NBYTES = 4


class Quantiser(StrEnum):
    """How a value becomes a code; the value of a code is always ``decoded(code) * scale``.

    Values that are not finite come back as NaN; codes of the others never depend on them.
    """

    FP8_E4M3 = "fp8_e4m3"  # scale: the least power of two that puts the head's maximum within 448
    INT8 = "int8"  # scale: the head's maximum / 127; code -128 is NaN

    @property
    def version(self) -> int:
        """Rises when equal values would become other bytes, or equal bytes other values."""
        return 1

    @property
    def identity(self) -> str:
        """What a key's root says (``Root.quantiser``): name and version."""
        return f"{self.value}.{self.version}"


@dataclass(frozen=True, slots=True)
class QuantisedForm:
    """The extents of a quantised page, in bytes where the name says so."""

    layers: int
    kv: int
    heads: int
    page_tokens: int
    head_dim: int

    def __post_init__(self) -> None:
        if self.head_dim % UNIT_NBYTES:
            raise LayoutError(
                f"quantised pages: head_dim {self.head_dim}; must be a multiple of {UNIT_NBYTES}"
            )

    @classmethod
    def of(cls, memory: PagedMemory) -> "QuantisedForm":
        """The form of pages of ``memory``, which holds values of 2 bytes."""
        head_dim, rest = divmod(memory.row_nbytes, VALUE_NBYTES)
        if rest:
            raise LayoutError(f"quantised pages: rows of {memory.row_nbytes} bytes hold no bf16")
        return cls(memory.layers, memory.kv, memory.heads, memory.page_tokens, head_dim)

    @property
    def scales(self) -> int:
        """Scales of one layer."""
        return self.kv * self.heads

    @property
    def scales_nbytes(self) -> int:
        """Bytes of one layer's scales, up to the codes."""
        return -(-self.scales * SCALE_NBYTES // UNIT_NBYTES) * UNIT_NBYTES

    @property
    def head_nbytes(self) -> int:
        """Bytes of the codes that share a scale."""
        return self.page_tokens * self.head_dim

    @property
    def layer_nbytes(self) -> int:
        """Bytes of one layer's block."""
        return self.scales_nbytes + self.scales * self.head_nbytes

    @property
    def page_nbytes(self) -> int:
        """Bytes of a quantised page: a multiple of 16."""
        return self.layers * self.layer_nbytes


def quantised_nbytes(group: Group, page_tokens: int) -> int:
    """Bytes of one quantised page of ``group``, whose values are bf16 or fp16.

    Raises:
        LayoutError: values are not of 2 bytes, or head_dim is no multiple of 16.
    """
    if group.itemsize != VALUE_NBYTES:
        raise LayoutError(f"group {group.name}: itemsize {group.itemsize}; only 2 is quantised")
    form = QuantisedForm(group.layers, group.kv, group.heads, page_tokens, group.head_dim)
    return form.page_nbytes
