"""The standard charts of a CAP table, by name, and drawing all of them.

``python -m moecap.charts.standard results/cap.parquet docs/img --only throughput-against-cost --format svg``
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa

from moecap.cap.paper import FIGURE_4, FIGURE_5
from moecap.cap.schema import CAP_SCHEMA
from moecap.charts.batch import by_batch
from moecap.charts.draw import FORMATS, save
from moecap.charts.paper import paper_figure
from moecap.charts.parts import NothingToDraw, Row, Spec
from moecap.charts.radar import radar
from moecap.charts.routing import expert_heatmap, unique_experts
from moecap.charts.step_bytes import bytes_per_layer
from moecap.charts.tradeoff import tradeoff
from moecap.charts.utilization import utilization
from moecap.errors import MoecapError, nearest
from moecap.io import read_parquet

Draw = Callable[[pa.Table, str | None], Spec]

#: Charts of the CAP table: name → (section of the report, caption, function of table and reference deployment).
STANDARD: dict[str, tuple[str, str, Draw]] = {
    "cap-radar": (
        "trade-off",
        "Cost, accuracy and performance of each deployment relative to the reference, which is the dashed triangle on "
        "every axis. Distances follow the logarithm of the ratio; the marks on an axis say which ratio lies where. "
        "Accuracy has a finer scale than the other two. Another deployment in the table moves none of these.",
        lambda table, reference: radar(table, reference),
    ),
    "throughput-per-device-and-user": (
        "trade-off",
        "What a device generates against what one user sees, along each deployment's batch sizes. Up and to the right "
        "is better; at equal speed for the user, the higher curve needs fewer devices.",
        lambda table, _: tradeoff(
            table, "tokens_per_s_per_user", "tokens_per_s_per_gpu", "Throughput per device and per user", curves=True
        ),
    ),
    "throughput-against-cost": (
        "trade-off",
        "Each point is a deployment at one batch size, coloured by accuracy. No other point is better in one of cost, "
        "accuracy and throughput and no worse in the others where there is a ring.",
        lambda table, _: tradeoff(table),
    ),
    "throughput-against-purchase": (
        "trade-off",
        "The same with the cost of buying the deployment. What is cheap per token need not be cheap to buy.",
        lambda table, _: tradeoff(table, "hardware_usd", title="Throughput against purchase"),
    ),
    "throughput-and-latency": (
        "performance",
        "Batching buys throughput with latency: both axes are logarithmic.",
        lambda table, _: by_batch(table),
    ),
    "utilization": (
        "utilization",
        "At small batches MBU credits the hardware with reading experts that no token chose. Above, memory bandwidth; "
        "below, compute.",
        lambda table, _: utilization(table),
    ),
    "bytes-per-layer": (
        "bytes",
        "What MBU and S-MBU say a decode step reads per layer. As printed, they meet when a batch activates every "
        "expert. The complete count adds router, norms, output head, embedding rows and activations.",
        lambda table, _: bytes_per_layer(table),
    ),
}

#: Charts of a deployment's routing analysis: name → (section, caption, function of its rows and the deployment's name).
ROUTING: dict[str, tuple[str, str, Callable[[Sequence[Row], str], Spec]]] = {
    "experts": (
        "routing",
        "How often the router chose each expert, relative to an even load.",
        lambda rows, name: expert_heatmap([r for r in rows if r.get("expert") is not None], f"{name}."),
    ),
    "unique-experts": (
        "routing",
        "Distinct experts that a step touches per layer. Below the dashed line tokens agree more than by chance.",
        lambda rows, name: unique_experts(
            [r for r in rows if r.get("tokens") is not None and r.get("expert") is None], f"{name}."
        ),
    ),
}


#: The paper's figures, drawn where the table has its rows: name → (section, caption, function of the table).
PAPER: dict[str, tuple[str, str, Callable[[pa.Table], Spec]]] = {
    "paper-figure-4": (
        "paper",
        "The paper's Figure 4 from its Table 3: equal cost, precision traded for throughput.",
        lambda table: paper_figure(table, FIGURE_4, "gsm8k", "Figure 4: CA and CP configurations", "Table 3"),
    ),
    "paper-figure-5": (
        "paper",
        "The paper's Figure 5 from its Table 4: equal accuracy, GPUs traded for throughput.",
        lambda table: paper_figure(table, FIGURE_5, "gsm8k", "Figure 5: PA and AC configurations", "Table 4"),
    ),
}


def empty() -> pa.Table:
    """A CAP table without rows."""
    return CAP_SCHEMA.empty_table()


def draw_all(
    table: pa.Table,
    reference: str | None = None,
    routing: Mapping[str, Sequence[Row]] | None = None,
    only: Sequence[str] | None = None,
) -> tuple[dict[str, Spec], dict[str, str]]:
    """Every chart that there is data for.

    Args:
        table: the CAP table.
        reference: deployment that the radar measures against; by default the first.
        routing: deployment → rows of its routing analysis.
        only: names of charts; by default all.

    Returns:
        ``(name → chart, name → why it is not drawn)``.
    """
    jobs: dict[str, Callable[[], Spec]] = {
        name: partial(draw, table, reference) for name, (_, _, draw) in STANDARD.items()
    }
    if "paper" in table["status"].to_pylist():
        jobs |= {name: partial(draw, table) for name, (_, _, draw) in PAPER.items()}
    for deployment, rows in (routing or {}).items():
        jobs |= {f"{name}-{deployment}": partial(draw, rows, deployment) for name, (_, _, draw) in ROUTING.items()}
    drawn, left_out = {}, {}
    for name, job in jobs.items():
        if only and name not in only:
            continue
        try:
            drawn[name] = job()
        except NothingToDraw as error:
            left_out[name] = str(error)
    return drawn, left_out


def caption_of(name: str) -> tuple[str, str]:
    """``(section, caption)`` of a chart that :func:`draw_all` names."""
    for registry in (STANDARD, PAPER):
        if name in registry:
            return registry[name][:2]
    stem = max((n for n in ROUTING if name.startswith(f"{n}-")), key=len)
    return ROUTING[stem][:2]


def captions() -> dict[str, str]:
    """The caption of each chart by its name; of a routing chart by the beginning of its name."""
    return {name: entry[1] for entries in (STANDARD, PAPER, ROUTING) for name, entry in entries.items()}


def write_all(
    table: pa.Table,
    folder: str | Path,
    reference: str | None = None,
    routing: Mapping[str, Sequence[Row]] | None = None,
    formats: Sequence[str] | None = None,
    only: Sequence[str] | None = None,
) -> dict[str, str]:
    """Write every chart of :func:`draw_all` into ``folder`` as NAME.html, NAME.svg and NAME.png (or those in ``only``).

    Returns:
        Charts that there was no data for → why.
    """
    drawn, left_out = draw_all(table, reference, routing, only)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, chart in drawn.items():
        for suffix in formats or FORMATS:
            save(chart, Path(folder) / f"{name}.{suffix}")
    return left_out


def routing_of(files: Iterable[str | Path]) -> dict[str, list[Row]]:
    """Deployment (the folder that holds the file) → rows of its routing analysis."""
    return {Path(path).parent.name: read_parquet(path).to_pylist() for path in files}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m moecap.charts.standard", description="Draw the charts of a CAP table."
    )
    parser.add_argument("cap", help="cap.parquet")
    parser.add_argument("folder", help="where to write NAME.FORMAT")
    parser.add_argument("--reference", help="deployment that the radar measures against; default: the first")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"of: {', '.join(STANDARD)}")
    parser.add_argument("--format", nargs="+", dest="formats", default=FORMATS, metavar="FORMAT", help="html, svg, png")
    given = parser.parse_args(arguments)
    try:
        for name in given.only or ():
            if name not in STANDARD:
                raise MoecapError(f"There is no chart {name!r}. {nearest(name, STANDARD)}")
        table = read_parquet(given.cap)
        if given.reference:  # over that of the classes
            at = table.schema.get_field_index("cap_reference")
            table = table.set_column(at, table.schema.field(at), pa.nulls(table.num_rows, pa.string()))
        left_out = write_all(table, given.folder, given.reference, formats=given.formats, only=given.only)
    except MoecapError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, reason in left_out.items():
        print(f"{name} is not drawn: {reason}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
