"""An archive that somebody gives you: checked before anything of it is used, and bounded while it is read.

Whoever makes an archive can make its checksums too, so nothing in it is believed: it is one Zstandard frame with one
tar in it and not a byte more, of plain files below one folder, each named once, of sizes that the archive's own size
allows; what its parts say is read as data, and a part that cannot be read is named.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Self

import pyarrow as pa
import yaml
import zstandard

from moecap.errors import MoecapError
from moecap.io import read_parquet
from moecap.paths import Paths

log = logging.getLogger(__name__)

CRATE = "ro-crate-metadata.json"
CHECKSUMS = "checksums.sha256"
FACTS = "archive.json"
RESULTS = "results"

# Tables are compressed before they come here, and texts shrink to a tenth: a hundredfold is no campaign's.
MOST_TIMES = 100
# What any archive may unpack to, however small it is.
ALWAYS_BYTES = 64 * 2**20
MOST_FILES = 100_000
MOST_HEADER_BYTES = 64 * 2**10
MOST_CHECKSUM_BYTES = 32 * 2**20
# Memory that a frame may ask of its reader; level 12, at which archives are made, asks for 4 MiB.
MOST_WINDOW_BYTES = 128 * 2**20
BLOCK = 1 << 20


def verify(archive: str | Path) -> dict[str, Any]:
    """Check every file of ``archive`` against its checksum, without unpacking it to disk.

    Returns:
        ``name``, ``files``, ``bytes``, ``sha256`` (of the archive itself).

    Raises:
        MoecapError: no such archive, damaged, too large when unpacked, or a file is missing, added, changed or named
            twice; the message says which.
    """
    expected: dict[str, str] | None = None
    seen: dict[str, str] = {}
    name, size = "", 0

    def look(top: str, member: str, content: IO[bytes]) -> None:
        nonlocal expected, name, size
        name = top
        if member in seen or (member == CHECKSUMS and expected is not None):
            raise MoecapError(f"{archive}: {member} is in it twice; it was tampered with.")
        if member == CHECKSUMS:
            expected = _read_sums(content.read(MOST_CHECKSUM_BYTES + 1), archive)
            return
        digest = hashlib.sha256()
        while block := content.read(BLOCK):
            digest.update(block)
            size += len(block)
        seen[member] = digest.hexdigest()

    _visit(Path(archive), look)
    if expected is None:
        raise MoecapError(
            f"{archive} has no {CHECKSUMS}: it is not an archive of this workflow, or it was tampered with."
        )
    _compare(archive, expected, seen)
    return {"name": name, "files": len(seen), "bytes": size, "sha256": sha256(Path(archive))}


def _compare(archive: str | Path, expected: dict[str, str], seen: dict[str, str]) -> None:
    changed = [m for m in seen if m in expected and seen[m] != expected[m]]
    for what, members in (
        ("differs from its checksum", changed),
        ("is listed in the checksums but missing", sorted(set(expected) - set(seen))),
        ("is not listed in the checksums", sorted(set(seen) - set(expected))),
    ):
        if members:
            more = f" (and {len(members) - 1} more)" if len(members) > 1 else ""
            raise MoecapError(
                f"{archive}: {members[0]} {what}{more}. The archive was changed after it was made, or damaged on its "
                "way; get it again from where it was published."
            )


@dataclass(frozen=True)
class Archive:
    """A verified archive, unpacked. ``folder`` holds it; ``results`` inside is laid out as a results folder is.

    Every property raises a :class:`MoecapError` that names the part where it cannot be read.
    """

    path: Path
    folder: Path
    sha256: str

    @property
    def results(self) -> Path:
        return self.folder / RESULTS

    @property
    def facts(self) -> dict[str, Any]:
        """Name, times, versions, commit."""
        return self._read(FACTS, json.loads, dict)

    @property
    def config(self) -> dict[str, Any]:
        return self._read("config/config.yaml", yaml.safe_load, dict)

    @property
    def catalogue(self) -> dict[str, Any]:
        return self._read("config/catalogue.yaml", yaml.safe_load, dict)

    @property
    def deployments(self) -> list[dict[str, str]]:
        return self._read(
            "config/deployments.csv", lambda text: list(csv.DictReader(io.StringIO(text, newline=""))), list
        )

    @property
    def redraw(self) -> dict[str, Any]:
        """What :func:`moecap.report.redraw.redraw` needs; empty when the archive was made without."""
        member = "config/redraw.json"
        return self._read(member, json.loads, dict) if (self.folder / member).is_file() else {}

    def _read(self, member: str, parse: Callable[[str], Any], kind: type) -> Any:
        try:
            found = parse(self.file(member).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError, csv.Error, RecursionError) as error:
            raise self.unreadable(f"{member} in it", error) from error
        if not isinstance(found, kind):
            raise self.unreadable(f"{member} in it", TypeError(f"it is no {kind.__name__}"))
        return found

    def unreadable(self, what: str, error: BaseException) -> MoecapError:
        """The error for a part that does not hold what it should."""
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return MoecapError(
            f"{self.path}: {what} cannot be read ({reason}). The archive was changed after it was made, or made by a "
            "version that this one does not understand."
        )

    def file(self, member: str) -> Path:
        """Where a member (``results/cap.parquet``) lies; outside of the archive is refused."""
        path = (self.folder / str(member)).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise MoecapError(f"{self.path}: {member} does not lie in the archive.")
        return path

    def cap(self) -> pa.Table:
        """The CAP table."""
        path = Path(Paths(str(self.results)).cap)
        if not path.is_file():
            raise MoecapError(f"{self.path} holds no cap.parquet.")
        return read_parquet(path)


@contextmanager
def open_archive(archive: str | Path) -> Iterator[Archive]:
    """Verify ``archive``, unpack it to a temporary folder, and remove that afterwards.

    Raises:
        MoecapError: as :func:`verify`; or what the block made of a part (a table without the columns that it should
            have, a text where a number belongs) failed.
    """
    with tempfile.TemporaryDirectory(prefix="moecap-archive-") as folder:
        opened = extract(archive, folder)
        try:
            yield opened
        except MoecapError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
            # pyarrow's, pydantic's and jinja's errors are ValueErrors or LookupErrors, too.
            log.debug("a part of %s", archive, exc_info=True)
            raise opened.unreadable("a part of it", error) from error
        except pa.ArrowException as error:
            raise opened.unreadable("a table in it", error) from error


def extract(archive: str | Path, folder: str | Path) -> Archive:
    """Verify ``archive`` and unpack it into ``folder``.

    Raises:
        MoecapError: as :func:`verify`, or no room on the disk; nothing is unpacked then.
    """
    checked = verify(archive)
    folder = Path(folder)
    there = next(parent for parent in (folder, *folder.resolve().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if checked["bytes"] > free:
        raise MoecapError(
            f"{archive} unpacks to {checked['bytes'] / 1e9:.1f} GB, and the disk that holds {there} has "
            f"{free / 1e9:.1f} GB free. Free some space, or set TMPDIR to a larger disk."
        )

    def unpack(_: str, member: str, content: IO[bytes]) -> None:
        path = folder / member
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as handle:
            shutil.copyfileobj(content, handle, BLOCK)

    _visit(Path(archive), unpack)
    return Archive(Path(archive), folder, checked["sha256"])


# -- zstd and tar -----------------------------------------------------------------------------------------------------


class _Bounded(io.RawIOBase):
    """A stream that refuses to give more than ``limit`` bytes."""

    def __init__(self, source: Any, limit: int, archive: Path) -> None:
        self.source, self.limit, self.archive, self.given = source, limit, archive, 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        block: bytes = self.source.read(BLOCK if size is None or size < 0 else min(size, BLOCK))
        self.given += len(block)
        if self.given > self.limit:
            raise MoecapError(
                f"{self.archive} has {self.archive.stat().st_size} bytes and unpacks to more than {self.limit}, which "
                "no archive of this workflow does; refused."
            )
        return block


class _Entry(tarfile.TarInfo):
    """A header of a tar file; tarfile itself takes one that makes no sense for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            entry = super().frombuf(buf, encoding, errors)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError, tarfile.EmptyHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(str(error)) from error
        # A name or an attribute that has a header of its own is read into memory.
        if entry.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) and not 0 <= entry.size <= MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {entry.size} bytes")
        return entry


