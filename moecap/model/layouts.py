"""How one weight matrix is stored: packed weights, and the scales, zero points and indices beside them. No torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import ceil
from typing import Any


@dataclass(frozen=True)
class Matrix:
    """``copies`` weight matrices of (rows, columns) = (outputs, inputs), as one product uses them."""

    rows: int
    columns: int
    name: str = ""
    copies: int = 1
    quantizable: bool = True


@dataclass(frozen=True)
class Companion:
    """A tensor beside the weights: ``bits`` for each block of ``rows`` × ``columns`` weights.

    Attributes:
        rows, columns: size of a block; 0: as many as the matrix has.
        word_bits: elements are packed along the outputs into words of that many bits; None: not packed.
    """

    bits: int
    rows: int = 0
    columns: int = 0
    word_bits: int | None = None

    def bytes(self, rows: int, columns: int) -> int:
        down = ceil(rows / self.rows) if self.rows else 1
        across = ceil(columns / self.columns) if self.columns else 1
        word = self.word_bits or self.bits
        return ceil(ceil(down * self.bits / word) * word * across / 8)


#: What is stored per matrix, per output, and per input.
PER_MATRIX, PER_ROW, PER_COLUMN = (0, 0), (1, 0), (0, 1)


@dataclass(frozen=True)
class Layout:
    """How the quantized matrices of one kind are stored and multiplied.

    Attributes:
        name: how the precision is called: ``int4``, ``fp8``, ``nvfp4``, …
        weight_bits: bits of a weight.
        word_bits: weights are packed into words of that many bits; None: not packed.
        packed_along: ``columns`` (inputs), ``rows`` (outputs), or ``flat``: over the whole matrix, whose companions
            then count blocks of its elements.
        companions: what is stored beside the weights.
        state: bytes per matrix that depend on its shape (:class:`QuantState`).
        compute_dtype: what the matrix units multiply in; None: in the model's own dtype (weights only are quantized).
    """

    name: str
    weight_bits: int
    word_bits: int | None = None
    packed_along: str = "columns"
    companions: tuple[Companion, ...] = ()
    state: QuantState | None = None
    compute_dtype: str | None = None

    def matrix_bytes(self, rows: int, columns: int) -> int:
        """Bytes of one matrix of (rows, columns) = (outputs, inputs), with all that goes with it.

        >>> int_packed(4, 128).matrix_bytes(128, 128)
        8464
        """
        state = self.state.bytes(rows, columns) if self.state else 0
        if self.packed_along == "flat":
            rows, columns = 1, rows * columns
        along, across = (rows, columns) if self.packed_along == "rows" else (columns, rows)
        word = self.word_bits or self.weight_bits
        weights = ceil(ceil(along * self.weight_bits / word) * word * across / 8)
        return weights + state + sum(c.bytes(rows, columns) for c in self.companions)

    @property
    def bits_per_weight(self) -> float:
        """Bits that a weight takes with all that goes with it, in a matrix of 4096 × 4096."""
        return 8 * self.matrix_bytes(4096, 4096) / 4096**2


@dataclass(frozen=True)
class QuantState:
    """The JSON text that bitsandbytes keeps beside a 4-bit matrix (``QuantState.as_dict``, bitsandbytes 0.50)."""

    quant_type: str
    dtype: str
    block: int
    nested: bool

    #: The text of ``nested_offset`` is as long as its number happens to be: about 20 characters.
    OFFSET = 0.12345678901234567

    def bytes(self, rows: int, columns: int) -> int:
        state: dict[str, Any] = {"quant_type": self.quant_type, "blocksize": self.block, "dtype": self.dtype}
        state["shape"] = [rows, columns]
        if self.nested:
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": self.OFFSET}
        return len(json.dumps(state))


# -- what tools write


def scales(bits: int, group_size: int | None, block: tuple[int, int] | None = None) -> Companion:
    """Scales per block, per group along the inputs, per output (None), or one for the matrix (0)."""
    if block:
        return Companion(bits, *block)
    if group_size is None:
        return Companion(bits, *PER_ROW)
    return Companion(bits, 1, group_size) if group_size else Companion(bits, *PER_MATRIX)


def plain(
    name: str,
    bits: int,
    group_size: int | None = None,
    *,
    block: tuple[int, int] | None = None,
    scale_bits: int = 16,
    zero_bits: int = 0,
    matrix_bits: int = 0,
    compute_dtype: str | None = None,
) -> Layout:
    """Weights in their own dtype (two to a byte below 8 bits), with scales.

    Args:
        zero_bits: bits of a zero point beside each scale; 0: symmetric.
        matrix_bits: bits per matrix beside the scales (a scale of scales, a static scale of the activations).
    """
    beside = [scales(scale_bits, group_size, block)]
    if zero_bits:
        beside.append(scales(zero_bits, group_size, block))
    if matrix_bits:
        beside.append(Companion(matrix_bits, *PER_MATRIX))
    return Layout(name, bits, 8, companions=tuple(beside), compute_dtype=compute_dtype)


def int_packed(
    bits: int,
    group_size: int | None,
    *,
    symmetric: bool = True,
    scale_bits: int = 16,
    matrix_bits: int = 128,
    ordered: bool = False,
    compute_dtype: str | None = None,
) -> Layout:
    """``pack-quantized`` of compressed-tensors: words of 32 bits, zero points too, the shape in two int64."""
    beside = [scales(scale_bits, group_size)]
    if not symmetric:
        zeros = scales(bits, group_size)
        beside.append(Companion(bits, zeros.rows, zeros.columns, 32))
    if matrix_bits:
        beside.append(Companion(matrix_bits, *PER_MATRIX))
    if ordered:
        beside.append(Companion(32, *PER_COLUMN))
    return Layout(f"int{bits}", bits, 32, companions=tuple(beside), compute_dtype=compute_dtype)


def gptq(bits: int, group_size: int | None, *, indexed: bool = True) -> Layout:
    """GPTQ: ``qweight``, ``qzeros`` (also where symmetric) and ``g_idx`` in words of 32 bits, ``scales`` in fp16."""
    columns = group_size or 0
    beside = [Companion(16, 1, columns), Companion(bits, 1, columns, 32)]
    if indexed:
        beside.append(Companion(32, *PER_COLUMN))
    return Layout(f"int{bits}", bits, 32, companions=tuple(beside))


def awq(bits: int, group_size: int | None) -> Layout:
    """AWQ's ``gemm``: as GPTQ, but words run along the outputs, and there is no ``g_idx``."""
    columns = group_size or 0
    beside = (Companion(16, 1, columns), Companion(bits, 1, columns, 32))
    return Layout(f"int{bits}", bits, 32, "rows", beside)


