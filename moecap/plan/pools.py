"""Prefill and decode in two pools of workers that are alike: nobody's prompt is computed between others' tokens.

A decode worker that is full makes ``batch / ((output − 1) TPOT)`` requests per second; each costs a prefill worker the
time of one prefill. As many prefill workers stand by as that takes, in the ratio of small numbers that wastes least.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moecap.plan.target import Workload

Row = dict[str, Any]
#: Decode workers of a plan, at most: larger pools come closer to the best ratio, and change little.
MOST_DECODE = 4
NOTE = "two pools; the move of the KV cache between them and a wait for a prefill worker take no time here"


def workers(prefill_load: float, most: int = MOST_DECODE) -> tuple[int, int]:
    """(decode, prefill) workers so that prefill keeps up with ``prefill_load`` prefill workers' work per decode worker.

    >>> workers(0.2), workers(1.5), workers(3.0)
    ((4, 1), (2, 3), (1, 3))
    """
    choices = [(d, max(1, math.ceil(prefill_load * d - 1e-9))) for d in range(1, most + 1)]
    return min(choices, key=lambda c: (c[1] / c[0], c[0]))


def figures_of_decode(figures: Mapping[str, np.ndarray], workload: Workload) -> dict[str, np.ndarray]:
    """Figures of one decode worker (arrays of shape (batch sizes,)) from those of a worker that does both."""
    alone = figures["tpot_alone_s"]
    ends = {end: figures[end] / figures["tpot_s"] * alone for end in ("tpot_s_low", "tpot_s_high")}
    rate = figures["batch_size"] * workload.output_tokens / ((workload.output_tokens - 1) * alone)
    faster = figures["tpot_s"] / alone
    return {
        **figures,
        **ends,
        "tpot_s": alone,
        "ttft_s": figures["prefill_s"] + alone,
        "output_tokens_per_s": rate,
        **{name: figures[name] * faster for name in ("s_mbu", "s_mbu_complete", "mbu", "s_mfu")},
    }


def in_pools(rows: Sequence[Row], prefill_s: Sequence[float] | np.ndarray, workload: Workload) -> list[Row]:
    """Rows of whole deployments from rows of one decode worker each, and the time of a prefill."""
    found = []
    for row, prefill in zip(rows, prefill_s, strict=True):
        requests = row["output_tokens_per_s"] / workload.output_tokens
        decode, other = workers(requests * float(prefill))
        every, share = decode + other, (decode + other) / decode
        scaled = {k: None if row[k] is None else row[k] * every for k in ("power_w", "hardware_usd", "needed_bytes",
                                                                         "available_bytes")}  # fmt: skip
        costs = {k: None if row[k] is None else row[k] * share for k in _COSTS}
        found.append(
            {
                **row,
                **scaled,
                **costs,
                **dict.fromkeys(_UNKNOWN),
                "devices": row["devices"] * every,
                "output_tokens_per_s": row["output_tokens_per_s"] * decode,
                "layout": f"{decode} decode + {other} prefill of {row['layout']}",
                "notes": "; ".join(filter(None, [row["notes"], NOTE])),
            }
        )
    return found


_COSTS = ("usd_per_million_tokens", "usd_per_million_tokens_low", "usd_per_million_tokens_high")
#: What power prefill workers draw is not predicted.
_UNKNOWN = ("devices_power_w", "devices_power_w_low", "devices_power_w_high", "joules_per_token")