def _visit(archive: Path, look: Callable[[str, str, IO[bytes]], None]) -> None:
    """``look(top folder, path below it, stream)`` for every file of an archive.

    Raises:
        MoecapError: all but plain files below one folder, and a byte that belongs to none.
    """
    try:
        size = archive.stat().st_size
        limit = max(ALWAYS_BYTES, MOST_TIMES * size)
        decompressor = zstandard.ZstdDecompressor(max_window_size=MOST_WINDOW_BYTES)
        with archive.open("rb") as raw:
            end = _frame_end(raw)
            if end < size:
                raise MoecapError(f"{archive}: {size - end} bytes follow the end of the archive; it was tampered with.")
            raw.seek(0)
            with decompressor.stream_reader(raw) as packed:
                bounded = _Bounded(packed, limit, archive)
                with tarfile.open(fileobj=bounded, mode="r|", tarinfo=_Entry) as tar:
                    _members(archive, tar, limit, look)
                    _only_zeros(archive, tar.fileobj)
    except MoecapError:
        raise
    except FileNotFoundError as error:
        if archive.exists():
            raise
        raise MoecapError(f"{archive} does not exist.") from error
    except IsADirectoryError:
        raise MoecapError(f"{archive} is a folder; the archive is a single .tar.zst file.") from None
    except OSError as error:
        raise MoecapError(f"{archive} could not be read or unpacked ({error}).") from error
    except (zstandard.ZstdError, tarfile.TarError, EOFError, ValueError, ArithmeticError, LookupError) as error:
        raise MoecapError(
            f"{archive} is damaged, cut off, or no .tar.zst at all ({str(error) or type(error).__name__}); get it "
            "again from where it was published."
        ) from error


