"""Hold the replay against routers that are read inside the decode itself; writes replay.csv and replay.md.

For each precision the model is served by vLLM on this machine at several batch sizes, twice: untouched (the timed run)
and with hooks on its routers. Afterwards the sequences are replayed, as the pipeline does it, and compared token by
token, step by step, and in the S-MBU that follows.

    python scripts/validate_replay.py --variant bf16 CHECKPOINT REQUESTS.parquet [--variant int8 …] --output FOLDER

REQUESTS is a deployment's requests.parquet: its prompts are served again.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from moecap.checks.replay_check import COMPARED, GOALS, SCHEMA, Ids, Run, compare
from moecap.documents import read_yaml
from moecap.engines.base import Request, RunResult, library_versions, load
from moecap.engines.tokens import sequence_hash
from moecap.engines.vllm.replay import OWN_ARGUMENTS
from moecap.errors import MoecapError
from moecap.hardware import machine
from moecap.io import atomic_path, read_parquet
from moecap.measure.performance import engine_spec
from moecap.model.counted import anatomy as anatomy_of
from moecap.routing import replay
from moecap.routing.decode_trace import Tracer, tokens_of


def about(name: str) -> dict[str, str]:
    """What is known of a column of the check's table: its meaning, label, form."""
    return {key.decode(): text.decode() for key, text in SCHEMA.field(name).metadata.items()}


# Runs per batch size: a small batch needs more of them for as many tokens.
RUNS = {1: 32, 4: 16, 16: 8, 64: 4}
COLUMNS = {
    "precision": "",
    "batch_size": "",
    "runs": "runs compared",
    "same_tokens": "share of sequences that came out the same with and without hooks",
    **{name: about(name)["meaning"] for name in COMPARED},
    "run_s": "wall time of the timed runs, s",
    "replay_s": "wall time of the replay of their sequences, s",
    "replay_over_run": "ratio of the two",
    "load_s": "loading the model for the replay, s (once per precision)",
}
# Columns of the table that the page leaves out.
UNSHOWN = {"decode_steps", "prefill_sets_equal"}

WIDE_NAME = "wide bf16"
# A model in which sums do round differently for one token and for a prompt; its weights are random and seeded.
WIDE = {
    "hidden_size": 1024,
    "intermediate_size": 512,
    "moe_intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "vocab_size": 384,
    "max_position_embeddings": 1024,
}


