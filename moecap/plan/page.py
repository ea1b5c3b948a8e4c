"""The validation page of the planner: figures and charts from a backtest, remade by one command from a path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moecap.io import atomic_path
from moecap.plan.backtest import by_prior
from moecap.plan.cases import Case

Found = Mapping[str, Any]
#: Goals of TPOT's mean error where something is new, and of the rest.
GOALS = {"gpu": 0.12, "model": 0.15, "both": 0.20}
_NEW = {"gpu": "unseen GPU types", "model": "unseen models", "both": "both unseen"}


def write_page(path: str | Path, found: Found, cases: Sequence[Case], command: str) -> None:
    """Write the page, and its charts as SVG beside it."""
    page = Path(path)
    charts = {"planner-predicted": predicted_chart(cases), "planner-atlas": atlas_chart(found["kernels"])}
    drawn = {name: spec for name, spec in charts.items() if spec is not None}
    for name, spec in drawn.items():
        import vl_convert

        with atomic_path(page.parent / f"{name}.svg") as file:
            file.write_text(vl_convert.vegalite_to_svg(spec), encoding="utf-8")
    with atomic_path(page) as file:
        file.write_text("\n".join(lines(found, command, set(drawn))) + "\n", encoding="utf-8")


def lines(found: Found, command: str, charts: set[str]) -> Iterable[str]:
    """The page, line by line."""
    yield from (
        "# The planner, held against public measurements",
        "",
        f"Remade by `{command}` from files that are not part of this repository: aiconfigurator's measured",
        "serving points and kernels (ai-dynamo/aiconfigurator@095f58a51c4c, Apache-2.0, most from InferenceX), the",
        "ML.ENERGY leaderboard (ml-energy/leaderboard@0cd52dab) and KTransformers' published runs",
        "(kvcache-ai/ktransformers@95009ea6, Apache-2.0). Figures only; no row is stored here. Errors are",
        "|predicted / measured − 1| of TPOT; bias is signed, and a median.",
        "",
        "## What is new to the planner",
        "",
        "The prior is refitted without what is predicted. An interval is to hold 90%; its width comes from the",
        "residuals of the other held-out groups. *Comparable* leaves out rows whose requests waited for a third of",
        "their time, whose weights do not fit, or that drafted tokens (marked, or suspected: see `moecap audit`).",
        "",
        "| | points | mean error | median | bias | within 90% | goal |",
        "|---|---|---|---|---|---|---|",
        _row("all points, shipped prior", found, ""),
        _row("comparable, shipped prior", found["comparable"], ""),
    )
    for kind, held in found["holdout"].items():
        if held:
            yield _row(_NEW[kind], held, f"{GOALS[kind]:.0%}")
            yield from (_row(f"… {of['engine']}", of, f"{GOALS[kind]:.0%}") for of in held["engines"])
    if found["ttft"]["points"]:
        yield from (
            "",
            "Comparable points, shipped prior. The interval of TTFT is that of the residuals of other models; that of",
            "throughput is TPOT's, and what a token costs has the same: a price per second over that rate.",
            "",
            "| | points | mean error | median | bias | within 90% | goal |",
            "|---|---|---|---|---|---|---|",
            _row("TTFT", found["ttft"], ""),
            _row("throughput, $ per token", found["throughput"], ""),
        )
    if "planner-predicted" in charts:
        yield from ("", "![Predicted against measured TPOT](planner-predicted.svg)")
    yield from _groups(found)
    yield from _violations(found)
    yield from _energy(found["energy"])
    yield from _kernels(found["kernels"], charts)
    yield from _offload(found["offload"])
    if found["unpredicted"]:
        yield from ("", "## What was not predicted", "")
        yield from (f"- {n:,}: {reason}" for reason, n in found["unpredicted"].items())


def _row(name: str, of: Found, goal: str) -> str:
    return (
        f"| {name} | {of['points']:,} | {of['mape']:.1%} | {of['median']:.1%} | {of['bias']:+.1%} | "
        f"{of['coverage']:.0%} | {goal} |"
    )


def _groups(found: Found) -> Iterable[str]:
    yield from (
        "",
        "## By model, GPU and engine (shipped prior)",
        "",
        "| model | GPU | engine | points | mean error | median | bias | rank correlation |",
        "|---|---|---|---|---|---|---|---|",
    )
    for of in found["groups"]:
        rank = "" if of["rank_correlation"] is None else f"{of['rank_correlation']:.3f}"
        yield (
            f"| {of['model']} | {of['hardware']} | {of['engine']} | {of['points']:,} | {of['mape']:.1%} | "
            f"{of['median']:.1%} | {of['bias']:+.1%} | {rank} |"
        )


def _violations(found: Found) -> Iterable[str]:
    share = found["bound_violations"] / found["points"] if found["points"] else 0.0
    yield from (
        "",
        "## Faster than the hardware allows",
        "",
        f"{found['bound_violations']} of {found['points']:,} points ({share:.2%}; goal: at most 1%):",
        "",
    )
    yield from (f"- {v['source'].split('#')[-1]}: {v['problem']}. {v['explanation']}." for v in found["violations"])


def _energy(of: Found) -> Iterable[str]:
    if not of.get("points"):
        return
    yield from (
        "",
        "## Another laboratory: steady batches and energy",
        "",
        f"{of['points']:,} rows of {of['models']} models. Gap between tokens: mean error {of['itl_mape']:.1%}, bias "
        f"{of['itl_bias']:+.1%} (shipped prior).",
        "",
        "| | mean error | goal |",
        "|---|---|---|",
        f"| power, model held out | {of['power_mape_held_out']:.1%} | 15% |",
        f"| power, shipped coefficients, predicted step | {of['power_mape_predicted']:.1%} | |",
        f"| … share within its 90% interval | {of['power_coverage']:.0%} | 85-95% |",
        f"| power as TDP × devices | {of['tdp_mape']:.1%} | |",
        f"| J per token, everything predicted | {of.get('joules_mape', float('nan')):.1%} | 20% |",
        f"| … share within power's interval | {of.get('joules_coverage', float('nan')):.0%} | 85-95% |",
    )


def _kernels(of: Found, charts: set[str]) -> Iterable[str]:
    if not of.get("points"):
        return
    skew = ", ".join(f"{name} {value:.2f}" for name, value in of["skew"].items())
    correlation = "" if of["correlation"] is None else f"{of['correlation']:.3f}"
    yield from (
        "",
        "## S-MBU atlas",
        "",
        f"{of['small']:,} fused mixture-of-experts kernels of 128 tokens at most: dense MBU exceeds 1 in "
        f"**{of['dense_mbu_above_one']:.1%}**, S-MBU in {of['s_mbu_above_one']:.1%} (balanced routing alone: "
        f"{of['balanced_s_mbu_above_one']:.1%}). Latency follows the distinct experts: log-log correlation "
        f"{correlation}",
        "(median over GPU × format × shape × kernel). A dense MBU above 1 is no bandwidth: it counts experts that",
        "nobody read.",
        "",
        "Where S-MBU exceeds 1, and why:",
        "",
        "| format | shape | kernel | kernels | above 1 | likely reason |",
        "|---|---|---|---|---|---|",
    )
    for group in of["above_one"]:
        yield (
            f"| {group['format']} | {group['shape']} | {group['kernel']} | {group['kernels']} | "
            f"{group['above_one']:.0%} | {_reason(group)} |"
        )
    yield from (
        "",
        f"Skewed routing, latency over that of balanced routing at the same tokens (median): {skew}.",
        "",
    )
    if "planner-atlas" in charts:
        yield "![S-MBU by tokens per expert](planner-atlas.svg)"
    yield from ("", "| GPU | format | experts | tokens | tokens per expert | S-MBU | dense MBU |")
    yield "|---|---|---|---|---|---|---|"
    for cell in of["atlas"]:
        if cell["tokens"] in (1, 8, 64, 256):
            yield (
                f"| {cell['hardware']} | {cell['format']} | {cell['experts']} | {cell['tokens']} | "
                f"{cell['tokens_per_expert']:.3g} | {cell['s_mbu']:.2f} | {cell['mbu']:.2f} |"
            )


def _reason(group: Found) -> str:
    if group["balanced_above_one"] > 0.25:
        return "the kernel routes tokens itself, by groups of experts: it reaches fewer than the count assumes"
    if group["above_one"] > 0.1:
        return "routing by a power law reaches fewer experts than uniform routing, which the count assumes"
    return "skewed routing, or a few experts that stay in the L2 cache"


def _offload(of: Found) -> Iterable[str]:
    if not of.get("points"):
        return
    yield from (
        "",
        "## Experts in the host's memory",
        "",
        f"The tiers' bound held in {of['held']} of {of['points']} rows; measured rates reach {of['reached']:.0%} of it "
        "(median).",
        "",
        "| model | GPU | processor | experts on the GPU | measured token/s | bound token/s |",
        "|---|---|---|---|---|---|",
    )
    for row in of["rows"]:
        yield (
            f"| {row['model']} | {row['hardware']} | {row['processor']} | {row['experts_on_gpu']:.0%} | "
            f"{row['measured_tokens_per_s']:.3g} | {row['bound_tokens_per_s']:.3g} |"
        )
    yield from (f"\n{n} rows not held against it: {reason}." for reason, n in of["skipped"].items())


def predicted_chart(cases: Sequence[Case]) -> dict[str, Any] | None:
    """Predicted against measured TPOT: how many points lie in each cell, none by itself; None without cases."""
    timed = [c for c in cases if c.tpot_s]
    if not timed:
        return None
    return binned_chart(np.array([c.tpot_s or 0.0 for c in timed]) * 1e3, by_prior(timed).predicted * 1e3)


def binned_chart(measured_ms: np.ndarray, predicted_ms: np.ndarray, cells: int = 36) -> dict[str, Any]:
    """Counts over a logarithmic grid, with the diagonal on which a prediction is right."""
    both = np.concatenate([measured_ms, predicted_ms])
    edges = np.geomspace(both.min() * 0.999, both.max() * 1.001, cells + 1)
    counts, _, _ = np.histogram2d(measured_ms, predicted_ms, [edges, edges])
    values = [
        {"x": round(float(edges[i]), 4), "x2": round(float(edges[i + 1]), 4), "y": round(float(edges[j]), 4),
         "y2": round(float(edges[j + 1]), 4), "points": int(counts[i, j])}
        for i, j in np.argwhere(counts > 0)
    ]  # fmt: skip
    ends = [{"x": float(edges[0]), "y": float(edges[0])}, {"x": float(edges[-1]), "y": float(edges[-1])}]
    scale = {"type": "log", "nice": False}
    x = {"field": "x", "type": "quantitative", "scale": scale, "title": "TPOT measured, ms"}
    y = {"field": "y", "type": "quantitative", "scale": scale, "title": "TPOT predicted, ms"}
    color = {"field": "points", "type": "quantitative", "scale": {"type": "log", "scheme": "blues"}}
    cell = {"x": x, "y": y, "x2": {"field": "x2"}, "y2": {"field": "y2"}, "color": color}
    return {
        "width": 420,
        "height": 420,
        "layer": [
            {"data": {"values": values}, "mark": {"type": "rect", "aria": False}, "encoding": cell},
            {"data": {"values": ends}, "mark": {"type": "line", "color": "gray"}, "encoding": {"x": x, "y": y}},
        ],
    }


def atlas_chart(of: Found) -> dict[str, Any] | None:
    """Median S-MBU and dense MBU by tokens per expert, a panel per format; None without kernels."""
    if not of.get("points"):
        return None
    values = [
        {"format": c["format"], "GPU": c["hardware"], "tokens_per_expert": c["tokens_per_expert"],
         "experts": c["experts"], "count": name, "value": c[key]}
        for c in of["atlas"]
        for name, key in (("S-MBU", "s_mbu"), ("dense MBU", "mbu"))
    ]  # fmt: skip
    return {
        "data": {"values": values},
        "facet": {"row": {"field": "count", "type": "nominal"}, "column": {"field": "format", "type": "nominal"}},
        "spec": {
            "width": 150,
            "height": 130,
            "mark": {"type": "line", "aria": False},
            "encoding": {
                "x": {"field": "tokens_per_expert", "type": "quantitative", "scale": {"type": "log"},
                      "title": "tokens per expert"},
                "y": {"field": "value", "type": "quantitative", "title": "share of bandwidth"},
                "color": {"field": "GPU", "type": "nominal"},
                "detail": {"field": "experts", "type": "nominal"},
            },
        },
        "resolve": {"scale": {"y": "independent"}},
    }  # fmt: skip
