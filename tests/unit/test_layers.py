"""The library's packages in the order of the data: nothing imports upward, so no two packages import each other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from moecap.provenance import PACKAGE

#: From the bottom up. A package (or a module that stands alone) imports from those before it and from itself.
ORDER = (
    "redact",
    "errors",
    "io",
    "columns",
    "documents",
    "schema",
    "paths",
    "reach",
    "provenance",
    "scrub",
    "jobs",
    "model",
    "checkpoints",
    "hardware",
    "engines",
    "accuracy",
    "measure",
    "routing",
    "metrics",
    "checks",
    "cost",
    "cap",
    "plan",
    "archive",
    "charts",
    "report",
    "campaign",
    "cluster",
    "commands",
    "cli",
)


def imported(path: Path) -> set[str]:
    """Packages (or modules) of the library that a file imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update([node.module] if node.module != "moecap" else [f"moecap.{a.name}" for a in node.names])
    return {name.split(".")[1] for name in found if name.startswith("moecap.")} & set(ORDER)


def test_every_package_has_its_place() -> None:
    there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there - {"__init__", "__main__", "templates", "tasks"} == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_nothing_imports_upward(name: str) -> None:
    below = set(ORDER[: ORDER.index(name) + 1])
    files = sorted((PACKAGE / name).rglob("*.py")) or [PACKAGE / f"{name}.py"]
    upward = {str(file.relative_to(PACKAGE)): sorted(imported(file) - below) for file in files}
    assert {file: names for file, names in upward.items() if names} == {}
