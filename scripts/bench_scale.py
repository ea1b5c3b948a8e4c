"""How long the metrics stage takes at scale: join, step table and aggregation of a made-up run.

    python scripts/bench_scale.py --output results/bench.json

The run: ``--steps`` decode steps of ``--batch`` requests, random routing over ``--moe-layers`` × ``--experts``. Its
files are written first (not timed); then a process of its own reads them as ``scripts/metrics.py`` does, so that its
time, CPU time and peak memory are those of the stage.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moecap.io import read_json, read_parquet, write_json, write_parquet
from moecap.metrics import steps
from moecap.metrics.peaks import Peaks
from moecap.metrics.table import metrics_table
from moecap.model.structure import COMPONENTS, Anatomy, Component, LayerKind
from moecap.routing import store as routing

PROMPT, OUTPUT = 8, 1000


def model(moe_layers: int, experts: int, top_k: int) -> Anatomy:
    """A model of DeepSeek-V3's shape in its MoE layers."""
    sizes = {"attention": 187_107_328, "router": 7168 * experts, "shared": 44_040_192, "norm": 16_384}
    kind = LayerKind(
        count=moe_layers,
        experts=experts,
        top_k=top_k,
        expert_params=44_040_192,
        expert_bytes=44_040_192,
        expert_flops=2 * 44_040_192,
        kv_elements_per_token=576,
        kv_bytes_per_token=1152,
        query_heads=128,
        qk_head_dim=192,
        v_head_dim=128,
        attention="latent",
        **{f"{name}_params": size for name, size in sizes.items()},
        **{f"{name}_bytes": size for name, size in sizes.items()},
        **{f"{name}_flops": 2 * size for name, size in sizes.items() if name != "norm"},
    )
    components = {
        name: Component(moe_layers * kind.component_params(name), moe_layers * kind.component_bytes(name))
        if name not in ("embedding", "lm_head")
        else Component(7168 * 129_280, 7168 * 129_280 * 2)
        for name in COMPONENTS
    }
    total = sum(c.params for c in components.values())
    return Anatomy(
        model="scale",
        precision="fp8",
        total_params=total,
        active_params=total - moe_layers * (experts - top_k) * kind.expert_params,
        components=components,
        kinds=(kind,),
        layer_kind=(0,) * moe_layers,
        hidden_size=7168,
        vocab_size=129_280,
        tied_embeddings=False,
        embedding_row_bytes=14_336,
        kv_dtype_bytes=2,
    )


