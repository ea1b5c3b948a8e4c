"""Families that transformers ships, built small and run: what was counted is what the running model keeps and does."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

SCRIPT = Path(__file__).parents[2] / "scripts" / "anatomy_sweep.py"
spec = importlib.util.spec_from_file_location("anatomy_sweep", SCRIPT)
sweep = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sweep)

#: One of each kind of memory and of experts: modules in a list, one parameter, rows of a matrix, an encoder.
FEW = {"dbrx": "dbrx", "deepseek_v32": "deepseek_v32", "gpt_oss": "gpt_oss", "jamba": "jamba", "lfm2_moe": "lfm2_moe",
       "minimax": "minimax", "qwen3_next": "qwen3_next", "switch_transformers": "switch_transformers",
       "kimi_linear": "kimi_linear", "gemma4": "gemma4", "deepseek_v4": "deepseek_v4"}  # fmt: skip


@pytest.mark.parametrize("family", FEW)
def test_counted_and_run(family):
    row = sweep.try_family(family, FEW[family])
    assert row["result"] == "counted, run", row["reason"]
    assert row["active"] < row["params"]


@pytest.mark.parametrize(
    ("family", "reason"),
    [("jetmoe", "more than one set"), ("zaya", "no router scores exactly"),
     ("glm5_next", "indexer"), ("doge", "no layer has")],
)  # fmt: skip
def test_refused_with_a_reason(family, reason):
    row = sweep.try_family(family, family)
    assert row["result"] == "refused" and reason in row["reason"]


@pytest.mark.slow
def test_no_family_is_wrong_and_the_page_lists_each():
    page = (SCRIPT.parents[1] / "docs" / "anatomy-sweep.md").read_text()
    for family, model_type in sweep.families().items():
        row = sweep.try_family(family, model_type)
        assert row["result"] != "wrong", f"{family}: {row['reason']}"
        assert f"| {family} | {row['result']} |" in page
