"""Predicted bytes against an NVIDIA GPU's own counters: ``make test-gpu``. Skipped, with the reason, where none is."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

SCRIPT = Path(__file__).parents[2] / "scripts" / "validate_gpu.py"
spec = importlib.util.spec_from_file_location("validate_gpu", SCRIPT)
validate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(validate)

REASON = validate.reason_to_skip()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(REASON is not None, reason=f"no GPU counters: {REASON}")]


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return validate.run(request.config.getoption("--record", None) or tmp_path_factory.mktemp("validation"))


def test_every_point_was_measured(rows: list[dict[str, Any]]) -> None:
    points = {(row["model"], row["batch_size"]) for row in rows}
    assert points == {(model, size) for model in validate.MODELS for size in validate.BATCH_SIZES}


def test_bytes_agree_with_the_counters_and_no_s_mbu_is_impossible(rows: list[dict[str, Any]]) -> None:
    assert validate.wrong(rows) == []
