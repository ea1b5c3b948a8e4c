"""How long a dry-run of a large campaign takes, beside that of a bare DAG with as many jobs, measured in the same run.

    python scripts/bench_dryrun.py --output results/bench.json

The campaigns are made up: N deployments × 3 datasets × 6 batch sizes, over every model, the precisions that vLLM
serves on H100, H200 and A100, and 1 to 8 devices. Nothing exists yet, so that every job is planned.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from moecap.io import read_json, write_json

ROOT = Path(__file__).resolve().parent.parent
DATASETS, BATCH_SIZES = "gsm8k mmlu arithmetic", "1 4 16 32 64 128"
PRECISIONS = ("bf16", "int8", "int4", "fp8", "int8-weight-only")
HARDWARE = ("H100-SXM5-80GB", "H200-SXM-141GB", "A100-SXM4-80GB")
BARE = """
rule all:
    input:
        expand("out/{{n}}.txt", n=range({jobs})),


rule work:
    output:
        "out/{{n}}.txt",
    shell:
        "touch {{output}}"
"""


def deployments() -> Iterator[dict[str, Any]]:
    """Distinct rows; after every combination the next round differs in expert parallelism."""
    models = [m for m, entry in yaml.safe_load((ROOT / "config/catalogue/models.yaml").read_text()).items()
              if (entry.get("source") or {}).get("hub")]  # fmt: skip
    combinations = itertools.product((False, True), (1, 2, 4, 8), HARDWARE, PRECISIONS, models)
    for number, (experts, devices, hardware, precision, model) in enumerate(combinations):
        yield {
            "deployment": f"d{number}",
            "model": model,
            "precision": precision,
            "engine": "vllm-cuda",
            "hardware": hardware,
            "devices": devices,
            "tensor_parallel": devices,
            "expert_parallel": devices if experts else 1,
            "datasets": DATASETS,
            "batch_sizes": BATCH_SIZES,
        }


def write_campaign(folder: Path, count: int) -> Path:
    rows = list(itertools.islice(deployments(), count))
    with (folder / "deployments.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    config = {"deployments": f"{folder}/deployments.csv", "results": f"{folder}/results"}
    (folder / "campaign.yaml").write_text(yaml.safe_dump({**config, "cost": {"region": "us-average"}}))
    return folder / "campaign.yaml"


def dry_run(folder: Path, *arguments: str) -> dict[str, float]:
    """Wall and CPU seconds, peak memory, and the number of jobs of one dry-run."""
    with (folder / "log").open("w+") as log:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "snakemake", "-n", "--cores", "1", "--quiet", "rules", *arguments],
            cwd=folder if "--snakefile" in arguments else ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        log.seek(0)
        text = log.read()
    if status:
        raise SystemExit(f"the dry-run failed:\n{text[-3000:]}")
    (jobs,) = re.findall(r"^total\s+(\d+)$", text, re.M)[:1]
    return {
        "jobs": int(jobs),
        "wall_s": wall,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_memory_bytes": usage.ru_maxrss * 1024,
    }


def compare(count: int, repeats: int) -> dict[str, float]:
    """The campaign and the bare DAG in turn; medians, and the median of the ratios of their CPU times."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = write_campaign(folder, count)
        pairs = []
        for _ in range(repeats):
            ours = dry_run(folder, "--configfile", str(config))
            (folder / "Bare.smk").write_text(BARE.format(jobs=ours["jobs"] - 1))
            pairs.append((ours, dry_run(folder, "--snakefile", str(folder / "Bare.smk"))))
    middle = repeats // 2

    def median(values: Iterator[float]) -> float:
        return sorted(values)[middle]

    return {
        "jobs": pairs[0][0]["jobs"],
        "wall_s": median(a["wall_s"] for a, _ in pairs),
        "bare_wall_s": median(b["wall_s"] for _, b in pairs),
        "ratio": median(a["cpu_s"] / b["cpu_s"] for a, b in pairs),
        "wall_ratio": median(a["wall_s"] / b["wall_s"] for a, b in pairs),
        "peak_memory_bytes": max(a["peak_memory_bytes"] for a, _ in pairs),
        "bare_peak_memory_bytes": max(b["peak_memory_bytes"] for _, b in pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 100, 300, 1000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON file that the figures are added to")
    args = parser.parse_args()
    entries: dict[str, Any] = {}
    for count in args.counts:
        found = compare(count, args.repeats)
        print(f"{count} deployments: " + ", ".join(f"{key} {value:,.2f}" for key, value in found.items()), flush=True)
        for key, value in found.items():
            unit = "B" if key.endswith("_bytes") else "s" if key.endswith("_s") else "1"
            command = f"python scripts/bench_dryrun.py --counts {count} --repeats {args.repeats}"
            entries[f"dryrun_{count}_deployments_{key}"] = {"value": value, "unit": unit, "command": command}
    if args.output:
        write_json({**(read_json(args.output) if args.output.exists() else {}), **entries}, args.output)


if __name__ == "__main__":
    main()
