"""The bandwidth-bound check: bytes over time over the machine's bandwidth, and a page that says what is impossible."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from moecap.engines.base import RequestRecord, RunResult, Step
from moecap.metrics.utilization import complete_bytes
from tests.unit.systems import anatomy_of, moe_kind

spec = importlib.util.spec_from_file_location(
    "validate_bandwidth", Path(__file__).parents[2] / "scripts/validate_bandwidth.py"
)
bandwidth = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bandwidth)

ANATOMY = anatomy_of([moe_kind(64, 2, 4, 2, 16, 8, 2, 32)])


class Alternating:
    """Every token uses the same two experts in both layers."""

    layers, top_k, n_experts = (0, 1), 2, 8

    def experts(self, _: str) -> np.ndarray:
        return np.tile(np.array([[1, 5], [2, 7]]), (5, 1, 1))


def run_of(batch: int, wall_s: float) -> RunResult:
    """Three prompt tokens each, then two decoded: one prefill step, one full decode step, one with a request left."""
    ids, none = list(range(batch)), [0] * batch
    steps = [
        Step(0.0, 9.0, ids, none, [3] * batch, none),
        Step(9.0, wall_s, ids, [3] * batch, [1] * batch, none),
        Step(9.0 + wall_s, 7.0, ids[:1], [4], [1], [0]),
    ]
    records = [RequestRecord([1, 2, 3], [4 + i, 9]) for i in range(batch)]
    return RunResult(records, steps, 16.0 + wall_s, 0.0)


def test_only_full_decode_steps_count_and_utilization_is_bytes_over_time_over_peak() -> None:
    row = bandwidth.row_of([run_of(2, 0.5), run_of(2, 1.5)], 2, Alternating(), ANATOMY, peak=1e6)
    per_step = complete_bytes(
        ANATOMY, tokens=[2], requests=[2], context_tokens=[[2 * 4]], unique_experts=np.array([[2.0, 2.0]])
    )
    expected = sum(value[0] for value in per_step.values())
    assert (row["steps"], row["unique_experts"], row["step_ms"]) == (2, 2.0, 1000.0)
    assert row["s_mbu_complete_mb"] == pytest.approx(expected / 1e6)
    assert row["s_mbu_complete"] == pytest.approx(2 * expected / 2.0 / 1e6)
    assert row["best_step_gb_per_s"] == pytest.approx(expected / 0.5 / 1e9)
    assert row["mbu"] > row["s_mbu"]


@pytest.mark.parametrize(
    ("peak", "verdict"), [(1e3, "above 1: the bytes or the times are wrong"), (1e9, "below 1, as")]
)
def test_the_page_says_what_is_impossible(peak: float, verdict: str) -> None:
    row = bandwidth.row_of([run_of(1, 0.5)], 1, Alternating(), ANATOMY, peak=peak)
    measured = {"read_bandwidth_bytes_per_s": peak, "copy_bandwidth_bytes_per_s": peak}
    found = {"rows": [row], "calibrations": [measured, measured], "weight_bytes": 1e9, "cache_bytes": None}
    page = bandwidth.markdown(found, {"machine": "m", "threads": 2, "versions": {}, "date": "d"})
    assert verdict in page


def test_a_model_that_the_cache_holds_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bandwidth, "anatomy_of", lambda _: SimpleNamespace(weight_bytes=100e6))
    monkeypatch.setattr(bandwidth.machine, "detect", lambda: {"last_level_cache_bytes": 32e6})
    with pytest.raises(bandwidth.MoecapError, match="would not come from memory"):
        bandwidth.validate(tmp_path, {}, 2, 1.0)
