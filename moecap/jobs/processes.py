"""Which processes belong to a results folder, and which of them nobody waits for any more.

A run that is killed leaves its jobs at work, and a job that is killed leaves its engine: beside a timed job they would
spoil what it measures. They are known by two things, never by their names:

* every job inherits the environment variable ``MOECAP_RESULTS``, the folder that it works for, and so does whatever it
  starts, in process groups and sessions of its own too;
* every job notes itself, and the processes below it, in ``processes/`` of the results folder: the process id and when
  the process began, so that an id that is used again is not taken for it.

What is the folder's and not below the run that is at work now is left over.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from moecap.errors import MoecapError

#: The environment variable that names the results folder which a process works for.
MARK = "MOECAP_RESULTS"
FOLDER = "processes"
# What a process may take to end in good order, and to vanish after it was killed.
TERMINATE_S = 5.0
KILL_S = 30.0


@dataclass(frozen=True)
class Identity:
    """A process for all time: ids are used again, the moment of the start is not.

    ``start`` is the boot's id and the kernel's clock tick at which the process began: no clock that is set moves it.
    None where the kernel does not say; then ``started_unix_s`` decides.
    """

    host: str
    pid: int
    started_unix_s: float
    start: str | None = None

    def alive(self) -> bool | None:
        """Whether the process is still there; None when it ran on another machine, of which nothing is known."""
        if self.host != socket.gethostname():
            return None
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            now = _start(self.pid)
            if self.start is not None and now is not None:
                return self.start == now
            return abs(process.create_time() - self.started_unix_s) < 1.0
        except psutil.NoSuchProcess:
            return False


def identity(process: psutil.Process) -> Identity:
    """Of a process on this machine."""
    return Identity(socket.gethostname(), process.pid, process.create_time(), _start(process.pid))


def _start(pid: int) -> str | None:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        # The second field is the command, in parentheses, and may hold anything; the start is the 22nd.
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return f"{boot}:{stat[19]}"
    except (OSError, IndexError):
        return None


def mark(results: str | Path) -> None:
    """From now on, whatever this process starts works for ``results``."""
    os.environ[MARK] = str(Path(results).resolve())


def note(results: str | Path | None = None) -> None:
    """Note this process and those below it. A job does so when it begins and when its engine is loaded.

    Args:
        results: None: the folder that this process is marked as working for, if any.
    """
    results = results or os.environ.get(MARK)
    if results is None:
        return
    from moecap.io import write_json  # not above: a start that is refused should cost nothing

    this = psutil.Process()
    family = [this, *this.children(recursive=True)]
    found = []
    for process in family:
        with suppress(psutil.Error):
            found.append(asdict(identity(process)))
    with suppress(MoecapError, OSError):  # a full disk is told by what fails next
        write_json({"processes": found}, _file(results))


def forget(results: str | Path) -> None:
    """Remove this process's note. What it started and did not end stays known by its environment."""
    with suppress(OSError):
        _file(results).unlink(missing_ok=True)


def _file(results: str | Path) -> Path:
    return Path(results) / FOLDER / f"{socket.gethostname()}-{os.getpid()}.json"


def leftovers(results: str | Path, main: int | None = None) -> list[psutil.Process]:
    """Processes on this machine that work for ``results`` and are not below the run that is at work.

    Args:
        main: process id of that run; None: this process.
    """
    keep = _at_work(os.getpid() if main is None else main)
    wanted = str(Path(results).resolve())
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid not in keep and process.environ().get(MARK) == wanted:
                found[process.pid] = process
    for noted in _noted(results):
        if noted.pid not in keep and noted.alive():
            with suppress(psutil.Error):
                found[noted.pid] = psutil.Process(noted.pid)
    for process in list(found.values()):
        with suppress(psutil.Error):
            found |= {p.pid: p for p in process.children(recursive=True) if p.pid not in keep}
    return [p for p in found.values() if _runs(p)]


def _at_work(main: int) -> set[int]:
    """``main``, what is below it, this process, and all that this process is below."""
    this = psutil.Process()
    keep = {this.pid, main} | {p.pid for p in this.parents()}
    for pid in (this.pid, main):
        with suppress(psutil.Error):
            keep |= {p.pid for p in psutil.Process(pid).children(recursive=True)}
    return keep


def _noted(results: str | Path) -> Iterable[Identity]:
    for path in sorted((Path(results) / FOLDER).glob("*.json")):
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))["processes"]
            yield from [Identity(**entry) for entry in entries]
        except (OSError, ValueError, TypeError, KeyError):  # half a note knows nobody
            continue


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def end_leftovers(results: str | Path, main: int | None = None) -> str | None:
    """End what :func:`leftovers` finds, and wait until it is gone.

    Returns:
        What was done, in one line; None: nothing was left over.

    Raises:
        MoecapError: a process does not end (it is somebody else's, or hangs in the kernel).
    """
    left = leftovers(results, main)
    if left:
        names = ", ".join(_describe(process) for process in left)
        _end(left)
        # What those started meanwhile, or had started without anybody's note of it.
        _end(leftovers(results, main))
        still = leftovers(results, main)
        if still:
            raise MoecapError(
                f"Process(es) {', '.join(str(p.pid) for p in still)}, which an earlier run on {results} left behind, "
                "do not end. Nothing is timed beside them: end them (`kill -9`, or ask their owner), and start again."
            )
    if main is None:
        _clear_notes(results)
    if not left:
        return None
    return (
        f"Ended {len(left)} process(es) that an earlier run on {results} left behind: {names}. What they had finished "
        "and measured is kept."
    )


def _end(left: list[psutil.Process]) -> None:
    for process in left:
        with suppress(psutil.Error):
            process.terminate()
            process.resume()  # a stopped process does not hear it
    _, alive = psutil.wait_procs(left, TERMINATE_S)
    for process in alive:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, KILL_S)


def _describe(process: psutil.Process) -> str:
    try:
        return f"{process.pid} ({process.name()})"
    except psutil.Error:
        return str(process.pid)


def _clear_notes(results: str | Path) -> None:
    """Remove this machine's notes: of what they name, nothing is left."""
    for path in (Path(results) / FOLDER).glob(f"{socket.gethostname()}-*.json"):
        with suppress(OSError):
            path.unlink(missing_ok=True)
    with suppress(OSError):
        (Path(results) / FOLDER).rmdir()