def make_wide(folder: Path) -> Path:
    """Save the wide model, unless it is there."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        config = AutoConfig.for_model("qwen3_moe", **WIDE, bos_token_id=None, eos_token_id=1, pad_token_id=0)
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def batches(requests: Path, batch_size: int, runs: int) -> list[list[Request]]:
    """``runs`` batches of prompts that were timed, of all datasets in turn, each prompt at most once in a batch."""
    table = read_parquet(requests, ["dataset", "prompt_token_ids", "output_token_ids"]).to_pylist()
    prompts: dict[str, dict[tuple[int, ...], int]] = {}
    for row in table:
        prompts.setdefault(row["dataset"], {})[tuple(row["prompt_token_ids"])] = len(row["output_token_ids"])
    found = []
    for number in range(runs):
        pool = list(prompts[sorted(prompts)[number % len(prompts)]].items())
        start = number // len(prompts) * batch_size
        found.append([Request(*pool[(start + i) % len(pool)]) for i in range(min(batch_size, len(pool)))])
    return found


def validate(
    precision: str, checkpoint: Path, requests: Path, entry: dict[str, Any], batch_sizes: Sequence[int], threads: int
) -> list[dict[str, Any]]:
    """One row per batch size."""
    work = {size: batches(requests, size, RUNS.get(size, 4)) for size in batch_sizes}
    everything = [request for runs in work.values() for run in runs for request in run]
    spec = engine_spec(
        "validation",
        entry,
        {},
        checkpoint,
        max_num_seqs=max(batch_sizes),
        context_tokens=max(len(r.prompt_token_ids) + r.output_tokens for r in everything),
        threads=threads,
    )
    timed: dict[int, list[RunResult]] = {}
    traced: dict[int, list[tuple[pa.Table, pa.Table, RunResult]]] = {}
    with load(spec) as engine:
        for size, runs in work.items():
            engine.run(runs[-1])  # warm-up
            timed[size] = [engine.run(run) for run in runs]
            log(f"{precision}, batch size {size}: {len(runs)} runs timed")
        tracer = Tracer(engine)
        for size, runs in work.items():
            traced[size] = [tracer.run(run, "validation", size, number) for number, run in enumerate(runs)]
            log(f"{precision}, batch size {size}: {len(runs)} runs traced")
    started = time.perf_counter()
    arguments = (entry.get("options") or {}).get("engine_args") or {}
    arguments = {key: value for key, value in arguments.items() if key not in OWN_ARGUMENTS}
    longest = spec.context_tokens or 1
    backend = replay.BACKENDS["vllm"](checkpoint, max_tokens=longest, **arguments)
    load_s = time.perf_counter() - started
    anatomy = anatomy_of(str(checkpoint))
    rows = []
    try:
        list(backend.routing(tokens_of(timed[batch_sizes[0]][0])))  # warm-up
        for size in batch_sizes:
            # What is timed is what the pipeline does: the sequences of the timed runs, each once.
            unique = {sequence_hash(s): s for result in timed[size] for s in tokens_of(result)}
            started = time.perf_counter()
            found = _replay(backend, unique)
            replay_s = time.perf_counter() - started
            hooked = {sequence_hash(s): s for _, _, result in traced[size] for s in tokens_of(result)}
            found |= _replay(backend, {name: s for name, s in hooked.items() if name not in found})
            run_s = sum(result.wall_s for result in timed[size])
            pairs = [
                a == b
                for plain, (_, _, hooks) in zip(timed[size], traced[size], strict=True)
                for a, b in zip(tokens_of(plain), tokens_of(hooks), strict=True)
            ]
            routing = Ids(found, backend.layers, backend.top_k, backend.n_experts)
            rows.append(
                {
                    "precision": precision,
                    "batch_size": size,
                    "runs": len(work[size]),
                    "same_tokens": float(np.mean(pairs)),
                    **compare([Run(decoded, schedule) for decoded, schedule, _ in traced[size]], routing, anatomy),
                    "run_s": run_s,
                    "replay_s": replay_s,
                    "replay_over_run": replay_s / run_s,
                    "load_s": load_s,
                }
            )
            log(f"{precision}, batch size {size}: S-MBU error {rows[-1]['s_mbu_error']:+.5f}")
    finally:
        backend.close()
    return rows


def log(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def _replay(backend: Any, sequences: dict[str, list[int]]) -> dict[str, np.ndarray]:
    names = list(sequences)
    return {names[index]: ids for index, ids in backend.routing([sequences[name] for name in names])}


def markdown(rows: Sequence[dict[str, Any]], facts: dict[str, Any]) -> str:
    """The report: what was done, on what, the table, and whether the goals are met."""
    columns = [name for name in COMPARED if name not in UNSHOWN]
    shown = {
        "precision": "precision",
        "batch_size": "batch",
        **{name: about(name).get("label") or name.replace("_", " ") for name in columns},
        "replay_over_run": "replay / run",
    }

    def cell(name: str, value: Any) -> str:
        if isinstance(value, str):
            return value
        form = about(name).get("form") if name in columns else None
        if form in ("share", "error"):
            return f"{100 * value:.{1 if form == 'share' else 3}f}%"
        return f"{value:,}" if isinstance(value, (int, np.integer)) else f"{value:.3f}"

    lines = [
        "# The replay against routers read inside the decode",
        "",
        "The trace of a timed run is made afterwards, by one teacher-forced pass over its sequences. Here the routers "
        "of the very decode were read as well (hooks in the engine, a run of its own, not the timed one), and both are "
        "compared: the set of experts of each decoded token in each MoE layer, the number of unique experts of each "
        "decode step and layer, and the S-MBU that follows (eq. 3 as printed, and the complete count).",
        "",
        f"{facts['machine']}, {facts['threads']} threads; "
        + ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        + f". {facts['date']}.",
        "",
        "| " + " | ".join(shown.values()) + " |",
        "|" + "---|" * len(shown),
        *("| " + " | ".join(cell(name, row[name]) for name in shown) + " |" for row in rows),
        "",
    ]
    worst = max(abs(row[name]) for row in rows for name in ("s_mbu_error", "s_mbu_complete_error"))
    lines += [
        f"- Largest error of S-MBU at a batch size: {100 * worst:.3f}% (goal: at most "
        f"{100 * GOALS['s_mbu_error']:.1f}%): {'met' if worst <= GOALS['s_mbu_error'] else 'not met'}.",
    ]
    for precision in dict.fromkeys(row["precision"] for row in rows):
        mine = [row for row in rows if row["precision"] == precision]
        run, again, load_s = sum(r["run_s"] for r in mine), sum(r["replay_s"] for r in mine), mine[0]["load_s"]
        ratio = again / run
        lines.append(
            f"- {precision}: {run:.2f} s of timed runs, replayed in {again:.2f} s, {ratio:.2f} of it (goal: at most "
            f"{GOALS['replay_over_run']}): {'met' if ratio <= GOALS['replay_over_run'] else 'not met'}. Loading the "
            f"model for the replay took {load_s:.1f} s more, once."
        )
    same = min(row["same_tokens"] for row in rows)
    lines += [
        f"- The hooks do not change what is generated: {100 * same:.1f}% of the sequences, at the least, came out the "
        "same with and without them.",
        "",
        "`control` compares with the replay of the position before: were it high, equal sets would mean nothing.",
        "",
        "Sets differ where two experts score almost alike and a kernel, or the threads it is split over, sums in "
        "another order for one token than for a whole prompt. A narrow model may show none; that says nothing about "
        "wider ones.",
        "",
    ]
    if any(row["precision"] == WIDE_NAME for row in rows):
        lines[-2] += (
            f" `{WIDE_NAME}` is therefore a model of {WIDE['hidden_size']} instead of 128 channels with "
            f"{WIDE['num_experts']} experts, top-{WIDE['num_experts_per_tok']}, and random weights: its routers are "
            "undecided, the worst case for ties."
        )
    lines += [
        "All columns, and what they mean, are in `replay.csv`. Made by `scripts/validate_replay.py` (`make validate`).",
        "",
    ]
    return "\n".join(lines)


def write(rows: Sequence[dict[str, Any]], facts: dict[str, Any], output: Path) -> None:
    """The page and its table."""
    with atomic_path(output / "replay.csv") as path, path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        file.writelines(f"# {name}: {meaning}\n" for name, meaning in COLUMNS.items() if meaning)
        writer.writerow(COLUMNS)
        writer.writerows([f"{v:.6g}" if isinstance(v, float) else v for v in map(r.get, COLUMNS)] for r in rows)
    with atomic_path(output / "replay.md") as path:
        path.write_text(markdown(rows, facts))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--variant", nargs=3, action="append", required=True, metavar=("PRECISION", "CHECKPOINT", "REQUESTS")
    )
    parser.add_argument(
        "--wide", type=Path, help="where to keep the wide model; it is served the first variant's prompts"
    )
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=sorted(RUNS))
    parser.add_argument("--catalogue", default="config/catalogue/engines.yaml")
    parser.add_argument("--engine", default="vllm-cpu")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--output", type=Path, default=Path("docs/validation"))
    args = parser.parse_args(argv)
    try:
        entry = read_yaml(args.catalogue)[args.engine]
        rows: list[dict[str, Any]] = []
        variants = list(args.variant)
        if args.wide:
            variants.append([WIDE_NAME, make_wide(args.wide), args.variant[0][2]])
        detected = machine.detect()
        facts = {
            "machine": f"{detected['cpu_model']}, {detected['cores']} cores",
            "threads": args.threads,
            "versions": library_versions(["vllm", "torch", "zentorch", "transformers"]),
            "date": time.strftime("%Y-%m-%d"),
        }
        for precision, checkpoint, requests in variants:
            rows += validate(precision, Path(checkpoint), Path(requests), entry, args.batch_sizes, args.threads)
            write(rows, facts, args.output)  # what is finished is kept
    except MoecapError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
