"""Which files of a repository, or of a folder, are the checkpoint: those that a loader reads, and no second copy.

Repositories hold much beside: the same weights whole and in shards, in other formats, at other precisions
(``model.fp16.safetensors``, ``fp16/``), of earlier moments (``checkpoint-500/``). Loaders read the top folder; of
weights both whole and in shards Transformers reads the whole file, so that one is taken. Pure functions of names.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"

# What a checkpoint needs to be served, counted and quantized: weights as safetensors (pickles may run code), configs,
# tokenizers, licence texts.
WANTED = (
    "*.safetensors",
    "*.json",
    "*.model",
    "*.txt",
    "*.jinja",
    "*.tiktoken",
    "*.py",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "README.md",
)
# The only folders that loaders look into: of chat templates, and of code that a model brings.
FOLDERS = ("additional_chat_templates/*.jinja", "*.py")
# Weights that are none of the model's, or a second copy: Mistral's own format, adapters, training's state.
# Indexes of weights that are not read.
OTHER_INDEX = ("*.bin.index.json", "consolidated*.json")
OTHER_WEIGHTS = ("consolidated*", "adapter_model*", "optimizer*", "scheduler*", "training_args*")


def chosen(names: Collection[str], shards: Iterable[str] | None = None) -> list[str]:
    """The files to take, sorted.

    Args:
        names: all that there is, relative, with ``/``.
        shards: those that the index names; None: there is no index, or it was not read.

    >>> chosen(["config.json", "model.safetensors", "fp16/model.safetensors", "onnx/model.onnx"])
    ['config.json', 'model.safetensors']
    """
    plain = [name for name in names if _is_plain(name)]
    named = set(shards or ())
    weights = set(_weights([name for name in plain if name.endswith(".safetensors")], named))
    left_out = {name for name in plain if name.endswith(".safetensors")} - weights
    left_out |= {
        name for name in plain if fnmatch.fnmatchcase(name, "*.bin.index.json") or name.startswith(OTHER_INDEX)
    }
    if WHOLE in weights:
        left_out.add(INDEX)  # of the copy that is left out, or of shards that are not there
    return sorted(set(plain) - left_out)


def _weights(files: list[str], named: Collection[str]) -> list[str]:
    """Which safetensors files of the top folder a loader reads; ``named``: by the index."""
    if WHOLE in files:
        return [WHOLE]
    if named and set(named) <= set(files):
        return sorted(named)
    # Names of their own: all but those that are surely something else (or `model.fp16.safetensors`, a variant).
    stems = {name.removesuffix(".safetensors") for name in files}
    return [
        name
        for name in files
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in OTHER_WEIGHTS)
        and not any(name.startswith(f"{stem}.") and name != f"{stem}.safetensors" for stem in stems)
    ]


def _is_plain(name: str) -> bool:
    parts = name.split("/")
    if any(part.startswith(".") for part in parts):
        return False
    patterns = WANTED if len(parts) == 1 else FOLDERS
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def why_none(names: Collection[str], base_model: str | None = None) -> str | None:
    """Why what ``names`` lists is no checkpoint that can be served, in a sentence; None: it may be one.

    Args:
        base_model: what an adapter is for, where that is known.
    """
    top = {name for name in names if "/" not in name}
    weights = _weights([name for name in top if name.endswith(".safetensors")], ())
    if "config.json" in top and weights:
        return None
    if "adapter_config.json" in top:
        base = f" for {base_model}" if base_model else ""
        return (
            f"it holds an adapter (LoRA){base}, not a model: merge it into its base model (PEFT's `merge_and_unload`), "
            "save that, and name the result"
        )
    if "params.json" in top and any(fnmatch.fnmatchcase(n, "consolidated*.safetensors") for n in top):
        return (
            "it is in Mistral's own format (params.json, consolidated*.safetensors) and has no copy in the Hugging "
            "Face format (config.json, model*.safetensors), which is what is read here: look for a repository or "
            "revision that has one"
        )
    if weights:
        return "it has weights but no config.json, so that nothing says what model they are of"
    below = sorted({name.rsplit("/", 1)[0] for name in names if "/" in name and name.endswith(".safetensors")})
    other = sorted({kind for end, kind in OTHER_FORMATS.items() if any(name.endswith(end) for name in names)})
    if below and "config.json" not in top:
        return (
            f"its weights lie in folders ({', '.join(below[:3])}) and not beside a config.json at the top, where "
            "loaders look: name a repository or local `path` of one of them"
        )
    if below:
        return f"its only *.safetensors files lie in folders that no loader reads ({', '.join(below[:3])})"
    if other:
        return (
            f"it holds no *.safetensors file, but {' and '.join(other)}. Pickled weights are not read: they may run "
            "code; other formats are other engines'. Look for a revision or a repository with safetensors"
        )
    return "it holds no *.safetensors file"


OTHER_FORMATS = {
    ".bin": "pickles (*.bin)",
    ".pt": "pickles (*.pt)",
    ".pth": "pickles (*.pth)",
    ".ckpt": "pickles (*.ckpt)",
    ".gguf": "GGUF files",
    ".onnx": "ONNX files",
    ".h5": "TensorFlow's files",
    ".msgpack": "Flax's files",
    ".nemo": "NeMo files",
}
