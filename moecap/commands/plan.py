"""``moecap plan``: predict deployments that need not be owned, and find the cheapest that meets a target."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from moecap.errors import MoecapError, nearest
from moecap.hardware.catalogue import Hardware, load
from moecap.io import read_json
from moecap.model.structure import Anatomy
from moecap.plan.anatomies import anatomy_of
from moecap.plan.answers import answer
from moecap.plan.counts import required_bytes_per_s
from moecap.plan.cross_check import cross_check_in_words
from moecap.plan.expected import Drafts
from moecap.plan.layouts import KINDS
from moecap.plan.measured import Measured, accuracies
from moecap.plan.offload import Tier
from moecap.plan.search import plan
from moecap.plan.table import SORTS, Row, as_csv, as_text, holds, ranked, seconds, why_out
from moecap.plan.target import Candidate, Workload
from moecap.plan.words import in_words

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
DEVICES = (1, 2, 4, 8)


def add_parser(subparsers: Any) -> None:
    """Add the command's parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "plan", help="predict deployments that need not be owned, and find the cheapest that meets a target"
    )
    parser.add_argument(
        "--model",
        nargs="+",
        default=[],
        metavar="MODEL",
        help="catalogue name, hub id, checkpoint, config.json, or an anatomy as JSON (results/anatomy/…); "
        "default: those of --results",
    )
    parser.add_argument("--precision", nargs="+", default=["bf16"], metavar="P", help="default bf16")
    parser.add_argument("--hardware", nargs="+", metavar="ENTRY", help="default: every GPU of the catalogue")
    parser.add_argument("--devices", nargs="+", type=int, default=list(DEVICES), metavar="N", help="default 1 2 4 8")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=list(BATCH_SIZES), metavar="B")
    parser.add_argument("--prompt-tokens", type=int, default=512, metavar="N")
    parser.add_argument("--output-tokens", type=int, default=128, metavar="N")
    parser.add_argument("--tpot", "--tpot-s", dest="tpot_s", type=_seconds, metavar="T", help="limit: 20ms, 0.1 s")
    parser.add_argument("--ttft", "--ttft-s", dest="ttft_s", type=_seconds, metavar="T", help="limit: 500ms, 2 s")
    parser.add_argument("--engine", default="vllm", help="whose prior times rest on; `none`: the roofline's bound")
    parser.add_argument("--layouts", nargs="+", choices=KINDS, default=["tp"], help="ways to share a model; default tp")
    parser.add_argument("--draft-tokens", type=int, default=0, metavar="N", help="drafted per step (speculation)")
    parser.add_argument("--acceptance", type=float, default=0.0, metavar="A", help="probability of a drafted token")
    parser.add_argument(
        "--experts-on-gpu",
        type=float,
        metavar="S",
        help="share of the experts on the devices; the rest is offloaded",
    )
    parser.add_argument(
        "--tier-bytes-per-s", type=float, metavar="B", help="bandwidth of the memory or SSDs that hold the rest"
    )
    parser.add_argument("--top", type=int, default=10, metavar="N", help="rows of the table; default 10")
    parser.add_argument("--sort", choices=list(SORTS), default="cost", help="default: cost per token")
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table")
    parser.add_argument("--accuracy", type=float, metavar="A", help="least accuracy, 0 to 1; needs --cap or --results")
    parser.add_argument("--cap", metavar="FILE", help="a CAP table: accuracy of models and precisions")
    parser.add_argument(
        "--results", metavar="FOLDER", help="a results folder: accuracy, routing, machine, and runs to calibrate by"
    )
    parser.add_argument(
        "--calibrate-on", metavar="DEPLOYMENT", help="of --results; default: the first on each hardware"
    )
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
    measured = Measured.of_results(args.results, args.calibrate_on) if args.results else Measured()
    known = {**{k: c.accuracy for k, c in measured.candidates.items()}, **(accuracies(args.cap) if args.cap else {})}
    if not args.model and not measured.candidates:
        raise MoecapError("plan: name at least one --model, or --results with the folder of a campaign.")
    if args.accuracy is not None and not known:
        raise MoecapError("--accuracy needs --cap or --results: a table that says how accurate models are.")
    if args.calibrate_on and args.calibrate_on not in (names := [d["deployment"] for d in measured.deployments]):
        raise MoecapError(
            f"--calibrate-on is {args.calibrate_on!r}, not in --results. {nearest(args.calibrate_on, names)}"
        )
    engine = None if args.engine == "none" else args.engine
    anatomies = list(_anatomies(args.model, args.precision))
    candidates = [Candidate.of(a, known.get((a.model, a.precision))) for a in anatomies]
    candidates = candidates or list(measured.candidates.values())
    region = None if args.usd_per_kwh is not None else (args.region or "us-average")
    used = {d["hardware"] for d in measured.deployments}
    calibrations, checks = measured.calibrate({n: hardware.find(n).speeds for n in used}, args.calibrate_on)
    machine = next((m for n, m in measured.machines.items() if hardware.find(n).speeds is None), None)
    if args.machine:
        machine = read_json(args.machine)
    own = [n for n in used if hardware.find(n).speeds is not None or machine]
    table = plan(
        candidates,
        hardware,
        args.hardware or [*sorted(own), *(n for n in _default_systems(hardware) if n not in own)],
        args.devices,
        args.batch_sizes,
        Workload(args.prompt_tokens, args.output_tokens),
        {"years": args.years, "usd_per_kwh": args.usd_per_kwh, "region": region},
        calibrations,
        machine=machine,
        profiles=measured.profiles,
        engine=engine,
        kinds=tuple(args.layouts),
        drafts=Drafts(args.draft_tokens, args.acceptance),
        own=measured.own_runs({n: hardware.find(n).speeds for n in used}, engine) if engine else {},
        tier=_tier(args),
    )
    found = answer(table, args.tpot_s, args.ttft_s, args.accuracy)
    if args.tpot_s is not None:
        found["required_bytes_per_s"] = [_required(c.anatomy, args.tpot_s, args.batch_sizes[0]) for c in candidates]
    if args.output:
        from moecap.io import write_parquet

        write_parquet(table, args.output)
    limits = {"tpot_s": args.tpot_s, "ttft_s": args.ttft_s, "accuracy": args.accuracy}
    rows = table.to_pylist()
    best = ranked(rows, limits, args.sort)
    if args.json or args.format == "json":
        print(json.dumps({**found, "cross_check": checks, "ranked": best[: args.top]}, allow_nan=False))
    elif args.format == "csv":
        print(as_csv(best, args.top))
    else:
        print("\n".join(_text(rows, best, limits, args.top)))
        print(in_words({**found, "cross_check": cross_check_in_words(checks) if checks else None}))
    return 0


