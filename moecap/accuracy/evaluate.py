"""Accuracy by lm-eval: the task, the engine and the answers are lm-eval's; this module loads, checks and counts.

A task is data. A dataset's catalogue entry names an lm-eval task: either one of lm-eval's own (``gsm8k``, the ``mmlu``
group) or a YAML file in ``config/tasks``, over those that the package brings. Local files can take the place of a
task's download (``data_files``), so that a task's own prompts, answer extraction and metric run without a network.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from moecap.accuracy.answers import SLICE, AnswerSpool, KeepingLM
from moecap.accuracy.context import context_tokens
from moecap.accuracy.counting import samples_of, score
from moecap.accuracy.served import SERVED, TRIES, cannot_score, load_served, version_of
from moecap.accuracy.tasks import BUILDERS, Folder, check_scoring, check_task, known_tasks, lm_eval_tasks, own_file
from moecap.columns.accuracy import ACCURACY, ANSWER, EVALUATION
from moecap.columns.base import schema
from moecap.columns.deployment import DEPLOYMENT, POINT
from moecap.engines.base import library_versions as engine_versions
from moecap.engines.vllm.multinode import over_nodes
from moecap.errors import MoecapError, PermanentError, nearest
from moecap.paths import PROJECT_TASKS, task_layers
from moecap.provenance import library_versions

log = logging.getLogger(__name__)

ROW_SCHEMA = schema(
    "model precision engine dataset metric accuracy accuracy_stderr accuracy_n accuracy_failed accuracy_empty "
    "accuracy_cut accuracy_unparsed accuracy_degenerate perplexity perplexity_stderr metrics settings task_hash "
    "lm_eval_version engine_version",
    *(DEPLOYMENT, POINT, ACCURACY, EVALUATION),
)
SAMPLES_SCHEMA = schema(
    "task doc_id prompt target response loglikelihoods score degenerate failed cut unparsed doc", ANSWER
)

# ---------------------------------------------------------------------------------------------------------------------
# Tasks
# ---------------------------------------------------------------------------------------------------------------------


@cache
def _task_manager(folders: tuple[str, ...], defaults: bool) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=list(folders), include_defaults=defaults)


def _task_managers(name: str, task_dir: Folder) -> Iterator[Any]:
    """First one that knows the folder of task ``name`` alone, which is quick; then one that knows all of lm-eval's."""
    if (own := own_file(name, task_dir)) is not None:
        yield _task_manager((str(own.parent.resolve()),), False)
        return
    root, path = lm_eval_tasks(), known_tasks(task_dir).get(name)
    if root is not None and path is not None and path.is_relative_to(root):
        yield _task_manager((str(root / path.relative_to(root).parts[0]),), False)
    yield _task_manager(tuple(str(folder.resolve()) for folder in task_layers(os.fspath(task_dir))), True)


