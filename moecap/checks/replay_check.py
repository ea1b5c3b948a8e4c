"""The replay held against routers that were read inside the decode itself (:mod:`moecap.routing.decode_trace`).

A pure function of tables: what the decode used and what the replay says are compared token by token, step by step, and
in the S-MBU that follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moecap.columns.base import schema
from moecap.columns.checks import REPLAY_CHECK
from moecap.columns.deployment import DEPLOYMENT, POINT
from moecap.columns.performance import BYTES, PERFORMANCE
from moecap.engines.tokens import expert_id_dtype
from moecap.metrics.amounts import AMOUNTS, step_amounts
from moecap.metrics.steps import step_table

#: The largest error of S-MBU at a batch size, and the replay's time over that of the runs, that are good enough.
GOALS = {"s_mbu_error": 0.002, "replay_over_run": 0.25}

#: What is compared at one batch size, in order.
COMPARED = (
    "decode_steps",
    "token_layers",
    "sets_equal",
    "control_sets_equal",
    "prefill_sets_equal",
    "step_layers",
    "unique_equal",
    "unique_experts",
    "unique_error",
    "unique_abs_error",
    "s_mbu_error",
    "s_mbu_complete_error",
    "worst_run_error",
)
SCHEMA = schema(
    ["deployment batch_size runs same_tokens", *COMPARED, "run_s replay_s replay_over_run"],
    *(DEPLOYMENT, POINT, PERFORMANCE, BYTES, REPLAY_CHECK),
    about={"batch_size": {"label": "batch"}, **{name: {"goal": str(goal)} for name, goal in GOALS.items()}},
)


class Routing(Protocol):
    """Expert ids by sequence: a routing store, or what a decode used."""

    layers: tuple[int, ...]
    top_k: int
    n_experts: int

    def experts(self, sequence_sha256: str) -> np.ndarray: ...


@dataclass(frozen=True)
class Ids:
    """Expert ids (tokens, MoE layers, top-k) by the hash of their sequence."""

    ids: Mapping[str, np.ndarray]
    layers: tuple[int, ...]
    top_k: int
    n_experts: int

    def experts(self, sequence_sha256: str) -> np.ndarray:
        return self.ids[sequence_sha256]


@dataclass(frozen=True)
class Run:
    """A run whose routers were read: its requests (:data:`moecap.routing.decode_trace.DECODED`) and its schedule."""

    decoded: pa.Table
    schedule: pa.Table

    @property
    def sequences(self) -> list[str]:
        return self.decoded["sequence_sha256"].to_pylist()

    def experts(self, like: Routing) -> list[np.ndarray]:
        """What the decode used, request by request: ids (tokens, MoE layers, top-k), the shape that of ``like``."""
        shape, dtype = (-1, len(like.layers), like.top_k), expert_id_dtype(like.n_experts)
        return [np.frombuffer(raw, dtype).reshape(shape) for raw in self.decoded["expert_ids"].to_pylist()]

    def routing(self, like: Routing) -> Ids:
        """The same by sequence. Of two requests for the same one, the second may have found its prompt in the cache."""
        ids: dict[str, np.ndarray] = {}
        for name, used, computed in zip(self.sequences, self.experts(like), self.computed(), strict=True):
            np.copyto(ids.setdefault(name, np.zeros_like(used)), used, where=computed[:, None, None])
        return Ids(ids, like.layers, like.top_k, like.n_experts)

    def computed(self) -> list[np.ndarray]:
        """Of each request, which positions some step computed: the others were found in the prefix cache."""
        tokens = [pc.list_value_length(self.decoded[name]) for name in ("prompt_token_ids", "output_token_ids")]
        found = [np.zeros(length, dtype=bool) for length in pc.add(*tokens).to_pylist()]
        for step in self.schedule.select(["request", "first_position", "tokens"]).to_pylist():
            for request, first, count in zip(step["request"], step["first_position"], step["tokens"], strict=True):
                found[request][first : first + count] = True
        return found


def runs_of(decoded: pa.Table, schedule: pa.Table) -> Iterator[tuple[int, Run]]:
    """(batch size, run) of a decode's trace, by ascending batch size."""
    key = ["batch_size", "dataset", "repeat"]
    for point in decoded.group_by(key).aggregate([]).sort_by([(k, "ascending") for k in key]).to_pylist():
        here = [pc.field(name) == value for name, value in point.items()]
        chosen = here[0] & here[1] & here[2]
        yield point["batch_size"], Run(decoded.filter(chosen), schedule.filter(chosen))


