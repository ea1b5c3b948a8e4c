"""A column is defined once: every table of the project takes it from the registry."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pytest

import moecap
from moecap import columns
from moecap.cap.schema import CAP_SCHEMA, SECTIONS
from moecap.columns.base import Column, named, schema

#: What a table may say of a column beside its definition.
OF_THE_TABLE = {b"label", b"goal", b"level"}
ENDS = ("_low", "_high")


def modules(package: ModuleType) -> Iterator[ModuleType]:
    """Those that can have a schema or a column; engines are not loaded for it."""
    (folder,) = package.__path__
    for path in sorted(Path(folder).rglob("*.py")):
        if path.name != "__main__.py" and re.search(r"schema|Column\(", path.read_text(encoding="utf-8")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield importlib.import_module(".".join((package.__name__, *(p for p in parts if p != "__init__"))))


def definitions() -> dict[str, list[Column]]:
    """Name -> its definitions, each object once, whichever groups have it."""
    found: dict[str, dict[int, Column]] = {}
    for module in modules(columns):
        for value in vars(module).values():
            for column in value if isinstance(value, tuple) else ():
                if isinstance(column, Column):
                    found.setdefault(column.name, {})[id(column)] = column
    return {name: list(by_id.values()) for name, by_id in found.items()}


def schemas() -> dict[str, pa.Schema]:
    """Every schema that a module of the library has, by where it stands."""
    found: dict[int, tuple[str, pa.Schema]] = {}
    for module in modules(moecap):
        for name, value in vars(module).items():
            if isinstance(value, pa.Schema):
                found.setdefault(id(value), (f"{module.__name__}.{name}", value))
    return dict(found.values())


def plain(field: pa.Field) -> tuple[str, tuple[tuple[bytes, bytes], ...]]:
    """Type and words of a field, without what is the table's own."""
    about = sorted((key, text) for key, text in (field.metadata or {}).items() if key not in OF_THE_TABLE)
    return str(field.type), tuple(about)


def test_no_name_is_defined_twice() -> None:
    twice = {name: found for name, found in definitions().items() if len(found) > 1}
    assert twice == {}


def test_every_column_of_every_table_is_the_registrys_own() -> None:
    known = {name: found[0] for name, found in definitions().items()}
    tables = schemas()
    assert len(tables) >= 12
    odd = []
    for table, of in tables.items():
        if table.rpartition(".")[2] in RECORDS:
            continue
        for field in of:
            column = known.get(field.name)
            wanted = column.field() if column else None
            stem = next((field.name.removesuffix(end) for end in ENDS if field.name.endswith(end)), None)
            if wanted is None and stem in known and stem in of.names:
                wanted = next(f for f in known[stem].ends("95%") if f.name == field.name)
            if wanted is None or plain(wanted) != plain(field):
                odd.append((table, field.name))
    assert odd == []


#: Schemas of what one run, request, step or sequence did: their rows are of other things than a point.
RECORDS = {"POINTS", "REQUESTS", "SCHEDULE", "ANALYSIS_SCHEMA", "STEP_SCHEMA", "DECODED"}


def test_a_column_says_what_it_is() -> None:
    for column in (c for found in definitions().values() for c in found):
        assert column.meaning.endswith(".") and not column.name.endswith(ENDS), column
        number = pa.types.is_floating(column.type)
        assert column.unit or not number or column.name in ("a", "b"), column  # of a comparison: the unit is a column


def test_a_tables_schema_is_its_columns_in_order_with_their_intervals() -> None:
    found = schema("tpot_s± dataset", *groups(), required=("dataset",), level="90%")
    assert found.names == ["tpot_s", "tpot_s_low", "tpot_s_high", "dataset"]
    assert not found.field("dataset").nullable and found.field("tpot_s").nullable
    assert found.field("tpot_s_low").metadata[b"level"] == b"90%" and b"source" not in found.field("dataset").metadata
    with pytest.raises(KeyError, match="nothing"):
        named("nothing", *groups())


def groups() -> list[tuple[Column, ...]]:
    return [(column,) for found in definitions().values() for column in found]


def test_the_cap_table_has_no_column_of_its_own() -> None:
    known = {id(c) for found in definitions().values() for c in found}
    assert all(id(column) in known for section in SECTIONS.values() for column in section)
    assert {c.name for section in SECTIONS.values() for c in section} <= set(CAP_SCHEMA.names)


def test_of_a_cap_tables_power_a_backtest_takes_what_the_devices_were_measured_to_draw(tmp_path: Path) -> None:
    from moecap.io import write_parquet
    from moecap.plan.formats.file import File
    from moecap.plan.formats.own import read

    sources = ("nvml", "nvml + estimated host", "rapl", "estimated", "given", None)
    rows = [{"status": "measured", "power_w": 700.0, "energy_source": source} for source in sources]
    write_parquet(pa.Table.from_pylist(rows), tmp_path / "cap.parquet")
    assert [p.power_w for p in read(File(tmp_path / "cap.parquet"))] == [700.0, *[None] * 5]
    words = next(c.meaning for c in definitions()["energy_source"])
    assert all(part in words for source in sources if source for part in source.split(" + ") if " " not in part)
