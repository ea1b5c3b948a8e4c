"""Snakemake killed in the middle of a timed job, and started a second time: caused for real, with the workflow's own
beginnings (rules/common.smk) around a job that sleeps."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.dag.conftest import copy_workflow

SNAKEFILE = """
configfile: "config/config.yaml"
include: "rules/common.smk"

onstart:
    begin_run()

onerror:
    report_over_what_there_is()

rule timed:
    output: f"{paths.results}/timed.txt"
    log: f"{paths.results}/logs/timed.log"
    threads: timed_threads
    script: "scripts/timed.py"
"""
# A job with an engine in a session of its own; both are at work until somebody says "go".
SCRIPT = """
import os, subprocess, sys, time
from pathlib import Path
from moecap.jobs.workflow import script

with script(snakemake) as job:
    engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    with open("began.txt", "a") as began:
        began.write(f"{os.getpid()} {engine.pid}\\n")
    while not Path("go").exists():
        time.sleep(0.05)
    engine.kill()
    Path(job.output[0]).write_text("timed\\n")
"""


class Workflow:
    def __init__(self, folder: Path) -> None:
        self.folder = copy_workflow(folder)
        (folder / "Snakefile").write_text(SNAKEFILE, encoding="utf-8")
        (folder / "scripts/timed.py").write_text(SCRIPT, encoding="utf-8")
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str) -> tuple[subprocess.Popen[bytes], Path]:
        log = self.folder / f"log-{len(self.started)}.txt"
        command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments, "--", "timed"]
        with log.open("wb") as output:
            process = subprocess.Popen(command, cwd=self.folder, stdout=output, stderr=output, start_new_session=True)
        self.started.append(process)
        return process, log

    def jobs(self) -> list[tuple[int, int]]:
        """Process ids of every timed job that began, and of its engine."""
        path = self.folder / "began.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(job), int(engine)) for job, engine in map(str.split, lines)]

    def wait(self, condition: Callable[[], bool], log: Path) -> None:
        deadline = time.monotonic() + 240
        while not condition():
            assert time.monotonic() < deadline and self.started[-1].poll() is None, log.read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        for pid in [p.pid for p in self.started] + [pid for job in self.jobs() for pid in job]:
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def workflow(tmp_path: Path) -> Iterator[Workflow]:
    found = Workflow(tmp_path / "workflow")
    yield found
    found.stop()


def alive(*pids: int) -> list[bool]:
    return [psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE for p in pids]


def test_after_kill_9_nothing_is_timed_beside_what_was_left(workflow: Workflow) -> None:
    first, log = workflow.start()
    workflow.wait(lambda: bool(workflow.jobs()), log)

    # A second start, while the first is at work: one paragraph that names it, none of Snakemake's own advice.
    second, said = workflow.start()
    assert second.wait(240) == 1
    text = said.read_text()
    assert text.count("error: ") == 1 and f"in use: snakemake, process {first.pid} on " in text
    assert "unlock" not in text and "Traceback" not in text and len(workflow.jobs()) == 1

    job, engine = workflow.jobs()[0]
    first.kill()
    first.wait()
    assert alive(job, engine) == [True, True], "the job lives on without its snakemake"

    again, log = workflow.start()
    workflow.wait(lambda: len(workflow.jobs()) == 2, log)
    assert alive(job, engine) == [False, False]
    said_again = log.read_text()
    assert "The lock of a run that was killed is lifted" in said_again
    ended = re.search(r"Ended (\d+) process\(es\) that an earlier run on results left behind: (.*)\.", said_again)
    assert ended and f"{job} (" in ended[2] and f"{engine} (" in ended[2], said_again
    (workflow.folder / "go").touch()
    assert again.wait(240) == 0, log.read_text()
    assert not (workflow.folder / "results/running.json").exists()
    assert not list((workflow.folder / "results").glob("processes/*"))


def test_a_job_that_was_killed_leaves_no_engine_beside_the_next_try(workflow: Workflow) -> None:
    run, log = workflow.start("--retries", "1")
    workflow.wait(lambda: bool(workflow.jobs()), log)
    job, engine = workflow.jobs()[0]
    os.kill(job, signal.SIGKILL)
    workflow.wait(lambda: len(workflow.jobs()) == 2, log)
    assert alive(job, engine) == [False, False] and f"{engine} (" in log.read_text()
    (workflow.folder / "go").touch()
    assert run.wait(240) == 0, log.read_text()
