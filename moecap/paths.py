"""Where results lie. The only module that knows; Snakemake rules, scripts and reports all ask here.

Patterns contain Snakemake wildcards; :func:`fill` puts values in. ``{results}`` is already filled in by
:class:`Paths`, so that a path explains itself: stage, then what it is keyed by.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Paths:
    """Every file of a results tree, as a pattern over Snakemake wildcards."""

    results: str = "results"

    def __getattr__(self, name: str) -> str:
        if name in _PATTERNS:
            return f"{self.results}/{_PATTERNS[name]}"
        raise AttributeError(name)


_PATTERNS = {
    # Checkpoints. A variant is model/precision. The manifest is what other rules ask for: it is written last.
    "checkpoint": "models/{model}/{precision}",
    "manifest": "models/{model}/{precision}/manifest.json",
    "demo_data": "data/demo/manifest.json",
    "anatomy": "anatomy/{model}/{precision}.json",
    "anatomy_table": "anatomy/{model}/{precision}.parquet",
    "measured_bytes": "bytes/{model}/{precision}.parquet",
    # Accuracy does not depend on the number of devices; `settings` is the hash of all that it does depend on.
    "accuracy": "accuracy/{model}/{precision}/{engine}/{dataset}-{settings}.parquet",
    "samples": "accuracy/{model}/{precision}/{engine}/{dataset}-{settings}.samples.parquet",
    # Answers to open questions, as a judge compared them with a baseline's; each judgment is kept in the spool.
    "judged": "judged/{model}/{precision}/{engine}/{dataset}-{settings}.parquet",
    "games": "judged/{model}/{precision}/{engine}/{dataset}-{settings}.games.parquet",
    "judgments": "spool/judgments/{model}/{precision}/{engine}/{dataset}.jsonl",
    # The spool is not declared to Snakemake: it outlives failed jobs. One entry per measured point,
    # and the answers of every evaluation.
    "spool": "spool",
    "points": "performance/{deployment}/points.parquet",
    "requests": "performance/{deployment}/requests.parquet",
    "schedule": "performance/{deployment}/schedule.parquet",
    "routing": "routing/{model}/{precision}.parquet",
    "decoded": "decoded/{deployment}/requests.parquet",
    "decoded_schedule": "decoded/{deployment}/schedule.parquet",
    "replay_check": "replay_check/{deployment}.parquet",
    "routing_cache": "spool/routing/{model}/{precision}",
    "machine": "machine/{hardware}.json",
    "steps": "metrics/{deployment}/steps.parquet",
    "routing_analysis": "metrics/{deployment}/routing.parquet",
    "metrics": "metrics/{deployment}.parquet",
    "cost": "cost/{deployment}.parquet",
    "published": "published/{stage}.parquet",
    # What each output was made from: moves with the results (moecap/jobs/records.py).
    "records": "records",
    "failures": "failures",
    "cap": "cap.parquet",
    "charts": "charts",
    "report": "report.html",
    "plan": "plan.parquet",
    "answers": "plan.txt",
    "cross_check": "planner/cross_check.parquet",
    "archive": "archive/{name}.tar.zst",
    "redrawn": "redrawn/{name}",
    "comparison": "comparison",
    "log": "logs",
    "benchmark": "benchmarks",
}


#: The catalogue that comes with the package (in the repository a link to config/catalogue).
PACKAGED_CATALOGUE = Path(__file__).parent / "catalogue"
#: Where a project of its own keeps one.
PROJECT_CATALOGUE = Path("config/catalogue")
#: The same of the workflow's own lm-eval tasks, a YAML file each.
PACKAGED_TASKS = Path(__file__).parent / "tasks"
PROJECT_TASKS = Path("config/tasks")


def catalogue_layers(folder: str | Path = PROJECT_CATALOGUE) -> list[Path]:
    """Folders of the catalogue, the packaged one first: an entry of a later one takes an earlier one's place.

    A folder that does not exist is no layer; one that is the packaged catalogue itself counts once.
    """
    return _layers(PACKAGED_CATALOGUE, Path(folder))


def task_layers(folder: str | Path = PROJECT_TASKS) -> list[Path]:
    """Folders of lm-eval tasks, layered as the catalogue is: the datasets of the packaged one name packaged tasks."""
    return _layers(PACKAGED_TASKS, Path(folder))


def _layers(packaged: Path, own: Path) -> list[Path]:
    if not own.is_dir():
        return [packaged]
    return [own] if own.samefile(packaged) else [packaged, own]


def fill(pattern: str, **wildcards: object) -> str:
    """``pattern`` with its wildcards filled in; a missing one is an error.

    >>> fill(Paths("results").manifest, model="demo-moe", precision="int8")
    'results/models/demo-moe/int8/manifest.json'
    """
    return pattern.format(**wildcards)
