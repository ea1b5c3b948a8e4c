"""How long a plan of some 5,000 points takes, from the catalogue's models alone: no engine, no weights.

Adds `plan_5000_points_s` (wall time of everything: reading the catalogue, counting the models, predicting, costing,
answering), of it `plan_models_s` and `plan_predict_s`, and `plan_points` to a JSON file of figures.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from moecap.hardware import catalogue as hardware
from moecap.io import read_json, write_json
from moecap.model.counted import anatomy
from moecap.plan.answers import answer
from moecap.plan.search import plan
from moecap.plan.target import Candidate, Workload

MODELS = ("mixtral-8x7b", "mixtral-8x22b", "dbrx", "qwen3-30b-a3b", "deepseek-v3")
PRECISIONS = ("bf16", "int8", "int4")
DEVICES = (1, 2, 4, 8)
BATCH_SIZES = (1, 4, 16, 64, 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="JSON file that the figures are added to")
    args = parser.parse_args()
    marks = [time.perf_counter()]
    catalogue = hardware.load()
    candidates = [Candidate.of(anatomy(m, p)) for m in MODELS for p in PRECISIONS]
    marks.append(time.perf_counter())
    systems = [name for name, gpu in catalogue.gpus.items() if gpu.price is not None]
    table = plan(candidates, catalogue, systems, DEVICES, BATCH_SIZES, Workload(1000, 200))
    marks.append(time.perf_counter())
    found = answer(table, tpot_s=0.1, ttft_s=5.0)
    marks.append(time.perf_counter())
    if table.num_rows < 5000 or not 0 < found["meeting"] < found["points"]:
        raise SystemExit(f"The plan makes no sense: {table.num_rows} points, {found['meeting']} within the limits.")
    figures = {
        "plan_points": (table.num_rows, "1"),
        "plan_5000_points_s": (marks[-1] - marks[0], "s"),
        "plan_models_s": (marks[1] - marks[0], "s"),
        "plan_predict_s": (marks[2] - marks[1], "s"),
    }
    entries = {
        name: {"value": value, "unit": unit, "command": "python scripts/bench_plan.py"}
        for name, (value, unit) in figures.items()
    }
    for name, entry in entries.items():
        print(f"{name:20} {entry['value']:,.3g} {entry['unit']}")
    if args.output:
        write_json({**(read_json(args.output) if args.output.exists() else {}), **entries}, args.output)


if __name__ == "__main__":
    main()
