"""The wheel, in an environment of its own and in another folder: what it promises without the repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

UV = shutil.which("uv") or str(ROOT / ".tools/bin/uv")
PARTS = ("pyproject.toml", "README.md", "LICENSE", "moecap", "config")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of an environment that has the wheel and what it depends on: no torch, no engine, no workflow."""
    if not Path(UV).exists():
        pytest.skip("uv makes the environment; `make test` brings it")
    folder = tmp_path_factory.mktemp("wheel")
    # A copy: building leaves folders behind. The catalogue is a link in the package, as in the repository.
    (folder / "source").mkdir()
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / "source" / part, symlinks=True)
        else:
            shutil.copy2(ROOT / part, folder / "source" / part)
    subprocess.run([UV, "build", "--quiet", "--wheel", "--out-dir", folder, folder / "source"], check=True)
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, folder / "venv"], check=True)
    wheel = next(folder.glob("moecap-*.whl"))
    install = [UV, "pip", "install", "--quiet", "--python", folder / "venv/bin/python"]
    subprocess.run([*install, "--constraint", ROOT / "envs/core.txt", wheel], check=True)
    return folder / "venv/bin"


def test_every_file_of_the_package_is_in_the_wheel(installed: Path) -> None:
    package = next((installed.parent / "lib").glob("python*/site-packages/moecap"))
    ours = {
        path.relative_to(ROOT / "moecap")
        for path in (ROOT / "moecap").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    # The catalogue and the tasks are links here, which `rglob` may or may not follow.
    for name in ("catalogue", "tasks"):
        ours |= {Path(name) / p.relative_to(ROOT / "config" / name) for p in _files(ROOT / "config" / name)}
    assert {path for path in ours if not (package / path).is_file()} == set()


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def run(command: list[str | Path], cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_the_command_line_answers_outside_the_repository(installed: Path, tmp_path: Path) -> None:
    arguments = ["--hardware", "H100-SXM5-80GB", "--devices", "2", "--tokens-per-s", "1000", "--json"]
    cost = run([installed / "moecap", "cost", *arguments], tmp_path)
    assert cost.returncode == 0, cost.stderr
    assert json.loads(cost.stdout)["hardware_usd"] > 0
    version = run([installed / "moecap", "--version"], tmp_path)
    assert version.returncode == 0 and version.stdout.split()[-1][0].isdigit(), version.stderr
    plan = run([installed / "moecap", "plan", "--model", "mixtral-8x7b", "--json"], tmp_path)
    assert plan.returncode == 0 and "Traceback" not in plan.stderr, plan.stderr


def test_a_catalogue_model_is_known_without_torch(installed: Path, tmp_path: Path) -> None:
    code = "from moecap import anatomy, __version__; print(__version__, anatomy('mixtral-8x7b').total_params)"
    found = run([installed / "python", "-c", code], tmp_path)
    assert found.returncode == 0 and found.stdout.split()[1] == "46702792704", found.stderr


def test_another_model_says_what_to_install(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mixtral", "hidden_size": 64}')
    refused = run([installed / "moecap", "anatomy", "config.json"], tmp_path)
    assert refused.returncode == 1 and "moecap[anatomy]" in refused.stderr and "Traceback" not in refused.stderr
