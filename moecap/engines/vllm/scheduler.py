"""vLLM schedulers that note what each step computes. Loaded by vLLM itself, by name, in the engine's core process.

The notes cost a few microseconds per request and step and touch no tensor: the timed run is otherwise vLLM's own. The
same code serves the engine in this process and in a process of its own (GPUs), with steps one by one or overlapping
(asynchronous scheduling, pipeline parallelism).

How the notes get out: the client calls ``reset_prefix_cache``, which it does between runs anyway and which reaches the
scheduler in every mode; the notes since the last call are then written to ``$MOECAP_SCHEDULE_DIR`` as one JSON file.
Times are those of the monotonic clock, which all processes of one machine share.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

SCHEDULE_DIR = "MOECAP_SCHEDULE_DIR"


class Recording:
    """Mix-in over any vLLM v1 scheduler; one note per step that computes tokens.

    A note: ``start_s``, ``end_s`` (monotonic), ``requests`` (vLLM's ids), ``first_position``, ``tokens``,
    ``cached_tokens``, ``preempted``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._notes: list[dict[str, Any]] = []
        self._open_notes: dict[int, dict[str, Any]] = {}
        self._preempted: list[str] = []
        self._dumps = 0

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        start = time.monotonic()
        output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        # A step that computes nothing has no row; what it preempted is told with the next one.
        self._preempted += output.preempted_req_ids or ()
        if output.total_num_scheduled_tokens == 0:
            return output
        first: dict[str, int] = {}
        cached: dict[str, int] = {}
        for request in output.scheduled_new_reqs:
            first[request.req_id] = cached[request.req_id] = request.num_computed_tokens
        old = output.scheduled_cached_reqs
        for name, computed in zip(old.req_ids, old.num_computed_tokens, strict=True):
            first[name] = computed
            if name in old.resumed_req_ids:
                cached[name] = computed
        names = list(output.num_scheduled_tokens)
        note = {
            "start_s": start,
            "end_s": None,
            "requests": names,
            "first_position": [first[name] for name in names],
            "tokens": [output.num_scheduled_tokens[name] for name in names],
            "cached_tokens": [cached.get(name, 0) for name in names],
            "preempted": self._preempted,
        }
        self._preempted = []
        self._notes.append(note)
        self._open_notes[id(output)] = note
        return output

    def update_from_output(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        result = super().update_from_output(scheduler_output, *args, **kwargs)  # type: ignore[misc]
        note = self._open_notes.pop(id(scheduler_output), None)
        if note is not None:
            note["end_s"] = time.monotonic()
        return result

    def reset_prefix_cache(self, *args: Any, **kwargs: Any) -> Any:
        self._dump()
        return super().reset_prefix_cache(*args, **kwargs)  # type: ignore[misc]

    def _dump(self) -> None:
        folder = os.environ.get(SCHEDULE_DIR)
        if not folder:
            return
        path = Path(folder) / f"{os.getpid()}-{self._dumps}.json"
        temporary = path.with_suffix(".part")
        temporary.write_text(json.dumps(self._notes))
        temporary.replace(path)
        self._dumps += 1
        self._notes = []


class RecordingScheduler(Recording, Scheduler):
    """vLLM's scheduler, taking notes."""


class RecordingAsyncScheduler(Recording, AsyncScheduler):
    """vLLM's asynchronous scheduler (the default on GPUs), taking notes."""
