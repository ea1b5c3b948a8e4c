"""Where the tables of a run on a GPU go."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", type=Path, help="folder for gpu.csv and gpu.md; default: a temporary one")
