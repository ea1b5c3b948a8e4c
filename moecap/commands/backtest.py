"""``moecap backtest``: predict public measurements, and say how wrong the planner is."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from moecap.hardware.catalogue import load
from moecap.plan.backtest import HOLDOUTS, report
from moecap.plan.cases import cases_of
from moecap.plan.energy import energy_report
from moecap.plan.formats import FORMATS, read_all
from moecap.plan.kernels import kernel_report
from moecap.plan.offload import offload_report
from moecap.plan.points import KernelPoint, OffloadPoint, Point, unique


def add_parser(subparsers: Any) -> None:
    """Add the command's parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "backtest", help="hold the planner against public measurements, with holdouts"
    )
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help=f"files or folders of: {', '.join(m.NAME for m in FORMATS)}"
    )
    parser.add_argument("--no-holdout", action="store_true", help="only the prior that comes with the library")
    parser.add_argument("--catalogue", help="folder of models.yaml and hardware.yaml")
    parser.add_argument("--page", metavar="FILE", help="write the validation page (Markdown, charts in img beside it)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    hardware = load(args.catalogue)
    points, passed = read_all(args.paths)
    served = unique(p for p in points if isinstance(p, Point))
    cases, rest = cases_of(served, hardware, args.catalogue)
    timed = [c for c in cases if c.mixed]
    found: dict[str, Any] = report(timed, rest, hardware, () if args.no_holdout else HOLDOUTS)
    found["energy"] = energy_report(cases, hardware)
    found["kernels"] = kernel_report([p for p in points if isinstance(p, KernelPoint)], hardware)
    found["offload"] = offload_report([p for p in points if isinstance(p, OffloadPoint)], hardware, args.catalogue)
    found["passed_over"] = passed
    if args.page:
        from moecap.plan.page import write_page

        write_page(args.page, found, timed, "moecap backtest PATH --page docs/validation/planner.md")
    print(json.dumps(found, allow_nan=False) if args.json else in_words(found))
    return 0


def in_words(found: Mapping[str, Any]) -> str:
    """The report for a reader."""
    lines = [_line("all points", found), _line("comparable", found["comparable"])]
    lines += [_line(f"unseen {kind}", held) for kind, held in found["holdout"].items() if held]
    lines.append("")
    for group in found["groups"]:
        lines.append(_line(f"{group['model']} {group['hardware']} {group['engine']}", group))
    lines += [f"{n:6,} not predicted: {reason}" for reason, n in found["unpredicted"].items()]
    lines += [f"{v['source']}: {v['problem']}: {v['explanation']}" for v in found["violations"]]
    for name in ("energy", "kernels", "offload"):
        if found[name].get("points"):
            lines += ["", f"{name}: {_plain(found[name])}"]
    return "\n".join(lines)


def _line(name: str, of: Mapping[str, Any]) -> str:
    if not of["points"]:
        return f"{name:52} no points"
    rank = "" if of["rank_correlation"] is None else f", rank correlation {of['rank_correlation']:.3f}"
    return (
        f"{name:52} {of['points']:5,} points: TPOT off by {of['mape']:.1%} (median {of['median']:.1%}, bias "
        f"{of['bias']:+.1%}), {of['coverage']:.0%} within the interval{rank}, {of['bound_violations']} below the bound"
    )


def _plain(of: Mapping[str, Any]) -> str:
    shown = {k: v for k, v in of.items() if isinstance(v, int | float)}
    return ", ".join(f"{k.replace('_', ' ')} {v:,.3g}" for k, v in shown.items())
