"""Whatever a killed run left at work on a results folder is found and ended; nothing else is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from moecap.jobs import processes

SLEEP = "import time; time.sleep(600)"
# How an engine's process may part from its job: each prints the id of one that sleeps, and stays or ends.
WAYS = {
    "a child": "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', S]).pid)",
    "a session of its own": (
        "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', S], start_new_session=True).pid)"
    ),
    "a fork without an exec": (
        "import os, time\npid = os.fork()\nif pid == 0:\n    os.setsid(); time.sleep(600)\nprint(pid)"
    ),
    "a daemon, forked twice": (
        "import os, time\nr, w = os.pipe()\nif os.fork() == 0:\n    os.setsid()\n    pid = os.fork()\n"
        "    if pid == 0:\n        time.sleep(600)\n    os.write(w, b'%d' % pid)\n    os._exit(0)\n"
        "print(int(os.read(r, 20)))"
    ),
    "deaf to SIGTERM": (
        "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import signal; "
        "signal.signal(signal.SIGTERM, signal.SIG_IGN);' + S]).pid)"
    ),
    "multiprocessing, spawned": (
        "import multiprocessing as m, time\np = m.get_context('spawn').Process(target=time.sleep, args=(600,))\n"
        "p.start(); print(p.pid)"
    ),
}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(processes, "TERMINATE_S", 0.5)
    yield tmp_path / "results"
    for process in processes.leftovers(tmp_path / "results"):
        process.kill()


def job(results: Path | None, code: str, *, stays: bool) -> tuple[subprocess.Popen[str], int]:
    """A job that works for ``results`` and is below init, as after its run was killed; and the process it started."""
    after = "\nimport sys, os; sys.stdout.flush()\n" + (SLEEP if stays else "os._exit(0)")
    env = {k: v for k, v in os.environ.items() if k != processes.MARK}
    env |= {processes.MARK: str(results)} if results else {}
    started = subprocess.Popen(
        [sys.executable, "-c", f"S = {SLEEP!r}\n{code}{after}"], stdout=subprocess.PIPE, text=True, env=env
    )
    return started, int(started.stdout.readline())


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.fixture
def not_below(monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests start is below them; a new run is not above what an old one left."""
    monkeypatch.setattr(processes, "_at_work", lambda main: {os.getpid(), main})


@pytest.mark.parametrize("stays", [True, False], ids=["job lives", "job is gone"])
@pytest.mark.parametrize("way", WAYS)
def test_jobs_and_their_engines_are_ended(results: Path, not_below: None, way: str, stays: bool) -> None:
    started, engine = job(results, WAYS[way], stays=stays)
    if not stays:
        started.wait()
    said = processes.end_leftovers(results)
    started.wait(10)
    assert gone(engine)
    assert f"{engine} (" in said and "left behind" in said
    assert processes.end_leftovers(results) is None


def test_a_stopped_process_is_ended(results: Path, not_below: None) -> None:
    started, engine = job(results, WAYS["a child"], stays=False)
    psutil.Process(engine).suspend()
    processes.end_leftovers(results)
    assert gone(engine) and started.wait() == 0


def test_others_are_left_alone(results: Path, not_below: None, tmp_path: Path) -> None:
    """Of another results folder, even one whose name begins alike, and of none."""
    kept = [job(folder, "print(1)", stays=True)[0] for folder in (tmp_path / "results-2", None)]
    mine, _ = job(results, "print(1)", stays=True)
    processes.end_leftovers(results)
    assert gone(mine.pid) and [p.poll() for p in kept] == [None, None]
    for process in kept:
        process.kill()
        process.wait()


def test_what_a_run_has_below_it_is_not_left_over(results: Path) -> None:
    started, _ = job(results, "print(1)", stays=True)
    assert processes.leftovers(results) == [], "it is below this process"
    started.kill()
    started.wait()


def test_a_noted_process_without_the_mark_is_ended_and_a_reused_id_is_not(results: Path, not_below: None) -> None:
    """An engine whose environment was emptied is known by the note that its job made."""
    bare = subprocess.Popen([sys.executable, "-c", SLEEP], env={})
    processes.note(results)  # the processes below this one
    (path,) = (results / processes.FOLDER).glob("*.json")
    assert f'"pid": {bare.pid}' in path.read_text(encoding="utf-8")
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"start": "', '"start": "an earlier boot '), encoding="utf-8")
    assert processes.end_leftovers(results) is None and bare.poll() is None
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    assert str(bare.pid) in processes.end_leftovers(results)
    bare.wait(10)
    assert not (results / processes.FOLDER).exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"processes": [{"pid": 1}]}', '{"processes": 3}'])
def test_a_broken_note_is_nobodys(results: Path, content: str) -> None:
    (results / processes.FOLDER).mkdir(parents=True)
    (results / processes.FOLDER / "x.json").write_text(content)
    assert processes.leftovers(results) == []


def test_notes_end_with_their_job(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes.note()  # not a job of any results folder
    monkeypatch.setenv(processes.MARK, str(results))
    processes.note()
    assert len(list((results / processes.FOLDER).iterdir())) == 1
    processes.forget(results)
    assert list((results / processes.FOLDER).iterdir()) == []
