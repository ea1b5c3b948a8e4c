"""What a job that failed leaves behind: its class, its reason in one paragraph, its log.

A record is a JSON file below ``results/failures``, one per job. It is written when the job *begins* and removed when
the job has succeeded: a job that is killed cannot write anything any more, but its record is there already. Whoever
knows better than "it never ended" says so in it.

Classes: ``permanent`` (no kernel, a gated model, out of device memory: trying again cannot help, and a retry in the
same run fails at once), ``memory`` (it lacked memory of the host) and ``transient`` (all else: killed, a time-out, a
hub that did not answer, a full disk).
"""

from __future__ import annotations

import errno
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moecap.errors import MoecapError, PermanentError, no_space
from moecap.io import read_json, write_json
from moecap.redact import redact, redact_data

# The environment variable that tells jobs of one run of the workflow from those of another, also on other machines.
RUN = "MOECAP_RUN"
KILLED = "Killed"
# What a record may say it is about; the columns of the same names in the CAP table.
SCOPE = ("deployment", "model", "precision", "engine", "hardware", "dataset", "batch_size")

# What no second try mends, in the words of engines and libraries.
_PERMANENT = re.compile(
    r"CUDA out of memory|HIP out of memory|OutOfMemoryError|No available memory for the cache blocks"
    r"|larger than the (maximum|available) .*KV cache|KV cache is needed, which is larger"
    r"|No \w+ MoE backend|does not support the deployment configuration|is not supported|not supported"
    r"|must be divisible|Unsupported|NotImplementedError",
    re.IGNORECASE,
)
_MEMORY = re.compile(
    r"not enough memory|can't allocate memory|Cannot allocate memory|std::bad_alloc|MemoryError"
    r"|Available memory on node .* is less than requested"
)
_DISK = re.compile(r"No space left on device|Disk quota exceeded")


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def _text(error: BaseException) -> str:
    return redact(f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": "))


def classify(error: BaseException) -> str:
    """The class of a failure: ``permanent``, ``memory`` or ``transient``.

    >>> classify(NotImplementedError("No Int8 MoE backend supports the deployment configuration"))
    'permanent'
    >>> classify(MemoryError())
    'memory'
    >>> classify(RuntimeError("Engine core died unexpectedly"))
    'transient'
    """
    for seen in _causes(error):
        if isinstance(seen, (PermanentError, NotImplementedError)):
            return "permanent"
        if isinstance(seen, MoecapError):
            return "transient"
        if _PERMANENT.search(_text(seen)):
            return "permanent"
        if _MEMORY.search(_text(seen)) or (isinstance(seen, OSError) and seen.errno == errno.ENOMEM):
            return "memory"
    return "transient"


def explain(error: BaseException) -> str:
    """One paragraph for the user: an explained error as it is, a known kind of fault with a remedy, else its text."""
    if isinstance(error, MoecapError):
        return str(error)
    text = _text(error)[:1000]
    if classify(error) == "memory":
        return (
            f"Out of host memory ({text}). The job needs more than this machine has or its limit allows: give it more, "
            "or ask for smaller batch sizes, and start again."
        )
    full = next((e for e in _causes(error) if _DISK.search(str(e)) or getattr(e, "errno", 0) == errno.ENOSPC), None)
    if full is not None:
        return f"{no_space('the results', 'while something was written')} ({_text(full)[:500]})"
    return text


# -- one job's record -------------------------------------------------------------------------------------------------


def begin(path: str | Path, facts: Mapping[str, Any]) -> None:
    """A job begins: from now on its record says that it never ended, until somebody says more, or :func:`end`.

    Args:
        path: the record's file.
        facts: ``stage``, ``log``, and those of ``SCOPE`` that the job is about.

    Raises:
        PermanentError: an earlier attempt of this job, in this run, failed for good.
    """
    earlier = _read(path)
    if of_this_run(path) and earlier.get("class") == "permanent":
        raise PermanentError(earlier["message"])
    from moecap.jobs.running import this_run

    record = {
        **facts,
        "class": "transient",
        "message": (
            f"{facts.get('stage', 'the job')} began at {time.strftime('%Y-%m-%d %H:%M:%S')} on {socket.gethostname()} "
            "and never ended: it was killed (by hand, by the host for its memory, or with its machine). What was "
            "finished and measured is kept; starting again does the rest."
        ),
        "error": KILLED,
        "run": os.environ.get(RUN),
        "unix_s": time.time(),
        "process": asdict(this_run()),
        "host": socket.gethostname(),
        "oom_kills": oom_kills(),
    }
    with suppress(MoecapError, OSError):  # a full disk is told by what fails next
        write_json(record, path)


