"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moecap.errors import MoecapError, no_space

METADATA_KEY = b"moecap"


#: Why a file cannot be written, and what helps; by the operating system's number.
_REFUSED = {
    errno.EROFS: "the file system is read-only. Choose another folder",
    errno.EACCES: "you may not write there. Change its permissions, or choose another folder",
    errno.EPERM: "you may not write there. Change its permissions, or choose another folder",
    errno.EDQUOT: "your quota on that disk is used up. Free some space, or choose another disk",
    errno.EFBIG: "a file may not grow so large there. Raise the limit (`ulimit -f`), or choose another file system",
    errno.ENAMETOOLONG: "the name is too long for the file system. Choose a shorter one",
    errno.EEXIST: "a part of the path is a file, not a folder. Choose another folder",
    errno.ENOTDIR: "a part of the path is a file, not a folder. Choose another folder",
}


@contextmanager
def _explained(final: Path) -> Iterator[None]:
    """Says why ``final`` cannot be written, where the operating system refuses that; other errors are the caller's."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise MoecapError(no_space(final.parent, f"while {final.name} was written")) from error
        elsewhere = error.filename is not None and final.parent.resolve() not in Path(error.filename).resolve().parents
        above = error.filename is not None and Path(error.filename).resolve() in final.resolve().parents
        if error.errno not in _REFUSED or (elsewhere and not above):
            raise
        raise MoecapError(
            f"{final} cannot be written: {_REFUSED[error.errno]} (`results` in the config), and start again. Nothing "
            "was overwritten, and what was finished is kept."
        ) from error


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its name when the block ends without an error.

    A crash, a full disk or a kill leaves the old file, or none, never half of one.
    """
    final = Path(path)
    with _explained(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        fd, name = tempfile.mkstemp(prefix=f".{final.name}.", suffix=".part", dir=final.parent)
        os.close(fd)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb") as handle:
                os.fsync(handle.fileno())
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            temporary.replace(final)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder beside ``path`` that takes its place, whole, when the block ends without an error.

    What was in ``path`` before is gone then; after an error it is as it was.
    """
    final = Path(path)
    with _explained(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".part", dir=final.parent))
        try:
            yield temporary
            umask = os.umask(0)
            os.umask(umask)
            for entry in (temporary, *temporary.rglob("*")):
                if not entry.is_symlink():
                    entry.chmod((0o777 if entry.is_dir() else 0o666) & ~umask)
            if final.exists():
                previous = temporary.with_suffix(".old")
                final.replace(previous)
                temporary.replace(final)
                shutil.rmtree(previous)
            else:
                temporary.replace(final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def write_parquet(
    table: pa.Table, path: str | os.PathLike[str], metadata: Mapping[str, Any] | None = None, **options: Any
) -> None:
    """Write ``table`` as Zstd Parquet, atomically; ``metadata`` goes into the file's key-value metadata as JSON."""
    existing = dict(table.schema.metadata or {})
    if metadata is not None:
        existing[METADATA_KEY] = json.dumps(metadata, sort_keys=True, default=str).encode()
    with atomic_path(path) as temporary:
        pq.write_table(table.replace_schema_metadata(existing), temporary, compression="zstd", **options)


def read_parquet(path: str | os.PathLike[str], columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet file.

    Raises:
        MoecapError: the file is missing, truncated, no Parquet at all, or lacks one of ``columns``.
    """
    try:
        schema = pq.read_schema(path)
        missing = [c for c in columns or [] if c not in schema.names]
        if missing:
            raise MoecapError(f"{path} has no column {', '.join(missing)}; it has {', '.join(schema.names)}.")
        return pq.read_table(path, columns=columns)
    except FileNotFoundError as error:
        raise MoecapError(f"{path} does not exist.") from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise MoecapError(
            f"{path} is not a complete Parquet file ({str(error).splitlines()[0]}). It was left as it is; delete it to "
            "have it made again."
        ) from error


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The provenance that :func:`write_parquet` stored, or an empty dict."""
    raw = (pq.read_schema(path).metadata or {}).get(METADATA_KEY)
    return json.loads(raw) if raw else {}


def write_json(value: Any, path: str | os.PathLike[str]) -> None:
    """Write ``value`` as indented JSON, atomically. NaN and infinities are refused: what is missing is null."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, default=str)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file; a missing or broken one is a :class:`MoecapError` that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MoecapError(f"{path} does not exist.") from error
    except json.JSONDecodeError as error:
        raise MoecapError(f"{path} is not valid JSON: {error}.") from error
