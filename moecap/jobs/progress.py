"""A line per finished job: which stage, how long it took, how much is left; from what Snakemake logs of its own run.

The time left is the mean time of this run's finished jobs of the same rule (of all rules, for one of which none has
finished yet) times those that remain: jobs that run beside one another are not taken into account. Nothing is said
before the first job has finished.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TextIO


@dataclass
class State:
    """What is known of a run: jobs to come by rule, those at work, and how long finished ones took."""

    expected: Counter[str] = field(default_factory=Counter)
    started_s: dict[int, float] = field(default_factory=dict)
    about: dict[int, tuple[str, str]] = field(default_factory=dict)
    took_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    @property
    def done(self) -> int:
        """Jobs that have finished."""
        return sum(map(len, self.took_s.values()))

    def left_s(self) -> float | None:
        """Seconds of work that remain, about; None before anything has finished."""
        taken = [t for own in self.took_s.values() for t in own]
        if not taken:
            return None
        usual = sum(taken) / len(taken)
        left = 0.0
        for rule, count in self.expected.items():
            own = self.took_s.get(rule, [])
            left += max(count - len(own), 0) * (sum(own) / len(own) if own else usual)
        return left


class Progress(logging.Handler):
    """A handler for Snakemake's logger."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.state, self.stream, self.clock = State(), stream, clock

    def emit(self, record: logging.LogRecord) -> None:
        """Take note of an event; a job that finishes is told."""
        event = str(getattr(record, "event", None) or "")
        told = vars(record)
        if event == "run_info":
            self.state.expected = Counter({k: int(v) for k, v in told["stats"].items() if k != "total"})
        elif event == "job_info":
            self.state.about[told["jobid"]] = (told["rule_name"], _what(told.get("wildcards")))
        elif event == "job_started":
            self.state.started_s.update(dict.fromkeys(told["jobs"], self.clock()))
        elif event == "job_finished":
            self._finished(told["job_id"])

    def _finished(self, job: int) -> None:
        state = self.state
        if job not in state.started_s:
            return
        rule, what = state.about.get(job, ("job", ""))
        took = self.clock() - state.started_s.pop(job)
        state.took_s[rule].append(took)
        total = max(sum(state.expected.values()), state.done)
        left = state.left_s() if total > state.done else None
        ending = f"; about {duration(left)} of work left" if left is not None else ""
        name = f"{rule} {what}".strip()
        stream = self.stream or sys.stderr
        print(f"[{state.done}/{total}] {name}: {duration(took)}{ending}", file=stream, flush=True)


#: What Snakemake says of the same: not on the terminal beside our line; its log file has it.
_SAID = ("job_started", "job_finished", "progress")
_SELECTING = "Select jobs to execute"


def attach(logger: logging.Logger, quiet: Iterable[object] | None) -> None:
    """Tell a run's progress in our words where Snakemake is asked to say little: ``--quiet rules``."""
    asked = {getattr(choice, "name", str(choice)).lower() for choice in quiet or ()}
    if "rules" not in asked or asked & {"progress", "all"}:
        return
    for handler in logger.handlers:
        if handler.name == "DefaultStreamHandler":
            handler.addFilter(_else)
    logger.addHandler(Progress())


def _else(record: logging.LogRecord) -> bool:
    return str(getattr(record, "event", None) or "") not in _SAID and not str(record.msg).startswith(_SELECTING)


def _what(wildcards: Mapping[str, Any] | None) -> str:
    return " ".join(str(value) for value in (wildcards or {}).values())


def duration(seconds: float) -> str:
    """
    >>> duration(0.4), duration(59.6), duration(95), duration(3700)
    ('0 s', '60 s', '2 min', '1 h 2 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
