"""What the tests share: the repository's root, a way to run Snakemake, and the one real result tree."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from hypothesis import settings

# A busy machine is slow, not wrong: no test may fail by the clock.
settings.register_profile("moecap", deadline=None)
settings.load_profile("moecap")

ROOT = Path(__file__).resolve().parent.parent


def snakemake(*arguments: str, cwd: Path = ROOT, timeout: float = 1800, **env: str) -> subprocess.CompletedProcess[str]:
    """Run Snakemake as a user would, in the environment that runs the tests.

    Tests of several processes take turns at this checkout's results: a second run on them would be refused.
    """
    # Without compiled files every job compiles vLLM's sources anew: ten seconds each.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", **env}
    with _turn() if cwd == ROOT and "-n" not in arguments else nullcontext():
        return subprocess.run(
            [sys.executable, "-m", "snakemake", *arguments],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )


@contextmanager
def _turn() -> Iterator[None]:
    (ROOT / ".cache").mkdir(exist_ok=True)
    with (ROOT / ".cache/demo.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture
def zen(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine, for checks, is one whose CPU has kernels for everything in the demo, whatever it really is."""
    from moecap.engines.capabilities import Machine

    cpu = Machine(
        "this-machine",
        isa="x86_64",
        vendor="AuthenticAMD",
        flags=frozenset({"avx2", "avx512f"}),
        packages=frozenset({"zentorch"}),
    )
    monkeypatch.setattr("moecap.campaign.checks.this_machine", lambda name: cpu)


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def demo() -> Path:
    """``results/`` of the demo in this checkout, made if it is not there yet (what `make demo` does).

    One trained checkpoint and one result tree serve all tests, also those of processes beside this one.
    """
    if not (ROOT / ".venv-quantize/bin/python").exists():
        pytest.skip("the demo needs the environment .venv-quantize; run `make test`, or `make demo`, which make it")
    run = snakemake("--cores", str(os.cpu_count() or 1), timeout=4800)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    return ROOT / "results"
