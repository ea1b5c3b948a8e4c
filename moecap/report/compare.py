"""Two archives side by side: what got better or worse, beyond the intervals, and what differs in where they came from.

Rows are matched by deployment, dataset and batch size. A figure is *better* or *worse* only when the two 95% intervals
do not overlap; one that differs inside of them is *within intervals*, and one that has no interval on either side is
never called better or worse, however far apart the values are.
"""

from __future__ import annotations

import html
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from moecap.archive.read import Archive, open_archive
from moecap.columns.base import schema
from moecap.columns.checks import COMPARISON
from moecap.columns.deployment import DEPLOYMENT, POINT
from moecap.errors import MoecapError

KEY = ("deployment", "dataset", "batch_size")

# Column -> whether more of it is better; None: neither (a utilization says how, not how well).
DIRECTIONS: dict[str, bool | None] = {
    "accuracy": True,
    "output_tokens_per_s": True,
    "total_tokens_per_s": True,
    "ttft_s": False,
    "tpot_s": False,
    "itl_s": False,
    "usd_per_million_tokens": False,
    "tokens_per_usd": True,
    "hardware_usd": False,
    "power_w": False,
    "joules_per_token": False,
    "tokens_per_kwh": True,
    "decode_s_mbu": None,
    "decode_s_mfu": None,
    "prefill_s_mbu": None,
    "prefill_s_mfu": None,
}
VERDICTS = ("better", "worse", "higher", "lower", "within intervals", "no interval", "same", "only in one")
SCHEMA = schema("deployment dataset batch_size column unit a± b± ratio verdict", DEPLOYMENT, POINT, COMPARISON)


@dataclass(frozen=True)
class Difference:
    """A fact about where the two came from that is not the same; None where one does not have it."""

    where: str
    key: str
    a: Any
    b: Any


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found. ``table`` has the columns of ``SCHEMA``, one row per key and compared column."""

    name_a: str
    name_b: str
    table: pa.Table
    only_a: tuple[tuple[Any, ...], ...] = ()
    only_b: tuple[tuple[Any, ...], ...] = ()
    differences: tuple[Difference, ...] = field(default=())

    def counts(self) -> dict[str, int]:
        """How many figures got which verdict."""
        found = Counter(self.table.column("verdict").to_pylist())
        return {verdict: found[verdict] for verdict in VERDICTS if found[verdict]}

    def rows(self, *verdicts: str) -> list[dict[str, Any]]:
        """Rows with one of ``verdicts``, or all; clear changes first, the largest factor first."""
        chosen = [r for r in self.table.to_pylist() if not verdicts or r["verdict"] in verdicts]
        return sorted(chosen, key=lambda r: (VERDICTS.index(r["verdict"]), -_factor(r["ratio"])))

    def verdict(self) -> str:
        """In words, whether B is better: what changed beyond the intervals, in how many points, by how much."""
        compared = len({tuple(r[k] for k in KEY) for r in self.table.to_pylist()})
        sides = {side: self._changed(side, compared) for side in ("better", "worse", "higher", "lower")}
        named = [f"{side}: {', '.join(found)}" for side, found in sides.items() if found]
        if sides["better"] and sides["worse"]:
            head = "B is better in some figures and worse in others"
        elif sides["better"] or sides["worse"]:
            head = f"B is {'better' if sides['better'] else 'worse'}"
        else:
            head = f"Nothing got better or worse beyond the intervals, in {compared} points that both have"
        unsure = self.counts().get("no interval", 0)
        more = f" {unsure} figures differ and have no interval: nothing is said of them." if unsure else ""
        where = list(dict.fromkeys(d.where for d in self.differences))
        made = f" The two differ in: {', '.join(where)}." if where else ""
        return f"{head}{''.join(f'; {part}' for part in named)}.{more}{made}"

    def _changed(self, side: str, compared: int) -> list[str]:
        found = []
        for column in DIRECTIONS:
            own = [r["ratio"] for r in self.rows(side) if r["column"] == column]
            ratios = [r for r in own if r is not None]
            if own:
                low, high = (f"{f(ratios):.3g}" for f in (min, max)) if ratios else ("?", "?")
                size = f"{low}×" if low == high else f"{low} to {high}×"
                found.append(f"{column} {size} in {len(own)} of {compared} points")
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain data: names, counts, rows, differences."""
        return {
            "a": self.name_a,
            "b": self.name_b,
            "verdict": self.verdict(),
            "counts": self.counts(),
            "rows": self.rows(),
            "only_in_a": [dict(zip(KEY, k, strict=True)) for k in self.only_a],
            "only_in_b": [dict(zip(KEY, k, strict=True)) for k in self.only_b],
            "differences": [vars(d) for d in self.differences],
        }

    def markdown(self) -> str:
        """A report to read in a terminal or to paste into a discussion."""
        return "\n\n".join(
            f"{'#' * level} {title}\n\n{_lines(body)}" if body else f"{'#' * level} {title}"
            for level, title, body in self._sections()
        )

    def html(self) -> str:
        """A self-contained page that opens from disk."""
        body = []
        for level, title, content in self._sections():
            body.append(f"<h{level}>{html.escape(title)}</h{level}>")
            body.append(_html_table(content) if isinstance(content, list) else f"<p>{html.escape(content)}</p>")
            if level == 1:
                body.append(self._chart())
        return _PAGE.format(title=html.escape(f"{self.name_a} and {self.name_b}"), body="\n".join(body))

    def _chart(self) -> str:
        """B over A of every figure of every point, as an image; nothing where no figure is in both."""
        from moecap.charts.draw import to_svg
        from moecap.charts.pages import data_url
        from moecap.charts.ratios import ratios

        drawn = ratios(self.table.to_pylist(), VERDICTS)
        if drawn is None:
            return ""
        return f'<img alt="B over A of every figure of every point" src="{data_url(to_svg(drawn))}">'

    def _sections(self) -> Iterator[tuple[int, str, str | list[list[str]]]]:
        counts = ", ".join(f"{n} {verdict}" for verdict, n in self.counts().items()) or "no figure in common"
        yield 1, f"{self.name_a} (A) and {self.name_b} (B)", self.verdict()
        yield 2, "Figures", f"From A to B: {counts}."
        clear = self.rows("better", "worse", "higher", "lower")
        yield 2, "Changed beyond the intervals", _figures(clear) if clear else "Nothing."
        rest = self.rows("within intervals", "no interval", "only in one")
        yield 2, "Other differences", _figures(rest) if rest else "None."
        for side, keys in (("A", self.only_a), ("B", self.only_b)):
            if keys:
                yield 2, f"Only in {side}", [list(KEY), *([str(x) for x in key] for key in keys)]
        header = ["where", "key", "A", "B"]
        rows = [[d.where, d.key, _short(d.a), _short(d.b)] for d in self.differences]
        yield 2, "Differences in provenance", [header, *rows] if rows else "None."


