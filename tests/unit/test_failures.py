"""Classes of failures, what is said of them, and the records that jobs leave behind, by real processes."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from moecap.errors import MoecapError, PermanentError
from moecap.jobs import failures

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (NotImplementedError("No Int8 MoE backend supports the deployment configuration"), "permanent"),
        (RuntimeError("CUDA out of memory"), "permanent"),
        (PermanentError("gated"), "permanent"),
        (MoecapError("No space left"), "transient"),
        (MemoryError(), "memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), "memory"),
        (ValueError("Available memory on node 0 (10/16 GiB) on kv cache allocation is less than requested"), "memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "transient"),
        (TimeoutError("NCCL"), "transient"),
        (ConnectionError("reset"), "transient"),
    ],
)
def test_classes(error, kind):
    assert failures.classify(error) == kind


def test_class_of_a_cause():
    try:
        try:
            raise NotImplementedError("no kernel")
        except NotImplementedError as inner:
            raise RuntimeError("Engine core initialization failed") from inner
    except RuntimeError as error:
        assert failures.classify(error) == "permanent"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MoecapError("as it stands"), "as it stands"),
        (MemoryError(), "Out of host memory (MemoryError). The job needs more than"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on the disk that holds the results"),
        (
            RuntimeError("I/O error: No space left on device (os error 28)"),
            "No space left on the disk that holds the results",
        ),
        (ValueError("two\nlines"), "ValueError: two lines"),
    ],
)
def test_what_is_said(error, says):
    assert failures.explain(error).startswith(says)
    assert "\n" not in failures.explain(error)


def test_a_record_from_beginning_to_end(tmp_path, monkeypatch):
    monkeypatch.setenv(failures.RUN, "run-1")
    path = tmp_path / "measure" / "d.json"
    failures.begin(path, {"stage": "measure", "deployment": "d", "log": "logs/d.log"})
    assert failures.read_failures(tmp_path) == []  # it is at work
    assert not failures.is_explained(path)
    failures.record_failures(path, [{"class": "transient", "message": "the engine died", "error": "X"}])
    (found,) = failures.read_failures(tmp_path)
    assert found == {
        "deployment": "d",
        "stage": "measure",
        "reason": "the engine died",
        "permanent": False,
        "log": "logs/d.log",
        "run": "run-1",
        "file": "measure/d.json",
    }
    assert failures.is_explained(path)
    assert failures.summary(tmp_path, "run-1") == ["failed: measure: d: the engine died Log: logs/d.log"]
    assert failures.summary(tmp_path, "run-2") == []
    failures.begin(path, {"stage": "measure", "deployment": "d"})  # transient: it may try again
    failures.end(path)
    assert not path.exists()


def test_several_points_of_one_job(tmp_path):
    path = tmp_path / "measure" / "d.json"
    failures.begin(path, {"stage": "measure", "deployment": "d", "log": "x.log"})
    points = [{"dataset": "a", "batch_size": b, "repeat": 0} for b in (4, 8)]
    failures.record_failures(
        path, [{"class": "permanent", "message": f"no room {p}", "error": "E", "point": p} for p in points]
    )
    found = failures.read_failures(tmp_path)
    assert [(f["batch_size"], f["log"], f["stage"], f["permanent"]) for f in found] == [
        (4, "x.log", "measure", True),
        (8, "x.log", "measure", True),
    ]


def test_what_failed_for_good_is_not_tried_again_in_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setenv(failures.RUN, "run-1")
    path = tmp_path / "d.json"
    facts = {"stage": "download", "model": "m"}
    failures.begin(path, facts)
    failures.record_failures(path, [failures.record_of(PermanentError("the model is gated"))])
    with pytest.raises(PermanentError, match="the model is gated"):
        failures.begin(path, facts)
    monkeypatch.setenv(failures.RUN, "run-2")  # the user has accepted the licence, and starts again
    failures.begin(path, facts)


JOB = """
import os, signal, sys
from types import SimpleNamespace
from moecap.jobs.workflow import script
class Wildcards(list):
    def items(self):
        return [("deployment", "d")]
job = SimpleNamespace(rule="measure", log=["x.log"], config={{"results": "results"}}, wildcards=Wildcards(["d"]))
with script(job):
    {body}
"""


def run_job(folder: Path, body: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", JOB.format(body=body)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), failures.RUN: "run-1", **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


def record(folder: Path) -> dict:
    return json.loads((folder / "results/failures/measure/d.json").read_text())


def test_a_killed_job_is_on_record(tmp_path):
    done = run_job(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == -signal.SIGKILL
    (found,) = failures.read_failures(tmp_path / "results/failures")
    assert "measure began at" in found["reason"] and "never ended: it was killed" in found["reason"]
    assert (found["deployment"], found["log"], found["permanent"]) == ("d", "x.log", False)


def test_an_unexpected_error_is_one_line_and_a_traceback_in_the_log(tmp_path):
    done = run_job(tmp_path, "raise ValueError('odd')")
    assert done.returncode == 1
    assert done.stderr == "error in measure: ValueError: odd\n"
    log = (tmp_path / "x.log").read_text()
    assert "Traceback" in log and "error in measure: ValueError: odd" in log
    assert record(tmp_path)["class"] == "transient"
    assert run_job(tmp_path, "pass").returncode == 0
    assert failures.read_failures(tmp_path / "results/failures") == []


def test_a_retry_keeps_the_first_attempts_log(tmp_path):
    run_job(
        tmp_path, "from moecap.errors import PermanentError; print('first', flush=True); raise PermanentError('no')"
    )
    again = run_job(tmp_path, "print('second', flush=True)")
    assert again.returncode == 1 and again.stderr == "error in measure: no\n"
    log = (tmp_path / "x.log").read_text()
    assert "first" in log and "second" not in log
    later = run_job(tmp_path, "print('second', flush=True)", **{failures.RUN: "run-2"})
    assert later.returncode == 0 and (tmp_path / "x.log").read_text() == "second\n"


def test_out_of_host_memory_under_a_limit(tmp_path):
    """A real limit on the process's memory, a real allocation beyond it."""
    body = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2 << 30,) * 2); import numpy; numpy.ones(1 << "
        "30).sum()"
    )
    done = run_job(tmp_path, body)
    assert done.returncode == 1
    assert done.stderr.startswith("error in measure: Out of host memory (") and done.stderr.count("\n") == 1
    assert record(tmp_path)["class"] == "memory"


def test_a_kill_while_the_kernel_ended_something_for_its_memory_is_said_to_be_that(tmp_path, monkeypatch):
    monkeypatch.setenv(failures.RUN, "now")
    monkeypatch.setattr(failures, "_at_work", lambda record: False)
    counts = iter([3, 3, None])
    monkeypatch.setattr(failures, "oom_kills", lambda: next(counts))
    for name in ("killed", "told", "unknown"):
        failures.begin(tmp_path / f"{name}.json", {"stage": "measure", "deployment": name})
    failures.record_failures(
        tmp_path / "told.json", [{"class": "permanent", "message": "no kernel", "error": "PermanentError"}]
    )
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    failures.explain_kills(tmp_path, "now", killed=3)  # nothing was killed meanwhile
    failures.explain_kills(tmp_path, "another run", killed=4)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before
    failures.explain_kills(tmp_path, "now", killed=4)
    found = {record["deployment"]: record["reason"] for record in failures.read_failures(tmp_path)}
    assert found["killed"].startswith("Out of host memory: measure was killed")
    assert found["told"] == "no kernel" and "never ended" in found["unknown"]
    assert json.loads((tmp_path / "killed.json").read_text())["class"] == "memory"
