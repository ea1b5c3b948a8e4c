"""The schedule of an engine that tells none, estimated from when its tokens arrived.

What is assumed, and true of every engine with continuous batching: a request that has its first token gets one more in
each step, until it is done; a step gives no request two. Then one number per request, the step of its first token,
decides the whole schedule, and the arrival of many requests' tokens in the same step tells when it ended.

What is not known, and so not in the schedule: prompts that were computed in several steps (here: in the one that gave
the first token), prefix-cache hits, preemptions, speculation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moecap.engines.base import RequestRecord, Step


def estimate_steps(records: Sequence[RequestRecord]) -> list[Step]:
    """Steps from arrival times.

    Args:
        records: of one run, complete: as many times as tokens, one token at least.

    Returns:
        Steps in order of time. The tokens of a step are those that the records have; a step lasts from the end of the
        one before it (or, after a pause, from the first submission of its requests) to the earliest arrival of one of
        its tokens: later ones waited for the client.
    """
    if not records:
        return []
    start = min(record.arrival_s for record in records)
    first_step, ends = _align([np.asarray(record.token_times_s) for record in records], start)
    members: list[list[int]] = [[] for _ in ends]
    for index, (record, first) in enumerate(zip(records, first_step, strict=True)):
        for number in range(first, first + len(record.token_times_s)):
            members[number].append(index)
    steps = []
    previous = start
    for number, (present, end) in enumerate(zip(members, ends.tolist(), strict=True)):
        begin = previous
        if all(first_step[i] == number for i in present):  # nobody was being served: the engine may have waited
            begin = max(previous, min(records[i].arrival_s for i in present))
        begin = min(begin, end - 1e-9)
        new = [first_step[i] == number for i in present]
        lengths = [len(records[i].prompt_token_ids) for i in present]
        steps.append(
            Step(
                start_s=begin,
                wall_s=end - begin,
                request=present,
                first_position=[
                    0 if starts else length + number - first_step[i] - 1
                    for i, starts, length in zip(present, new, lengths, strict=True)
                ],
                tokens=[length if starts else 1 for starts, length in zip(new, lengths, strict=True)],
                cached_tokens=[0] * len(present),
            )
        )
        previous = end
    return steps


def _align(times: Sequence[np.ndarray], start: float) -> tuple[list[int], np.ndarray]:
    """The step of each request's first token, and when each step ended."""
    order = sorted(range(len(times)), key=lambda i: (times[i][0], -len(times[i])))
    first_step = [0] * len(times)
    ends = np.empty(0)  # of the steps known so far: the earliest arrival of a token of each
    for index in order:
        own = times[index]
        first_step[index] = first = _best_start(own, ends)
        overlap = ends[first : first + len(own)]
        np.minimum(overlap, own[: len(overlap)], out=overlap)
        ends = np.concatenate([ends, own[len(overlap) :]]) if first + len(own) > len(ends) else ends
    return first_step, _spread(ends, start)


def _best_start(own: np.ndarray, ends: np.ndarray) -> int:
    """The step that gave a request its first token: where its arrivals lie closest to the ends of the steps."""
    if len(ends) == 0 or own[0] > ends[-1]:
        return len(ends)
    near = int(np.searchsorted(ends, own[0]))
    best, least = near, np.inf
    for first in range(max(0, near - 4), min(len(ends), near + 4) + 1):
        known = ends[first : first + len(own)]
        if len(known) == 0:
            continue
        distance = float(np.median(np.abs(own[: len(known)] - known)))
        if distance < least:
            best, least = first, distance
    return best


def _spread(ends: np.ndarray, start: float) -> np.ndarray:
    """Ends that rise strictly: steps whose tokens came in one piece share the time since the one before."""
    ends = np.minimum.accumulate(ends[::-1])[::-1]  # a token cannot be seen before the step after it ends
    result = ends.copy()
    at = 0
    while at < len(ends):
        last = at
        while last + 1 < len(ends) and ends[last + 1] == ends[at]:
            last += 1
        if last > at:
            before = result[at - 1] if at else min(start, ends[0])
            result[at : last + 1] = before + (ends[at] - before) * np.arange(1, last - at + 2) / (last - at + 1)
        at = last + 1
    return result
