"""Small things that are done with a checkpoint's files: hash them, link them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moecap.provenance import digest


def sha256(path: str | os.PathLike[str]) -> str:
    """Hex SHA-256 of a file."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def checkpoint_sha256(manifest: Mapping[str, Any]) -> str:
    """Hash of a checkpoint from the hashes of its files; when and from where it was made does not matter."""
    return digest({"files": manifest.get("files", manifest)}, 64)


def remove_others(folder: Path, wanted: Iterable[str]) -> None:
    """Remove what an earlier checkpoint left in ``folder``."""
    keep = {folder / name for name in wanted}
    for path in folder.rglob("*"):
        if (path.is_file() or path.is_symlink()) and path not in keep:
            path.unlink()


def link(source: Path, link: Path) -> None:
    """Point ``link`` at ``source``, replacing what was there. One that is right is left alone: it may be another's."""
    if link.is_symlink() and link.readlink() == source:
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = link.with_name(f".{link.name}.{os.getpid()}.link")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(source)
    temporary.replace(link)