def _members(archive: Path, tar: tarfile.TarFile, limit: int, look: Callable[[str, str, IO[bytes]], None]) -> None:
    top, count, declared = None, 0, 0
    for entry in tar:
        parts = PurePosixPath(entry.name).parts
        hidden = entry.name.startswith("/") or ".." in parts or any(ord(c) < 32 or c == "\\" for c in entry.name)
        if not entry.isreg() or entry.issparse() or entry.size < 0 or len(parts) < 2 or hidden:
            raise MoecapError(f"{archive}: {entry.name!r} is not a plain file below one folder; refused.")
        count, declared = count + 1, declared + entry.size
        if count > MOST_FILES or declared > limit:
            raise MoecapError(
                f"{archive} has {archive.stat().st_size} bytes and says that it holds {declared} in {count} files: "
                "more than any archive of this workflow; refused."
            )
        top = top or parts[0]
        if parts[0] != top:
            raise MoecapError(f"{archive}: {entry.name} lies outside of {top}/; refused.")
        content = tar.extractfile(entry)
        assert content is not None  # it is a plain file
        look(top, "/".join(parts[1:]), content)
        tar.members.clear()  # type: ignore[attr-defined]  # a stream is not gone through twice
    if top is None:
        raise MoecapError(f"{archive} is empty.")


def _only_zeros(archive: Path, stream: Any) -> None:
    """What follows the last file is padding. (The end of the frame carries a checksum of its own: it is read, too.)"""
    while block := stream.read(BLOCK):
        if block.count(0) != len(block):
            raise MoecapError(f"{archive}: something follows the last file in it; it was tampered with.")


def _frame_end(raw: IO[bytes]) -> int:
    """Where the Zstandard frame at the beginning of a file ends (RFC 8878, section 3.1.1): its blocks say their sizes.

    A reader of the frame stops there, and would not notice what follows.
    """
    head = raw.read(18)
    position = zstandard.frame_header_size(head)
    checksum = 4 if zstandard.get_frame_parameters(head).has_checksum else 0
    last = 0
    while not last:
        raw.seek(position)
        header = raw.read(3)
        if len(header) < 3:
            raise EOFError("it is cut off")
        value = int.from_bytes(header, "little")
        last, kind, length = value & 1, value >> 1 & 3, value >> 3
        position += 3 + (1 if kind == 1 else length)  # kind 1: one byte, repeated
    return position + checksum


def _read_sums(content: bytes, archive: str | Path) -> dict[str, str]:
    sums: dict[str, str] = {}
    wrong = MoecapError(f"{archive}: {CHECKSUMS} is not a list of checksums; it was tampered with.")
    if len(content) > MOST_CHECKSUM_BYTES:
        raise wrong
    for line in content.decode("utf-8", "replace").splitlines():
        digest, separator, member = line.partition("  ")
        if not separator or len(digest) != 64 or member in sums:
            raise wrong
        sums[member] = digest
    return sums


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