def compare(a: str | Path, b: str | Path) -> Comparison:
    """Verify both archives and lay them side by side; "better" means that ``b`` is.

    Raises:
        MoecapError: an archive is missing, damaged or tampered with, or the two have no row in common.
    """
    with open_archive(a) as first, open_archive(b) as second:
        name_a, name_b = first.facts["name"], second.facts["name"]
        if name_a == name_b:
            name_a, name_b = f"{name_a} {first.sha256[:8]}", f"{name_b} {second.sha256[:8]}"
        compared = compare_tables(first.cap(), second.cap(), name_a, name_b)
        if not compared.table.num_rows:
            raise MoecapError(
                f"{a} and {b} have no deployment × dataset × batch size in common, so there is nothing to compare. A "
                f"has {_some(compared.only_a)}; B has {_some(compared.only_b)}."
            )
        return Comparison(
            name_a, name_b, compared.table, compared.only_a, compared.only_b, tuple(differences(first, second))
        )


def compare_tables(a: pa.Table, b: pa.Table, name_a: str = "A", name_b: str = "B") -> Comparison:
    """Compare two CAP tables, without provenance."""
    rows_a, rows_b = ({tuple(r[k] for k in KEY): r for r in t.to_pylist()} for t in (a, b))
    units = {f.name: (f.metadata or {}).get(b"unit", b"").decode() for f in b.schema}
    found = []
    for key in rows_a:
        if key not in rows_b:
            continue
        for column, more_is_better in DIRECTIONS.items():
            ends = [[row.get(column + end) for end in ("", "_low", "_high")] for row in (rows_a[key], rows_b[key])]
            if ends[0][0] is None and ends[1][0] is None:
                continue
            values = {
                f"{side}{e}": v
                for side, part in zip("ab", ends, strict=True)
                for e, v in zip(("", "_low", "_high"), part, strict=True)
            }
            ratio = ends[1][0] / ends[0][0] if ends[0][0] and ends[1][0] is not None else None
            found.append(
                {
                    **dict(zip(KEY, key, strict=True)),
                    "column": column,
                    "unit": units.get(column, ""),
                    **values,
                    "ratio": ratio,
                    "verdict": verdict(ends[0], ends[1], more_is_better),
                }
            )
    return Comparison(
        name_a,
        name_b,
        pa.Table.from_pylist(found, schema=SCHEMA),
        tuple(k for k in rows_a if k not in rows_b),
        tuple(k for k in rows_b if k not in rows_a),
    )


def verdict(a: Sequence[float | None], b: Sequence[float | None], more_is_better: bool | None) -> str:
    """What to say of two values with their intervals, each ``(value, low, high)``.

    >>> verdict((1.0, 0.9, 1.1), (2.0, 1.9, 2.1), True)
    'better'
    >>> verdict((1.0, 0.9, 1.1), (1.15, 1.05, 1.25), True)
    'within intervals'
    """
    if a[0] is None or b[0] is None:
        return "only in one"
    if math.isclose(a[0], b[0], rel_tol=1e-12):
        return "same"
    (_, a_low, a_high), (_, b_low, b_high) = a, b
    if a_low is None or a_high is None or b_low is None or b_high is None:
        return "no interval"
    if b_low > a_high:
        return "higher" if more_is_better is None else "better" if more_is_better else "worse"
    if b_high < a_low:
        return "lower" if more_is_better is None else "worse" if more_is_better else "better"
    return "within intervals"


