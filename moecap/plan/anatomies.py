"""Counted models, kept on disk between calls: counting one anew takes seconds of imports, reading it none.

What is kept is keyed by the config, the precision and the sources that count, so that none of them changes unseen. The
folder is ``$MOECAP_CACHE``, else ``~/.cache/moecap``; a cache that cannot be read or written is done without.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path

from moecap.errors import MoecapError
from moecap.io import read_json, write_json
from moecap.model.resolve import resolve
from moecap.model.structure import Anatomy
from moecap.paths import catalogue_layers


@lru_cache(maxsize=256)
def anatomy_of(model: str, precision: str | None = None, catalogue: str | None = None) -> Anatomy:
    """A model counted at a precision (None: as its config has it).

    Raises:
        MoecapError: the model or the precision is not known.
    """
    path = _path(model, precision, catalogue)
    if path is not None and path.is_file():
        with contextlib.suppress(MoecapError, KeyError, TypeError, ValueError):
            return Anatomy.from_json(read_json(path))
    from moecap.model.counted import anatomy

    found = anatomy(model, precision, catalogue=catalogue)
    if path is not None:
        with contextlib.suppress(MoecapError, OSError):
            write_json(found.to_json(), path)
    return found


def _path(model: str, precision: str | None, catalogue: str | None) -> Path | None:
    """Where a count is kept; None for a checkpoint, whose headers are read each time."""
    found = resolve(model, catalogue=catalogue)
    if found.checkpoint is not None:
        return None
    layers = catalogue_layers() if catalogue is None else [Path(catalogue)]
    recipes = [p.read_text(encoding="utf-8") for p in (layer / "precisions.yaml" for layer in layers) if p.is_file()]
    parts = json.dumps(
        [found.name, found.config, found.shapes, found.notes, precision, recipes], sort_keys=True, default=str
    )
    key = hashlib.sha256(f"{parts}{_sources()}".encode()).hexdigest()[:24]
    root = os.environ.get("MOECAP_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moecap"
    return Path(root) / "anatomy" / f"{key}.json"


@lru_cache(maxsize=1)
def _sources() -> str:
    folder = Path(__file__).resolve().parents[1] / "model"
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
