"""lm-eval's tasks as data: which there are, and whether a dataset's entry fits the one that it names.

Everything is read off YAML files. lm-eval is not imported (which takes seconds), no data is fetched, no model loaded.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from moecap.errors import MoecapError, nearest
from moecap.paths import PROJECT_TASKS, task_layers

log = logging.getLogger(__name__)

Folder = str | os.PathLike[str]

_NAME = re.compile(r"""^["']?(?:task|group)["']?: *["']?([\w.\-]+)["']? *(?:#.*)?$""", re.MULTILINE)
_TAGS = re.compile(r"""^["']?tag["']?:((?: *[^\n]*)(?:\n *- *[^\n]+)*)""", re.MULTILINE)
#: What can be a task's name, and a file's.
_SOUND = re.compile(r"[\w.\-]{1,200}")
_WORD = re.compile(r"[\w.\-]*\w[\w.\-]*")


def own_file(name: str, task_dir: Folder = PROJECT_TASKS) -> Path | None:
    """The file of a task that is not lm-eval's: of ``task_dir``, else of those that come with the package."""
    files = [folder / f"{name}.yaml" for folder in reversed(task_layers(os.fspath(task_dir)))]
    return next((file for file in files if file.is_file()), None)


def known_tasks(task_dir: Folder = PROJECT_TASKS) -> dict[str, Path]:
    """Tasks, groups and tags of ``task_dir``, the package and lm-eval, each with the YAML file that names it first.

    They are read off the files: lm-eval is not imported (which takes seconds) and its index is not built (which takes
    ten). Where lm-eval is not installed, the names of the other two are all that is known.
    """
    return _known_tasks(tuple(folder.resolve() for folder in reversed(task_layers(os.fspath(task_dir)))))


@cache
def _known_tasks(folders: tuple[Path, ...]) -> dict[str, Path]:
    names: dict[str, Path] = {}
    for folder in filter(None, (*folders, lm_eval_tasks())):
        for name, path in _named_below(folder):
            names.setdefault(name, path)
    return names


def _named_below(folder: Path) -> Iterator[tuple[str, Path]]:
    """Tasks, groups and tags with the file that names them."""
    for path in sorted(folder.glob("**/*.yaml")):
        text = path.read_text(errors="replace")
        for name in _NAME.findall(text):
            yield name, path
        for block in _TAGS.findall(text):
            for name in _WORD.findall(block):
                yield name, path


@cache
def _in_a_folder_of_its_name(name: str) -> bool:
    """Whether lm-eval has the task where most tasks are; spares the search through its 12,000 files at every start."""
    tasks = lm_eval_tasks()
    return tasks is not None and any(found == name for found, _ in _named_below(tasks / name))


def lm_eval_tasks() -> Path | None:
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))) / "tasks"


def check_task(name: str, task_dir: Folder = PROJECT_TASKS, where: str = "`task` of a dataset") -> None:
    """Fail if there is no task, group or tag ``name``; takes about a second, and no model is loaded.

    Args:
        where: file, row and key that asked, for the message.

    Raises:
        MoecapError: no such task, with the nearest names.
    """
    sound = _SOUND.fullmatch(name) is not None
    if sound and (own_file(name, task_dir) is not None or _in_a_folder_of_its_name(name)):
        return
    known = known_tasks(task_dir)
    if name in known:
        return
    if lm_eval_tasks() is None:
        log.warning("lm-eval is not installed here: whether it has a task %r cannot be checked", name)
        return
    raise MoecapError(
        f"{where} is {name!r}, which is no lm-eval task, neither in {task_dir} nor among lm-eval's own. "
        f"{_near(name, known)} A task of your own is a YAML file in {task_dir}."
    )


def _near(name: str, known: Iterable[str]) -> str:
    """Near misses out of twelve thousand names: the list itself would help nobody."""
    sentence = nearest(name, known)
    return sentence.split(" Known:")[0] if sentence.startswith("Did you mean") else "`lm_eval ls tasks` lists them."


# -- what a task computes -------------------------------------------------------------------------------------------

