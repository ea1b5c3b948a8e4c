"""The paper's Figures 4 and 5 from its own tables."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from moecap.charts.parts import NothingToDraw, Spec
from moecap.charts.radar import ACCURACY, COST_TO_BUY, PERFORMANCE, radar


def paper_figure(
    table: pa.Table, references: Mapping[str, str], dataset: str, title: str, source: str | None = None
) -> Spec:
    """CAP radars as in the paper's Figures 4 and 5: one panel per model, against a reference deployment each.

    Args:
        table: the CAP table with the paper's rows.
        references: model → deployment whose values are the dashed ring; panels are in this order.
        dataset: whose rows to draw.
        title: of the chart.
        source: only rows whose ``source`` ends so (``Table 3``).

    Raises:
        NothingToDraw: the table has no such rows.
    """
    order = list(references)
    rows = [r for r in table.to_pylist() if r["dataset"] == dataset and r["model"] in references]
    rows = [r for r in rows if source is None or (r["source"] or "").endswith(source)]
    if not rows:
        raise NothingToDraw(f"No row for dataset {dataset!r} and models {', '.join(order)}.")
    rows.sort(key=lambda r: order.index(r["model"]))
    return radar(
        pa.Table.from_pylist(rows, schema=table.schema),
        axes=(COST_TO_BUY, ACCURACY, PERFORMANCE),
        references=references,
        title=title,
        note=f"{dataset}, as printed.",
    )
