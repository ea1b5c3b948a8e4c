"""``moecap list models|hardware|engines|datasets``: what the catalogue holds, filtered."""

from __future__ import annotations

import argparse
import json
from typing import Any

#: The columns that a terminal has room for; ``--json`` has them all.
SHOWN = {
    "models": ("name", "total_params", "active_params", "experts", "top_k", "kv_bytes_per_token", "precision",
               "weight_bytes", "status"),
    "hardware": ("name", "kind", "memory_bytes", "memory_bytes_per_s", "bf16_flops", "fp8_flops", "tdp_w",
                 "price_usd_low", "price_usd_high", "status"),
    "engines": ("name", "kind", "package", "version", "status"),
    "datasets": ("name", "task", "kind", "metric", "output_tokens"),
}  # fmt: skip


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser("list", help="what the catalogue holds: models, hardware, engines, datasets")
    parser.add_argument("what", choices=tuple(SHOWN), help="which catalogue")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="CONDITION",
        help="keep rows for which it holds: COLUMN, one of = != > >= < <= ~ (contains), VALUE; may be given again",
    )
    parser.add_argument("--catalogue", help="folder of catalogues (default: config/catalogue over the packaged one)")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output, with every column")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """List, as a table or JSON."""
    from moecap.campaign.catalogue import Catalogue
    from moecap.campaign.listing import dataset_rows, engine_rows, hardware_rows, model_rows, select

    catalogue = Catalogue(args.catalogue) if args.catalogue else Catalogue()
    rows = {"models": model_rows, "hardware": hardware_rows, "engines": engine_rows, "datasets": dataset_rows}
    found = select(rows[args.what](catalogue), args.where)
    if args.json:
        print(json.dumps({args.what: found}, indent=2, allow_nan=False))
    else:
        print(as_text(found, SHOWN[args.what]))
    return 0


def as_text(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> str:
    """A table with aligned columns; what is not known is a dash."""
    known = [column for column in columns if any(column in row for row in rows)]
    cells = [known, *([_cell(row.get(column)) for column in known] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(known))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([*lines, f"{len(rows)} rows"])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.4g} {letter}"
    return f"{value:,.10g}"
