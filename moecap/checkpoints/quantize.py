"""Variants at lower precision, made by llmcompressor.

llmcompressor pins another ``compressed-tensors`` than vLLM, so it lives in an environment of its own. The workflow
calls :func:`run`, which starts this module there (``python -m moecap.checkpoints.quantize``); :func:`quantize` is
what runs inside.

A recipe is data (``recipe`` of an entry in ``config/catalogue/precisions.yaml``), with the keys of
:class:`moecap.checkpoints.recipe.Recipe`.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moecap.checkpoints.hub import MANIFEST, check_checkpoint, link_variant, sha256, write_manifest
from moecap.checkpoints.modifiers import modifiers_of, scheme_of, without_pinning
from moecap.checkpoints.quality import Judged, bits_per_weight, calibration_facts, short_pass
from moecap.checkpoints.recipe import HeldOut, Recipe
from moecap.errors import MoecapError, PermanentError, nearest
from moecap.io import atomic_directory, read_json
from moecap.provenance import ROOT, digest, library_versions

log = logging.getLogger(__name__)


def check_widths(shapes: Mapping[str, tuple[int, ...]], recipe: Recipe, group_size: int | None) -> None:
    """Refuse weights whose rows cannot be cut into whole groups.

    Args:
        shapes: (rows, columns) of each stored tensor, by name.
        group_size: weights per group, or None for a scheme without groups.

    Raises:
        PermanentError: names the first such tensor and its width.
    """
    if not group_size:
        return
    for name, shape in sorted(shapes.items()):
        module = name.removesuffix(".weight")
        linear = len(shape) == 2 and name != module and "embed" not in name
        if linear and not recipe.ignores(module) and shape[1] % group_size:
            raise PermanentError(
                f"{recipe.scheme} shares a scale among {group_size} weights, and {name} is {shape[1]} wide, which is "
                f"no multiple of it. Set the recipe's `group_size` to a divisor of {shape[1]}, or add {module!r} to "
                "its `ignore`."
            )


def stored_shapes(folder: str | os.PathLike[str]) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in a checkpoint's safetensors headers; no tensor is read."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        with path.open("rb") as handle:
            header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
        shapes.update({k: tuple(v["shape"]) for k, v in header.items() if k != "__metadata__"})
    return shapes


def calibration_sequences(
    rows: Iterable[Mapping[str, Any]], tokenize: Any, recipe: Recipe, seed: int
) -> list[list[int]]:
    """``calibration_samples`` sequences of ``calibration_tokens`` token ids: rows in random order, one after another.

    Raises:
        MoecapError: a column of the template is missing, or there are too few rows for a single sequence.
    """
    rows = list(rows)
    random.Random(f"{seed}/calibration").shuffle(rows)
    sequences: list[list[int]] = []
    current: list[int] = []
    for row in rows:
        try:
            current += tokenize(recipe.calibration_template.format(**row))
        except KeyError as error:
            raise MoecapError(
                f"The recipe's `calibration_template` asks for column {error}, which the calibration data lacks. "
                f"{nearest(error.args[0], row)}"
            ) from None
        while len(current) >= recipe.calibration_tokens:
            sequences.append(current[: recipe.calibration_tokens])
            current = current[recipe.calibration_tokens :]
            if len(sequences) == recipe.calibration_samples:
                return sequences
    if not sequences:
        raise MoecapError(
            f"The calibration data has fewer than `calibration_tokens` ({recipe.calibration_tokens}) tokens in all."
        )
    log.warning("calibration data gives %d sequences of the %d wanted", len(sequences), recipe.calibration_samples)
    return sequences


def quantize(
    model_dir: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    recipe: Recipe,
    *,
    calibration_file: str | os.PathLike[str] | None = None,
    seed: int = 1,
    threads: int | None = None,
    trust_remote_code: bool = False,
    facts: Mapping[str, Any] | None = None,
    heldout: HeldOut | None = None,
    heldout_file: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Quantize a checkpoint; runs in the environment that has llmcompressor.

    Args:
        model_dir: a bf16 checkpoint in Hugging Face format.
        output_dir: becomes, whole or not at all, the quantized checkpoint with its ``manifest.json``.
        recipe: what to do.
        calibration_file: JSONL rows, in place of a download from the hub.
        seed: of the choice of calibration text.
        threads: CPU threads.
        trust_remote_code: whether code from the checkpoint may run.
        facts: more keys for the manifest (model, precision).
        heldout: text on which perplexity and reconstruction errors are measured; None: neither is.
        heldout_file: its rows, in place of a download.

    Returns:
        The manifest.

    Raises:
        MoecapError: the checkpoint is damaged or does not load, a width does not fit the groups, no calibration text.
    """
    check_checkpoint(model_dir)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch
    from llmcompressor import oneshot
    from llmcompressor.modeling.moe.linearize import linearize_moe
    from transformers import AutoTokenizer

    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    check_widths(stored_shapes(model_dir), recipe, scheme_of(recipe.scheme, recipe).weights.group_size)
    tokenizer = AutoTokenizer.from_pretrained(model_dir, trust_remote_code=trust_remote_code)
    sequences: list[list[int]] = []
    if recipe.needs_text:
        rows = _calibration_rows(recipe, calibration_file)
        sequences = calibration_sequences(rows, lambda text: tokenizer(text)["input_ids"], recipe, seed)
    model = linearize_moe(_load(model_dir, trust_remote_code))
    weights = model.num_parameters()
    texts = documents(heldout, heldout_file) if heldout else []
    short = [sequence for sequence in [*sequences, [i for t in texts for i in tokenizer(t)["input_ids"]]] if sequence]
    judged = Judged(model, tokenizer, recipe, texts, sequences, lambda: short_pass(model, short[0])) if texts else None
    calibrated = calibration_facts(model, recipe, sequences)
    started = time.monotonic()
    modifiers = modifiers_of(model, recipe, lambda: short_pass(model, short[0]))
    options = _calibration_options(sequences) if sequences else {}
    with without_pinning():
        oneshot(model=model, recipe=modifiers, tokenizer=tokenizer, **options)
    seconds = time.monotonic() - started
    with atomic_directory(output_dir) as folder:
        quality = judged.write(folder) if judged else None
        model.save_pretrained(folder, save_compressed=True)
        tokenizer.save_pretrained(folder)
        made = {
            "kind": "quantized",
            "recipe": recipe.model_dump(mode="json"),
            "calibration_sequences": len(sequences) or None,
            "calibration": calibrated,
            "quantize_s": round(seconds, 3),
            "seed": seed,
            "base": _base(model_dir),
            "libraries": library_versions("llmcompressor", "compressed-tensors", "transformers", "torch"),
        }
        told = {"source": made, "bits_per_weight": bits_per_weight(folder, weights), "quality": quality}
        return write_manifest(folder, {**(facts or {}), **told})


