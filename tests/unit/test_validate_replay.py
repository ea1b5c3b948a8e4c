"""The page of the replay's check: what is finished is written, and goals that are not met are said."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path
from typing import Any

spec = importlib.util.spec_from_file_location(
    "validate_replay", Path(__file__).parents[2] / "scripts/validate_replay.py"
)
check = importlib.util.module_from_spec(spec)
sys.modules["validate_replay"] = check  # its dataclasses look themselves up
spec.loader.exec_module(check)

FACTS = {"machine": "a CPU", "threads": 2, "versions": {"vllm": "1"}, "date": "2026-01-01"}


def row(**values: Any) -> dict[str, Any]:
    plain: dict[str, Any] = dict.fromkeys(check.COLUMNS, 1.0)
    return {**plain, "precision": "bf16", "batch_size": 4, "s_mbu_error": 0.001, "s_mbu_complete_error": 0.0} | values


def test_tables_hold_the_rows_and_the_page_speaks_of_what_was_run(tmp_path: Path) -> None:
    check.write([row()], FACTS, tmp_path)
    lines = [line for line in (tmp_path / "replay.csv").read_text().splitlines() if not line.startswith("#")]
    assert [r["precision"] for r in csv.DictReader(lines)] == ["bf16"]
    assert check.WIDE_NAME not in (tmp_path / "replay.md").read_text()
    check.write([row(), row(precision=check.WIDE_NAME)], FACTS, tmp_path)
    assert f"`{check.WIDE_NAME}` is therefore" in (tmp_path / "replay.md").read_text()


def test_goals_that_are_not_met_are_said() -> None:
    page = check.markdown([row(run_s=4.0, replay_s=0.8), row(batch_size=16, run_s=4.0, replay_s=0.8)], FACTS)
    assert "0.100% (goal: at most 0.2%): met." in page
    assert "8.00 s of timed runs, replayed in 1.60 s, 0.20 of it (goal: at most 0.25): met" in page
    page = check.markdown([row(s_mbu_complete_error=-0.003, run_s=4.0, replay_s=1.6)], FACTS)
    assert "0.300% (goal: at most 0.2%): not met." in page
    assert "0.40 of it (goal: at most 0.25): not met" in page
