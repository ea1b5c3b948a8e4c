"""GGUF files: which tensor gets which type, what a file's tensor table says, and files that are none."""

from __future__ import annotations

import ast
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moecap.checkpoints.gguf_quantize import more_bits, type_of
from moecap.errors import MoecapError
from moecap.model.gguf_table import tensor_table
from moecap.model.headers import read_checkpoint
from moecap.provenance import PACKAGE

BLOCK = {kind.name: sizes[0] for kind, sizes in gguf.GGML_QUANT_SIZES.items()}


@given(
    st.sampled_from(["Q8_0", "Q4_0", "Q4_K_M"]),
    st.sampled_from(["attn_q", "attn_k", "attn_v", "attn_output", "ffn_down_exps", "ffn_up_exps", "ffn_down_shexp"]),
    st.integers(0, 23),
    st.sampled_from([32, 64, 128, 256, 512, 100]),
    st.sampled_from([8, 64]),
)
def test_a_type_always_divides_the_row_it_stores(mix: str, part: str, layer: int, columns: int, experts: int) -> None:
    chosen = type_of(f"blk.{layer}.{part}.weight", [columns, 64], mix, 24, experts, BLOCK)
    assert chosen is not None and columns % BLOCK[chosen] == 0
    assert (chosen == "F16") == (columns % 32 != 0)


@pytest.mark.parametrize(
    ("name", "shape", "mix", "expected"),
    [
        ("blk.0.attn_norm.weight", [256], "Q4_K_M", None),
        ("blk.0.ffn_gate_inp.weight", [256, 8], "Q4_K_M", None),
        ("blk.0.ffn_gate_inp_shexp.weight", [256, 1], "Q4_K_M", None),
        ("blk.0.attn_q.bias", [256], "Q8_0", None),
        ("output.weight", [256, 384], "Q4_K_M", "Q6_K"),
        ("output.weight", [128, 384], "Q4_K_M", "Q8_0"),
        ("output.weight", [256, 384], "Q4_0", "Q6_K"),
        ("token_embd.weight", [256, 384], "Q4_K_M", "Q4_K"),
        ("blk.1.ffn_down_exps.weight", [256, 256, 64], "Q4_K_M", "Q6_K"),
        ("blk.9.ffn_down_exps.weight", [256, 256, 64], "Q4_K_M", "Q4_K"),
        ("blk.9.attn_v.weight", [256, 64], "Q4_K_M", "Q4_K"),
        ("blk.8.attn_v.weight", [256, 64], "Q4_0", "Q4_0"),
        ("blk.8.ffn_up_exps.weight", [128, 256, 64], "Q4_K_M", "Q5_0"),
    ],
)
def test_types_are_those_of_llama_quantize(name: str, shape: list[int], mix: str, expected: str | None) -> None:
    assert type_of(name, shape, mix, 24, 64, BLOCK) == expected


def test_layers_with_more_bits_are_those_of_llama_quantize() -> None:
    assert [layer for layer in range(24) if more_bits(layer, 24)] == [0, 1, 2, 5, 8, 11, 14, 17, 20, 21, 22, 23]


def write(path: Path, tensors: dict[str, np.ndarray]) -> None:
    writer = gguf.GGUFWriter(path, "qwen2moe")
    writer.add_block_count(1)
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_the_table_says_what_a_file_holds_and_what_it_is_called_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write(
        path, {"blk.0.ffn_gate_exps.weight": np.zeros((4, 6, 32), np.float16), "output.weight": np.zeros((9, 32), "f4")}
    )
    experts, head = tensor_table(path)
    assert (experts.type, experts.shape, experts.bytes) == ("F16", (4, 6, 32), 4 * 6 * 32 * 2)
    assert "model.layers.0.mlp.experts.gate_proj.weight" in experts.names
    assert (head.type, head.bytes) == ("F32", 9 * 32 * 4) and "lm_head.weight" in head.names
    assert [t.bytes for t in read_checkpoint(tmp_path).tensors] == [experts.bytes, head.bytes]


@pytest.mark.parametrize("length", [0, 10, 60, 200])
def test_a_file_that_was_cut_off_is_said(tmp_path: Path, length: int) -> None:
    path = tmp_path / "model.gguf"
    write(path, {"output.weight": np.zeros((9, 32), "f4")})
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(MoecapError, match=r"model\.gguf is no complete GGUF file"):
        list(tensor_table(path))


def test_no_neighbour_is_taken_for_a_library_of_another_environment() -> None:
    """Files that other environments run by path lie beside modules of ours: none may be called as what they import."""
    for name in ("gguf_convert", "gguf_quantize"):
        path = PACKAGE / f"checkpoints/{name}.py"
        imported = {
            (alias.name if isinstance(node, ast.Import) else node.module or "").split(".")[0]
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for alias in node.names
        }
        assert not imported & {other.stem for other in path.parent.glob("*.py")}
