"""What a result was made from: the code, the versions, the commit."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from moecap.reach import Library

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(__file__).resolve().parent

#: How jobs begin, end and fail: no result depends on it.
NO_RESULT = ("moecap.errors", "moecap.jobs")


def digest(value: Any, length: int = 12) -> str:
    """A short, stable hash of plain data (dict order does not matter).

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


@cache
def library() -> Library:
    """The definitions of this library, as far as results may depend on them."""
    return Library(PACKAGE, NO_RESULT, ROOT / ".cache" / "definitions.json")


@cache
def code_fingerprint(script: str | Path, *more: str | Path) -> str:
    """Hash of ``script`` and of the library's definitions that it reaches, without comments and docstrings.

    Snakemake's code trigger sees the time of the script's own file only. Rules carry this hash as a param, so that an
    edit in the library reruns the rules that reach what was edited and no others, and a fresh checkout none. What is
    reached is found by reading the sources (:mod:`moecap.reach`). What is imported by a name that is put together as
    the script runs is not seen: it is given in ``more``, together with files of the repository that nothing reached
    names (a folder stands for its files; a module of the library for all that it reaches).
    """
    combined, reached = hashlib.sha256(), set()
    for path in map(Path, (script, *more)):
        if path.suffix == ".py":
            definitions, own = library().script(path)
            reached |= definitions
            combined.update(own.encode())
            continue
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and file.suffix != ".pyc":
                combined.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    for file in library().data_files(reached):
        combined.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    combined.update("".join(library().hashes(reached)).encode())
    library().save()
    return combined.hexdigest()[:12]


def reached_by(script: str | Path) -> list[str]:
    """``module:name`` of the definitions that :func:`code_fingerprint` covers for ``script``."""
    return sorted(map(library().label, library().script(Path(script))[0]))


def modules_of(script: str | Path) -> list[str]:
    """Names of the modules of which :func:`code_fingerprint` covers something for ``script``."""
    return sorted({module for module, _ in library().script(Path(script))[0]})


@cache
def pinned_version(environment: str, distribution: str) -> str | None:
    """The version of ``distribution`` in ``envs/{environment}.txt``, or None when it is not pinned there.

    The pins, not what happens to be installed where the workflow is planned: a login node has no engine.
    """
    path = ROOT / "envs" / f"{environment}.txt"
    wanted = re.sub(r"[-_.]+", "-", distribution).lower()
    for line in path.read_text().splitlines() if path.is_file() else []:
        name, _, version = line.partition("==")
        if re.sub(r"[-_.]+", "-", name.split("[")[0].strip()).lower() == wanted:
            return version.split(";")[0].strip()
    return None


def library_versions(*distributions: str) -> dict[str, str]:
    """Versions of the installed ``distributions``; those that are absent are left out."""
    found = {}
    for name in distributions:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def provenance(**more: Any) -> dict[str, Any]:
    """Where and from what a file was made: commit, whether the tree was dirty, Python and library versions."""
    return {
        **git_state(),
        "python": platform.python_version(),
        "libraries": library_versions("moecap", "snakemake", "pandas", "pyarrow", "altair", "torch", "transformers"),
        **more,
    }


@cache
def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def git_state() -> dict[str, Any]:
    """``git_commit`` and ``git_dirty``; both null where this is not a git checkout."""
    commit = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain", "--untracked-files=no") if commit else None
    return {"git_commit": commit, "git_dirty": bool(status) if status is not None else None}
