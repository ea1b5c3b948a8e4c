"""Hold complete S-MBU against the machine's read bandwidth, in time; writes bandwidth.csv and bandwidth.md.

    python scripts/validate_bandwidth.py --output docs/validation

A mixture of experts with random weights, many times the last-level cache, is decoded by vLLM on this machine's CPU at
batch sizes 1 to 16. Read bandwidth is measured before and after, by the kernels and threads that calibrate a machine.
A complete S-MBU above 1 would mean that bytes are counted that are not read, or that time is lost: no step can read
faster than memory delivers.
"""

from __future__ import annotations

import argparse
import csv
import gc
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from moecap.documents import read_yaml
from moecap.engines.base import Request, RunResult, library_versions, load
from moecap.engines.tokens import sequence_hash
from moecap.engines.vllm.replay import OWN_ARGUMENTS
from moecap.errors import MoecapError
from moecap.hardware import machine
from moecap.io import atomic_path
from moecap.measure.performance import REQUESTS, SCHEDULE, engine_spec
from moecap.metrics.amounts import AMOUNTS, step_amounts
from moecap.metrics.steps import step_table
from moecap.model.counted import anatomy as anatomy_of
from moecap.routing import replay

BATCH_SIZES = (1, 2, 4, 8, 16)
TIMES_THE_CACHE = 4
#: At the end of a run fewer requests may be left, and its first steps compute prompts: only full decode steps count.
OUTPUT_TOKENS = 24
PROMPT_TOKENS = 16
RUNS = 3
#: A model of 0.9 GB in bf16, most of it experts; one token reads a quarter of that.
MODEL: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 1024,
    "moe_intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "vocab_size": 1024,
    "max_position_embeddings": 1024,
}

COLUMNS = {
    "batch_size": "requests decoded together",
    "steps": "decode steps of all runs",
    "step_ms": "mean time of a step, ms",
    "unique_experts": "experts read per layer and step, mean",
    "mbu_mb": "MBU's bytes per step, eq. (1), MB",
    "s_mbu_mb": "S-MBU's bytes per step as printed, eq. (3), MB",
    "s_mbu_complete_mb": "S-MBU's bytes per step, complete count, MB",
    "achieved_gb_per_s": "complete bytes of all steps over their time, GB/s",
    "best_step_gb_per_s": "the same of the fastest step, GB/s",
    "mbu": "MBU: over the read bandwidth",
    "s_mbu": "S-MBU as printed",
    "s_mbu_complete": "S-MBU, complete count",
}


def make_model(folder: Path) -> Path:
    """Save the model with random, seeded weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model("qwen3_moe", **MODEL, bos_token_id=None, eos_token_id=1, pad_token_id=0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    gc.collect()
    return folder


def requests_of(batch_size: int, run: int) -> list[Request]:
    """Random prompts, no two alike."""
    draw = np.random.default_rng((batch_size, run))
    prompts = draw.integers(2, MODEL["vocab_size"], (batch_size, PROMPT_TOKENS))
    return [Request(tuple(map(int, prompt)), OUTPUT_TOKENS) for prompt in prompts]


class Routing:
    """What the replay read, as the step table wants it."""

    def __init__(self, backend: Any, sequences: Mapping[str, list[int]]) -> None:
        self.layers, self.top_k, self.n_experts = backend.layers, backend.top_k, backend.n_experts
        names = list(sequences)
        self._ids = {names[i]: ids for i, ids in backend.routing([sequences[name] for name in names])}

    def experts(self, sequence_sha256: str) -> np.ndarray:
        return self._ids[sequence_sha256]


def tables(results: Sequence[RunResult], batch_size: int) -> tuple[pa.Table, pa.Table]:
    """Schedule and requests of a point's runs, as the step table wants them."""
    steps, requests = [], []
    for number, result in enumerate(results):
        point = {"dataset": "random", "batch_size": batch_size, "repeat": number}
        for index, step in enumerate(result.steps):
            fields = {f.name: getattr(step, f.name) for f in SCHEDULE if hasattr(step, f.name)}
            steps.append({**point, "step": index, **fields})
        for index, record in enumerate(result.requests):
            sequence = [*record.prompt_token_ids, *record.output_token_ids]
            ids = {"prompt_token_ids": record.prompt_token_ids, "output_token_ids": record.output_token_ids}
            requests.append({**point, "request": index, "sequence_sha256": sequence_hash(sequence), **ids})
    kept = pa.schema([f for f in REQUESTS if f.name in requests[0]])
    return pa.Table.from_pylist(steps, schema=SCHEDULE), pa.Table.from_pylist(requests, schema=kept)