def nvfp4(*, matrix_bits: int = 64, group_size: int = 16, compute_dtype: str | None = "fp4") -> Layout:
    """e2m1 weights, an e4m3 scale for 16 of them, and float32 scales per matrix (weights, activations)."""
    return plain("nvfp4", 4, group_size, scale_bits=8, matrix_bits=matrix_bits, compute_dtype=compute_dtype)


def mxfp(bits: int, *, matrix_bits: int = 0, compute_dtype: str | None = None) -> Layout:
    """OCP microscaling: e2m1 (4), e3m2 or e2m3 (6) or e4m3 (8 bits) weights, an e8m0 scale for 32 of them."""
    return plain(f"mxfp{bits}", bits, 32, scale_bits=8, matrix_bits=matrix_bits, compute_dtype=compute_dtype)


def bnb_int8() -> Layout:
    """LLM.int8(): ``SCB`` in float32 per output, ``weight_format`` in a byte; activations in int8."""
    return Layout("int8", 8, companions=(Companion(32, *PER_ROW), Companion(8, *PER_MATRIX)), compute_dtype="int8")


def bnb_4bit(quant_type: str, *, nested: bool, dtype: str, block: int = 64) -> Layout:
    """nf4 or fp4: blocks over the flat matrix; nested scales are 8 bits, with scales of their own."""
    table = Companion(16 * 32, *PER_MATRIX)
    beside: tuple[Companion, ...] = (Companion(32, 0, block), table)
    if nested:
        beside = (Companion(8, 0, block), Companion(32, 0, block * 256), table, Companion(256 * 32, *PER_MATRIX))
    state = QuantState(quant_type, dtype, block, nested)
    return Layout(quant_type, 4, 8, "flat", beside, state)
