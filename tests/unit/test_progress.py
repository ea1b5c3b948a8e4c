"""A line per finished job, from what Snakemake logs: told by a made-up run, and by a real one."""

from __future__ import annotations

import io
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moecap.jobs.progress import Progress

RUN = """
from snakemake.cli import parse_args
from moecap.jobs import progress
import sys
if workflow.is_main_process:
    progress.attach(logger, parse_args(sys.argv[1:])[1].quiet)
rule all:
    input: "a.txt", "b.txt"
rule make:
    output: "{name}.txt"
    shell: "echo > {output}"
"""


def told(counts: dict[str, int], order: list[str], seconds: list[float]) -> list[str]:
    """What is printed of a run whose jobs come one after the other."""
    now, out = [0.0], io.StringIO()
    handler = Progress(out, lambda: now[0])

    def log(event: str, **facts: object) -> None:
        handler.emit(logging.makeLogRecord({"event": event, **facts}))

    log("run_info", stats={**counts, "total": sum(counts.values())})
    for number, (rule, took) in enumerate(zip(order, seconds, strict=True)):
        log("job_info", jobid=number, rule_name=rule, wildcards={"deployment": "x"})
        log("job_started", jobs=[number])
        now[0] += took
        log("job_finished", job_id=number)
    log("progress", done=1, total=1)
    return out.getvalue().splitlines()


def test_the_time_left_is_that_of_like_jobs() -> None:
    lines = told({"measure": 3, "cost": 2}, ["measure", "measure", "cost"], [10.0, 20.0, 1.0])
    assert lines == [
        "[1/5] measure x: 10 s; about 40 s of work left",  # cost is not known yet: as the mean of all
        "[2/5] measure x: 20 s; about 45 s of work left",
        "[3/5] cost x: 1 s; about 16 s of work left",
    ]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.1, 50)), min_size=1, max_size=8))
def test_every_job_has_a_line_and_the_last_leaves_nothing(jobs: list[tuple[str, float]]) -> None:
    order = [rule for rule, _ in jobs]
    lines = told({rule: order.count(rule) for rule in set(order)}, order, [s for _, s in jobs])
    assert [line.split("]")[0] for line in lines] == [f"[{i}/{len(jobs)}" for i in range(1, len(jobs) + 1)]
    assert ["left" in line for line in lines] == [True] * (len(jobs) - 1) + [False]


@pytest.mark.parametrize(
    ("quiet", "ours"),
    [(["rules", "reason"], True), (["rules", "progress"], False), (["all"], False), (["reason"], False)],
)
def test_a_real_run_is_told(tmp_path: Path, quiet: list[str], ours: bool) -> None:
    """Snakemake's events have these names and facts; what it would say of the same is not said twice."""
    (tmp_path / "Snakefile").write_text(RUN, encoding="utf-8")
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--quiet", *quiet]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = sorted(line for line in done.stderr.splitlines() if re.match(r"\[\d", line))
    assert len(lines) == (3 if ours else 0)
    if ours:
        assert {line.split()[2] for line in lines[:2]} == {"a:", "b:"}
        assert lines[2].startswith("[3/3] all")
        assert "work left" in lines[0]
        assert "steps" not in done.stderr and "Select jobs" not in done.stderr
