"""Measured points, kept by content as soon as they are measured, so that nothing is measured twice.

Snakemake deletes the declared outputs of a job that fails, also between retries. A point that was measured goes here at
once; the job's outputs are put together from here. Nobody declares these files, nobody deletes them.

An entry is a folder ``{2 first digits of key}/{key}/`` with one Parquet file per table and ``entry.json``: the facts
that the key is the hash of, and the sha256 of every file. It is made under another name and renamed when complete.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moecap.errors import MoecapError, no_space

log = logging.getLogger(__name__)

ENTRY = "entry.json"
STALE_S = 24 * 3600.0


def key_of(facts: Mapping[str, Any]) -> str:
    """sha256 (hex) of plain data; the order of its keys does not matter.

    >>> key_of({"a": 1, "b": [2]}) == key_of({"b": [2], "a": 1})
    True
    """
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Spool:
    """A folder of measured points. Several processes may use it at once.

    >>> spool = Spool("results/spool/points")  # doctest: +SKIP
    >>> spool.put(facts, {"points": points, "requests": requests, "schedule": schedule})  # doctest: +SKIP
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / key

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and (self.path(key) / ENTRY).is_file()

    def __iter__(self) -> Iterator[str]:
        """Keys of all entries, whether intact or not."""
        return (path.parent.name for path in sorted(self.folder.glob(f"??/*/{ENTRY}")))

    def facts(self, key: str) -> dict[str, Any]:
        """What the entry's key is the hash of."""
        return json.loads((self.path(key) / ENTRY).read_text())["facts"]

    def get(self, key: str) -> dict[str, pa.Table] | None:
        """The tables of an entry, or None where there is none or it is damaged (which the log says)."""
        folder = self.path(key)
        if not folder.is_dir():
            return None
        try:
            entry = json.loads((folder / ENTRY).read_text())
            tables = {}
            for name, expected in entry["files"].items():
                path = folder / f"{name}.parquet"
                data = path.read_bytes()
                if hashlib.sha256(data).hexdigest() != expected:
                    raise ValueError(f"{path.name} is not what was written")
                tables[name] = pq.read_table(pa.BufferReader(data))
            if key_of(entry["facts"]) != key:
                raise ValueError("its facts belong to another key")
            return tables
        except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
            log.warning("spool entry %s is damaged (%s): it will be measured again", folder, error)
            return None

    def put(self, facts: Mapping[str, Any], tables: Mapping[str, pa.Table]) -> str:
        """Keep ``tables`` under the hash of ``facts``, on the disk for good when this returns. Returns the key.

        Raises:
            MoecapError: the disk is full; nothing is left behind.
        """
        key = key_of(facts)
        final = self.path(key)
        final.parent.mkdir(parents=True, exist_ok=True)
        self._sweep(final.parent)
        temporary = Path(tempfile.mkdtemp(prefix=f".{key[:16]}.", suffix=".part", dir=final.parent))
        try:
            files = {}
            for name, table in tables.items():
                path = temporary / f"{name}.parquet"
                pq.write_table(table, path, compression="zstd")
                files[name] = _sync(path)
            entry = temporary / ENTRY
            entry.write_text(json.dumps({"facts": dict(facts), "files": files}, sort_keys=True, indent=1))
            _sync(entry)
            temporary.chmod(0o777 & ~_umask())
            _replace_folder(temporary, final)
        except OSError as error:
            if error.errno == 28 or "No space left" in str(error):
                raise MoecapError(no_space(self.folder, "while a point was kept: that one is lost")) from error
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return key

    def _sweep(self, folder: Path) -> None:
        """Remove what a killed process left half-written, once it is old enough to belong to nobody."""
        for path in folder.glob(".*.part"):
            try:
                if time.time() - path.stat().st_mtime > STALE_S:
                    shutil.rmtree(path, ignore_errors=True)
            except FileNotFoundError:
                continue


def _sync(path: Path) -> str:
    """Force ``path`` to the disk; returns its sha256."""
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
        os.fsync(handle.fileno())
    return digest


def _replace_folder(temporary: Path, final: Path) -> None:
    """Rename ``temporary`` to ``final``. What is there already is damaged, or as good (another run's): it gives way."""
    for _ in range(3):
        try:
            temporary.rename(final)
            break
        except OSError:
            if not final.exists():
                raise
            # A folder cannot be renamed over one that is not empty.
            old = Path(tempfile.mkdtemp(prefix=".old.", suffix=".part", dir=final.parent))
            try:
                final.rename(old / "entry")
            except FileNotFoundError:
                pass
            finally:
                shutil.rmtree(old, ignore_errors=True)
    else:
        raise OSError(f"cannot put a spool entry in place at {final}")
    descriptor = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