#: `kind` of a dataset -> lm-eval's `output_type`.
OUTPUT_TYPES = {
    "generate": "generate_until",
    "multiple_choice": "multiple_choice",
    "perplexity": "loglikelihood_rolling",
    "judged": "generate_until",
}
#: Metrics of a task that lists none (lm-eval's DEFAULT_METRIC_REGISTRY), by output type.
_DEFAULT_METRICS = {"generate_until": ("exact_match",), "multiple_choice": ("acc", "acc_norm")}
#: lm-eval's metrics that are a mean over questions without saying so; others have an aggregation of their own.
_MEANS = {"acc", "acc_norm", "acc_mutual_info", "acc_bytes", "acc_all", "exact_match", "likelihood"}


@dataclass(frozen=True)
class TaskFacts:
    """What a task's file says. ``metrics``: metric -> how its scores become one; ``splits``: what is read, by use."""

    name: str
    kind: str  # task, group or tag
    output_type: str | None = None
    metrics: Mapping[str, str] | None = None
    filters: tuple[str, ...] = ("none",)
    splits: Mapping[str, str] | None = None
    members: tuple[str, ...] = ()
    path: Path | None = None


def task_facts(name: str, task_dir: Folder = PROJECT_TASKS, near: Path | None = None) -> TaskFacts | None:
    """What the file of a task, group or tag says; None where there is none, or it cannot be read without lm-eval.

    Args:
        near: a folder to look in first; looking through all of lm-eval's 12,000 files takes seconds.
    """
    path = _file_of(name, task_dir, near)
    if path is None:
        return None
    try:
        config = _load(path)
    except Exception:  # a task's file may hold whatever lm-eval reads; what it says then is not known here
        log.debug("the file of task %s is not read", name, exc_info=True)
        return None
    if config.get("group") == name:
        return replace(_group_facts(name, config), path=path)
    if config.get("task") != name:
        tags = config.get("tag") or ()
        tags = [tags] if isinstance(tags, str) else list(tags)
        return replace(_leaf_facts(name, config), kind="tag") if name in tags else None
    return _leaf_facts(name, config)


def _leaf_facts(name: str, config: Mapping[str, Any]) -> TaskFacts:
    if "class" in config:  # a task in Python: its file does not say what it computes
        return TaskFacts(name, "task")
    output = str(config.get("output_type", "generate_until"))
    listed = config.get("metric_list")
    metrics: dict[str, str] = {}
    for entry in listed if isinstance(listed, list) else [{"metric": m} for m in _DEFAULT_METRICS.get(output, ())]:
        metric = str(entry.get("metric", ""))
        default = "mean" if metric.rpartition(".")[2] in _MEANS else metric
        metrics[metric] = str(entry.get("aggregation") or default)
    filters = config.get("filter_list")
    names = tuple(str(f.get("name")) for f in filters) if isinstance(filters, list) and filters else ("none",)
    splits = {"questions": config.get("test_split") or config.get("validation_split")}
    if config.get("num_fewshot"):
        splits["worked examples"] = config.get("fewshot_split") or config.get("training_split")
    return TaskFacts(name, "task", output, metrics, names, {use: str(split) for use, split in splits.items() if split})


def _group_facts(name: str, config: Mapping[str, Any]) -> TaskFacts:
    listed = config.get("aggregate_metric_list") or ()
    listed = [listed] if isinstance(listed, Mapping) else list(listed)
    metrics = {str(entry.get("metric")): str(entry.get("aggregation", "mean")) for entry in listed}
    filters: list[str] = []
    for entry in listed:
        own = entry.get("filter_list") or "none"
        filters += [own] if isinstance(own, str) else list(own)
    members = config.get("task") or ()
    members = [members] if isinstance(members, str) else list(members)
    names = tuple(m if isinstance(m, str) else str(m.get("task") or m.get("group")) for m in members)
    return TaskFacts(name, "group", None, metrics, tuple(dict.fromkeys(filters)), None, names)


@cache
def _yaml_loader() -> Any:
    """lm-eval's reader of task files (includes, functions), by its file: the package would take seconds."""
    root = lm_eval_tasks()
    if root is None:
        raise MoecapError("lm-eval is not installed")
    spec = importlib.util.spec_from_file_location("_moecap_lm_eval_yaml", root / "_yaml_loader.py")
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def _load(path: Path) -> dict[str, Any]:
    return _yaml_loader().load_yaml(path, resolve_func=False)


def _file_of(name: str, task_dir: Folder, near: Path | None = None) -> Path | None:
    if not _SOUND.fullmatch(name):
        return None
    if (own := own_file(name, task_dir)) is not None:
        return own
    root = lm_eval_tasks()
    for folder in (near, root / name if root is not None else None):
        found = [path for other, path in (_named_below(folder) if folder else ()) if other == name]
        if found:
            return next((path for path in found if _defines(path, name)), found[0])
    return known_tasks(task_dir).get(name)


