"""The demo, run for real: one trained checkpoint and one result tree serve all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import ROOT, snakemake


@pytest.fixture(scope="session")
def demo() -> Path:
    """``results/`` of the demo in this checkout, made if it is not there yet (what `make demo` does)."""
    if not (ROOT / ".venv-quantize/bin/python").exists():
        pytest.skip("the demo needs the environment .venv-quantize; run `make test`, or `make demo`, which make it")
    run = snakemake("--cores", str(os.cpu_count() or 1), timeout=4800)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    return ROOT / "results"
