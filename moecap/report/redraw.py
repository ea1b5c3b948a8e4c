"""Charts and report from an archive alone: no engine, no torch, no results folder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moecap.archive.read import Archive, open_archive
from moecap.errors import MoecapError
from moecap.io import atomic_path, read_parquet
from moecap.paths import Paths


def redraw(archive: str | Path, output: str | Path) -> dict[str, Any]:
    """Verify ``archive`` and draw its charts and its report again, into the folder ``output``.

    The same inputs in the same order as the workflow gave them: with the version that made the archive, the same bytes.

    Returns:
        ``report``, ``charts`` and ``cap`` (paths), ``not_drawn`` (chart -> why), ``name``, ``sha256`` of the archive.

    Raises:
        MoecapError: the archive is damaged or tampered with, or holds no CAP table.
    """
    with open_archive(archive) as opened:
        return _redraw(opened, Path(output))


def _redraw(archive: Archive, output: Path) -> dict[str, Any]:
    from moecap.charts.standard import routing_of, write_all
    from moecap.report.inputs import read_inputs
    from moecap.report.page import render_report

    cap = Path(Paths(str(archive.results)).cap)
    if not cap.is_file():
        raise MoecapError(f"{archive.path} holds no cap.parquet, so there is nothing to draw.")
    with atomic_path(output / cap.name) as path:
        shutil.copyfile(cap, path)
    facts = archive.redraw
    inputs = {
        kind: [p for p in map(archive.file, paths) if p.is_file()] for kind, paths in facts.get("inputs", {}).items()
    }
    charts, report = dict(facts.get("charts") or {}), dict(facts.get("report") or {})
    not_drawn = write_all(
        read_parquet(cap),
        output / "charts",
        charts.get("reference"),
        routing_of(inputs.get("routing_analysis", [])),
        charts.get("formats"),
        charts.get("only"),
    )
    page = render_report(
        read_inputs(
            cap,
            machines=inputs.get("machines", []),
            anatomies=inputs.get("anatomy", []),
            routing=inputs.get("routing_analysis", []),
            samples=inputs.get("samples", []),
            failures=archive.file(report["failures"]) if report.get("failures") else None,
            tables=[_here(table, archive) for table in report.get("tables", [])],
            reference=report.get("reference"),
            title=report.get("title"),
            campaign=report.get("campaign"),
            logs=report.get("logs"),
        )
    )
    with atomic_path(output / "report.html") as path:
        path.write_text(page, encoding="utf-8")
    return {
        "name": archive.facts["name"],
        "sha256": archive.sha256,
        "report": str(output / "report.html"),
        "charts": str(output / "charts"),
        "cap": str(output / cap.name),
        "not_drawn": not_drawn,
    }


def _here(table: Mapping[str, Any], archive: Archive) -> dict[str, Any]:
    return {**table, "path": str(archive.file(table["path"]))}