def _load(model_dir: str | os.PathLike[str], trust_remote_code: bool) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(model_dir, dtype="auto", trust_remote_code=trust_remote_code)
    except Exception as error:
        raise PermanentError(
            f"{model_dir} does not load as a model: {_first_line(error)} If its files were cut off or changed, delete "
            "the folder to have it made again."
        ) from error


def _calibration_rows(recipe: Recipe, calibration_file: str | os.PathLike[str] | None) -> list[dict[str, Any]]:
    if calibration_file is None and not recipe.calibration_hub:
        raise MoecapError(f"No file was given for the calibration dataset {recipe.calibration_dataset!r}.")
    hub = (recipe.calibration_hub, recipe.calibration_config, recipe.calibration_split, recipe.calibration_revision)
    return _rows("calibration", calibration_file, hub)


def documents(heldout: HeldOut, heldout_file: str | os.PathLike[str] | None) -> list[str]:
    """The texts of a held-out set.

    Raises:
        MoecapError: it cannot be had, or a column of the template is missing.
    """
    hub = (heldout.hub, heldout.config, heldout.split, heldout.revision)
    rows = _rows("held-out", heldout_file or heldout.file, hub)[: heldout.documents]
    try:
        return [heldout.template.format(**row) for row in rows]
    except KeyError as error:
        raise MoecapError(
            f"`heldout.template` asks for column {error}, which the held-out data lacks. "
            f"{nearest(error.args[0], rows[0])}"
        ) from None