def compare(runs: Iterable[Run], replayed: Routing, anatomy: Any) -> dict[str, float]:
    """What ``COMPARED`` names, of some runs of one batch size, every sequence of which was replayed."""
    equal: dict[bool, list[np.ndarray]] = {True: [], False: []}  # by whether the token was decoded
    control: list[np.ndarray] = []
    unique: list[np.ndarray] = []
    totals: list[np.ndarray] = []
    for run in runs:
        prompts = pc.list_value_length(run.decoded["prompt_token_ids"]).to_pylist()
        for name, prompt, used, computed in zip(
            run.sequences, prompts, run.experts(replayed), run.computed(), strict=True
        ):
            again, decoded = np.sort(replayed.experts(name)), np.sort(used)
            same = (again == decoded).all(axis=-1)
            control.append((np.roll(again, 1, axis=0) == decoded).all(axis=-1)[1:][computed[1:]].ravel())
            output = np.arange(len(computed)) >= prompt
            equal[True].append(same[computed & output].ravel())
            equal[False].append(same[computed & ~output].ravel())
        both = [
            step_table(run.schedule, run.decoded, routing, anatomy) for routing in (replayed, run.routing(replayed))
        ]
        decode = np.asarray(both[0].column("decode_tokens")) > 0
        unique.append(
            np.stack([np.array(table.column("unique_experts").to_pylist())[decode].ravel() for table in both])
        )
        totals.append(np.stack([_decode_bytes(table, anatomy) for table in both]))
    counts = np.concatenate(unique, axis=1)
    error = counts[0] - counts[1]
    by_run = np.stack(totals)  # (runs, replayed or decoded, printed or complete)
    whole = by_run.sum(axis=0)
    tokens, prompt_tokens = np.concatenate(equal[True]), np.concatenate(equal[False])
    return {
        "decode_steps": counts.shape[1] // len(replayed.layers),
        "token_layers": tokens.size,
        "sets_equal": tokens.mean(),
        "control_sets_equal": np.concatenate(control).mean(),
        "prefill_sets_equal": prompt_tokens.mean(),
        "step_layers": counts.shape[1],
        "unique_equal": (error == 0).mean(),
        "unique_experts": counts[1].mean(),
        "unique_error": error.mean(),
        "unique_abs_error": np.abs(error).mean(),
        # Both are bytes over the same time and the same peak, so the error of S-MBU is that of the bytes.
        "s_mbu_error": whole[0, 0] / whole[1, 0] - 1,
        "s_mbu_complete_error": whole[0, 1] / whole[1, 1] - 1,
        "worst_run_error": np.abs(by_run[:, 0, 0] / by_run[:, 1, 0] - 1).max(),
    }


def _decode_bytes(table: pa.Table, anatomy: Any) -> np.ndarray:
    """Bytes of all decode steps: (as printed, complete)."""
    (amounts,) = step_amounts(table, anatomy).values()
    total = amounts.phases["decode"].sum(axis=0)
    return np.array([total[AMOUNTS.index("s_mbu")], total[AMOUNTS.index("s_mbu_complete")]])


# -- a deployment's check -------------------------------------------------------------------------------------------


def check(
    deployment: str,
    decoded: pa.Table,
    schedule: pa.Table,
    points: pa.Table,
    requests: pa.Table,
    routing: Any,
    anatomy: Any,
) -> pa.Table:
    """Hold a deployment's replayed routing against what its decode used.

    Args:
        decoded, schedule: of the runs whose routers were read (:mod:`moecap.routing.decode_trace`).
        points, requests: of the timed runs (schemas: :mod:`moecap.measure.performance`).
        routing: the replay of their sequences, a :class:`moecap.routing.store.RoutingStore`.
        anatomy: of the checkpoint.

    Returns:
        One row of ``SCHEMA`` per batch size. Where no run came out as when it was timed, nothing is compared: null.
    """
    rate = _replay_rate(routing.metadata.get("replay") or {})
    by_batch: dict[int, list[Run]] = {}
    for batch_size, run in runs_of(decoded, schedule):
        by_batch.setdefault(batch_size, []).append(run)
    rows = []
    for batch_size, runs in by_batch.items():
        as_timed = [run for run in runs if all(name in routing for name in run.sequences)]
        run_s = pc.sum(points.filter(pc.field("batch_size") == batch_size)["wall_s"]).as_py()
        replay_s = None if rate is None else rate * _distinct_tokens(requests, batch_size)
        rows.append(
            {
                "deployment": deployment,
                "batch_size": batch_size,
                "runs": len(runs),
                "same_tokens": len(as_timed) / len(runs),
                **(compare(as_timed, routing, anatomy) if as_timed else {}),
                "run_s": run_s,
                "replay_s": replay_s,
                "replay_over_run": None if replay_s is None else replay_s / run_s,
            }
        )
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _replay_rate(report: Mapping[str, Any]) -> float | None:
    """Seconds per token of a replay; None where it had nothing left to do."""
    return report["replay_s"] / report["tokens"] if report.get("replay_s") and report.get("tokens") else None


def _distinct_tokens(requests: pa.Table, batch_size: int) -> int:
    """Tokens of the distinct sequences of a batch size."""
    own = requests.filter(pc.field("batch_size") == batch_size)
    tokens = [pc.list_value_length(own[name]) for name in ("prompt_token_ids", "output_token_ids")]
    return sum(dict(zip(own["sequence_sha256"].to_pylist(), pc.add(*tokens).to_pylist(), strict=True)).values())


def in_words(rows: Iterable[Mapping[str, Any]]) -> str:
    """What the check found, in a sentence or two."""
    rows = list(rows)
    errors = [abs(row["s_mbu_error"]) for row in rows if row["s_mbu_error"] is not None]
    told = [
        "The timed batches were served again with hooks on the engine's routers, and the experts that the decode "
        "itself used compared with those of the replay, from which S-MBU is computed."
    ]
    if errors:
        told.append(f"Largest error of S-MBU: {100 * max(errors):.3f}% {_goal('s_mbu_error', max(errors), '0.1%')}.")
    else:
        told.append("No run came out as when it was timed: nothing could be compared.")
    timed = [row for row in rows if row["replay_s"] is not None]
    if timed:
        ratio = sum(row["replay_s"] for row in timed) / sum(row["run_s"] for row in timed)
        told.append(
            f"The replay took {ratio:.2f} of the time of the timed runs {_goal('replay_over_run', ratio, '.2f')}, "
            "loading the model apart."
        )
    return " ".join(told)


def _goal(name: str, value: float, form: str) -> str:
    """
    >>> _goal("s_mbu_error", 0.003, "0.1%")
    '(goal: at most 0.2%: not met)'
    """
    return f"(goal: at most {GOALS[name]:{form}}: {'met' if value <= GOALS[name] else 'not met'})"
