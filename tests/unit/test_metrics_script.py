"""``scripts/metrics.py`` on real files: three outputs, provenance, and an error that leaves nothing behind."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from moecap.io import read_metadata, read_parquet, write_json, write_parquet
from moecap.metrics.steps import STEP_SCHEMA
from moecap.metrics.table import METRICS_SCHEMA
from moecap.routing.store import RoutingWriter

from .systems import make_run, small

SCRIPT = Path(__file__).parents[2] / "scripts" / "metrics.py"


class Named(dict):
    """As Snakemake's inputs and params: by key and by attribute."""

    __getattr__ = dict.__getitem__


@pytest.fixture
def job(tmp_path):
    anatomy = small(16, 2)
    run = make_run(anatomy, np.random.default_rng(0), batch_sizes=(1, 3), repeats=3)
    names = ("points", "requests", "schedule", "routing", "anatomy", "machine")
    inputs = Named({n: str(tmp_path / f"{n}.{'json' if n in names[4:] else 'parquet'}") for n in names})
    for name in names[:3]:
        write_parquet(getattr(run, name), inputs[name])
    with RoutingWriter(inputs.routing, layers=anatomy.moe_layers, top_k=2, n_experts=16) as writer:
        for name, ids in run.routing.ids.items():
            writer.add(name, ids)
    write_json(anatomy.to_json(), inputs.anatomy)
    machine = {"hardware": "this-machine", "read_bandwidth_bytes_per_s": 1e10, "peak_flops": {"bf16": 1e12}}
    write_json(machine, inputs.machine)
    outputs = Named({n: str(tmp_path / "out" / f"{n}.parquet") for n in ("steps", "metrics", "routing_analysis")})
    params = Named(metrics={"deployment": "toy", "compute_dtype": "bf16", "devices": 1, "seed": 3})
    return SimpleNamespace(input=inputs, output=outputs, params=params, log=[], rule="metrics", run=run)


def execute(job):
    runpy.run_path(str(SCRIPT), init_globals={"snakemake": job})


def test_outputs(job):
    execute(job)
    metrics, steps = read_parquet(job.output.metrics), read_parquet(job.output.steps)
    assert metrics.schema.names == METRICS_SCHEMA.names and metrics["batch_size"].to_pylist() == [1, 3]
    assert steps.schema.names == STEP_SCHEMA.names and steps.num_rows == job.run.schedule.num_rows
    row = metrics.to_pylist()[0]
    assert row["deployment"] == "toy" and row["peak_source"] == "measured"
    assert 0 < row["decode_s_mbu"] <= row["decode_mbu"]
    assert set(read_parquet(job.output.routing_analysis)["table"].to_pylist()) == {"expert", "layer", "step"}
    assert read_metadata(job.output.metrics)["params"]["seed"] == 3


def test_catalogue_peaks_win(job):
    job.params.metrics.update(devices=2, peaks={"bytes_per_s": 2e12, "flops": {"bf16": 3e14}})
    execute(job)
    row = read_parquet(job.output.metrics).to_pylist()[0]
    assert (row["peak_source"], row["peak_bytes_per_s"], row["peak_flops"]) == ("catalogue", 4e12, 6e14)


def test_offloaded_weights_have_a_figure_per_memory_tier(job):
    offload = {"tier": "dram", "device": "hbm", "arguments": {"cpu_offload_gb": 1e-5}}  # 10,737 bytes
    tiers = {"hbm": 1e10, "pcie": 1e3, "dram": None}
    job.params.metrics.update(offload=offload, tiers=tiers)
    execute(job)
    row = read_parquet(job.output.metrics).to_pylist()[0]
    found = {t["tier"]: t for t in row["decode_tiers"]}
    assert set(found) == {"hbm", "dram", "pcie"} and found["dram"]["bytes"] == found["pcie"]["bytes"] > 0
    assert found["hbm"]["bytes"] + found["dram"]["bytes"] == pytest.approx(row["decode_s_mbu_complete_bytes"])
    assert row["decode_dram_utilization"] is None  # its bandwidth is not known
    assert row["decode_pcie_utilization"] == pytest.approx(found["pcie"]["bytes"] / row["decode_step_s"] / 1e3)
    assert "decode_pcie_utilization" in row["utilizations_above_one"] and row["utilization_above_one"]


@pytest.mark.parametrize("name", ["points", "requests", "schedule", "routing"])
def test_truncated_input_leaves_nothing(job, name, capsys):
    path = Path(job.input[name])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SystemExit) as stop:
        execute(job)
    assert stop.value.code == 1
    assert f"{name}.parquet is not a complete Parquet file" in capsys.readouterr().err
    assert len(path.read_bytes()) == len(whole) // 2  # kept for whoever wants to look
    folder = Path(job.output.metrics).parent
    assert not folder.exists() or not list(folder.iterdir())


def test_routing_of_another_model(job, capsys):
    write_json(small(16, 4).to_json(), job.input.anatomy)
    with pytest.raises(SystemExit):
        execute(job)
    assert "another model" in capsys.readouterr().err
