"""From what a user calls a model to its config, checkpoint or shapes."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moecap.documents import read_yaml
from moecap.errors import MoecapError, nearest
from moecap.paths import catalogue_layers

#: Where ModelOpt states a checkpoint's quantization, if not in config.json.
QUANTIZATION_FILE = "hf_quant_config.json"
#: Words in the names of checkpoints whose quantization is stated there alone.
NAMED_FORMATS = ("NVFP4", "MXFP8", "MXFP4", "FP8")


@dataclass(frozen=True)
class Found:
    """A model's name, and its config or its shapes; ``checkpoint`` is a folder with safetensors, if there is one."""

    name: str
    config: Mapping[str, Any] | None = None
    shapes: Mapping[str, Any] | None = None
    checkpoint: Path | None = None
    notes: tuple[str, ...] = ()


def resolve(model: str | Path | Mapping[str, Any], catalogue: str | Path | None = None) -> Found:
    """Find a model: a config as a dict, a checkpoint folder, a ``config.json``, a catalogue name or a hub id.

    A hub id that the catalogue knows is answered from its stored config; any other is asked of the hub (config only).

    Raises:
        MoecapError: nothing of that name, or a folder or config that cannot be read.
    """
    if isinstance(model, Mapping):
        return Found(str(model.get("_name_or_path") or model.get("model_type") or "model"), model)
    text = str(model)
    path = Path(text)
    if path.is_dir():
        kinds = ("*.safetensors", "*.gguf", "model.safetensors.index.json")
        has_weights = any(file for kind in kinds for file in path.glob(kind))
        local = _of_file(path / "config.json", guess=not has_weights)
        return replace(local, checkpoint=path if has_weights else None)
    if path.is_file() or text.endswith(".json"):
        return _of_file(path)
    layers = catalogue_layers() if catalogue is None else [Path(catalogue)]
    entries: dict[str, Any] = {}
    folders: dict[str, Path] = {}
    for layer in layers:
        own = _entries(layer)
        entries |= own
        folders |= dict.fromkeys(own, layer)
    found = next(
        (
            (name, entry)
            for name, entry in entries.items()
            if text.lower() in {x.lower() for x in (name, *_hub_ids(entry))}
        ),
        None,
    )
    if found is not None:
        return _from_entry(*found, folders[found[0]])
    if text.count("/") == 1 and not text.startswith((".", "/", "~")):
        return _from_hub(text, entries)
    raise MoecapError(
        f"There is no model {text!r}: it is neither a folder, a config.json, an entry of {layers[-1] / 'models.yaml'} "
        f"nor a hub id (owner/name). {nearest(text, entries)}"
    )


def _from_entry(name: str, entry: Mapping[str, Any], folder: Path) -> Found:
    notes = []
    source = entry.get("source") or {}
    if source.get("hub") and not source.get("revision"):
        notes.append(f"{source['hub']} is not pinned to a revision.")
    facts = entry.get("facts") or {}
    if facts and not str(facts.get("status")).startswith("verified"):
        notes.append(f"Shapes: {facts['status']} ({facts['source']}).")
    if entry.get("note"):
        notes.append(str(entry["note"]))
    if entry.get("config"):
        return _of_json(name, _json(folder / entry["config"]), tuple(notes))
    if source.get("train"):
        raise MoecapError(
            f"{name} is trained by the workflow (`make demo`) and has no config before that; give its folder, "
            f"results/models/{name}/bf16."
        )
    return _from_hub(source["hub"], {})


def _of_file(path: Path, *, guess: bool = True) -> Found:
    """A config.json, with the quantization that ModelOpt states in a file beside it.

    Args:
        guess: whether a name such as ``Qwen3-235B-A22B-NVFP4`` may say how weights are stored, where no file does.
    """
    name = path.parent.resolve().name if path.name == "config.json" else path.stem
    data, beside = _json(path), path.with_name(QUANTIZATION_FILE)
    if "shapes" in data or quantization_of(data):
        return _of_json(name, data)
    if path.name == "config.json" and beside.is_file():
        return _of_json(name, {**data, "quantization_config": _json(beside)})
    return _of_json(name, *_as_named(name, data)) if guess else _of_json(name, data)


def quantization_of(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a config.json says of quantization, wherever it says it."""
    for holder in (config, config.get("text_config") or {}):
        for key in ("quantization_config", "compression_config"):
            if isinstance(holder, Mapping) and holder.get(key):
                return holder[key]
    return None


def _as_named(name: str, data: Mapping[str, Any]) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """A config whose quantization follows from its model's name, and the note that says so."""
    words = re.split(r"[-_./\s]+", name.upper())
    algorithm = next((word for word in NAMED_FORMATS if word in words), None)
    if algorithm is None:
        return data, ()
    stated = {"quant_method": "modelopt", "quant_algo": algorithm, "ignore": ["lm_head"]}
    note = (
        f"Neither config.json nor {QUANTIZATION_FILE} says how the weights are stored; the name {name!r} says "
        f"{algorithm}: an estimate, with every matrix but the head and routers in it, and the KV cache in the model's "
        f"dtype. With the checkpoint's {QUANTIZATION_FILE} beside config.json the count is exact."
    )
    return {**data, "quantization_config": stated}, (note,)


def _of_json(name: str, data: Mapping[str, Any], notes: tuple[str, ...] = ()) -> Found:
    if "shapes" in data:
        return Found(name, shapes=data["shapes"], notes=notes)
    return Found(name, data, notes=notes)


def _hub_ids(entry: Mapping[str, Any]) -> tuple[str, ...]:
    own = (entry.get("source") or {}).get("hub")
    return (*([own] if own else []), *(entry.get("also") or ()))


def _from_hub(hub_id: str, entries: Mapping[str, Any]) -> Found:
    known = {str((e.get("source") or {}).get("hub")) for e in entries.values()} - {"None"}
    try:
        from huggingface_hub import hf_hub_download

        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # our own message says it once
        path = hf_hub_download(hub_id, "config.json", token=os.environ.get("HF_TOKEN"))
    except Exception as error:
        raise MoecapError(
            f"The config of {hub_id!r} could not be fetched from the hub ({type(error).__name__}: "
            f"{str(error).strip().splitlines()[0][:200] if str(error).strip() else 'no message'}). Check the name and "
            f"the connection, accept the model's licence there, or give a config.json. {nearest(hub_id, known)}"
        ) from error
    notes = (f"{hub_id} is not pinned to a revision.",)
    data = _json(Path(path))
    if quantization_of(data):
        return Found(hub_id, data, notes=notes)
    try:
        beside = hf_hub_download(hub_id, QUANTIZATION_FILE, token=os.environ.get("HF_TOKEN"))
    except Exception:  # most repositories have none, and the config itself was found
        data, named = _as_named(hub_id, data)
        return Found(hub_id, data, notes=(*notes, *named))
    return Found(hub_id, {**data, "quantization_config": _json(Path(beside))}, notes=notes)


def _entries(folder: Path) -> Mapping[str, Any]:
    path = folder / "models.yaml"
    if not path.exists():
        return {}
    entries = read_yaml(path) or {}
    return entries.get("models", entries)


def _json(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MoecapError(f"{path} does not exist; a checkpoint folder has a config.json.") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MoecapError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise MoecapError(f"{path} is not a JSON object, so it is no model config.")
    return value
