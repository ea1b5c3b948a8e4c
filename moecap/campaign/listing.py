"""What the catalogue holds, as rows: for ``moecap list`` and for the table of models in the documentation."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from moecap.campaign.catalogue import Catalogue
from moecap.errors import MoecapError, nearest
from moecap.hardware.entries import Cpu, Gpu, Sourced
from moecap.model.counted import anatomy
from moecap.model.structure import Anatomy
from moecap.paths import PROJECT_CATALOGUE

Row = dict[str, Any]

#: The context, in tokens, for which the table of models says what a token reads.
CONTEXT_TOKENS = 32768


def model_rows(catalogue: Catalogue, precisions: Iterable[str] = ()) -> list[Row]:
    """One row per model that has a stored config or shapes, with bytes at the precisions asked for.

    ``kv_bytes_per_token`` is what the cache grows by, ``kv_bytes_read_32k`` what a token reads at 32,768 tokens of
    context, ``state_bytes`` what a sequence holds whatever its length.
    """
    rows = []
    for name, entry in sorted(catalogue.models.items()):
        if entry.config is None:
            continue
        counted = anatomy(name, catalogue=catalogue.folder if catalogue.folder != PROJECT_CATALOGUE else None)
        rows.append(
            {
                "name": name,
                "hub": entry.source.hub,
                "licence": entry.licence,
                **_figures(counted),
                "precision": counted.precision,
                "weight_bytes": counted.weight_bytes,
                **{f"weight_bytes_{p}": anatomy(name, p).weight_bytes for p in precisions},
                "checkpoints": ", ".join(sorted(entry.checkpoints)),
                "pinned": entry.source.revision is not None,
                "status": entry.facts.status if entry.facts else "unverified",
                "source": entry.facts.source if entry.facts else None,
            }
        )
    return rows


def _figures(counted: Anatomy) -> Row:
    return {
        "total_params": counted.total_params,
        "active_params": counted.active_params,
        "layers": counted.layers,
        "moe_layers": len(counted.moe_layers),
        "experts": counted.experts,
        "top_k": counted.top_k,
        "kv_bytes_per_token": counted.kv_bytes_per_token,
        "kv_bytes_cached_32k": round(counted.kv_bytes_cached(CONTEXT_TOKENS)),
        "kv_bytes_read_32k": round(counted.kv_bytes_read(CONTEXT_TOKENS)),
        "state_bytes": counted.state_bytes,
        "mtp_params": counted.mtp_params,
    }


#: What a row says of a piece of hardware, where its entry says it.
_HARDWARE = ("vendor", "memory_bytes", "memory_bytes_per_s")
_PEAKS = ("bf16", "fp8", "int8", "fp4")


def hardware_rows(catalogue: Catalogue) -> list[Row]:
    """One row per GPU, CPU and server of the catalogue; what is not known is null. Peaks are dense."""
    known = catalogue.hardware
    kinds: dict[str, Mapping[str, Sourced]] = {"gpu": known.gpus, "cpu": known.cpus, "server": known.servers}
    return [_hardware_row(name, kind, entry) for kind, found in kinds.items() for name, entry in sorted(found.items())]


def _hardware_row(name: str, kind: str, entry: Sourced) -> Row:
    # A server's price is put together from its parts, for so many devices: `moecap cost` does that.
    price = entry.price.usd() if isinstance(entry, Gpu | Cpu) and entry.price else None
    peaks: Mapping[Any, float | None] = entry.peak_flops if isinstance(entry, Gpu) else {}
    return {
        "name": name,
        "kind": kind,
        **{column: getattr(entry, column, None) for column in _HARDWARE},
        **{f"{dtype}_flops": peaks.get(dtype) for dtype in _PEAKS},
        "tdp_w": getattr(entry, "tdp_w", None),
        "price_usd_low": price.low if price else None,
        "price_usd_high": price.high if price else None,
        "status": entry.status,
        "source": entry.source,
    }


def engine_rows(catalogue: Catalogue) -> list[Row]:
    """One row per engine."""
    return [{"name": name, **_plain(entry.model_dump())} for name, entry in sorted(catalogue.engines.items())]


def dataset_rows(catalogue: Catalogue) -> list[Row]:
    """One row per dataset."""
    return [{"name": name, **_plain(entry.model_dump())} for name, entry in sorted(catalogue.datasets.items())]


def _plain(entry: Mapping[str, Any]) -> Row:
    """An entry's plain values; nested ones are left to the catalogue's own file."""
    return {key: value for key, value in entry.items() if isinstance(value, (str, int, float, bool, type(None)))}


# -- filters

_OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    "=": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
    "~": lambda value, part: str(part).lower() in str(value).lower(),
}
_SUFFIXES = {"k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}


def select(rows: list[Row], conditions: Iterable[str]) -> list[Row]:
    """The rows for which every condition holds; a value that is null fulfils none.

    A condition is ``COLUMN OP VALUE`` with one of ``= != > >= < <= ~`` (``~``: contains); numbers may end in k, M, G, B
    or T.

    Raises:
        MoecapError: a condition that is none, or a column that the rows do not have.

    >>> select([{"name": "a", "x": 2e9}, {"name": "b", "x": None}], ["x>1G"])
    [{'name': 'a', 'x': 2000000000.0}]
    """
    tests = [_test(condition, rows) for condition in conditions]
    return [row for row in rows if all(test(row) for test in tests)]


def _test(condition: str, rows: list[Row]) -> Callable[[Row], bool]:
    match = re.fullmatch(r"\s*([A-Za-z0-9_]+)\s*(>=|<=|!=|=|>|<|~)\s*(.*?)\s*", condition)
    if match is None:
        raise MoecapError(f"--where {condition!r} is no condition: COLUMN, one of {' '.join(_OPERATORS)}, and a value.")
    column, sign, text = match.groups()
    known = list(dict.fromkeys(key for row in rows for key in row))
    if rows and column not in known:
        raise MoecapError(f"--where {condition!r}: there is no column {column!r}. {nearest(column, known)}")

    def test(row: Row) -> bool:
        value = row.get(column)
        if value is None:
            return False
        if sign == "~":
            return _OPERATORS[sign](value, text)
        return _OPERATORS[sign](*_alike(value, text, condition))

    return test


def _alike(value: Any, text: str, condition: str) -> tuple[Any, Any]:
    """A cell and what it is compared with, as numbers where the cell is one."""
    if isinstance(value, bool):
        return value, text.lower() in ("true", "yes", "1")
    if not isinstance(value, (int, float)):
        return str(value), text
    number = re.fullmatch(r"([-+0-9.eE]+)\s*([kMGBT]?)", text)
    try:
        if number is None:
            raise ValueError
        return float(value), float(number[1]) * _SUFFIXES.get(number[2], 1.0)
    except ValueError:
        raise MoecapError(f"--where {condition!r}: {text!r} is not a number.") from None