def record_failures(path: str | Path | None, records: Sequence[Mapping[str, Any]]) -> None:
    """Write down what failed; the first of ``records`` stands for the job. What :func:`begin` said of it stays."""
    if path is None:
        return
    known = _read(path)
    known.pop("process", None)
    more = {"failures": [dict(r) for r in records]} if len(records) > 1 or known.get("failures") else {}
    with suppress(MoecapError, OSError):  # a full disk must not hide the failure itself
        write_json(redact_data({**known, **records[0], **more, "unix_s": time.time()}), path)


def is_explained(path: str | Path) -> bool:
    """Whether a job's record says more than that it began."""
    return _read(path).get("error", KILLED) != KILLED


def of_this_run(path: str | Path) -> bool:
    """Whether an earlier attempt of the job in this run left the record."""
    run = os.environ.get(RUN)
    return run is not None and _read(path).get("run") == run


def oom_kills() -> int | None:
    """Processes that this machine's kernel has ended for want of memory since it started; None: it does not say."""
    with suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return None


def explain_kills(folder: str | Path, run: str | None, killed: int | None = None) -> None:
    """At the end of ``run``: of its jobs that were killed here, say which the kernel may have ended for their memory.

    Args:
        folder: of the records.
        killed: :func:`oom_kills` now.
    """
    killed = oom_kills() if killed is None else killed
    for path in sorted(Path(folder).rglob("*.json")):
        record = _read(path)
        before = record.get("oom_kills")
        if (
            record.get("run") != run
            or record.get("host") != socket.gethostname()
            or is_explained(path)
            or _at_work(record)
        ):
            continue
        if killed is not None and before is not None and killed > before:
            message = (
                f"Out of host memory: {record.get('stage', 'the job')} was killed, and while it was at work the kernel "
                f"of {record['host']} ended a process for want of memory. The job needs more than this machine has or "
                "its limit allows: give it more, or ask for smaller batch sizes, and start again. What was finished "
                "and measured is kept."
            )
            record_failures(path, [{"class": "memory", "message": message, "error": "OutOfMemory"}])


def end(path: str | Path) -> None:
    """The job has succeeded."""
    Path(path).unlink(missing_ok=True)


def record_of(error: BaseException) -> dict[str, Any]:
    """``class``, ``message`` and ``error`` of an exception."""
    return {"class": classify(error), "message": explain(error), "error": type(error).__name__}


def _read(path: str | Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (MoecapError, OSError):
        return {}
    return found if isinstance(found, dict) else {}


# -- all records ------------------------------------------------------------------------------------------------------


def applies(record: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether a record is about this row: it has fields of ``SCOPE``, and they agree with the row's."""
    given = [k for k in SCOPE if record.get(k) is not None]
    return bool(given) and all(str(record[k]) == str(row.get(k)) for k in given)


def read_failures(folder: str | Path) -> list[dict[str, Any]]:
    """The records of what failed, from the JSON files below ``folder``; none if there is no such folder.

    Returns:
        Dicts with ``stage``, ``reason``, ``permanent`` (null: unknown), ``log``, ``run``, ``file`` and those of
        ``SCOPE`` that the record is about. A file may hold several (``failures``); one that cannot be read is itself a
        record. Jobs that are at work are left out.
    """
    found: list[dict[str, Any]] = []
    folder = Path(folder)
    for path in sorted(folder.rglob("*.json")) if folder.is_dir() else []:
        try:
            content = read_json(path)
        except MoecapError as error:
            found.append({"stage": None, "reason": str(error), "permanent": None, "log": None, "file": path.name})
            continue
        if _at_work(content):
            continue
        for part in content.get("failures") or [{}]:
            record = {**content, **part}
            record |= record.get("point") or {}
            kind = record.get("class")
            found.append(
                {
                    **{k: record[k] for k in SCOPE if record.get(k) is not None},
                    "stage": record.get("stage") or (path.parent.name if path.parent != folder else None),
                    "reason": record.get("reason") or record.get("message"),
                    "permanent": record.get("permanent", None if kind is None else kind == "permanent"),
                    "log": record.get("log"),
                    "run": record.get("run"),
                    "file": path.relative_to(folder).as_posix(),
                }
            )
    return found


def _at_work(record: Mapping[str, Any]) -> bool:
    from moecap.jobs.running import Run

    process = record.get("process")
    return bool(process) and bool(Run(**process).alive())


def summary(folder: str | Path, run: str | None) -> list[str]:
    """A line per failure of ``run``: what, why, and where its log lies."""
    lines = []
    for record in read_failures(folder):
        if record.get("run") == run:
            what = " ".join(str(record[k]) for k in SCOPE if record.get(k) is not None)
            reason = str(record["reason"])
            subject = "" if reason.startswith(what) else f"{what}: "
            log = f" Log: {record['log']}" if record.get("log") else ""
            lines.append(f"failed: {record['stage']}: {subject}{reason}{log}")
    return lines