def row_of(results: Sequence[RunResult], batch_size: int, routing: Routing, anatomy: Any, peak: float) -> dict:
    """One row: the full decode steps of a point's runs."""
    joined = step_table(*tables(results, batch_size), routing, anatomy)
    full = (np.asarray(joined["decode_tokens"]) == batch_size) & (np.asarray(joined["prefill_tokens"]) == 0)
    joined = joined.filter(pa.array(full))
    parts = [amounts.phases["decode"] for amounts in step_amounts(joined, anatomy).values()]
    amounts = {name: np.concatenate([part[:, i] for part in parts]) for i, name in enumerate(AMOUNTS)}
    seconds = amounts["time_s"]

    def utilization(name: str) -> float:
        return float(amounts[name].sum() / seconds.sum() / peak)

    return {
        "batch_size": batch_size,
        "steps": len(seconds),
        "step_ms": 1e3 * float(seconds.mean()),
        "unique_experts": float(np.array(joined["unique_experts"].to_pylist()).mean()),
        "mbu_mb": float(amounts["mbu"].mean()) / 1e6,
        "s_mbu_mb": float(amounts["s_mbu"].mean()) / 1e6,
        "s_mbu_complete_mb": float(amounts["s_mbu_complete"].mean()) / 1e6,
        "achieved_gb_per_s": utilization("s_mbu_complete") * peak / 1e9,
        "best_step_gb_per_s": float((amounts["s_mbu_complete"] / seconds).max()) / 1e9,
        **{name: utilization(name) for name in ("mbu", "s_mbu", "s_mbu_complete")},
    }


def validate(checkpoint: Path, entry: Mapping[str, Any], threads: int, seconds: float) -> dict[str, Any]:
    """All rows, and the read bandwidths that they are relative to."""
    anatomy = anatomy_of(str(checkpoint))
    cache = machine.detect()["last_level_cache_bytes"]
    if cache and anatomy.weight_bytes < TIMES_THE_CACHE * cache:
        raise MoecapError(
            f"The model weighs {anatomy.weight_bytes / 1e6:.0f} MB, less than {TIMES_THE_CACHE} times the last-level "
            f"cache of {cache / 1e6:.0f} MB: what it reads would not come from memory. Enlarge MODEL."
        )
    calibrations: list[Mapping[str, Any]] = []

    def calibrate() -> None:
        calibrations.append(machine.calibrate(seconds))
        log(f"read bandwidth: {calibrations[-1]['read_bandwidth_bytes_per_s'] / 1e9:.1f} GB/s")

    calibrate()
    spec = engine_spec(
        "validation",
        entry,
        {},
        checkpoint,
        max_num_seqs=max(BATCH_SIZES),
        context_tokens=PROMPT_TOKENS + OUTPUT_TOKENS,
        threads=threads,
    )
    results: dict[int, list[RunResult]] = {}
    with load(spec) as engine:
        for size in BATCH_SIZES:
            engine.run(requests_of(size, RUNS))  # warm-up
            results[size] = [engine.run(requests_of(size, run)) for run in range(RUNS)]
            log(f"batch size {size}: {RUNS} runs timed")
            calibrate()
    peak = max(run["read_bandwidth_bytes_per_s"] for run in calibrations)
    arguments = (entry.get("options") or {}).get("engine_args") or {}
    arguments = {key: value for key, value in arguments.items() if key not in OWN_ARGUMENTS}
    backend = replay.BACKENDS["vllm"](checkpoint, max_tokens=PROMPT_TOKENS + OUTPUT_TOKENS, **arguments)
    try:
        sequences = [
            [*r.prompt_token_ids, *r.output_token_ids]
            for runs in results.values()
            for run in runs
            for r in run.requests
        ]
        routing = Routing(backend, {sequence_hash(s): s for s in sequences})
    finally:
        backend.close()
    return {
        "rows": [row_of(runs, size, routing, anatomy, peak) for size, runs in results.items()],
        "peak": peak,
        "calibrations": calibrations,
        "weight_bytes": anatomy.weight_bytes,
        "cache_bytes": cache,
    }


