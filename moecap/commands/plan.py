"""``moecap plan``: predict deployments that need not be owned, and find the cheapest that meets a target."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from moecap.errors import MoecapError
from moecap.hardware import Hardware, load
from moecap.planner import Candidate, Workload, answer, plan, required_bytes_per_s
from moecap.structure import Anatomy

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
DEVICES = (1, 2, 4, 8)


def add_parser(subparsers: Any) -> None:
    """Add the command's parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "plan", help="predict deployments that need not be owned, and find the cheapest that meets a target"
    )
    parser.add_argument(
        "--model",
        required=True,
        nargs="+",
        metavar="MODEL",
        help="catalogue name, hub id, checkpoint, config.json, or an anatomy as JSON (results/anatomy/…)",
    )
    parser.add_argument("--precision", nargs="+", default=["bf16"], metavar="P", help="default bf16")
    parser.add_argument("--hardware", nargs="+", metavar="ENTRY", help="default: every GPU of the catalogue")
    parser.add_argument("--devices", nargs="+", type=int, default=list(DEVICES), metavar="N", help="default 1 2 4 8")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=list(BATCH_SIZES), metavar="B")
    parser.add_argument("--prompt-tokens", type=int, default=512, metavar="N")
    parser.add_argument("--output-tokens", type=int, default=128, metavar="N")
    parser.add_argument("--tpot-s", type=float, metavar="S", help="limit on the time per output token")
    parser.add_argument("--ttft-s", type=float, metavar="S", help="limit on the time to first token")
    parser.add_argument("--accuracy", type=float, metavar="A", help="least accuracy, 0 to 1; needs --cap")
    parser.add_argument("--cap", metavar="FILE", help="a CAP table: accuracy of models and precisions, calibration")
    parser.add_argument("--machine", metavar="FILE", help="what calibration of `this-machine` found (JSON)")
    parser.add_argument("--years", type=float, default=3.0, metavar="Y")
    parser.add_argument("--usd-per-kwh", type=float, metavar="P")
    parser.add_argument("--region", default=None)
    parser.add_argument("--catalogue", help="folder of hardware.yaml (default config/catalogue)")
    parser.add_argument("--output", metavar="FILE", help="write every point as Parquet")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    hardware = load(args.catalogue)
    accuracies = _accuracies(args.cap)
    if args.accuracy is not None and not accuracies:
        raise MoecapError("--accuracy needs --cap: a table that says how accurate models are (results/cap.parquet).")
    anatomies = list(_anatomies(args.model, args.precision))
    candidates = [Candidate.of(a, accuracies.get((a.model, a.precision))) for a in anatomies]
    region = None if args.usd_per_kwh is not None else (args.region or "us-average")
    machine = json.loads(Path(args.machine).read_text()) if args.machine else None
    table = plan(
        candidates,
        hardware,
        args.hardware or _default_systems(hardware),
        args.devices,
        args.batch_sizes,
        Workload(args.prompt_tokens, args.output_tokens),
        {"years": args.years, "usd_per_kwh": args.usd_per_kwh, "region": region},
        machine=machine,
    )
    found = answer(table, args.tpot_s, args.ttft_s, args.accuracy)
    if args.tpot_s is not None:
        found["required_bytes_per_s"] = [_required(a, args.tpot_s, args.batch_sizes[0]) for a in anatomies]
    if args.output:
        from moecap.io import write_parquet

        write_parquet(table, args.output)
    print(json.dumps(found, allow_nan=False) if args.json else describe(found))
    return 0


def _default_systems(hardware: Hardware) -> list[str]:
    return [name for name, gpu in hardware.gpus.items() if gpu.price is not None]


def _required(anatomy: Anatomy, tpot_s: float, batch_size: int) -> dict[str, Any]:
    return {
        "model": anatomy.model,
        "precision": anatomy.precision,
        "batch_size": batch_size,
        "s_mbu": required_bytes_per_s(anatomy, tpot_s, batch_size),
        "mbu": required_bytes_per_s(anatomy, tpot_s, batch_size, dense=True),
    }


def _anatomies(models: Sequence[str], precisions: Sequence[str]) -> Iterable[Anatomy]:
    for model in models:
        read = _stored(model)
        if read is not None:
            yield read
            continue
        from moecap.meta import anatomy  # builds the model: needs torch

        for precision in precisions:
            yield anatomy(model, precision)


def _stored(model: str) -> Anatomy | None:
    path = Path(model)
    if path.suffix != ".json" or not path.is_file():
        return None
    data = json.loads(path.read_text())
    return Anatomy.from_json(data) if "layer_kinds" in data else None


def _accuracies(path: str | None) -> dict[tuple[str, str], float]:
    """Best-known accuracy per model and precision: the lowest over datasets, which any limit must hold."""
    if path is None:
        return {}
    from moecap.io import read_parquet

    found: dict[tuple[str, str], float] = {}
    for row in read_parquet(path, ["model", "precision", "accuracy"]).to_pylist():
        if row["accuracy"] is not None:
            key = (row["model"], row["precision"])
            found[key] = min(row["accuracy"], found.get(key, 1.0))
    return found


def describe(found: dict[str, Any]) -> str:
    """The answers for a reader."""
    lines = [
        f"{found['points']:,} points, {found['feasible']:,} can be served, {found['meeting']:,} meet the limits"
        + (" (upper bounds: nothing was measured there)" if found["upper_bound"] else ""),
        "",
    ]
    for key, title in (
        ("cheapest_per_token", "cheapest per token"),
        ("cheapest_to_buy", "cheapest to buy"),
        ("mbu", "MBU-thinking would buy"),
    ):
        row = found[key]
        lines.append(
            f"{title:24} none"
            if row is None
            else f"{title:24} {row['devices']} x {row['hardware']}: {row['model']} {row['precision']}, batch "
            f"{row['batch_size']}, TPOT {row['tpot_s'] * 1e3:,.1f} ms, TTFT {row['ttft_s'] * 1e3:,.0f} ms, "
            f"{row['output_tokens_per_s']:,.0f} token/s, {row['hardware_usd']:,.0f} USD, "
            f"{row['usd_per_million_tokens']:,.3f} USD per 10⁶ tokens (prices {row['price_status']})"
        )
    if found["mbu_extra_usd"]:
        lines.append(f"{'':24} {found['mbu_extra_usd']:,.0f} USD more")
    for need in found.get("required_bytes_per_s", []):
        lines.append(
            f"{need['model']} {need['precision']} at batch {need['batch_size']} needs {need['s_mbu'] / 1e12:,.3f} TB/s "
            f"by S-MBU, {need['mbu'] / 1e12:,.3f} TB/s by MBU"
        )
    return "\n".join(lines)
