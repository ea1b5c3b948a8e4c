"""What each result was made from, kept with the results: a folder of results can be moved, copied, put under a clone.

Snakemake notes of every output the params, the inputs and their checksums, and compares them when it plans. It keeps
these notes in ``.snakemake`` of the working directory, which nobody copies. Here they lie in ``results/records``, one
file per output, readable: ``results/records/cost/demo-int4.parquet.json``. Paths in them are relative to the results.

A copy without times (``cp -r``, a download, a clone) would look as if every input were newer than what was made from
it. A record therefore has its output's time, size and content; where a folder has been moved, outputs that are still
what they were get their times back, before anything is planned.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from moecap.errors import MoecapError
from moecap.io import read_json, write_json
from moecap.paths import Paths

#: Stands for the folder of results in a record.
RESULTS = "{results}"
#: Of a large file the first and the last of so many bytes are compared, and the size; a Parquet file has its own
#: index, with counts and limits of all that it holds, at its end.
COMPARED_BYTES = 2**20
#: In the records: where they lay when they were last looked at.
PLACE = "place.json"
#: Where Snakemake keeps the time of a folder.
FOLDER_TIME = ".snakemake_timestamp"


def record_file(results: str | Path, output: str | Path) -> Path | None:
    """The record of an output; None for what does not lie in the results."""
    try:
        relative = Path(output).relative_to(results)
    except ValueError:
        return None
    return Path(Paths(str(results)).records, f"{relative}.json")


def content(path: Path) -> str:
    """A fingerprint of a file, or of a folder's files: sizes, and the content of what is small or at the ends."""
    combined = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name != FOLDER_TIME) if path.is_dir() else [path]
    for file in files:
        size = file.stat().st_size
        combined.update(f"{file.relative_to(path).as_posix()} {size}\0".encode())
        with file.open("rb") as handle:
            combined.update(handle.read(COMPARED_BYTES))
            if size > COMPARED_BYTES:
                handle.seek(max(size - COMPARED_BYTES, COMPARED_BYTES))
                combined.update(handle.read())
    return combined.hexdigest()


def _timed(path: Path) -> Path:
    """The file whose time is the output's."""
    return path / FOLDER_TIME if path.is_dir() else path


def restore_times(results: str | Path) -> int:
    """Give outputs of a folder that was moved the times of their making, where they are still what was made.

    Returns:
        How many had another time. 0 at once where the folder has not been moved since it was last looked at.
    """
    folder = Path(Paths(str(results)).records)
    place = folder / PLACE
    if not folder.is_dir() or _is_here(place):
        return 0
    changed = 0
    for file in folder.rglob("*.json"):
        with suppress(MoecapError, OSError, KeyError, TypeError):
            output = Path(results, file.relative_to(folder).as_posix().removesuffix(".json"))
            made = read_json(file)["output"]
            timed = _timed(output)
            if not timed.exists() and output.is_dir():
                timed.touch()
            if timed.stat().st_mtime_ns != made["mtime_ns"] and content(output) == made["content"]:
                os.utime(timed, ns=(made["mtime_ns"], made["mtime_ns"]))
                changed += 1
    note_place(results)
    return changed


def note_place(results: str | Path) -> None:
    """Write down where the results lie: a copy of the note lies elsewhere."""
    place = Path(Paths(str(results)).records, PLACE)
    with suppress(MoecapError, OSError):  # a folder that cannot be written is looked through at each start
        write_json({}, place)
        status = place.stat()
        with place.open("w", encoding="utf-8") as handle:
            json.dump({"device": status.st_dev, "inode": status.st_ino}, handle)


def _is_here(place: Path) -> bool:
    try:
        status, noted = place.stat(), read_json(place)
    except (MoecapError, OSError):
        return False
    return bool(noted == {"device": status.st_dev, "inode": status.st_ino})


def records_in(results: str | Path) -> Any:
    """The class of Snakemake's notes, with those of outputs below ``results`` kept there."""
    from snakemake.persistence import MetadataRecord
    from snakemake.persistence.file import FilePersistence

    folder = str(results)

    def read(file: Path) -> MetadataRecord | None:
        try:
            return MetadataRecord.model_validate(_with_folder(read_json(file)["made_from"], RESULTS, folder))
        except (MoecapError, KeyError, TypeError, ValueError):
            return None

    known: dict[str, MetadataRecord | None] = {}

    class Records(FilePersistence):
        def _read_record(self, key: str) -> MetadataRecord | None:
            if key not in known:
                file = record_file(folder, key)
                # What is in no record was made before the results had any, or lies outside of them.
                known[key] = read(file) if file and file.is_file() else super()._read_record(key)
            return known[key]

        def _write_record(self, key: str, record: MetadataRecord) -> None:
            file = record_file(folder, key)
            if file is None:
                super()._write_record(key, record)
                return
            if not Path(Paths(folder).records, PLACE).exists():
                note_place(folder)
            made_from = _with_folder(dict(record.items()), folder, RESULTS)
            write_json({"made_from": made_from, "output": _output(Path(key))}, file)

        def _delete_record(self, key: str) -> bool:
            file = record_file(folder, key)
            there = file is not None and file.exists()
            if file is not None:
                file.unlink(missing_ok=True)
            return super()._delete_record(key) or there

        def _clear_cache(self) -> None:
            known.clear()
            super()._clear_cache()

    return Records


def keep_records(results: str | Path) -> None:
    """From now on Snakemake's notes on outputs below ``results`` lie there. To be called as the Snakefile is read."""
    import snakemake.workflow

    snakemake.workflow.FilePersistence = records_in(results)


def _output(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    return {"mtime_ns": _timed(path).stat().st_mtime_ns, "content": content(path)}


def _with_folder(value: Any, old: str, new: str) -> Any:
    """``value`` with paths below ``old`` laid below ``new``; params are kept as text, paths in them in quotes."""
    if isinstance(value, str):
        if value == old or value.startswith(f"{old}/"):
            return new + value[len(old) :]
        return value.replace(f"'{old}/", f"'{new}/").replace(f"'{old}'", f"'{new}'")
    if isinstance(value, list):
        return [_with_folder(item, old, new) for item in value]
    if isinstance(value, dict):
        return {_with_folder(key, old, new): _with_folder(item, old, new) for key, item in value.items()}
    return value
