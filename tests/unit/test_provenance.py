"""Fingerprints of the code behind a script."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from moecap import provenance
from moecap.provenance import PACKAGE, ROOT, code_fingerprint, modules_of

FILES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "scripts").glob("*.py")])


def parsed_imports(path: Path) -> set[str]:
    """The same by Python's own parser."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.update([node.module, *(f"{node.module}.{alias.name}" for alias in node.names)])
    return {n for n in found if n.startswith("moecap.") and provenance._module_file(n).is_file()}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_are_found_as_pythons_parser_finds_them(path: Path) -> None:
    assert provenance._direct_imports(path) >= parsed_imports(path)


def test_nothing_much_is_found_beside_them() -> None:
    """A docstring that begins a line with an import would add a module: reruns too many, never too few."""
    surplus = {path: provenance._direct_imports(path) - parsed_imports(path) for path in FILES}
    assert {path: names for path, names in surplus.items() if names} == {}


def test_a_module_behind_another_counts(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("from moecap.cost.deployment import energy_kwh\n")
    assert {"moecap.cost.deployment", "moecap.hardware.catalogue"} <= set(modules_of(script))
    assert not {"moecap.errors", "moecap.jobs.failures", "moecap.jobs.workflow"} & set(modules_of(script)), (
        "no result's"
    )
    assert code_fingerprint(script) == code_fingerprint(script)
    other = tmp_path / "other.txt"
    other.write_text("x")
    assert code_fingerprint(script) != code_fingerprint(script, other)
