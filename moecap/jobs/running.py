"""One run at a time on a results folder, and what a run that was killed has left behind.

A run claims its results folder by ``running.json`` before it reads anything else, and removes that when its process
ends. After a kill the file stays; whether its process is still there decides what the next run may do: lift Snakemake's
lock, end the processes that the killed one left at work on this machine, and cancel the Slurm jobs that nobody waits
for any more. (Cancelled, not adopted: what they had measured is in the spool.)
"""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from moecap.errors import MoecapError
from moecap.jobs import processes
from moecap.jobs.processes import Identity, identity

FILE = "running.json"


@dataclass(frozen=True)
class Run(Identity):
    """A snakemake process that works, or worked, on a results folder."""

    directory: str = ""

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.started_unix_s))
        return f"snakemake, process {self.pid} on {self.host}, started {since} in {self.directory}"


def this_run() -> Run:
    """The run that this process is."""
    return Run(**asdict(identity(psutil.Process())), directory=str(Path.cwd()))


def last_run(results: str | Path) -> Run | None:
    """The run that has not said that it ended; None when the last one did."""
    try:
        return Run(**json.loads((Path(results) / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def claim(results: str | Path) -> None:
    """Before anything else: this run works on ``results`` until its process ends, and no other does.

    The report over what there is, made by a run of its own below the one that failed, does not need a claim of its own.

    Raises:
        MoecapError: another run is at work on them.
    """
    from moecap.io import write_json

    Path(results).mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(Path(results)):
        if _at_work(results) is None:
            refuse_second(results)
            write_json(asdict(this_run()), Path(results) / FILE)
            atexit.register(end, results)


def add_to_python_path(folder: str | os.PathLike[str]) -> None:
    """Let the processes that this one starts import from ``folder`` first."""
    entries = [os.fspath(folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, entries)))


def refuse_second(results: str | Path) -> None:
    """Refuse to work on results on which another run is at work. Cheap: asked first, before anything is imported.

    Raises:
        MoecapError: with the process that is at work, and what to do.
    """
    before = last_run(results)
    if before is not None and _at_work(results) is None and before.alive():
        raise MoecapError(
            f"{results} is in use: {before}. Two runs on one results folder would overwrite each other's files and "
            f"spoil each other's times. Wait for it, end it with `kill {before.pid}`, or give this run another folder "
            "(`results` in the config)."
        )


def _at_work(results: str | Path) -> Run | None:
    """The run on ``results``, if it is this process or one that this process is below."""
    run = last_run(results)
    if run is not None and run.pid in {os.getpid(), *(p.pid for p in psutil.Process().parents())} and run.alive():
        return run
    return None


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Of two runs that start together, one looks after the other has written."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # not every network file system has locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def lift_stale_lock(results: str | Path, directory: str | Path = ".") -> str | None:
    """Before Snakemake locks ``directory``, and before :func:`claim`: remove the locks of a run that is surely gone.

    Locks of runs on other results folders, which may be at work in the same directory, are left alone.

    Returns:
        That a lock was lifted; None when there was none.

    Raises:
        MoecapError: the lock stands, with the reason and what to do.
    """
    locks = _locks(results, Path(directory) / ".snakemake/locks")
    if not locks:
        return None
    run = last_run(results)
    if run is None:
        raise MoecapError(
            f"{results} is locked by a snakemake that left no note of itself. If none is at work on it, `snakemake "
            "--unlock` removes the lock."
        )
    refuse_second(results)
    alive = run.alive()
    if alive:
        return None
    if alive is None:
        raise MoecapError(
            f"{results} is locked by a run on another machine: {run}. If it is gone, `snakemake --unlock` removes the "
            "lock."
        )
    for lock in locks:
        lock.unlink(missing_ok=True)
    return f"The lock of a run that was killed is lifted ({run}). What it had finished and measured is kept."


def _locks(results: str | Path, folder: Path) -> list[Path]:
    """Snakemake's lock files (``N.input.lock``, ``N.output.lock``: names of files, a line each) over ``results``."""
    inside = f"{Path(results).resolve()}/"
    root = folder.parent.parent

    def over_results(lock: Path) -> bool:
        lines = lock.read_text(encoding="utf-8", errors="replace").splitlines()
        return any(f"{os.path.normpath(root.resolve() / line.strip())}/".startswith(inside) for line in lines)

    found = {lock.name.split(".")[0] for lock in folder.glob("*.lock") if lock.is_file() and over_results(lock)}
    return sorted(lock for number in found for lock in folder.glob(f"{number}.*.lock"))


def begin(results: str | Path, slurm: bool = False) -> list[str]:
    """When a run starts to work: end what a killed one left at work on this machine and in Slurm.

    Args:
        slurm: whether jobs go to Slurm. If not, they are marked as this folder's (:mod:`moecap.jobs.processes`).

    Returns:
        What was done, a line each.

    Raises:
        MoecapError: another run works on the same results, or something of an earlier one does not end.
    """
    claim(results)
    said = []
    if slurm:
        left = left_behind(Path.cwd())
        if left:
            _run("scancel", *left)
            _gone(left)
            said.append(
                f"Cancelled {len(left)} Slurm job(s) that an earlier run left behind: {', '.join(left)}. What they had "
                "measured is kept."
            )
    else:
        processes.mark(results)
    ended = processes.end_leftovers(results)
    return said + ([ended] if ended else [])


def job_begins(results: str | Path) -> str | None:
    """When a job of a run on this machine begins: note it, and end what an earlier job of the run left behind.

    A job that was killed, and is tried again, may have left an engine in a process of its own. On a cluster, whose
    jobs are not below the run, nothing is done: Slurm ends a job's processes.

    Returns:
        What was ended, in one line; None: nothing.
    """
    run = _at_work(results)
    if run is None or os.environ.get(processes.MARK) != str(Path(results).resolve()):
        return None
    processes.note(results)
    return processes.end_leftovers(results, run.pid)


def end(results: str | Path) -> None:
    """When a run has ended, well or not."""
    run = last_run(results)
    if run is not None and (run.pid, run.start) == (os.getpid(), this_run().start):
        (Path(results) / FILE).unlink(missing_ok=True)


def left_behind(directory: str | Path) -> list[str]:
    """Ids of this user's Slurm jobs that Snakemake submitted from ``directory`` and that have not ended.

    Snakemake's lock keeps other runs out of the directory: whoever holds it did not submit these.
    """
    shown = _run("squeue", "--noheader", f"--user={os.getuid()}", "--format=%i|%Z|%k")
    here = Path(directory).resolve()
    found = []
    for line in shown.splitlines():
        job, folder, comment = line.split("|", 2)
        if comment.startswith(("rule_", "group_")) and Path(folder).resolve() == here:
            found.append(job)
    return found


def _gone(jobs: list[str], seconds: float = 60) -> None:
    """Wait until no process of ``jobs`` writes any more."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        known = subprocess.run(
            ["squeue", "--noheader", "--format=%i", f"--jobs={','.join(jobs)}"], capture_output=True, text=True
        )
        if known.returncode or not known.stdout.strip():  # an id that Slurm has forgotten is an error to squeue
            return
        time.sleep(0.5)
    raise MoecapError(
        f"Slurm still ends job(s) {', '.join(jobs)} of an earlier run, {seconds:.0f} s after scancel. Start again when "
        "`squeue` shows them no more."
    )


def _run(*command: str) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    except FileNotFoundError:
        raise MoecapError(f"`{command[0]}` was not found: this is not a node from which Slurm takes jobs.") from None
    except subprocess.SubprocessError as error:
        detail = (getattr(error, "stderr", "") or str(error)).strip()
        raise MoecapError(f"`{command[0]}` failed ({detail}); is Slurm's controller up?") from error
