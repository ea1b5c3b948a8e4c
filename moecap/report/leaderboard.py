"""Many archives, one leaderboard: verified, merged, and written as a static site that opens from disk or any host.

The site holds what it was made of: ``archives.json`` (each archive with its checksum) and one Parquet file of rows per
archive. Adding an archive therefore reads that archive alone. A point that several archives measured is kept each time;
the newest is shown.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from moecap.archive.read import open_archive
from moecap.cap.frontier import pareto_frequency
from moecap.cap.schema import SECTIONS
from moecap.charts.pages import render
from moecap.columns.base import schema
from moecap.columns.checks import LEADERBOARD
from moecap.columns.deployment import STATUS
from moecap.errors import MoecapError
from moecap.io import atomic_path, read_json, read_parquet, write_json, write_parquet
from moecap.report.columns import described, packed
from moecap.report.inputs import Inputs
from moecap.report.page import render_report

Row = dict[str, Any]

INDEX = "archives.json"
ROWS = "rows"
DEPLOYMENTS = "deployments"

#: What tells a point from others: all that identifies its deployment but the name that its campaign gave it.
IDENTITY = tuple(c.name for c in SECTIONS["Deployment"] if c.name not in ("deployment", "engine_version"))

#: What a deployment is.
DEPLOYMENT = (
    *("model", "precision", "engine", "hardware", "devices", "tensor_parallel", "pipeline_parallel"),
    *("expert_parallel", "data_parallel", "offload"),
)

#: Columns that a leaderboard adds to those of the CAP table.
ADDED = schema("origin archive archive_sha256 measured_unix_s superseded page", STATUS, LEADERBOARD)


@dataclass(frozen=True)
class Entry:
    """An archive of the leaderboard. ``size`` and ``mtime_ns`` tell its file from another without reading it."""

    file: str
    name: str
    sha256: str
    rows: int
    measured_until_unix_s: float
    size: int
    mtime_ns: int


def build(archives: Sequence[str | Path], output: str | Path, title: str | None = None) -> dict[str, Any]:
    """Add ``archives`` to the leaderboard in the folder ``output``, and write its site anew.

    Args:
        archives: ``.tar.zst`` files; those that the leaderboard has already are not read again.
        output: a new folder, or one that this function made.
        title: of the site.

    Returns:
        ``archives``, ``read`` (how many were read now), ``points``, ``shown``, ``deployments``, ``index`` (its path).

    Raises:
        MoecapError: an archive is damaged, tampered with or has no CAP table, or ``output`` holds something else.
    """
    output = Path(output)
    entries = _known(output)
    read = 0
    for archive in archives:
        if not _has(entries, Path(archive)):
            entries.append(_add(Path(archive), output))
            read += 1
    entries = list({e.sha256: e for e in entries}.values())
    if not entries:
        raise MoecapError("No archive was given, and the leaderboard has none yet.")
    table = merge([read_parquet(output / ROWS / f"{e.sha256}.parquet") for e in entries])
    _write(table, entries, output, title)
    return {
        "archives": len(entries),
        "read": read,
        "points": table.num_rows,
        "shown": table.num_rows - sum(table["superseded"].to_pylist()),
        "deployments": len(set(table["deployment"].to_pylist())),
        "index": str(output / "index.html"),
    }


def _known(output: Path) -> list[Entry]:
    if (output / INDEX).is_file():
        return [Entry(**e) for e in read_json(output / INDEX)["archives"]]
    if output.is_dir() and any(output.iterdir()):
        raise MoecapError(f"{output} holds files, and no {INDEX}: it is no leaderboard. Give a new folder as --output.")
    return []


def _has(entries: Sequence[Entry], archive: Path) -> bool:
    try:
        about = archive.stat()
    except FileNotFoundError:
        raise MoecapError(f"{archive} does not exist.") from None
    same = [e for e in entries if (e.file, e.size, e.mtime_ns) == (archive.name, about.st_size, about.st_mtime_ns)]
    return bool(same) or any(e.size == about.st_size and e.sha256 == _sha256(archive) for e in entries)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _add(archive: Path, output: Path) -> Entry:
    """Verify an archive and keep its rows, with where they are from."""
    about = archive.stat()
    with open_archive(archive) as opened:
        table, facts = opened.cap(), opened.facts
    until = float(facts.get("measured_until_unix_s") or 0.0)
    entry = Entry(
        archive.name, str(facts["name"]), opened.sha256, table.num_rows, until, about.st_size, about.st_mtime_ns
    )
    rows = table.to_pylist()
    for row in rows:
        row["origin"] = row.get("origin") or ("printed" if row["status"] == "paper" else "measured")
        row |= {"archive": entry.name, "archive_sha256": entry.sha256}
        row["measured_unix_s"] = row.get("start_unix_s") or until or None
    write_parquet(pa.Table.from_pylist(rows, schema=_schema(table.schema)), output / ROWS / f"{entry.sha256}.parquet")
    return entry


def _schema(of: pa.Schema) -> pa.Schema:
    return pa.schema([*(f for f in of if f.name not in ADDED.names), *ADDED])


def merge(tables: Sequence[pa.Table]) -> pa.Table:
    """Rows of several CAP tables as one: the Pareto frontier over all of them, and which rows a newer one supersedes.

    Two campaigns that gave one name to different deployments: the archive's name is added to it.
    """
    schema = pa.unify_schemas([t.schema.remove_metadata() for t in tables], promote_options="permissive")
    rows = [row for table in tables for row in table.to_pylist()]
    _name_apart(rows)
    newest: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        key = tuple(row.get(c) for c in IDENTITY)
        other = newest.get(key)
        if other is None or _when(row) > _when(other):
            newest[key] = row
    for row in rows:
        row["superseded"] = newest[tuple(row.get(c) for c in IDENTITY)] is not row
        row["page"] = f"{DEPLOYMENTS}/{_slug(row['deployment'])}.html"
    shown = [row for row in rows if not row["superseded"]]
    for row in rows:
        row["pareto_frequency"] = None
    for row, share in zip(shown, pareto_frequency(shown), strict=True):
        row["pareto_frequency"] = share
    return pa.Table.from_pylist(rows, schema=schema)


def _when(row: Mapping[str, Any]) -> tuple[bool, float]:
    """A row with figures before one without; of those, the later."""
    return (row.get("output_tokens_per_s") is not None, row.get("measured_unix_s") or 0.0)


def _name_apart(rows: Sequence[Row]) -> None:
    kinds: dict[str, list[tuple[Any, ...]]] = {}
    for row in rows:
        own = tuple(row.get(c) for c in DEPLOYMENT)
        if own not in kinds.setdefault(row["deployment"], []):
            kinds[row["deployment"]].append(own)
    for row in rows:
        if kinds[row["deployment"]].index(tuple(row.get(c) for c in DEPLOYMENT)) > 0:
            row["deployment"] = f"{row['deployment']} ({row['archive']})"


def _slug(name: str) -> str:
    """A file name that no other deployment has, where case makes no difference to names either."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80]
    return (
        plain
        if plain and plain == name.lower()
        else f"{plain or 'deployment'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    )


def _write(table: pa.Table, entries: Sequence[Entry], output: Path, title: str | None) -> None:
    write_parquet(table, output / "data.parquet", {"archives": {e.sha256: e.name for e in entries}})
    rows = table.to_pylist()
    _text(output / "data.json", json.dumps(machine_readable(table, entries), separators=(",", ":"), allow_nan=False))
    shown = table.filter(pc.invert(table["superseded"])).drop_columns(["superseded"])
    made = {"archives": ", ".join(f"{e.name} (sha256 {e.sha256})" for e in entries)}
    name = title or f"Leaderboard of {len(entries)} archive{'s' * (len(entries) > 1)}"
    _text(output / "index.html", render_report(Inputs(shown, provenance=made, title=name)))
    columns = {c.name: c for c in described(table.schema)}
    by_deployment: dict[str, list[Row]] = {}
    for row in rows:
        by_deployment.setdefault(row["deployment"], []).append(row)
    for deployment, own in by_deployment.items():
        own.sort(key=lambda r: (r["superseded"], str(r["dataset"]), r["batch_size"] or 0))
        _text(
            output / DEPLOYMENTS / f"{_slug(deployment)}.html",
            render("deployment.html.j2", {"deployment": deployment, "rows": own, "sections": _sections(own, columns)}),
        )
    _text(output / "checksums.sha256", "".join(f"{e.sha256}  {e.file}\n" for e in entries))
    _text(output / "README.md", f"---\ntitle: {json.dumps(name)}\nsdk: static\npinned: false\n---\n\n{_READ_ME}")
    _text(output / ".nojekyll", "")
    write_json({"archives": [vars(e) for e in entries]}, output / INDEX)


_READ_ME = """A leaderboard of MoE-CAP archives: open `index.html`. `data.parquet` and `data.json` have all rows,
`checksums.sha256` the archives that they are from. The front matter lets a static Space serve the folder as it is.

`data.json` is column by column: `data[NAME]` is a list of `count` values, or `{"all": value}` where every row has that,
or `{"of": values, "at": [index of each row]}`; a row's null is null. `columns[NAME]` says unit and meaning.
"""


def machine_readable(table: pa.Table, entries: Sequence[Entry]) -> dict[str, Any]:
    """Every row as plain data, column by column, as exact as the table; distinct values once where that is shorter."""
    about = {c.name: {"unit": c.unit, "meaning": c.meaning} for c in described(table.schema)}
    return {
        "archives": {e.sha256: e.name for e in entries},
        "count": table.num_rows,
        "columns": about,
        "data": {n: packed(table[n].to_pylist()) for n in table.column_names if table[n].null_count < table.num_rows},
    }


def _sections(rows: Sequence[Row], columns: Mapping[str, Any]) -> list[tuple[str, list[tuple[Any, list[Any]]]]]:
    """Per section: its columns that any of the rows has, with the rows' values and intervals."""
    found: dict[str, list[tuple[Any, list[Any]]]] = {}
    for name, column in columns.items():
        if any(r.get(name) is not None for r in rows):
            found.setdefault(column.section, []).append((column, [_exact(r, column) for r in rows]))
    return list(found.items())


def _exact(row: Row, column: Any) -> str:
    value = row.get(column.name)
    if value is None:
        return "–"
    low, high = row.get(f"{column.name}_low"), row.get(f"{column.name}_high")
    shown = f"{value:.6g}" if isinstance(value, float) else ", ".join(value) if isinstance(value, list) else str(value)
    return f"{shown} [{low:.4g}, {high:.4g}]" if column.interval and low is not None and high is not None else shown


def _text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