def _rows(
    what: str, file: str | os.PathLike[str] | None, hub: tuple[str | None, str | None, str, str | None]
) -> list[dict[str, Any]]:
    """Rows of a JSONL file, or of a dataset of the hub: its name, config, split and revision."""
    if file is not None:
        try:
            with Path(file).open(encoding="utf-8") as handle:
                return [json.loads(line) for line in handle]
        except (OSError, json.JSONDecodeError) as error:
            raise MoecapError(f"The {what} data {file} cannot be read: {error}.") from error
    from datasets import load_dataset

    name, config, split, revision = hub
    try:
        data = load_dataset(name, config, split=split, revision=revision)
    except Exception as error:
        raise MoecapError(
            f"The {what} data {name} could not be had ({_first_line(error)}) It needs the network once, or a filled "
            "HF_HOME."
        ) from error
    return [dict(row) for row in data]


def _calibration_options(sequences: list[list[int]]) -> dict[str, Any]:
    from datasets import Dataset

    rows = {"input_ids": sequences, "attention_mask": [[1] * len(s) for s in sequences]}
    return {
        "dataset": Dataset.from_dict(rows),
        "max_seq_length": max(map(len, sequences)),
        "num_calibration_samples": len(sequences),
        "shuffle_calibration_samples": False,
    }


