"""The thin edge between Snakemake and the library: what every file under ``scripts/`` begins with."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from moecap.errors import MoecapError

_terminal: Any = sys.stderr


def tell(message: str) -> None:
    """Say one line of progress on the terminal and in the log: long work shows how much is left."""
    logging.getLogger("moecap.progress").info(message)
    print(message, file=_terminal, flush=True)


@contextmanager
def script(job: Any) -> Iterator[Any]:
    """Run the body of a script with its output in the rule's log and its errors readable.

    Everything that the body, and the engines below it, print goes to ``job.log[0]``; a :class:`MoecapError` is
    printed once, as one paragraph, to the log and to the terminal, and ends the job with exit status 1.
    """
    global _terminal
    terminal = _terminal = _redirect_output(job.log[0]) if job.log else sys.stderr
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    try:
        yield job
    except MoecapError as error:
        message = f"error in {getattr(job, 'rule', 'script')}: {error}"
        print(message, file=sys.stderr, flush=True)
        if terminal is not sys.stderr:
            print(message, file=terminal, flush=True)
        _leave(1)


def _redirect_output(path: str) -> Any:
    """Point file descriptors 1 and 2 at ``path`` (engines write there from C++ and child processes too)."""
    import os
    from pathlib import Path

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    terminal = os.fdopen(os.dup(2), "w")
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    return terminal


def _leave(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    raise SystemExit(status)
