"""A copy of the workflow whose outputs all exist and are up to date, made once and copied for every test."""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, snakemake

FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
PARTS = ("Snakefile", "rules", "scripts", "moecap", "config", "envs", "profiles", "report")


def copy_workflow(target: Path) -> Path:
    target.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, target / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target / part)
    return target


def on_any_cpu(workflow: Path) -> None:
    """Let vLLM serve every precision, whatever this CPU can do: what is planned then is the same everywhere."""
    path = workflow / "config/catalogue/engines.yaml"
    engines = yaml.safe_load(path.read_text(encoding="utf-8"))
    precisions = engines["vllm-cpu"]["capabilities"]["precisions"]
    precisions.update({scheme: [] for scheme in precisions})
    path.write_text(yaml.safe_dump(engines, sort_keys=False), encoding="utf-8")


def planned_jobs(*arguments: str, cwd: Path) -> dict[str, int]:
    """Rule -> number of jobs that a dry-run lists."""
    result = snakemake("-n", "--cores", "2", *arguments, cwd=cwd)
    text = result.stdout + result.stderr
    assert result.returncode == 0, text
    jobs: dict[str, int] = {}
    table = re.search(r"^job\s+count\n-+\s+-+\n(.*?)^total", text, re.S | re.M)
    if table is None:
        assert "Nothing to be done" in text, text
        return jobs
    for line in table.group(1).splitlines():
        if line.strip():
            rule, count = line.rsplit(None, 1)
            jobs[rule.strip()] = int(count)
    jobs.pop("all", None)
    return jobs


def pretend_done(workflow: Path, *arguments: str) -> None:
    """Create every output of the workflow, empty, recorded by Snakemake as made by the current code and params."""
    summary = snakemake("--summary", "--cores", "2", *arguments, cwd=workflow)
    assert summary.returncode == 0, summary.stderr
    for line in summary.stdout.splitlines()[1:]:
        output = workflow / line.split("\t")[0]
        if output.suffix:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.touch()
        else:
            output.mkdir(parents=True, exist_ok=True)
            (output / "placeholder").touch()
    touched = snakemake("--touch", "--forceall", "--cores", "2", *arguments, cwd=workflow)
    assert touched.returncode == 0, touched.stdout + touched.stderr


@pytest.fixture(scope="session")
def _finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workflow = copy_workflow(tmp_path_factory.mktemp("finished"))
    on_any_cpu(workflow)
    pretend_done(workflow)
    assert planned_jobs(cwd=workflow) == {}
    return workflow


@pytest.fixture
def finished(_finished: Path, tmp_path: Path) -> Path:
    """A workflow where nothing is left to be done, to be changed by one test."""
    return Path(shutil.copytree(_finished, tmp_path / "workflow"))


def with_function_edited(source: str, name: str) -> str:
    """The source with one more assignment before the last statement of a function."""
    (function,) = (n for n in ast.parse(source).body if isinstance(n, FUNCTION) and n.name == name)
    last = function.body[-1]
    start = min([last.lineno, *(d.lineno for d in getattr(last, "decorator_list", []))]) - 1
    lines = source.splitlines(keepends=True)
    return "".join([*lines[:start], " " * last.col_offset + "edited = None\n", *lines[start:]])


@pytest.fixture
def edit(finished: Path) -> Callable[..., None]:
    """Replace a text in one file of the copy, which must be there; or edit a function: ``(path, name)``."""

    def replace(path: str, old: str, new: str | None = None) -> None:
        file = finished / path
        text = file.read_text(encoding="utf-8")
        assert old in text, f"{path} has no {old!r}"
        changed = with_function_edited(text, old) if new is None else text.replace(old, new, 1)
        file.write_text(changed, encoding="utf-8")

    return replace