def _base(model_dir: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Where the bf16 checkpoint came from, by its own manifest; None without one."""
    path = Path(model_dir) / "manifest.json"
    if not path.is_file():
        return None
    manifest = json.loads(path.read_text())
    return {key: manifest.get(key) for key in ("model", "precision", "source")}


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".") + "."


# ---------------------------------------------------------------------------------------------------------------------
# From the workflow's environment into the other one
# ---------------------------------------------------------------------------------------------------------------------

_ERROR = "moecap.checkpoints.quantize: error: "


def make(
    python: str,
    model_dir: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    recipe: Mapping[str, Any],
    *,
    cache: str | os.PathLike[str] | None = None,
    facts: Mapping[str, Any] | None = None,
    **options: Any,
) -> None:
    """:func:`run`, or links to what another campaign has made of the very same checkpoint by the very same recipe.

    Args:
        cache: a folder that several campaigns and users share, or None; ``~`` and variables are expanded. A variant
            lies there once, below ``moecap-variants``, under the hash of all that it was made from.
        options: of :func:`run`.

    Raises:
        MoecapError: as :func:`run`; PermanentError: the variant in the cache is damaged.
    """
    if cache is None:
        run(python, model_dir, output_dir, recipe, facts=facts, **options)
        return
    made_from = {
        "base": read_json(Path(model_dir) / MANIFEST)["files"],
        "recipe": Recipe.from_data(recipe).model_dump(mode="json"),
        "calibration": sha256(options["calibration_file"]) if options.get("calibration_file") else None,
        "seed": options.get("seed", 1),
        "heldout": options.get("heldout"),
        "heldout_rows": sha256(options["heldout_file"]) if options.get("heldout_file") else None,
        "pins": sha256(ROOT / "envs/quantize.txt"),
    }
    stored = Path(os.path.expandvars(cache)).expanduser().absolute() / "moecap-variants" / digest(made_from, 32)
    if (stored / MANIFEST).is_file():
        log.info("%s was made before; it is linked from the shared cache", output_dir)
    else:
        run(python, model_dir, stored, recipe, facts=facts, **options)
    link_variant(stored, output_dir, facts=facts)


def run(
    python: str,
    model_dir: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    recipe: Mapping[str, Any],
    *,
    calibration_file: str | os.PathLike[str] | None = None,
    seed: int = 1,
    threads: int | None = None,
    trust_remote_code: bool = False,
    facts: Mapping[str, Any] | None = None,
    heldout: Mapping[str, Any] | None = None,
    heldout_file: str | os.PathLike[str] | None = None,
) -> None:
    """:func:`quantize` in the environment whose interpreter is ``python``; its output goes to this process's.

    Raises:
        MoecapError: no such interpreter, or what :func:`quantize` raises there.
    """
    Recipe.from_data(recipe)
    interpreter = Path(os.path.expandvars(python))
    if not interpreter.exists():
        raise PermanentError(
            f"`quantize_python` is {python}, which does not exist. `make env` creates the environment with "
            "llmcompressor; the config's `quantize_python` names the interpreter of one of your own."
        )
    job = {
        "model_dir": os.fspath(model_dir),
        "output_dir": os.fspath(output_dir),
        "recipe": dict(recipe),
        "calibration_file": None if calibration_file is None else os.fspath(calibration_file),
        "seed": seed,
        "threads": threads,
        "trust_remote_code": trust_remote_code,
        "facts": dict(facts or {}),
        "heldout": dict(heldout) if heldout else None,
        "heldout_file": None if heldout_file is None else os.fspath(heldout_file),
    }
    command = [os.fspath(interpreter), "-m", "moecap.checkpoints.quantize", "--job", json.dumps(job)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, errors="replace")
    message = None
    for line in process.stderr or ():
        sys.stderr.write(line)
        if line.startswith(_ERROR):
            message = line.removeprefix(_ERROR).strip()
    status = process.wait()
    if status:
        killed = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        raise MoecapError(message or f"The quantization of {model_dir} {killed}; the log has the rest.")


def main(arguments: list[str] | None = None) -> int:
    """``python -m moecap.checkpoints.quantize``: as a job of the workflow, or by hand."""
    parser = argparse.ArgumentParser(prog="python -m moecap.checkpoints.quantize", description="Quantize a checkpoint.")
    parser.add_argument("--job", help="JSON with the arguments of quantize(); takes the place of all others")
    parser.add_argument("--model", help="folder of the bf16 checkpoint")
    parser.add_argument("--output", help="folder of the quantized one")
    parser.add_argument("--recipe", default="{}", help='JSON, such as {"scheme": "W4A16", "algorithm": "rtn"}')
    parser.add_argument("--calibration", help="JSONL file with the calibration text")
    parser.add_argument("--heldout", help="JSONL file with text that is not calibrated on, for perplexity and errors")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--trust-remote-code", action="store_true", help="let code from the checkpoint run")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        if given.job:
            job = json.loads(given.job)
        elif given.model and given.output:
            job = {"model_dir": given.model, "output_dir": given.output, "recipe": json.loads(given.recipe)}
            job |= {"calibration_file": given.calibration, "seed": given.seed, "threads": given.threads}
            job |= {"trust_remote_code": given.trust_remote_code}
            job |= {"heldout": {"file": given.heldout} if given.heldout else None}
        else:
            parser.error("--model and --output are needed")
        job["recipe"] = Recipe.from_data(job["recipe"])
        job["heldout"] = HeldOut.model_validate(job["heldout"]) if job.get("heldout") else None
        manifest = quantize(**job)
    except MoecapError as error:
        print(f"{_ERROR}{error}", file=sys.stderr, flush=True)
        return 1
    log.info("%s: %d files, %s", job["output_dir"], len(manifest["files"]), _binary(manifest["size_bytes"]))
    return 0


def _binary(size_bytes: int) -> str:
    """A size for people.

    >>> _binary(3 * 2**20)
    '3.0 MiB'
    """
    power = min(int(math.log(max(size_bytes, 1), 1024)), 4)
    return f"{size_bytes / 1024**power:.1f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


if __name__ == "__main__":
    raise SystemExit(main())
