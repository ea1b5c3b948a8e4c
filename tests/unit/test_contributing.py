"""The recipes of CONTRIBUTING.md, followed to the letter: its own YAML goes into the catalogue, and the rest works."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import altair as alt
import pytest
import yaml

from moecap.campaign.campaign import Campaign
from moecap.cap.table import cap_table
from moecap.charts import standard as charts
from moecap.charts.parts import finish
from moecap.engines import base
from moecap.errors import MoecapError
from tests import synthetic
from tests.conftest import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text()


def recipe(title: str) -> str:
    """The section ``## title``."""
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", TEXT, re.S | re.M).group(1)


def yaml_of(title: str) -> str:
    return re.search(r"```yaml\n(.*?)```", recipe(title), re.S).group(1)


@pytest.fixture
def site(zen: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ROOT / "config", tmp_path / "config")
    quantizer = tmp_path / ".venv-quantize/bin/python"
    quantizer.parent.mkdir(parents=True)
    quantizer.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def campaign(site: Path) -> Callable[..., Campaign]:
    """A campaign of one deployment that differs from the demo's in what is given."""

    def plan(config: dict | None = None, **change: str) -> Campaign:
        row = {"deployment": "d", "model": "demo-moe", "precision": "bf16", "engine": "vllm-cpu"}
        row |= {"hardware": "this-machine", "devices": "1", "datasets": "arithmetic", "batch_sizes": "1"} | change
        Path("table.csv").write_text(f"{','.join(row)}\n{','.join(row.values())}\n")
        return Campaign({"deployments": "table.csv", "cost": {"region": "us-average"}, **(config or {})}, "my.yaml")

    return plan


def append(file: str, text: str) -> None:
    with Path(file).open("a") as handle:
        handle.write("\n" + text)


def test_a_model_is_one_entry(campaign: Callable[..., Campaign], site: Path) -> None:
    append("config/catalogue/models.yaml", yaml_of("Add a model"))
    found = campaign(model="my-moe", precision="int4")
    assert found.warnings == [] and found.graph.variants_of("download") == ["my-moe/bf16"]
    assert found.graph.variants_of("quantize") == ["my-moe/int4"]
    assert len(found.params.download("my-moe/bf16")["revision"]) == 40
    assert "source: {path: /checkpoints/my-moe}" in recipe("Add a model")
    (site / "my-moe").mkdir()
    (site / "my-moe/config.json").write_text("{}")
    append("config/catalogue/models.yaml", "local:\n  source: {path: my-moe}\n")
    assert campaign(model="local").params.download("local/bf16") == {"path": "my-moe"}


def test_a_gpu_is_one_entry(campaign: Callable[..., Campaign], site: Path) -> None:
    path = site / "config/catalogue/hardware.yaml"
    catalogue, entry = yaml.safe_load(path.read_text()), yaml.safe_load(yaml_of("Add a GPU"))
    catalogue["gpus"] |= entry["gpus"]
    path.write_text(yaml.safe_dump(catalogue))
    found = campaign(engine="vllm-cuda", hardware="My-GPU-96GB", devices="2", tensor_parallel="2", precision="fp8")
    assert found.params.metrics(found.deployment("d"))["peaks"]["bytes_per_s"] == 4000e9
    for word in ("source", "status"):
        bad = json.loads(json.dumps(catalogue))
        del bad["gpus"]["My-GPU-96GB"][word]
        path.write_text(yaml.safe_dump(bad))
        with pytest.raises(MoecapError, match=word):
            campaign(engine="vllm-cuda", hardware="My-GPU-96GB")


def test_a_dataset_is_one_entry_and_a_task(campaign: Callable[..., Campaign], site: Path) -> None:
    append("config/catalogue/datasets.yaml", yaml_of("Add a dataset"))
    with pytest.raises(MoecapError, match="'my-questions', which is no lm-eval task"):
        campaign(datasets="my-questions")
    task = (site / "config/tasks/arithmetic.yaml").read_text().replace("task: arithmetic", "task: my-questions")
    (site / "config/tasks/my-questions.yaml").write_text(task)
    Path("questions.jsonl").write_text(json.dumps({"question": "1+1=", "answer": "2"}) + "\n")
    data_files = yaml.safe_load(re.search(r"`(data_files: .*?)` in the config", recipe("Add a dataset")).group(1))
    found = campaign(data_files, datasets="my-questions arithmetic")
    row = found.deployment("d")
    assert found.params.performance(row)["data_files"] == {"my-questions": {"test": "questions.jsonl"}}
    assert found.graph.accuracy_settings(row, "my-questions")["data_files"] == {"test": "questions.jsonl"}

    pytest.importorskip("lm_eval")
    from moecap.measure.workload import task_prompts

    prompts = task_prompts("my-questions", data_files={"test": "questions.jsonl"}, task_dir="config/tasks")
    assert len(prompts) == 1 and prompts(0) == "1+1="


def test_an_engine_is_one_file_and_one_entry(
    campaign: Callable[..., Campaign], site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = site / "config/catalogue/engines.yaml"
    engines = yaml.safe_load(path.read_text())
    engines["my-engine"] = engines["vllm-cpu"] | {"kind": "mine"}
    path.write_text(yaml.safe_dump(engines))
    with pytest.raises(MoecapError, match=r"'mine', which is no file moecap/engines/mine_engine\.py"):
        campaign(engine="my-engine")
    (site / "mine_engine.py").write_text(
        "from moecap.engines.base import Engine, RunResult\n"
        "class MyEngine(Engine):\n"
        "    version = '1'\n"
        "    def run(self, requests, window=None): return RunResult([], [], 0.0, 0.0)\n"
        "    def close(self): pass\n"
    )
    home = Path(base.__file__).parent  # beside those that are there already
    for there in [*home.glob("*_engine.py"), *(file.parent for file in home.glob("*/engine.py"))]:
        (site / there.name).symlink_to(there)
    monkeypatch.setattr(base, "__file__", str(site / "base.py"))
    monkeypatch.setattr("moecap.engines.__path__", [str(site), *sys.modules["moecap.engines"].__path__])
    assert campaign(engine="my-engine").graph.engine_file("d") == "moecap/engines/mine_engine.py"
    with base.load(base.EngineSpec("my-engine", "mine", "cpu", "folder")) as engine:
        assert type(engine).__name__ == "MyEngine" and engine.version == "1"


def test_a_chart_is_one_function_and_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mine(table: object) -> dict:
        chart = alt.Chart(alt.NamedData("rows")).mark_point().encode(x="x:Q")
        return finish(chart, "Mine", [], {"rows": [{"x": 1}]})

    entry = ("trade-off", "What my chart says.", lambda table, reference: mine(table))
    monkeypatch.setitem(charts.STANDARD, "mine", entry)
    charts.write_all(cap_table(**synthetic.tables()), tmp_path, formats=["svg"], only=["mine"])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.svg"]
    assert charts.caption_of("mine") == ("trade-off", "What my chart says.")