def markdown(found: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """What was done, on what, the table, and what it says."""
    shown = {
        "batch_size": ("batch", "d"),
        "step_ms": ("step, ms", ".2f"),
        "unique_experts": ("experts read", ".2f"),
        "mbu_mb": ("MBU, MB", ".1f"),
        "s_mbu_mb": ("S-MBU printed, MB", ".1f"),
        "s_mbu_complete_mb": ("complete, MB", ".1f"),
        "achieved_gb_per_s": ("achieved, GB/s", ".2f"),
        "best_step_gb_per_s": ("fastest step, GB/s", ".2f"),
        "mbu": ("MBU", ".3f"),
        "s_mbu": ("S-MBU printed", ".3f"),
        "s_mbu_complete": ("S-MBU complete", ".3f"),
    }
    rows = found["rows"]
    read, copy = (
        [run[f"{kind}_bandwidth_bytes_per_s"] / 1e9 for run in found["calibrations"]] for kind in ("read", "copy")
    )
    fastest = max(row["best_step_gb_per_s"] for row in rows)
    worst = max(rows, key=lambda row: row["s_mbu_complete"])
    above_mbu = [row for row in rows if row["mbu"] > 1]
    cache = f"{found['cache_bytes'] / 1e6:.0f} MB" if found["cache_bytes"] else "unknown"
    lines = [
        "# Complete S-MBU against the machine's read bandwidth",
        "",
        f"A mixture of {MODEL['num_experts']} experts, top-{MODEL['num_experts_per_tok']}, with random bf16 weights "
        f"of {found['weight_bytes'] / 1e6:.0f} MB (the last-level cache: {cache}) is decoded by vLLM on the CPU. "
        "Bytes per step come from the step table, with the experts that the replay read; time is the engine's. The "
        f"peak is read bandwidth, measured in the same process before and after each batch size ({len(read)} times, "
        f"{min(read):.2f} to {max(read):.2f} GB/s; the largest is taken; copy: up to {max(copy):.2f} GB/s).",
        "",
        f"{facts['machine']}, {facts['threads']} threads; "
        + ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        + f". {facts['date']}.",
        "",
        "| " + " | ".join(head for head, _ in shown.values()) + " |",
        "|" + "---:|" * len(shown),
        *("| " + " | ".join(format(row[name], form) for name, (_, form) in shown.items()) + " |" for row in rows),
        "",
        f"- Largest complete S-MBU: {worst['s_mbu_complete']:.3f}, at batch size {worst['batch_size']}: "
        + (
            "**above 1: the bytes or the times are wrong.**"
            if worst["s_mbu_complete"] > 1
            else "below 1, as it has to be."
        ),
        f"- The fastest single step moved {fastest:.2f} GB/s, {fastest / max(read):.3f} of the read bandwidth.",
        "- MBU, which counts every expert, "
        + (
            f"reaches {max(row['mbu'] for row in rows):.3f}: more than memory delivers, at batch size "
            f"{', '.join(str(row['batch_size']) for row in above_mbu)}."
            if above_mbu
            else f"reaches {max(row['mbu'] for row in rows):.3f}."
        ),
        "",
        "A low S-MBU says that steps were not bound by memory, or that the machine did other work beside; it says "
        "nothing against the bytes. All columns are in `bandwidth.csv`. Made by `scripts/validate_bandwidth.py` "
        "(`make validate`).",
        "",
    ]
    return "\n".join(lines)


def log(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--catalogue", default="config/catalogue/engines.yaml")
    parser.add_argument("--engine", default="vllm-cpu")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=9.0, help="of each calibration")
    parser.add_argument("--output", type=Path, default=Path("docs/validation"))
    args = parser.parse_args(argv)
    try:
        entry = read_yaml(args.catalogue)[args.engine]
        with tempfile.TemporaryDirectory() as folder:
            found = validate(make_model(Path(folder)), entry, args.threads, args.seconds)
        detected = machine.detect()
        facts = {
            "machine": f"{detected['cpu_model']}, {detected['cores']} cores",
            "threads": args.threads,
            "versions": library_versions(["vllm", "torch", "zentorch", "transformers"]),
            "date": time.strftime("%Y-%m-%d"),
        }
        with atomic_path(args.output / "bandwidth.csv") as path, path.open("w", newline="") as file:
            file.writelines(f"# {name}: {meaning}\n" for name, meaning in COLUMNS.items())
            writer = csv.DictWriter(file, list(COLUMNS), lineterminator="\n")
            writer.writeheader()
            writer.writerows(
                {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in found["rows"]
            )
        with atomic_path(args.output / "bandwidth.md") as path:
            path.write_text(markdown(found, facts))
    except MoecapError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 1 if any(row["s_mbu_complete"] > 1 for row in found["rows"]) else 0


if __name__ == "__main__":
    raise SystemExit(main())