def _text(rows: list[Row], best: list[Row], limits: Mapping[str, float | None], top: int) -> list[str]:
    """The table, why others fall out, and which systems hold the limit on TPOT."""
    lines = [as_text(best, top), ""] if best else []
    lines += [f"{n:6,} points fall out: {reason}" for reason, n in why_out(rows, limits)]
    if limits["tpot_s"] is not None and best:
        lines += ["", *holds(rows, limits["tpot_s"])[:top]]
    if any(r["figures_unverified"] for r in best[:top]):
        lines += ["", "* rests on a price, power or speed whose source was not read"]
    return [*lines, ""]


def _seconds(text: str) -> float:
    try:
        return seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _tier(args: argparse.Namespace) -> Tier | None:
    given = (args.experts_on_gpu, args.tier_bytes_per_s)
    if given == (None, None):
        return None
    if None in given:
        raise MoecapError("plan: offload takes both --experts-on-gpu and --tier-bytes-per-s.")
    return Tier(args.tier_bytes_per_s, args.experts_on_gpu)


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
        for precision in precisions:
            yield anatomy_of(model, precision)


def _stored(model: str) -> Anatomy | None:
    path = Path(model)
    if path.suffix != ".json" or not path.is_file():
        return None
    data = json.loads(path.read_text())
    return Anatomy.from_json(data) if "layer_kinds" in data else None
