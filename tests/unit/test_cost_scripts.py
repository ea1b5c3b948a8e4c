"""``scripts/{paper,cost,plan}.py`` on real files, one after the other."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moecap.cap import paper
from moecap.cost.table import COST_SCHEMA
from moecap.hardware import catalogue as hardware
from moecap.io import read_metadata, read_parquet, write_json, write_parquet
from moecap.plan.schema import PLAN_SCHEMA

from .systems import mixtral_8x7b

ROOT = Path(__file__).resolve().parents[2]


class Named(dict):  # type: ignore[type-arg]
    """As Snakemake's inputs and params: by key and by attribute."""

    __getattr__ = dict.__getitem__


def execute(name: str, inputs: dict[str, Any], outputs: dict[str, Any], params: dict[str, Any]) -> None:
    job = SimpleNamespace(input=Named(inputs), output=Named(outputs), params=Named(params), log=[], rule=name)
    runpy.run_path(str(ROOT / "scripts" / f"{name}.py"), init_globals={"snakemake": job})


def test_the_papers_tables_go_through_the_scripts(tmp_path: Path) -> None:
    tables = [str(ROOT / "config" / "paper" / f"table{n}.csv") for n in (2, 3, 4)]
    outputs = {"metrics": str(tmp_path / "metrics.parquet"), "accuracy": str(tmp_path / "accuracy.parquet")}
    execute("paper", {"tables": tables}, outputs, {})
    assert read_parquet(outputs["accuracy"]).num_rows == 33

    catalogue = hardware.load(ROOT / "config" / "catalogue")
    rows = paper.deployments(paper.read_tables(ROOT / "config" / "paper"))
    params = {
        "deployments": rows,
        "hardware": catalogue.slice([paper.HARDWARE], ["us-average"]),
        "settings": {"years": 3.0, "region": "us-average", "usd_per_kwh": None, "pue": 1.0, "utilisation": 1.0},
    }
    cost = str(tmp_path / "cost.parquet")
    execute("cost", {"metrics": outputs["metrics"]}, {"cost": cost}, {"cost": params})
    found = read_parquet(cost)
    assert found.schema.names == COST_SCHEMA.names and found.num_rows == 33
    assert {round(v / 1e3, 2) for v in found.column("hardware_usd").to_pylist()} == {29.91, 50.64, 92.10, 175.03}
    assert len(read_metadata(cost)["deployments"]) == len(rows)


def test_an_error_is_explained_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = str(tmp_path / "metrics.parquet")
    write_parquet(paper.metrics_table([]), metrics)
    params = {
        "deployment": {"deployment": "d", "hardware": "paper-a100-80gb", "devices": 1},
        "hardware": hardware.load(ROOT / "config" / "catalogue").slice(["paper-a100-80gb"]),
        "settings": {"years": -1, "usd_per_kwh": 0.1},
    }
    with pytest.raises(SystemExit):
        execute("cost", {"metrics": metrics}, {"cost": str(tmp_path / "cost.parquet")}, {"cost": params})
    assert "`years`: Input should be greater than 0 (got -1)" in capsys.readouterr().err
    assert not (tmp_path / "cost.parquet").exists()


def test_plan_of_a_campaign(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = mixtral_8x7b(layers=2)
    write_json(model.to_json(), tmp_path / "anatomy.json")
    machine = {
        "cores": 2,
        "memory_bytes": 200e9,
        "read_bandwidth_bytes_per_s": 20e9,
        "peak_flops": {"bf16": 1e12},
    }
    (tmp_path / "machine").mkdir()
    write_json(machine, tmp_path / "machine" / "this-machine.json")
    import pyarrow as pa

    cap = [{"model": model.model, "precision": "bf16", "accuracy": a} for a in (0.9, 0.7)]
    write_parquet(pa.Table.from_pylist(cap), tmp_path / "cap.parquet")
    metrics = [
        {
            "deployment": name,
            "dataset": "x",
            "batch_size": batch,
            "status": "measured",
            "requests": 2,
            "prompt_tokens": 64,
            "generated_tokens": 32,
            "tpot_s": 0.3 + 0.02 * batch,
            "ttft_s": 0.5 + 0.1 * batch,
        }
        for name in ("a", "b")
        for batch in (1, 4, 16)
    ]
    write_parquet(pa.Table.from_pylist(metrics), tmp_path / "metrics.parquet")
    rows = [
        {"deployment": n, "model": model.model, "precision": "bf16", "hardware": "this-machine", "devices": 1}
        for n in ("a", "b")
    ]
    inputs = {
        "anatomy": [str(tmp_path / "anatomy.json")],
        "cap": str(tmp_path / "cap.parquet"),
        "metrics": [str(tmp_path / "metrics.parquet")],
        "machines": [str(tmp_path / "machine" / "this-machine.json")],
        "hardware": [str(p) for p in hardware.hardware_files(ROOT / "config" / "catalogue")],
    }
    output = str(tmp_path / "plan.parquet")
    params = {
        "deployments": rows,
        "reference": "a",
        "settings": {"region": "us-average"},
        "devices": [1, 2],
        "batch_sizes": [1, 16],
        "workload": {"prompt_tokens": 512, "output_tokens": 128},
        "limits": {"tpot_s": 1.0, "accuracy": 0.65},
    }
    answers = tmp_path / "plan.txt"
    execute("plan", inputs, {"plan": output, "answers": str(answers)}, {"plan": params})
    assert "cheapest to buy" in answers.read_text() and "Calibrated on a alone" in answers.read_text()
    assert answers.read_text().strip() in capsys.readouterr().err  # whoever asked sees it
    table = read_parquet(output)
    assert table.schema.names == PLAN_SCHEMA.names
    own = [r for r in table.to_pylist() if r["hardware"] == "this-machine"]
    assert own and not any(r["upper_bound"] for r in own)
    assert {r["accuracy"] for r in own} == {0.7}  # the harder dataset's
    facts = read_metadata(output)
    assert facts["answers"]["meeting"] > 0 and len(facts["cross_check"]) == 6
    assert max(abs(r["error"]) for r in facts["cross_check"]) < 0.2
    check = {"deployments": rows, "speeds": {"this-machine": None}, "compute_dtypes": {}, "reference": "a"}
    path = str(tmp_path / "cross_check.parquet")
    execute("cross_check", {**inputs, "routing_analysis": []}, {"cross_check": path}, {"cross_check": check})
    assert read_parquet(path).to_pylist() == facts["cross_check"]
    assert read_metadata(path)["note"] in answers.read_text()
