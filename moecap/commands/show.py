"""``moecap show FILE``: rows of a CAP table or an archive, on the terminal or for another program."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from moecap.errors import MoecapError

DEFAULT = "results/cap.parquet"


def add_parser(subparsers: Any) -> None:
    """Add the command to the console script."""
    parser = subparsers.add_parser(
        "show",
        help="rows of a CAP table or an archive: filtered, sorted, as a table, CSV, Markdown or JSON",
        epilog="example: moecap show results/cap.parquet --where 'accuracy>=0.9' --sort usd_per_million_tokens --top 5",
    )
    parser.add_argument("file", nargs="?", default=DEFAULT, help=f"Parquet, CSV or an archive; default {DEFAULT}")
    parser.add_argument("--where", action="append", default=[], metavar="CONDITION", help="COLUMN OP VALUE; repeatable")
    parser.add_argument(
        "--sort", default="", metavar="COLUMNS", help="by these, with commas; --sort=-COLUMN: largest first"
    )
    parser.add_argument("--columns", metavar="COLUMNS", help="these, with commas; `all`: every one")
    parser.add_argument("--top", type=int, metavar="N", help="at most so many rows")
    parser.add_argument("--answer", action="store_true", help="first, in words, which deployment to take")
    parser.add_argument("--format", choices=("table", "csv", "md", "json"), default="table")
    parser.add_argument("--json", dest="format", action="store_const", const="json", help="as --format json")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Print the rows; the number that was left out goes to standard error."""
    from moecap.cap.select import select

    table = read_table(args.file)
    columns = args.columns.split(",") if args.columns else None
    found = select(table, args.where, [name for name in args.sort.split(",") if name], columns, args.top)
    if args.answer and args.format == "table":
        print("\n".join(answer(table)) + "\n")
    print_rows(found, args.format)
    if len(found) < len(table):
        print(f"{len(found)} of {len(table)} rows", file=sys.stderr)
    return 0


def answer(table: pd.DataFrame) -> list[str]:
    """Which deployment of a CAP table to take, per dataset, as the report's cards say."""
    from moecap.cap.schema import CAP_SCHEMA
    from moecap.report.answers import advice, cards

    whole = table.reindex(columns=[*dict.fromkeys([*CAP_SCHEMA.names, *table.columns])]).astype(object)
    rows = whole.where(whole.notna(), None).to_dict("records")
    lines: list[str] = []
    for dataset in dict.fromkeys(r["dataset"] for r in rows):
        own = [r for r in rows if r["dataset"] == dataset]
        lines.append(
            f"{dataset}: {advice(own) or 'nothing can be compared: figures or other deployments are missing.'}"
        )
        lines += [f"  {card.title}: {card.text} ({card.detail})" for card in cards(own)]
    return lines


def read_table(path: str) -> pd.DataFrame:
    """The rows of a Parquet or CSV file, or the CAP table of an archive.

    Raises:
        MoecapError: no such file, or one that is none of these.
    """
    from moecap.archive.read import open_archive
    from moecap.io import read_parquet

    if path.endswith(".tar.zst"):
        with open_archive(path) as archive:
            return archive.cap().to_pandas()
    if path.endswith(".csv"):
        try:
            return pd.read_csv(path, encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            raise MoecapError(f"{path} cannot be read as CSV: {error}.") from None
    if not Path(path).exists():
        raise MoecapError(f"{path} does not exist. `make demo` leaves {DEFAULT}; an archive ends in .tar.zst.")
    return read_parquet(path).to_pandas()


def print_rows(rows: pd.DataFrame, form: str) -> None:
    """Print ``rows`` in one of the formats; nulls are empty (null in JSON), numbers exact but in tables."""
    if form == "csv":
        print(rows.to_csv(index=False), end="")
    elif form == "json":
        print(json.dumps(json.loads(rows.to_json(orient="records", double_precision=15))))
    elif form == "md":
        print(f"| {' | '.join(rows.columns)} |\n|{'---|' * len(rows.columns)}")
        for row in rows.itertuples(index=False):
            print(f"| {' | '.join(_cell(value).replace('|', chr(92) + '|') for value in row)} |")
    else:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, header_style="bold", pad_edge=False)
        for name in rows:
            numbers = pd.api.types.is_numeric_dtype(rows[name])
            table.add_column(str(name), justify="right" if numbers else "left", overflow="fold")
        for row in rows.itertuples(index=False):
            table.add_row(*(Text(_cell(value)) for value in row))
        console = Console()
        # A pipe has no width: a line a row, whatever its length.
        console.print(table, width=None if console.is_terminal else 10_000, crop=False, no_wrap=not console.is_terminal)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and value != value) or value is pd.NA:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