def write_run(folder: Path, n_steps: int, batch: int, anatomy: Anatomy) -> None:
    """Points, requests, schedule and routing of ``n_steps`` decode steps, ``batch`` requests at a time."""
    rng = np.random.default_rng(0)
    waves = -(-n_steps // OUTPUT)
    n_requests = waves * batch
    point = {"dataset": "scale", "batch_size": batch, "repeat": 0}
    names = [f"{i:064x}" for i in range(n_requests)]
    shape = (PROMPT + OUTPUT, len(anatomy.moe_layers), anatomy.experts)
    path = folder / "routing.parquet"
    with routing.RoutingWriter(
        path, layers=anatomy.moe_layers, top_k=anatomy.top_k, n_experts=anatomy.experts
    ) as writer:
        for name in names:
            # Distinct experts per token and layer: a random start and random strides that share no factor with E.
            start = rng.integers(shape[2], size=shape[:2], dtype=np.int64)[..., None]
            stride = 2 * rng.integers(shape[2] // 2, size=shape[:2], dtype=np.int64)[..., None] + 1
            writer.add(name, (start + stride * np.arange(anatomy.top_k)) % shape[2])

    step = np.arange(n_steps)
    wave, within = step // OUTPUT, step % OUTPUT
    first = np.where(within == 0, 0, PROMPT + within - 1)
    tokens = np.where(within == 0, PROMPT, 1)
    offsets = pa.array(np.arange(n_steps + 1, dtype=np.int32) * batch)

    def lists(values: np.ndarray) -> pa.Array:
        return pa.ListArray.from_arrays(offsets, pa.array(values.ravel().astype(np.int32)))

    wall = 0.12 + 0.03 * rng.random(n_steps)
    per_request = np.repeat
    table = pa.table(
        {
            **{k: pa.array([v] * n_steps) for k, v in point.items()},
            "step": pa.array(step.astype(np.int32)),
            "start_s": np.concatenate(([0.0], np.cumsum(wall)[:-1])),
            "wall_s": wall,
            "request": lists(wave[:, None] * batch + np.arange(batch)),
            "first_position": lists(per_request(first, batch)),
            "tokens": lists(per_request(tokens, batch)),
            "cached_tokens": lists(np.zeros(n_steps * batch)),
            "preempted": pa.array([[]] * n_steps, pa.list_(pa.int32())),
        }
    )
    write_parquet(table, folder / "schedule.parquet")
    ends = np.cumsum(wall)
    rows = []
    for request, name in enumerate(names):
        begin = request // batch * OUTPUT
        times = ends[begin : begin + OUTPUT].tolist()
        rows.append(
            {
                **point,
                "request": request,
                "sequence_sha256": name,
                "prompt_token_ids": [0] * PROMPT,
                "output_token_ids": [0] * len(times),
                "arrival_s": 0.0,
                "first_token_s": times[0],
                "finished_s": times[-1],
                "token_times_s": times,
            }
        )
    write_parquet(pa.Table.from_pylist(rows), folder / "requests.parquet")
    generated = sum(len(r["output_token_ids"]) for r in rows)
    totals = {"wall_s": wall.sum(), "requests": n_requests, "prompt_tokens": n_requests * PROMPT}
    write_parquet(pa.Table.from_pylist([{**point, **totals, "generated_tokens": generated}]), folder / "points.parquet")
    write_json(anatomy.to_json(), folder / "anatomy.json")


def measure(folder: Path) -> dict[str, float]:
    """Run the stage on a written run; seconds of wall and CPU time per part, peak memory, size of the step table."""
    marks = [("", time.perf_counter(), time.process_time())]

    def mark(name: str) -> None:
        marks.append((name, time.perf_counter(), time.process_time()))

    anatomy = Anatomy.from_json(read_json(folder / "anatomy.json"))
    store = routing.read(folder / "routing.parquet", anatomy)
    points, requests, schedule = (read_parquet(folder / f"{n}.parquet") for n in ("points", "requests", "schedule"))
    mark("read")
    batches = list(steps.step_batches(schedule, requests, store, anatomy))
    mark("join")
    path = folder / "steps.parquet"
    steps.write_steps(batches, path)
    del batches, schedule
    mark("write")
    peaks = Peaks(3.35e12 * 8, 989e12 * 8)
    table = metrics_table(points, requests, steps.read_steps(path), anatomy, peaks)
    mark("metrics")
    if not 0 < table["decode_s_mbu"][0].as_py() < table["decode_mbu"][0].as_py():
        raise SystemExit("The metrics of the made-up run make no sense.")
    result = {f"{b[0]}_s": b[1] - a[1] for a, b in pairwise(marks)}
    result |= {f"{b[0]}_cpu_s": b[2] - a[2] for a, b in pairwise(marks)}
    result["total_s"] = marks[-1][1] - marks[0][1]
    result["total_cpu_s"] = marks[-1][2] - marks[0][2]
    result["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result["step_table_bytes"] = path.stat().st_size
    result["steps"] = pq.read_metadata(path).num_rows
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--moe-layers", type=int, default=58)
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON file that the figures are added to")
    parser.add_argument("--folder", type=Path, help="where the run is written (default: a temporary folder)")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        write_run(Path(name), args.steps, args.batch, model(args.moe_layers, args.experts, args.top_k))
        command = [sys.executable, __file__, "--measure", name]
        figures = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        figures["routing_bytes"] = (Path(name) / "routing.parquet").stat().st_size
    command_text = " ".join(["python scripts/bench_scale.py", *(f"--steps {args.steps} --batch {args.batch}".split())])
    entries = {
        f"metrics_scale_{key}": {
            "value": value,
            "unit": "B" if key.endswith("_bytes") else "s" if key.endswith("_s") else "1",
            "command": command_text,
        }
        for key, value in figures.items()
    }
    print(json.dumps(figures, indent=2))
    if args.output:
        write_json({**(read_json(args.output) if args.output.exists() else {}), **entries}, args.output)


if __name__ == "__main__":
    main()
