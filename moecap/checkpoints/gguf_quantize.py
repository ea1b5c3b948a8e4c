"""Quantizes a GGUF file with ggml's own kernels. Runs in the environment that has ``xllamacpp`` and ``gguf``.

    python gguf_quantize.py SOURCE OUTPUT TYPE

The kernels are ggml's (``ggml_quantize_chunk`` of the library that serves the file afterwards). Which tensor gets which
type follows llama.cpp's ``llama-quantize`` (src/llama-quant.cpp of build 11549): norms and routers stay as they are,
the output matrix, and of the ``_M`` mixes some values and down-projections, get more bits; a row that is no multiple
of a block falls back to the next type with blocks of 32.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Sequence
from typing import Any

#: What a mix starts from, as in `llama_ftype_get_default_type`.
BASE = {"Q4_K_M": "Q4_K"}
#: As in `tensor_type_fallback`.
FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def more_bits(layer: int, layers: int) -> bool:
    """The layers whose values and down-projections weigh more in the ``_M`` mixes."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def type_of(name: str, shape: Sequence[int], mix: str, layers: int, experts: int, block: dict[str, int]) -> str | None:
    """The type of a tensor; None: it stays as it is.

    Args:
        shape: columns (a row's length) first, as GGUF has it.
        block: elements of a block, by type.
    """
    dimensions = [n for n in shape if n > 1]  # as ggml counts them
    if len(dimensions) < 2 or not name.endswith("weight") or "_norm.weight" in name or "ffn_gate_inp.weight" in name:
        return None
    chosen = BASE.get(mix, mix)
    if name == "output.weight":
        chosen = "Q8_0" if chosen == "Q8_0" or shape[0] % block[chosen] else "Q6_K"
    elif mix == "Q4_K_M":
        chosen = _of_the_mix(name, chosen, layers, experts)
    if shape[0] % block[chosen] == 0:
        return chosen
    fallback = FALLBACK.get(chosen, "F16")
    return "F16" if shape[0] % block[fallback] else fallback


def _of_the_mix(name: str, chosen: str, layers: int, experts: int) -> str:
    part = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if part is None:
        return chosen
    layer, what = int(part.group(1)), part.group(2)
    if what in ("attn_v", "attn_k") and experts == 8:
        return "Q8_0"
    if what == "attn_output" and experts == 8:
        return "Q5_K"
    if what == "attn_qkv":
        return "Q5_K"
    # Of a file that has shared experts beside routed ones, both: the layer's number is in the name.
    if (what == "attn_v" or what.startswith("ffn_down")) and more_bits(layer, layers):
        return "Q6_K"
    return chosen


def main(arguments: Sequence[str]) -> None:
    source, output, mix = arguments
    import gguf
    import numpy as np

    reader = gguf.GGUFReader(source)
    field = {name: value.contents() for name, value in reader.fields.items() if name.startswith("general.")}
    architecture = field["general.architecture"]

    def number(key: str) -> int:
        value = reader.get_field(f"{architecture}.{key}")
        return int(value.contents()) if value is not None else 0

    types = gguf.GGMLQuantizationType
    block = {kind.name: sizes[0] for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    writer = gguf.GGUFWriter(output, architecture)
    for name, value in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            sub = value.types[-1] if value.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, value.contents(), value.types[0], sub_type=sub)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{mix}"])
    kernel = _kernel()
    for tensor in reader.tensors:
        shape = [int(n) for n in tensor.shape]
        kind = type_of(tensor.name, shape, mix, number("block_count"), number("expert_count"), block)
        if kind is None:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
            continue
        values = np.ascontiguousarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        rows = values.size // shape[0]
        size = rows * shape[0] // block[kind] * gguf.GGML_QUANT_SIZES[types[kind]][1]
        data = np.empty(size, dtype=np.uint8)
        wrote = kernel(int(types[kind]), values.ctypes.data, data.ctypes.data, 0, rows, shape[0], None)
        if wrote != size:
            raise SystemExit(f"{tensor.name}: ggml wrote {wrote} bytes of {kind}, {size} were expected")
        per_row = size // rows
        writer.add_tensor(tensor.name, data.reshape(*reversed(shape[1:]), per_row), raw_dtype=types[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _kernel() -> Any:
    import xllamacpp.xllamacpp as library

    function = ctypes.CDLL(library.__file__).ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    function.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    return function


if __name__ == "__main__":
    main(sys.argv[1:])