def _defines(path: Path, name: str) -> bool:
    """Whether a file is the task or group of that name, not one that only carries it as a tag."""
    return name in _NAME.findall(path.read_text(encoding="utf-8", errors="replace"))


def check_scoring(
    task: str,
    metric: str,
    kind: str | None = None,
    task_dir: Folder = PROJECT_TASKS,
    where: str = "",
) -> list[tuple[str, str]]:
    """What of a dataset's entry does not fit its task: (key, sentence) each.

    An accuracy is the mean of one score per question, so that it has a standard error and can be checked: a metric
    that lm-eval makes otherwise (a list per question, a corpus score), and tasks that it has no score for together,
    are refused here, not after all questions were answered.
    """
    facts = task_facts(task, task_dir)
    if facts is None:
        return []
    name, _, filter_name = metric.partition(",")
    filter_name = filter_name or "none"
    if kind == "judged":
        return _check_judged(facts, metric)
    if facts.kind == "tag":
        return [
            ("task", f"{task!r} is a tag of several tasks, for which lm-eval has no score together. Name one task.")
        ]
    wrong: list[tuple[str, str]] = []
    leaf = facts if facts.kind == "task" else _first_leaf(facts, task_dir)
    if facts.kind == "group" and not facts.metrics:
        return [
            (
                "task",
                f"{task!r} is a group without a score of its own (no `aggregate_metric_list`). Name one of its tasks: "
                f"{', '.join(facts.members[:8])}.",
            )
        ]
    metrics = dict(facts.metrics or {})
    if name in metrics and (without := [leaf.name for leaf in _leaves(facts, task_dir) if not _scores(leaf, name)]):
        text = (
            f"{metric!r} is no score of all of group {task!r}: {len(without)} of its tasks lack it "
            f"({', '.join(without[:3])} …), and lm-eval would leave them out. Name one of its tasks: "
            f"{', '.join(facts.members[:8])}."
        )
        return [("metric", text)]
    if metrics and name not in metrics:
        text = f"{metric!r} asks for {name!r}, which task {task!r} does not compute. {nearest(name, metrics)}"
        wrong.append(("metric", text))
    elif kind == "perplexity" and name not in PERPLEXITIES:
        wrong.append(("metric", f"{name!r} is no perplexity. {nearest(name, PERPLEXITIES)}"))
    elif metrics and kind != "perplexity" and not _is_mean(metrics[name], leaf, name):
        means = ", ".join(m for m, how in metrics.items() if how == "mean")
        text = (
            f"{name!r} of task {task!r} is no mean of one score per question (lm-eval's `aggregation`: "
            f"{_short(metrics[name])}). {f'Those that are: {means}.' if means else 'Take another task.'}"
        )
        wrong.append(("metric", text))
    if filter_name not in facts.filters:
        known = next(iter(metrics), name) if name not in metrics else name
        text = (
            f"{metric!r} asks for the filter {filter_name!r}, which task {task!r} lacks. "
            f"{nearest(filter_name, facts.filters)} It stands after a comma: `{known},{facts.filters[0]}`."
        )
        wrong.append(("metric", text))
    output = leaf.output_type if leaf else None
    if kind in OUTPUT_TYPES and output is not None and output != OUTPUT_TYPES[kind]:
        fits = next((k for k, o in OUTPUT_TYPES.items() if o == output), None)
        remedy = f"Its kind is {fits}." if fits else f"Tasks of output type {output} have no accuracy here."
        wrong.append(("kind", f"{kind!r} is not what task {task!r} asks ({output}). {remedy}"))
    return wrong


#: Corpus scores of texts whose likelihood is asked for.
PERPLEXITIES = ("word_perplexity", "byte_perplexity", "bits_per_byte")


def _check_judged(facts: TaskFacts, metric: str) -> list[tuple[str, str]]:
    wrong = []
    if metric != "win_rate":
        wrong.append(("metric", f"{metric!r} is no metric of a judge; of kind judged it is win_rate."))
    if facts.kind != "task" or facts.output_type != "generate_until" or "bypass" not in (facts.metrics or {}):
        wrong.append(("task", f"{facts.name!r} is no task of written answers that lm-eval leaves unscored (`bypass`)."))
    return wrong


