"""The thin edge between Snakemake and the library: what every file under ``scripts/`` begins with."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from moecap.errors import MoecapError
from moecap.jobs import failures, processes, running
from moecap.paths import Paths
from moecap.redact import redact

_terminal: Any = sys.stderr


def tell(message: str) -> None:
    """Say one line of progress on the terminal and in the log: long work shows how much is left."""
    message = redact(message)
    logging.getLogger("moecap.progress").info(message)
    print(message, file=_terminal, flush=True)


@contextmanager
def script(job: Any) -> Iterator[Any]:
    """Run the body of a script with its output in the rule's log and its errors readable.

    Everything that the body, and the engines below it, print goes to ``job.log[0]``. An error is told in one paragraph,
    to the log and to the terminal, and ends the job with exit status 1; one that nobody expected leaves its traceback
    in the log. What failed, also by a kill, is on record (:mod:`moecap.jobs.failures`) until the job succeeds.
    """
    global _terminal
    _main_is_no_module()
    # CUDA counts cards as the driver lists them, not the fastest first: what is checked is what is used.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    rule = getattr(job, "rule", "script")
    record = record_path(job)
    again = record is not None and failures.of_this_run(record)
    _terminal = _redirect_output(job.log[0], again) if job.log else sys.stderr
    logging.basicConfig(level=logging.INFO, force=True)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Redacting("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    try:
        if record is not None:
            failures.begin(record, _about(job))
            if ended := running.job_begins(results_of(job)):
                tell(ended)
        yield job
    except Exception as error:
        if not isinstance(error, MoecapError):
            logging.exception("%s failed", rule)
        _record(record, error)
        message = redact(f"error in {rule}: {failures.explain(error)}")
        for stream in {sys.stderr, _terminal}:
            with suppress(OSError):  # the log's disk may be the one that is full
                print(message, file=stream, flush=True)
        _leave(1)
    else:
        if record is not None:
            failures.end(record)
    finally:
        if record is not None:
            processes.forget(results_of(job))
        if job.log:
            _clean(job.log[0])


class _Redacting(logging.Formatter):
    """Log lines, tracebacks included, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def _clean(log: str) -> None:
    """Take secrets out of what engines and libraries, which know of no rule, wrote into the job's log."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    with suppress(OSError), Path(log).open("r+", encoding="utf-8", errors="surrogateescape", newline="") as file:
        lines = file.readlines()
        clean = redact("".join(lines)).splitlines(keepends=True)
        if clean != lines:  # in place: whoever has the file open goes on at its end
            file.seek(0)
            file.writelines(clean)
            file.truncate()


def results_of(job: Any) -> str:
    """The results folder of a job of the workflow."""
    return str(job.config.get("results", "results"))


def record_path(job: Any) -> Path | None:
    """Where the job's failure is on record; None outside of a workflow."""
    if getattr(job, "config", None) is None:
        return None
    folder = Path(Paths(results_of(job)).failures)
    return Path(f"{folder.joinpath(job.rule, *map(str, job.wildcards))}.json")


def _about(job: Any) -> dict[str, Any]:
    """What a record says of a job, from its wildcards."""
    names = dict(job.wildcards.items())
    if "variant" in names:
        names["model"], precision = names.pop("variant").split("/")
        # All else of a model may be made from its full precision: without that, all of it fails.
        if precision != "bf16":
            names["precision"] = precision
    scope = {key: names[key] for key in failures.SCOPE if key in names}
    return {"stage": job.rule, **scope, "log": str(job.log[0]) if job.log else None}


def _record(path: Path | None, error: Exception) -> None:
    """Put ``error`` on record, unless the body did so with more detail (which point failed)."""
    if path is not None and not failures.is_explained(path):
        failures.record_failures(path, [failures.record_of(error)])


def _main_is_no_module() -> None:
    """Keep child processes of an engine from running the script again.

    ``multiprocessing`` starts them (by "spawn", as engines on GPUs do) with the main module's file imported, but
    without the ``snakemake`` that Snakemake puts into it: they would end there.
    """
    main = sys.modules["__main__"]
    if hasattr(main, "snakemake"):
        main.__dict__.pop("__file__", None)


def _redirect_output(path: str, append: bool) -> Any:
    """Point file descriptors 1 and 2 at ``path`` (engines write there from C++ and child processes too).

    A retry appends: what the attempt before it said is not lost.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    terminal = os.fdopen(os.dup(2), "w")
    if not append:
        Path(path).unlink(missing_ok=True)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    return terminal


def _leave(status: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    raise SystemExit(status)