def load_task(
    name: str,
    task_dir: Folder = PROJECT_TASKS,
    data_files: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> dict[str, Any]:
    """lm-eval's task dictionary (``tasks``, ``groups``, ``group_map``) of the task or group ``name``.

    Args:
        name: a task of ``task_dir``, which comes first, of the package, or of lm-eval.
        task_dir: folder of task YAML files.
        data_files: local JSONL, CSV or Parquet file per split, in place of the task's own download.
        limit: only to say in the log how much is to be done.

    Raises:
        MoecapError: no such task; a local file is missing or lacks what the task reads; its data cannot be had.
    """
    check_task(name, task_dir)
    failure: Exception | None = None
    for manager in _task_managers(name, task_dir):
        if name not in manager.task_index:
            continue
        spec = _with_local_data(name, manager.task_index[name], data_files) if data_files else name
        try:
            loaded = manager.load([spec])
            break
        except Exception as error:  # lm-eval, datasets and the network raise what they like
            failure = failure or error
    else:
        raise MoecapError(
            f"The data of task {name!r} could not be loaded ({_first_line(failure or KeyError(name))}) A dataset of "
            "the hub needs the network once, or a filled HF_HOME; `data_files` in the config names local files per "
            "split instead."
        ) from failure
    questions = sum(min(limit or math.inf, len(list(task.eval_docs))) for task in loaded["tasks"].values())
    log.info("task %s: %d task(s), %d questions", name, len(loaded["tasks"]), questions)
    return loaded


def _with_local_data(name: str, entry: Any, data_files: Mapping[str, str]) -> dict[str, Any]:
    """The task's whole config, with its data source replaced by local files."""
    from lm_eval.tasks._yaml_loader import load_yaml

    if entry.kind.name != "TASK":
        raise MoecapError(
            f"`data_files` of the dataset with task {name!r}: local files can stand in for one task's data, and "
            f"{name!r} is a {entry.kind.name.lower()} of several tasks. Name one of its tasks."
        )

    suffixes = {Path(path).suffix for path in data_files.values()}
    if len(suffixes) != 1 or not suffixes <= set(BUILDERS):
        raise MoecapError(
            f"`data_files` of task {name!r}: {', '.join(data_files.values())} must be files of one kind, out of "
            f"{', '.join(BUILDERS)}."
        )
    for split, path in data_files.items():
        if not Path(path).is_file():
            raise MoecapError(f"`data_files` of task {name!r}: {path} (split {split!r}) does not exist.")
    config = load_yaml(entry.yaml_path, resolve_func=True) if entry.yaml_path else dict(entry.cfg)
    needed = {config.get("test_split") or config.get("validation_split")}
    if config.get("num_fewshot"):
        needed.add(config.get("fewshot_split") or config.get("training_split"))
    missing = {split for split in needed if split} - set(data_files)
    if missing:
        raise MoecapError(
            f"`data_files` of task {name!r} has no file for its split(s) {', '.join(sorted(missing))}; it gives "
            f"{', '.join(data_files)}. The task reads its questions and its worked examples from there."
        )
    # Splits that the task names but that are not given are not read.
    for key in ("training_split", "validation_split", "fewshot_split"):
        if config.get(key) and config[key] not in data_files:
            config[key] = None
    return {
        **config,
        "task": name,
        "dataset_path": BUILDERS[suffixes.pop()],
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: os.path.abspath(path) for split, path in data_files.items()}},  # noqa: PTH100
    }