def _is_mean(aggregation: str, leaf: TaskFacts | None, metric: str) -> bool:
    """The task's own aggregation, and under a group that of its tasks, too."""
    own = (leaf.metrics or {}).get(metric, "mean") if leaf else "mean"
    return aggregation == "mean" and own == "mean"


def _short(aggregation: str) -> str:
    return Path(aggregation).name if "/" in aggregation else aggregation


def _first_leaf(group: TaskFacts, task_dir: Folder) -> TaskFacts | None:
    """A task of a group: its tasks are of one kind, or the group could not put their scores together."""
    near = group.path.parent if group.path else None
    for _ in range(4):
        member = task_facts(group.members[0], task_dir, near) if group.members else None
        if member is None or member.kind != "group":
            return member
        group = member
    return None


def _scores(leaf: TaskFacts, metric: str) -> bool:
    return leaf.metrics is None or metric in leaf.metrics


def _leaves(group: TaskFacts, task_dir: Folder, depth: int = 4) -> Iterator[TaskFacts]:
    """The tasks of a group and of the groups below it; of a tag the first one, as its tasks are of one template."""
    near = group.path.parent if group.path else None
    for name in group.members if depth else ():
        member = task_facts(name, task_dir, near)
        if member is not None and member.kind == "group":
            yield from _leaves(member, task_dir, depth - 1)
        elif member is not None:
            yield member


# -- local data -----------------------------------------------------------------------------------------------------

BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def check_data_files(
    task: str,
    files: Mapping[str, str],
    num_fewshot: int | None = None,
    task_dir: Folder = PROJECT_TASKS,
) -> list[tuple[str, str]]:
    """What is wrong with local files that stand in for a task's data: (split, sentence) each."""
    wrong: list[tuple[str, str]] = []
    suffixes = {Path(path).suffix.lower() for path in files.values()}
    for split, path in files.items():
        if Path(path).suffix.lower() not in BUILDERS:
            wrong.append((split, f"{path} is no file of a kind that is read: {', '.join(BUILDERS)}."))
        elif (problem := _unreadable(Path(path))) is not None:
            wrong.append((split, problem))
    if not wrong and len(suffixes) > 1:
        wrong.append(("", f"{', '.join(files.values())} must be files of one kind, out of {', '.join(BUILDERS)}."))
    facts = task_facts(task, task_dir)
    if facts is None:
        return wrong
    if facts.kind != "task":
        wrong.append(
            ("", f"local files stand in for one task's data, and {task!r} is a {facts.kind} of several tasks.")
        )
        return wrong
    needed = dict(facts.splits or {})
    if num_fewshot == 0:
        needed.pop("worked examples", None)
    for use, split in needed.items():
        if split not in files:
            text = f"has no file for the split {split!r}, from which task {task!r} reads its {use}; it gives "
            wrong.append(("", f"{text}{', '.join(files)}."))
    return wrong


def _unreadable(path: Path) -> str | None:
    """Why a data file cannot be read, by its first row; None: it can."""
    try:
        if path.is_dir():
            return f"{path} is a folder; a file is expected."
        if path.stat().st_size == 0:
            return f"{path} is empty."
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet as pq

            return None if pq.read_metadata(path).num_rows else f"{path} has no row."
        with path.open(encoding="utf-8-sig") as handle:
            if path.suffix.lower() == ".csv":
                rows = [row for row, _ in zip(csv.reader(handle), range(2), strict=False)]
                return None if len(rows) == 2 else f"{path} has no row below its header."
            return _not_json(path, handle)
    except FileNotFoundError:
        return f"{path} does not exist."
    except UnicodeDecodeError as error:
        return f"{path} is not UTF-8 text (byte {error.start}). Save it as UTF-8."
    except (OSError, ValueError, csv.Error) as error:
        return f"{path} cannot be read as {path.suffix[1:]}: {str(error).splitlines()[0]}."


def _not_json(path: Path, handle: Iterable[str]) -> str | None:
    if path.suffix.lower() == ".json":
        value = json.loads("".join(handle))
        rows = value if isinstance(value, list) else [value]
        return None if rows and isinstance(rows[0], dict) else f"{path} is no list of objects."
    number = 0
    for number, line in enumerate(handle, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                return f"{path}, line {number}: no JSON object ({error.msg})."
            return None if isinstance(row, dict) else f"{path}, line {number}: an object per line is expected."
    return f"{path} has no row."
