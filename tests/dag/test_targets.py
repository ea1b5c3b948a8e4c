"""What one can ask for beside everything: a stage, or one deployment by its id. Each plans its own jobs only."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dag.conftest import copy_workflow, planned_jobs

MODELS = {"demo_data", "train_demo", "quantize"}
SCORES = MODELS | {"evaluate"}
TIMES = MODELS | {"calibrate", "measure"}
FIGURES = SCORES | TIMES | {"anatomy", "replay", "metrics", "cost"}
REPORT = FIGURES | {"cap", "report"}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_workflow(tmp_path_factory.mktemp("fresh"))


@pytest.mark.parametrize(
    ("target", "rules", "not_these"),
    [
        ("accuracy", SCORES, TIMES - MODELS),
        ("performance", TIMES, {"evaluate", "replay", "cost"}),
        ("report", REPORT, {"archive", "plan"}),
        ("archive", REPORT | {"charts", "archive"}, {"plan"}),
        ("plan", FIGURES | {"cap", "plan"}, {"archive", "charts", "report"}),
    ],
)
def test_a_stage_is_a_target(fresh: Path, target: str, rules: set[str], not_these: set[str]) -> None:
    planned = planned_jobs("--", target, cwd=fresh)
    assert rules <= set(planned) and not not_these & set(planned), planned
    assert {planned.get(rule) for rule in rules & {"evaluate"}} <= {6}
    assert {planned.get(rule) for rule in rules & {"measure", "replay", "metrics"}} <= {3}


def test_a_deployment_is_a_target(fresh: Path) -> None:
    planned = planned_jobs("--", "demo-int4", cwd=fresh)
    assert set(planned) == FIGURES | {"demo-int4"}
    assert planned["quantize"] == planned["measure"] == planned["cost"] == 1 and planned["evaluate"] == 2
