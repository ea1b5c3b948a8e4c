"""What jobs ask of a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from moecap.cluster import site as module
from moecap.cluster.site import (
    RESOURCES,
    STAGES,
    Need,
    Site,
    devices_for,
    earlier_failures,
    estimate,
    failure_class,
    load_site,
    local_rules,
    resources,
    runtime_min,
    shell_prefix,
)
from moecap.errors import MoecapError

ROOT = Path(__file__).resolve().parents[2]
SITE = load_site(ROOT / "config/site.yaml")
GB = 10**9
A100 = {"gpu": "A100-SXM4-80GB", "device_memory_bytes": 80 * GB}
H200 = {"gpu": "H200-SXM-141GB", "device_memory_bytes": 141 * GB}


def test_mixtral_8x22b_in_bf16_gets_the_gpus_and_the_memory_that_hold_it():
    weights = 281_260_000_000
    assert devices_for(weights, 80 * GB) == 8
    found = resources(SITE, Need("measure", devices=8, weight_bytes=weights, points=18, **A100))
    assert (found["gpu"], found["gpu_model"], found["nodes"]) == (8, "a100", 1)
    assert found["mem_mb"] >= weights / 1e6
    assert found["cpus_per_task"] == 64
    # Reading 281 GB at 0.5 GB/s alone takes 9.4 minutes.
    assert found["runtime"] > 9.4 + 18 * 5


def test_deepseek_v3_in_bf16_gets_two_whole_nodes():
    found = resources(SITE, Need("measure", devices=16, weight_bytes=1_342_000_000_000, points=18, **H200))
    assert (found["nodes"], found["gres"], found["tasks"]) == (2, "gpu:h200:8", 2)
    assert "gpu" not in found and "--exclusive" in found["slurm_extra"]
    assert found["mem_mb"] >= 1_342_000 / 2


def test_before_the_size_is_known_it_is_what_the_devices_hold():
    unknown = resources(SITE, Need("evaluate", devices=4, **A100))
    known = resources(SITE, Need("evaluate", devices=4, weight_bytes=4 * 80 * GB, **A100))
    assert unknown == known


def test_gpus_only_for_stages_that_need_one():
    for rule in STAGES:
        found = resources(SITE, Need(rule, devices=2, weight_bytes=GB, points=1, **A100))
        expected = rule in ("measure", "evaluate", "replay", "trace_decode", "calibrate", "quantize")
        assert ("gpu" in found) == expected, rule


def test_tables_and_charts_are_local_and_downloads_where_there_is_no_network_partition():
    assert {"cap", "charts", "report", "archive", "download"} <= set(local_rules(SITE))
    net = Site(partitions={"network": "dtn"})
    assert "download" not in local_rules(net)
    found = resources(net, Need("download", weight_bytes=100 * GB))
    assert found["slurm_partition"] == "dtn" and "gpu" not in found
    assert found["mem_mb"] < 10_000 and found["runtime"] >= 5


def test_cpu_deployment_takes_a_node_for_itself():
    found = resources(SITE, Need("measure", weight_bytes=GB, cores=64, points=4))
    assert found["cpus_per_task"] == 64 and found["slurm_extra"] == "--exclusive" and "gpu" not in found
    assert "slurm_extra" not in resources(SITE, Need("evaluate", weight_bytes=GB, cores=64, points=4))


def test_site_decides_names():
    data = yaml.safe_load((ROOT / "config/site.yaml").read_text())
    data |= {"account": "proj1", "qos": "long", "reservation": "moe", "exclusive": True}
    data["partitions"] = {"gpu": "accel", "cpu": "std", "network": None}
    data["gpus"]["A100-SXM4-80GB"] = {"type": "ampere", "per_node": 4, "constraint": "80gb", "partition": "a100"}
    site = Site.model_validate(data)
    found = resources(site, Need("measure", devices=4, weight_bytes=GB, points=1, **A100))
    assert (
        found
        | {
            "slurm_account": "proj1",
            "slurm_partition": "a100",
            "qos": "long",
            "constraint": "80gb",
            "gpu_model": "ampere",
            "slurm_extra": "--reservation=moe --exclusive",
        }
        == found
    )
    assert resources(site, Need("metrics"))["slurm_partition"] == "std"
    other = resources(site, Need("measure", devices=4, gpu="RTX-4090-24GB", weight_bytes=GB))
    assert other["gpu"] == 4 and "gpu_model" not in other and other["slurm_partition"] == "accel"


def test_nodes_share_devices_evenly():
    site = Site(gpus={"A100-SXM4-80GB": {"type": "a100", "per_node": 4}})
    assert resources(site, Need("measure", devices=8, **A100))["gres"] == "gpu:a100:4"
    with pytest.raises(MoecapError, match="do not divide"):
        resources(site, Need("measure", devices=7, **A100))


def test_offload_to_dram_needs_the_weights_twice():
    weights = 100 * GB
    plain, dram = (
        resources(SITE, Need("measure", devices=1, weight_bytes=weights, offload=o, **A100))["mem_mb"]
        for o in ("none", "dram")
    )
    assert dram - plain == weights / 1e6


def test_more_after_the_failure_that_lacked_it():
    need = Need("measure", devices=1, weight_bytes=GB, points=1, **A100)
    base = resources(SITE, need)
    assert resources(SITE, need, ["memory"]) == base | {"mem_mb": 2 * base["mem_mb"]}
    assert resources(SITE, need, ["time", "node", "time"]) == base | {"runtime": 4 * base["runtime"]}
    assert resources(SITE, need, ["error", "cancelled", "node", "preempted"]) == base


def test_never_more_than_the_site_has():
    site = Site(max_runtime_min=60, node_memory_gb=100)
    need = Need("measure", devices=8, weight_bytes=40 * GB, points=100, **A100)
    with pytest.raises(MoecapError, match="node_memory_gb"):
        resources(site, Need("measure", devices=8, weight_bytes=200 * GB, **A100))
    found = resources(site, Need("measure", devices=4, weight_bytes=40 * GB, points=100, **A100), ["memory"] * 3)
    assert found["mem_mb"] == 100_000 and found["runtime"] == 60
    assert runtime_min(site, need) == 60


@pytest.mark.parametrize(
    ("log", "says"),
    [
        ("slurmstepd: error: *** JOB 4 ON n1 CANCELLED AT 2026-11-23T22:00:00 DUE TO TIME LIMIT ***", "time"),
        ("slurmstepd: error: *** JOB 4 ON n1 CANCELLED AT 2026-11-23T22:00:00 DUE TO NODE FAILURE ***", "node"),
        ("slurmstepd: error: *** STEP 4.0 ON n1 CANCELLED AT 2026-11-23T22:00:00 DUE TO PREEMPTION ***", "preempted"),
        ("slurmstepd: error: *** JOB 4 ON n1 CANCELLED AT 2026-11-23T22:00:00 ***", "cancelled"),
        ("slurmstepd: error: Detected 1 oom-kill event(s) in StepId=4.batch", "memory"),
        ("slurmstepd: error: Job 4 exceeded memory limit (900 > 300), being killed", "memory"),
        ("slurmstepd: error: StepId=4.0 exceeded memory limit\n*** JOB 4 CANCELLED AT 2026", "memory"),
        ("Traceback (most recent call last):", "error"),
        ("", "error"),
    ],
)
def test_failure_class(log, says):
    assert failure_class(log) == says


def test_earlier_failures_are_read_from_slurms_own_logs(tmp_path):
    folder = tmp_path / "rule_measure/a_b"
    folder.mkdir(parents=True)
    for job, text in ((9, "broken"), (10, "exceeded memory limit"), (11, "DUE TO TIME LIMIT")):
        (folder / f"{job}.log").write_text(text)
    (folder / "notes.log").write_text("DUE TO TIME LIMIT")
    assert earlier_failures(tmp_path, "measure", ["a", "b"], 1) == []
    assert earlier_failures(tmp_path, "measure", ["a/b"], 2) == ["time"]
    assert earlier_failures(tmp_path, "measure", ["a", "b"], 3) == ["memory", "time"]
    assert earlier_failures(tmp_path, "other", ["a"], 2) == []


def test_shell_prefix():
    assert shell_prefix(Site()) == ""
    text = shell_prefix(Site(modules=["gcc/13", "cuda/12.8"], node_scratch="/local/$USER"))
    assert text.startswith("module load gcc/13 cuda/12.8; ")
    assert 'export VLLM_CACHE_ROOT="$MOECAP_SCRATCH/vllm_cache_root"; ' in text


def test_estimate():
    needs = [Need("measure", devices=8, weight_bytes=GB, points=6, **A100)] * 2 + [Need("metrics"), Need("download")]
    found = estimate(SITE, needs, {"A100-SXM4-80GB": 2.0}, disk_bytes=3 * GB)
    hours = 2 * 8 * runtime_min(SITE, needs[0]) / 60
    assert found.gpu_hours == pytest.approx(hours) and found.usd == pytest.approx(2 * hours)
    assert found.jobs == {"measure": 2, "metrics": 1, "download": 1}
    assert "rough" in str(found) and "USD" in str(found) and "3 GB" in str(found)
    assert estimate(SITE, needs, {}).usd is None
    assert estimate(SITE, [Need("metrics")]).gpu_hours == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("acount: x", "Did you mean 'account'"),
        ("gpus: {A100: {typ: a100}}", "typ"),
        ("cpus_per_gpu: 0", "cpus_per_gpu"),
        ("gpus: {A100: {type: 'a b'}}", "type"),
        ("modules: cuda", "modules"),
        ("a: [", "not valid YAML"),
    ],
)
def test_wrong_site_file_is_explained(tmp_path, text, says):
    path = tmp_path / "site.yaml"
    path.write_text(text)
    with pytest.raises(MoecapError) as refused:
        load_site(path)
    assert says in str(refused.value) and str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_every_stage_is_a_rule_and_documented_keys_exist():
    rules = {
        line.split()[1].rstrip(":")
        for path in (ROOT / "rules").glob("*.smk")
        for line in path.read_text().splitlines()
        if line.startswith("rule ")
    }
    assert set(STAGES) - {"compare"} <= rules
    # What has no stage would be sent to the cluster with the profile's defaults.
    assert rules - set(STAGES) <= {"accuracy", "performance"}, "targets only"
    documented = yaml.safe_load((ROOT / "config/site.yaml").read_text())
    assert set(documented) == set(Site.model_fields)


@given(
    st.sampled_from(sorted(STAGES)),
    st.sampled_from([None, "A100-SXM4-80GB", "RTX-4090-24GB"]),
    st.sampled_from([1, 2, 4, 8, 16, 32]),
    st.one_of(st.none(), st.integers(0, 2 * 10**12)),
    st.integers(0, 100),
    st.lists(st.sampled_from(["memory", "time", "node", "error"]), max_size=4),
)
def test_requests_are_well_formed(stage, gpu, devices, weight_bytes, points, failures):
    need = Need(stage, gpu, devices, 80 * GB, weight_bytes, points=points)
    found = resources(SITE, need, failures)
    assert set(found) <= set(RESOURCES)
    assert all(isinstance(v, (int, str)) and v != "" for v in found.values())
    if found:
        assert 1 <= found["runtime"] <= SITE.max_runtime_min and found["mem_mb"] >= 1000 and found["nodes"] >= 1
        assert not ("gpu" in found and "gres" in found)
        plain = resources(SITE, need)
        assert found["mem_mb"] >= plain["mem_mb"] and found["runtime"] >= plain["runtime"]
    assert module.weight_bytes(need) >= 0


def test_profile_decides_nothing_that_a_site_decides():
    profile = yaml.safe_load((ROOT / "slurm/config.yaml").read_text())
    assert profile["executor"] == "slurm" and profile["slurm-status-command"] == "squeue"
    text = (ROOT / "slurm/config.yaml").read_text()
    decided = ("slurm_partition", "slurm_account", "slurm-qos", "gpu", "constraint")
    assert not [key for line in text.splitlines() if not line.startswith("#") for key in decided if key in line]
    # Slurm keeps ended jobs for 300 s by default; squeue is trusted when that is three times this.
    assert 3 * profile["slurm-init-seconds-before-status-checks"] <= 300
    # Laid over every other profile: it may not choose where jobs run.
    default = yaml.safe_load((ROOT / "profiles/default/config.yaml").read_text())
    assert not set(default) & {"executor", "cores", "jobs", "default-resources"}
    assert (ROOT / "profiles/slurm/config.yaml").samefile(ROOT / "slurm/config.yaml")
