"""The documentation's table of models, from the catalogue's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

HEAD = """# Models of the catalogue

Made by `python scripts/model_counts.py`; `moecap list models --json` has the same figures. Counted from shapes, not
from names: total and active parameters without layers of multi-token prediction, active with the whole embedding and
head. KV at two bytes per element (four in a float32 model): what a token adds over all layers, before windows; what
32,768 tokens keep, with windows; what a token reads of that (sparse attention reads less than is kept). State: what a
sequence holds whatever its length. Stored: as the config says it is released; int4: group-quantized experts and
projections (`config/catalogue/precisions.yaml`).

*Checked*: `verified`: the shapes were read from the source; `verified-copy`: from a public copy; `verified-default`:
the library's default config is the released model, and the source says how its total was checked; `derived`: from
another model's shapes, the total agrees; `recall`: no source was read.

{count} models.

"""
COLUMNS = ("model", "total, B", "active, B", "experts", "KV per token", "kept at 32k", "read at 32k", "state", "stored",
           "bf16, GB", "int4, GB", "MTP, B", "checked", "source")  # fmt: skip


def model_page(rows: Sequence[Mapping[str, Any]]) -> str:
    """The page, one line per model, in the order of their names."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *(_cells(row) for row in rows)]
    return HEAD.format(count=len(rows)) + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(row: Mapping[str, Any]) -> list[str]:
    experts = f"{row['top_k']} of {row['experts']}" if row["experts"] else "dense"
    return [
        row["name"],
        f"{row['total_params'] / 1e9:.2f}",
        f"{row['active_params'] / 1e9:.2f}",
        experts,
        f"{row['kv_bytes_per_token'] / 1e3:,.1f} kB",
        f"{row['kv_bytes_cached_32k'] / 1e9:.3f} GB",
        f"{row['kv_bytes_read_32k'] / 1e9:.3f} GB",
        f"{row['state_bytes'] / 1e6:.1f} MB" if row["state_bytes"] else "",
        f"{row['precision']}, {row['weight_bytes'] / 1e9:.1f} GB",
        f"{row['weight_bytes_bf16'] / 1e9:.1f}",
        f"{row['weight_bytes_int4'] / 1e9:.1f}",
        f"{row['mtp_params'] / 1e9:.2f}" if row["mtp_params"] else "",
        row["status"],
        str(row["source"] or "").replace("|", "\\|"),
    ]