def differences(a: Archive, b: Archive) -> list[Difference]:
    """What differs in config, deployments, catalogue, machine, versions, commit and checkpoints."""
    found = []
    for where, of in _SOURCES.items():
        flat_a, flat_b = dict(_flat(of(a))), dict(_flat(of(b)))
        for key in sorted(flat_a.keys() | flat_b.keys()):
            if flat_a.get(key) != flat_b.get(key):
                found.append(Difference(where, key, flat_a.get(key), flat_b.get(key)))
    return found


def _measured_with(archive: Archive) -> dict[str, Any]:
    """Versions and commit that the tables name, once when all agree."""
    per_key: dict[str, set[str]] = {}
    for facts in archive.facts["measured_with"].values():
        for key, value in _flat(facts):
            if key.split(".")[0] in ("git_commit", "git_dirty", "libraries", "python", "engine_version", "seed"):
                per_key.setdefault(key, set()).add(str(value))
    return {key: ", ".join(sorted(values)) for key, values in per_key.items()}


def _machines(archive: Archive) -> dict[str, Any]:
    return {p.stem: json.loads(p.read_text()) for p in sorted((archive.results / "machine").glob("*.json"))}


def _checkpoints(archive: Archive) -> dict[str, Any]:
    found = {}
    for path in sorted((archive.results / "models").rglob("manifest.json")):
        manifest = json.loads(path.read_text())
        files = {f["path"]: f["sha256"] for f in manifest.get("files", []) if f["path"].endswith(".safetensors")}
        found["/".join(path.parts[-3:-1])] = {"source": manifest.get("source"), "weights": files}
    return found


def _pins(archive: Archive) -> dict[str, Any]:
    found = {}
    for path in sorted((archive.folder / "environments").glob("*.txt")):
        lines = (line.split(";")[0].strip() for line in path.read_text().splitlines())
        found[path.stem] = dict(line.split("==", 1) for line in lines if "==" in line)
    return found


_SOURCES = {
    "config": lambda x: x.config,
    "deployments": lambda x: {d["deployment"]: d for d in x.deployments},
    "catalogue": lambda x: x.catalogue,
    "machine": _machines,
    "measured with": _measured_with,
    "checkpoints": _checkpoints,
    "environments": _pins,
    "archived with": lambda x: x.facts["archived_with"],
}


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested plain data as ``a.b.c`` -> value; lists of plain values are leaves."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and any(isinstance(v, (Mapping, list)) for v in value):
        for i, inner in enumerate(value):
            yield from _flat(inner, f"{prefix}[{i}]")
    else:
        yield prefix, value


def _factor(ratio: float | None) -> float:
    return abs(math.log(ratio)) if ratio and ratio > 0 else 0.0


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _range(row: Mapping[str, Any], side: str) -> str:
    value, low, high = (row[f"{side}{end}"] for end in ("", "_low", "_high"))
    return _number(value) if low is None or high is None else f"{_number(value)} [{_number(low)}, {_number(high)}]"


def _figures(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    header = ["verdict", "column", "unit", *KEY, "A", "B", "B / A"]
    return [
        header,
        *(
            [
                r["verdict"],
                r["column"],
                r["unit"],
                *(str(r[k]) for k in KEY),
                _range(r, "a"),
                _range(r, "b"),
                _number(r["ratio"]),
            ]
            for r in rows
        ),
    ]


def _short(value: Any) -> str:
    text = "–" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _some(keys: Sequence[Sequence[Any]]) -> str:
    shown = ", ".join("/".join(map(str, key)) for key in keys[:3]) or "none"
    return shown + (" …" if len(keys) > 3 else "")


def _lines(body: str | list[list[str]]) -> str:
    if isinstance(body, str):
        return body
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in body]
    rule = ["---"] * len(cells[0])
    return "\n".join("| " + " | ".join(row) + " |" for row in [cells[0], rule, *cells[1:]])


def _html_table(rows: list[list[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in rows[0])
    body = "".join(
        f'<tr class="{html.escape(row[0].split()[0])}">' + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>"
        for row in rows[1:]
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem }}
table {{ border-collapse: collapse; display: block; overflow-x: auto; font-variant-numeric: tabular-nums }}
th, td {{ text-align: left; padding: .2rem .7rem; border-bottom: 1px solid #8884; white-space: nowrap }}
tr.better td:first-child {{ color: #009e73; font-weight: 600 }}
tr.worse td:first-child {{ color: #d55e00; font-weight: 600 }}
</style></head><body>
{body}
</body></html>
"""