def task_hash(configs: Mapping[str, Any], data_files: Mapping[str, str] | None = None) -> str:
    """Hash of everything that a task is: prompts, metric, splits, and the bytes of local data; no path is in it."""
    plain = {}
    for name, config in sorted(configs.items()):
        kept = {k: v for k, v in config.items() if k not in ("dataset_kwargs", "metadata")}
        plain[name] = kept | {"version": (config.get("metadata") or {}).get("version")}
    content = {
        split: hashlib.sha256(Path(p).read_bytes()).hexdigest() for split, p in sorted((data_files or {}).items())
    }
    text = json.dumps([plain, content], sort_keys=True, default=lambda value: getattr(value, "__name__", str(value)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation
# ---------------------------------------------------------------------------------------------------------------------


# What accuracy needs to know of an engine, as in config/catalogue/engines.yaml.
VLLM_CPU: dict[str, Any] = {
    "device": "cpu",
    "lm_eval": {"model": "vllm", "model_args": {"dtype": "bfloat16", "enforce_eager": True, "batch_size": "auto"}},
}


def model_arguments(
    model_dir: str | os.PathLike[str],
    engine: Mapping[str, Any],
    *,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    seed: int = 1,
    trust_remote_code: bool = False,
) -> tuple[str, dict[str, Any], int | str]:
    """lm-eval's name of an engine, its arguments and the batch size, out of the engine's catalogue entry.

    Raises:
        MoecapError: the entry does not say how lm-eval runs it.
    """
    entry = engine.get("lm_eval")
    if not entry or "model" not in entry:
        raise MoecapError(
            "An engine's `lm_eval` in config/catalogue/engines.yaml has to name lm-eval's `model` (vllm, hf, …) and "
            f"its `model_args`; without it accuracy cannot be evaluated. This engine has {dict(engine)}."
        )
    arguments = {"pretrained": os.fspath(model_dir), "trust_remote_code": trust_remote_code}
    arguments |= entry.get("model_args") or {}
    batch_size = arguments.pop("batch_size", "auto")
    if entry["model"] in SERVED:
        return entry["model"], arguments, 1  # how many are asked at a time is `num_concurrent`
    if entry["model"] == "vllm":
        shards = {"tensor_parallel_size": tensor_parallel, "pipeline_parallel_size": pipeline_parallel}
        arguments = {"seed": seed, **shards, "enable_prefix_caching": False} | arguments
    elif engine.get("device") == "cpu" and batch_size == "auto":
        batch_size = 32  # lm-eval's search for the largest batch that fits into memory is made for GPUs
    return entry["model"], arguments, batch_size


@contextmanager
def _engine_environment(engine: Mapping[str, Any]) -> Iterator[None]:
    """Settings that engines read from the environment; what the user has set stays."""
    wanted = dict((engine.get("options") or {}).get("env") or {})
    if engine["lm_eval"]["model"] == "vllm":
        wanted.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # in this process: it ends with it and shares its log
        if engine.get("device") == "cpu":
            wanted.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
            wanted.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # its binding is for a process of its own
    added = {name: str(value) for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def evaluate(
    model_dir: str | os.PathLike[str],
    dataset: Mapping[str, Any],
    engine: Mapping[str, Any] = VLLM_CPU,
    *,
    task_dir: Folder = PROJECT_TASKS,
    data_files: Mapping[str, str] | None = None,
    limit: int | None = None,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    seed: int = 1,
    trust_remote_code: bool = False,
    spool: str | os.PathLike[str] | None = None,
    checkpoint_sha256: str | None = None,
) -> tuple[dict[str, Any], pa.Table]:
    """Score a checkpoint on a dataset with lm-eval.

    Args:
        model_dir: a checkpoint in Hugging Face format.
        dataset: its catalogue entry: ``task``, ``metric`` (with lm-eval's filter after a comma, as in
            ``exact_match,strict-match``), optionally ``num_fewshot`` and ``chat_template``.
        engine: its catalogue entry: ``lm_eval`` (``model``, ``model_args``), ``device``, ``options.env``.
        task_dir: folder of task YAML files of one's own.
        data_files: local file per split, in place of the task's download.
        limit: only the first so many questions of each task.
        tensor_parallel, pipeline_parallel: how one copy of the model is spread over devices.
        seed: of lm-eval and engine.
        trust_remote_code: whether code from the checkpoint may run.
        spool: folder where answers are kept as they come, so that no question is put to a model twice
            (:mod:`moecap.accuracy.answers`); None: nothing is kept.
        checkpoint_sha256: hash of the checkpoint's files (:func:`moecap.checkpoints.files.checkpoint_sha256`), under
            which its answers are kept; without it nothing is.

    Returns:
        ``(row, samples)``: the row has metric, accuracy and accuracy_stderr (fractions), accuracy_n (questions
        attempted), accuracy_failed (no response; counted as wrong), accuracy_degenerate (wrong answers that are empty,
        blank or one character repeated), settings (JSON), task_hash, lm_eval_version, engine_version; samples has
        SAMPLES_SCHEMA.

    Raises:
        MoecapError: no such task (before any model is loaded), no data, metric unknown to the task, or the engine
            could not load or serve the checkpoint.
    """
    task, kind = dataset["task"], dataset.get("kind")
    metric, _, filter_name = str(dataset["metric"]).partition(",")
    filter_name = filter_name or "none"
    if kind == "judged":  # by somebody else, afterwards
        metric = "bypass"
    if why := cannot_score(engine, kind or "", bool(dataset.get("chat_template"))):
        raise PermanentError(f"The task {task!r} cannot be evaluated through this engine: {why}")
    if wrong := check_scoring(task, str(dataset["metric"]), dataset.get("kind"), task_dir):
        raise MoecapError(" ".join(f"`{key}` of the dataset with task {task!r}: {text}" for key, text in wrong))
    tasks = load_task(task, task_dir, data_files, limit)
    lm_name, lm_arguments, batch_size = model_arguments(
        model_dir,
        engine,
        tensor_parallel=tensor_parallel,
        pipeline_parallel=pipeline_parallel,
        seed=seed,
        trust_remote_code=trust_remote_code,
    )
    _set_fewshot(tasks, dataset.get("num_fewshot"), seed)
    kept = None
    if spool is not None and checkpoint_sha256 is not None:
        # Neither the place of the checkpoint nor room for longer questions changes an answer.
        given = {
            "checkpoint": checkpoint_sha256,
            "lm_eval_model": lm_name,
            "model_args": {key: value for key, value in lm_arguments.items() if key != "pretrained"},
            "batch_size": batch_size,
            "env": (engine.get("options") or {}).get("env") or {},
            "chat_template": bool(dataset.get("chat_template")),
            "seed": seed,
            "libraries": {**engine_versions(), **library_versions("lm-eval")},
        }
        if lm_name in SERVED:  # the port, and so the address, is another each time
            facts = {key: engine.get(key) for key in ("kind", "options", "distribution")}
            given["engine"] = {**facts, "version": version_of(engine, os.fspath(model_dir))}
        kept = AnswerSpool(spool, given)
    room = {"vllm": "max_model_len", **dict.fromkeys(SERVED, "max_length")}.get(lm_name)
    if room is not None and not {"max_model_len", "max_length"} & set(lm_arguments):
        chat = bool(dataset.get("chat_template"))
        context = context_tokens(model_dir, tasks["tasks"], limit=limit, chat=chat, trust=trust_remote_code)
        lm_arguments |= {} if context is None else {room: context}
    settings = {
        "task": task,
        "limit": limit,
        "num_fewshot": dataset.get("num_fewshot"),
        "chat_template": bool(dataset.get("chat_template")),
        "batch_size": batch_size,
        "lm_eval_model": lm_name,
        "seed": seed,
        "model_args": {k: v for k, v in lm_arguments.items() if k != "pretrained"},
    }
    load = partial(
        _load_model,
        lm_name,
        lm_arguments,
        batch_size,
        served={
            "engine": engine,
            "seed": seed,
            "prompts": _first_prompts(tasks["tasks"]),
            "logprobs": kind in ("multiple_choice", "perplexity"),
            "tensor_parallel": tensor_parallel,
            "pipeline_parallel": pipeline_parallel,
        },
    )
    results = _run(load, tasks, settings, engine, kept)

    tokenize = _tokenizer(model_dir, trust_remote_code) if kind != "multiple_choice" else None
    rows = samples_of(results, None if kind == "judged" else metric, filter_name, tokenize)
    samples = pa.Table.from_pylist(rows, schema=SAMPLES_SCHEMA)
    if samples.num_rows == 0:
        filters = sorted({s["filter"] for logged in results["samples"].values() for s in logged})
        raise MoecapError(
            f"`metric` of the dataset with task {task!r} asks for filter {filter_name!r}, which that task lacks. "
            f"{nearest(filter_name, filters)}"
        )
    attempted = sum(results["n-samples"][name]["effective"] for name in tasks["tasks"])
    failed = attempted - samples.num_rows + sum(samples["failed"].to_pylist())
    scores = results["groups"][task] if task in (results.get("groups") or {}) else results["results"][task]
    value: float | None
    if kind == "judged":
        value, stderr = None, None
    elif failed and kind != "perplexity":
        value, stderr = score(samples["score"].to_pylist(), attempted)
    else:  # lm-eval's own figures: it knows how a group weighs its tasks
        value, stderr = float(scores[f"{metric},{filter_name}"]), scores.get(f"{metric}_stderr,{filter_name}")
        stderr = stderr if isinstance(stderr, float) else None
    if kind == "perplexity":
        figures = {"perplexity": None if failed else value, "perplexity_stderr": stderr}
    else:
        figures = {"accuracy": value, "accuracy_stderr": stderr}
    written = [row for row in rows if row.get("loglikelihoods") is None and not row["failed"]]
    versions = library_versions("lm-eval", "vllm", "transformers", "torch", "datasets")
    row = {
        "metric": f"{metric},{filter_name}",
        **figures,
        "accuracy_n": attempted,
        "accuracy_failed": failed,
        "accuracy_empty": sum(not row["response"].strip() for row in written) if written else None,
        "accuracy_cut": _count(row.get("cut") for row in written),
        "accuracy_unparsed": _count(row.get("unparsed") for row in written),
        "metrics": json.dumps({k: v for k, v in scores.items() if "," in k}, sort_keys=True, default=str),
        "accuracy_degenerate": sum(samples["degenerate"].to_pylist()),
        "settings": json.dumps(settings, sort_keys=True, default=str),
        "task_hash": task_hash({n: results["configs"][n] for n in tasks["tasks"]}, data_files),
        "lm_eval_version": versions.get("lm-eval"),
        "engine_version": version_of(engine, os.fspath(model_dir))
        if lm_name in SERVED
        else versions.get("vllm" if lm_name == "vllm" else "transformers"),
    }
    return row, samples


def _count(marks: Iterator[bool | None]) -> int | None:
    """How many are marked so; null where nobody knows of some, or there are none."""
    listed = list(marks)
    return None if not listed or None in listed else sum(map(bool, listed))


def _tokenizer(model_dir: str | os.PathLike[str], trust: bool) -> Any:
    """Texts to token ids by the checkpoint's tokenizer; None where it has none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(os.fspath(model_dir), trust_remote_code=trust)
    except (OSError, ValueError):
        return None
    return lambda texts: tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []


def _first_prompts(tasks: Mapping[str, Any]) -> list[str]:
    """A few questions, to try a server with."""
    task = next(iter(tasks.values()))
    fewshot = int(task.config.num_fewshot or 0)
    texts = [task.fewshot_context(doc, num_fewshot=fewshot) for doc in islice(task.eval_docs, TRIES)]
    return [text for text in texts if isinstance(text, str) and text]


def _set_fewshot(tasks: Mapping[str, Any], num_fewshot: int | None, seed: int) -> None:
    """As lm-eval's simple_evaluate does it for tasks that it loads itself."""
    for leaf in tasks["tasks"].values():
        if num_fewshot is not None or leaf.get_config("num_fewshot") is None:
            leaf.set_config(key="num_fewshot", value=num_fewshot or 0)
        leaf.set_fewshot_seed(seed=seed)


def _run(
    load: Callable[..., Any],
    tasks: dict[str, Any],
    settings: Mapping[str, Any],
    engine: Mapping[str, Any],
    kept: AnswerSpool | None,
) -> dict[str, Any]:
    import lm_eval

    batch_size = settings["batch_size"]
    with _engine_environment(engine), ExitStack() as ranks:
        model = KeepingLM(
            lambda: load(ends=ranks),
            kept,
            # Whole batches; an engine that batches by itself needs more at a time to be kept busy.
            SLICE if isinstance(batch_size, str) or settings["lm_eval_model"] in SERVED else 4 * batch_size,
        )
        results = lm_eval.evaluate(
            lm=model,
            task_dict=tasks,
            limit=settings["limit"],
            bootstrap_iters=1000,
            log_samples=True,
            apply_chat_template=settings["chat_template"],
            fewshot_as_multiturn=settings["chat_template"],
        )
    if results is None:
        raise MoecapError("lm-eval returned no results: this process is not the first of a group.")
    log.info("%d answers were in the spool, %d questions asked", model.reused, model.asked)
    return results


def _load_model(
    lm_name: str, arguments: dict[str, Any], batch_size: int | str, *, served: Mapping[str, Any], ends: ExitStack
) -> Any:
    """lm-eval's model; what else has to run for it (a server, a vLLM over several nodes) ends with ``ends``."""
    if lm_name in SERVED:
        return load_served(arguments=arguments, ends=ends, **served)
    from lm_eval.api.registry import get_model

    try:
        if lm_name == "vllm":
            given = {"model" if k == "pretrained" else k: v for k, v in arguments.items()}
            arguments = arguments | ends.enter_context(over_nodes(given))
        return get_model(lm_name).create_from_arg_obj(_loaded(lm_name, arguments), {"batch_size": batch_size})
    except Exception as error:
        raise MoecapError(
            f"{lm_name} could not load {arguments['pretrained']} for the evaluation: {_first_line(error)} "
            "The log has the rest."
        ) from error


def _loaded(lm_name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """For Transformers on a quantized checkpoint, the model itself in place of its name.

    Transformers alone does not read every kind (see :mod:`moecap.checkpoints.dequantize`), and lm-eval would leave it
    at that.
    """
    if lm_name != "hf":
        return arguments
    config = Path(arguments["pretrained"]) / "config.json"
    if not config.is_file() or (
        "quantization_config" not in json.loads(config.read_text(encoding="utf-8"))
        and not any(config.parent.glob("*.gguf"))
    ):
        return arguments
    from moecap.checkpoints.dequantize import load_causal_lm

    options = {key: arguments[key] for key in ("dtype", "trust_remote_code") if key in arguments}
    model = load_causal_lm(arguments["pretrained"], **options)
    rest = {key: value for key, value in arguments.items() if key not in ("pretrained", "dtype")}
    return rest | {"pretrained": model.to(arguments.get("device", "cpu")), "tokenizer": arguments["pretrained"]}


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".") + "."
