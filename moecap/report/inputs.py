"""What a report is made of, and reading it from files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from moecap.charts.plan_cost import cheapest_by_speed
from moecap.charts.standard import routing_of
from moecap.io import read_json, read_metadata, read_parquet
from moecap.jobs.failures import SCOPE, applies, read_failures

Row = dict[str, Any]

#: Of tables too long to show: which rows, by the chart that is drawn of them.
CHOSEN: dict[str, Callable[[Sequence[Row]], list[Row]]] = {"plan_cost": cheapest_by_speed}


@dataclass(frozen=True)
class Inputs:
    """What a report is made of. All but the table may be empty.

    Attributes:
        table: the CAP table.
        reference: deployment that others are compared with; by default the first of the table.
        provenance: what the table's file says of its making.
        machines: what calibration wrote, one dict per hardware entry.
        anatomies: JSON of the models' anatomies.
        routing: deployment → rows of its routing analysis.
        samples: pairs of what was asked of whom (model, precision, engine, dataset) and rows of answers.
        failures: records of what failed.
        tables: further tables to show: bytes measured against predicted, replay against decode, plan against measured.
        title: of the page; None: what is compared.
        campaign: its name, which begins such a title.
        logs: what a stage is called → its log as seen from the page, a pattern of the deployment's name.
    """

    table: pa.Table
    reference: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    machines: Sequence[Mapping[str, Any]] = ()
    anatomies: Sequence[Mapping[str, Any]] = ()
    routing: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    samples: Sequence[tuple[Mapping[str, Any], Sequence[Row]]] = ()
    failures: Sequence[Mapping[str, Any]] = ()
    tables: Sequence[ExtraTable] = ()
    title: str | None = None
    campaign: str | None = None
    logs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ExtraTable:
    """A further table of the report, shown column by column as it is.

    ``fields``: column → ``label`` (its heading), ``unit``, ``meaning``, ``form`` ("share" or "error": a ratio in per
    cent), ``goal`` (the largest absolute value that is good enough), all optional: the metadata of its schema.
    ``chart``: of the same rows, if they are drawn as well. ``section``: "checks" or "plan".
    """

    title: str
    rows: Sequence[Row]
    note: str = ""
    fields: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    chart: str | None = None
    section: str = "checks"


def read_inputs(
    cap: str | Path,
    machines: Iterable[str | Path] = (),
    anatomies: Iterable[str | Path] = (),
    routing: Iterable[str | Path] = (),
    samples: Iterable[str | Path] = (),
    failures: str | Path | None = None,
    tables: Iterable[Mapping[str, Any]] = (),
    reference: str | None = None,
    title: str | None = None,
    campaign: str | None = None,
    logs: Mapping[str, str] | None = None,
) -> Inputs:
    """Read what :func:`render_report` needs.

    Args:
        cap: ``cap.parquet``.
        machines, anatomies: JSON files.
        failures: folder of failure records.
        routing: routing analyses; the deployment is the name of the folder that holds the file.
        samples: ``….samples.parquet`` of accuracy runs, named ``{model}/{precision}/{engine}/{dataset}-{hash}``.
        tables: ``title``, ``note`` (else the one in its metadata) and ``path`` of further Parquet tables, and which
            ``columns`` to show, if not all; those that do not exist are left out.
    """
    table = read_parquet(cap)
    rows = table.select(SCOPE).to_pylist()
    # Records of what the deployment table no longer asks for are of no interest; one that says not what it is about is.
    failed = [
        record
        for record in (read_failures(failures) if failures else [])
        if not any(record.get(key) for key in SCOPE) or any(applies(record, row) for row in rows)
    ]
    return Inputs(
        table=table,
        reference=reference,
        provenance=read_metadata(cap),
        machines=[read_json(p) for p in machines],
        anatomies=[read_json(p) for p in anatomies],
        routing=routing_of(routing),
        samples=[(_sample_label(Path(p)), read_parquet(p).to_pylist()) for p in samples],
        failures=failed,
        tables=[_extra_table(**t) for t in tables if Path(t["path"]).exists()],
        title=title,
        campaign=campaign,
        logs=dict(sorted((logs or {}).items())),  # in one order: an archive keeps none
    )


def _extra_table(
    title: str,
    path: str | Path,
    note: str | None = None,
    columns: list[str] | None = None,
    chart: str | None = None,
    section: str = "checks",
) -> ExtraTable:
    """A Parquet file as a further table. Without a ``note``: what it says of itself in words, in its metadata."""
    choose = CHOSEN.get(chart or "")
    table = read_parquet(path, None if choose else columns)
    said = {f.name: {k.decode(): v.decode() for k, v in (f.metadata or {}).items()} for f in table.schema}
    rows = table.to_pylist()
    if choose:
        rows = [{k: row.get(k) for k in columns or row} for row in choose(rows)]
    return ExtraTable(title, rows, note or str(read_metadata(path).get("note") or ""), said, chart, section)


def _sample_label(path: Path) -> dict[str, str]:
    model, precision, engine = path.parts[-4:-1]
    dataset = path.name.removesuffix(".samples.parquet").rpartition("-")[0] or path.stem
    return {"model": model, "precision": precision, "engine": engine, "dataset": dataset}
