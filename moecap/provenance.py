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

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(__file__).resolve().parent


#: How jobs begin, end and fail: no result depends on it.
NO_RESULT = {
    "moecap.errors",
    "moecap.jobs.failures",
    "moecap.jobs.processes",
    "moecap.jobs.running",
    "moecap.jobs.workflow",
}


def digest(value: Any, length: int = 12) -> str:
    """A short, stable hash of plain data (dict order does not matter).

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def code_fingerprint(script: str | Path, *more: str | Path) -> str:
    """Hash of ``script`` and of every ``moecap`` module that it imports, directly or through others.

    Snakemake's code trigger sees the time of the script's own file only. Rules carry this hash as a param, so that an
    edit in the library reruns the rules that use it and no others, and a fresh checkout none. Found by reading the
    sources: nothing is imported. An ``import_module`` by name is not seen; what is loaded so must be named by an
    ordinary import, or given in ``more`` together with templates and other files that the script reads from the
    repository (a folder stands for its files; a Python file brings the modules that it imports). Modules of
    ``NO_RESULT``, and what only they import, do not count.
    """
    combined = hashlib.sha256(_file_hash(Path(script).resolve()))
    sources = [Path(script), *(path for path in map(Path, more) if path.suffix == ".py")]
    for module in sorted(set().union(*(_modules_of(path.resolve()) for path in sources))):
        combined.update(module.encode())
        combined.update(_file_hash(_module_file(module)))
    for path in map(Path, more):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and file.suffix != ".pyc":
                combined.update(file.name.encode() + _file_hash(file.resolve()))
    return combined.hexdigest()[:12]


def modules_of(script: str | Path) -> list[str]:
    """Names of the ``moecap`` modules that :func:`code_fingerprint` covers for ``script``."""
    return sorted(_modules_of(Path(script).resolve()))


@cache
def _file_hash(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def _module_file(name: str) -> Path:
    relative = Path(*name.split(".")[1:])
    candidate = PACKAGE / relative
    return candidate / "__init__.py" if candidate.is_dir() else candidate.with_suffix(".py")


# An import of this package, at the start of a line; several lines only in parentheses.
_IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+(moecap[\w.]*)[ \t]+import[ \t]+(\([^)]*\)|[^\n#]*)|import[ \t]+(moecap[\w., \t]*))", re.M
)


@cache
def _direct_imports(path: Path) -> frozenset[str]:
    """Modules of the package that a file imports. Read by a pattern: to parse all takes a second of each start."""
    found: set[str] = set()
    for package, names, modules in _IMPORT.findall(path.read_text()):
        if package:
            # `from moecap.engines import base` may name a module, `from moecap.io import x` a function.
            found.add(package)
            found.update(f"{package}.{name.split()[0]}" for name in names.strip("() \n").split(",") if name.strip())
        else:
            found.update(module.split()[0] for module in modules.split(","))
    return frozenset(n for n in found if n.startswith("moecap.") and _module_file(n).is_file())


@cache
def _modules_of(path: Path) -> frozenset[str]:
    seen: set[str] = set()
    queue = list(_direct_imports(path))
    while queue:
        module = queue.pop()
        if module not in seen | NO_RESULT:
            seen.add(module)
            queue.extend(_direct_imports(_module_file(module)))
    return frozenset(seen)


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
