"""One run at a time on a results folder."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from moecap.errors import MoecapError
from moecap.io import write_json
from moecap.jobs import running
from moecap.jobs.processes import identity


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".snakemake/locks").mkdir(parents=True)
    (tmp_path / ".snakemake/locks/0.input.lock").write_text("data/x\n")
    (tmp_path / ".snakemake/locks/0.output.lock").write_text("results/x\n")
    return tmp_path


def leave(run: running.Run) -> None:
    write_json(asdict(run), Path("results") / running.FILE)


@pytest.fixture
def other():
    """A live process that is not this one."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield running.Run(**asdict(identity(psutil.Process(process.pid))), directory=str(Path.cwd()))
    process.kill()
    process.wait()


def dead() -> running.Run:
    # The id is in use again, by somebody younger.
    return replace(running.this_run(), started_unix_s=1.0, start=None)


def test_begins_and_ends(folder):
    assert running.begin("results") == []
    assert running.last_run("results") == running.this_run()
    running.end("results")
    assert running.last_run("results") is None and list(Path("results").iterdir()) == []


def test_second_run_on_the_same_results_is_refused(folder, other):
    leave(other)
    with pytest.raises(MoecapError, match=rf"in use: snakemake, process {other.pid} on .*kill {other.pid}"):
        running.begin("results")
    running.end("results")  # the second one must not remove the first one's note
    assert running.last_run("results") == other


def test_lock_of_a_killed_run_is_lifted(folder):
    leave(dead())
    assert "is lifted" in running.lift_stale_lock("results")
    assert not list(Path(".snakemake/locks").iterdir())
    assert running.begin("results") == []


def test_lock_of_a_live_run_stands(folder, other):
    leave(other)
    with pytest.raises(MoecapError, match=f"in use: snakemake, process {other.pid}"):
        running.lift_stale_lock("results")
    assert Path(".snakemake/locks/0.input.lock").exists()


def test_lock_of_another_machine_stands(folder):
    leave(replace(dead(), host="elsewhere"))
    with pytest.raises(MoecapError, match=r"another machine.*--unlock"):
        running.lift_stale_lock("results")
    assert Path(".snakemake/locks/0.input.lock").exists()


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"pid": 1}'])
def test_lock_without_a_readable_note_stands(folder, content):
    if content is not None:
        Path("results").mkdir()
        (Path("results") / running.FILE).write_text(content)
    with pytest.raises(MoecapError, match=r"no note of itself.*--unlock"):
        running.lift_stale_lock("results")
    assert Path(".snakemake/locks/0.input.lock").exists()


def test_locks_of_other_results_in_the_same_directory_are_left_alone(folder):
    """A run on results that was killed, and another that works beside it on results-2."""
    leave(dead())
    (folder / ".snakemake/locks/1.output.lock").write_text(f"{folder}/results-2/x\n")
    (folder / ".snakemake/locks/1.input.lock").write_text("config/y\n")
    assert "is lifted" in running.lift_stale_lock("results")
    assert sorted(p.name for p in Path(".snakemake/locks").iterdir()) == ["1.input.lock", "1.output.lock"]
    assert running.lift_stale_lock("results") is None


def test_a_clock_that_is_set_does_not_kill_a_run(folder, other):
    """The start is compared by the kernel's ticks since boot, not by the time of day."""
    assert replace(other, started_unix_s=other.started_unix_s - 3600).alive()
    assert not replace(other, start=f"{other.start}0").alive()


def test_of_two_that_start_together_one_is_refused(folder):
    code = (
        "import sys, time\nfrom moecap.jobs import running\n"
        "try: running.claim('results')\nexcept Exception: print('refused')\n"
        "else: print('claimed')\nsys.stdout.flush(); sys.stdin.read()"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert sorted(p.stdout.readline().strip() for p in started) == ["claimed", "refused", "refused"]
    for process in started:
        process.communicate("")
    assert running.last_run("results") is None, "the claim ends with its process"


def test_no_lock_nothing_said(tmp_path):
    assert running.lift_stale_lock(tmp_path / "results", tmp_path) is None


@pytest.fixture
def slurm(folder, monkeypatch):
    """squeue and scancel as scripts: jobs are lines of queue.txt, cancelled ones vanish."""
    programs = {
        "squeue": 'case "$*" in *--jobs=*) cut -d"|" -f1 queue.txt | head -0;; *) cat queue.txt;; esac',
        "scancel": 'echo "$@" > cancelled.txt',
    }
    (folder / "bin").mkdir()
    for name, text in programs.items():
        path = folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}/bin:{os.environ['PATH']}")
    return folder / "queue.txt"


def test_jobs_left_behind_are_cancelled_and_no_others(folder, slurm):
    slurm.write_text(
        f"7|{folder}|rule_measure_wildcards_a|b\n8|/elsewhere|rule_measure_wildcards_a\n9|{folder}|my own job\n"
        f"10|{folder}|group_x\n11|{folder}|(null)\n"
    )
    assert running.left_behind(folder) == ["7", "10"]
    (said,) = running.begin("results", slurm=True)
    assert "2 Slurm job(s)" in said and "7, 10" in said
    assert (folder / "cancelled.txt").read_text() == "7 10\n"


def test_nothing_left_behind(folder, slurm):
    slurm.write_text("")
    assert running.begin("results", slurm=True) == [] and not (folder / "cancelled.txt").exists()


def test_controller_that_does_not_answer(folder, slurm):
    (folder / "bin/squeue").write_text("#!/bin/sh\necho Unable to contact slurm controller >&2; exit 1\n")
    with pytest.raises(MoecapError, match="Unable to contact slurm controller"):
        running.begin("results", slurm=True)


def test_note_is_plain_json(folder):
    running.begin("results")
    assert json.loads((Path("results") / running.FILE).read_text())["pid"] == os.getpid()
