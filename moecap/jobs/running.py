"""One run at a time on a results folder, and what a run that was killed has left behind.

A run writes ``running.json`` into the results folder when it starts to work and removes it when it ends. After a kill
the file stays; whether its process is still there decides what the next run may do: lift Snakemake's lock, and cancel
the Slurm jobs that nobody waits for any more. (Cancelled, not adopted: what they had measured is in the spool.)
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from moecap.errors import MoecapError
from moecap.io import write_json

FILE = "running.json"


@dataclass(frozen=True)
class Run:
    """A snakemake process that works, or worked, on a results folder."""

    host: str
    pid: int
    started_unix_s: float
    directory: str

    def alive(self) -> bool | None:
        """Whether the process is still there; None when it ran on another machine, of which nothing is known."""
        if self.host != socket.gethostname():
            return None
        try:
            # A process id is used again: the time of creation tells.
            return abs(psutil.Process(self.pid).create_time() - self.started_unix_s) < 1.0
        except psutil.NoSuchProcess:
            return False

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.started_unix_s))
        return f"snakemake, process {self.pid} on {self.host}, started {since} in {self.directory}"


def this_run() -> Run:
    """The run that this process is."""
    process = psutil.Process()
    return Run(socket.gethostname(), process.pid, process.create_time(), str(Path.cwd()))


def last_run(results: str | Path) -> Run | None:
    """The run that has not said that it ended; None when the last one did."""
    try:
        return Run(**json.loads((Path(results) / FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def lift_stale_lock(results: str | Path, directory: str | Path = ".") -> str | None:
    """Before Snakemake locks ``directory``: remove the lock of a run that is surely gone, and say so.

    Returns:
        What there is to say: that a lock was lifted, or why it stands. None when there is no lock.
    """
    locks = Path(directory) / ".snakemake/locks"
    if not locks.is_dir() or not any(locks.iterdir()):
        return None
    run = last_run(results)
    if run is None:
        return (
            "This folder is locked by a snakemake that left no note of itself. If none is running here, "
            "`snakemake --unlock` removes the lock."
        )
    alive = run.alive()
    if alive:
        return f"This folder is in use: {run}. Wait for it, or end it with `kill {run.pid}`."
    if alive is None:
        return (
            f"This folder is locked by a run on another machine: {run}. If it is gone, `snakemake --unlock` removes "
            "the "
            "lock."
        )
    shutil.rmtree(locks)
    return f"The lock of a run that was killed is lifted ({run}). What it had finished and measured is kept."


def begin(results: str | Path, slurm: bool = False) -> list[str]:
    """When a run starts to work: refuse a second one, note this one, cancel the jobs that a killed one left in Slurm.

    Returns:
        What was done, a line each.

    Raises:
        MoecapError: another run works on the same results.
    """
    before = last_run(results)
    if before and before != this_run() and before.alive():
        raise MoecapError(
            f"{results} is in use: {before}. Two runs on one results folder would overwrite each other's files. Wait "
            "for "
            f"it, end it with `kill {before.pid}`, or give this run another folder (`results` in the config)."
        )
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
    Path(results).mkdir(parents=True, exist_ok=True)
    write_json(asdict(this_run()), Path(results) / FILE)
    return said


def end(results: str | Path) -> None:
    """When a run has ended, well or not."""
    if last_run(results) == this_run():
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
