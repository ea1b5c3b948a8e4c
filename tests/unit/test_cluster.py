"""What a campaign's jobs ask of a cluster: sizes from the catalogue, groups, what is pending."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from moecap.campaign.campaign import Campaign
from moecap.cluster.requests import Cluster
from moecap.cluster.site import SLURM_LOGS, Site, load_site
from moecap.model.counted import anatomy
from moecap.model.recipes import planned_bytes

ROOT = Path(__file__).resolve().parents[2]
RERUN = yaml.safe_load((ROOT / "config/paper-rerun.yaml").read_text())
SITE = load_site(ROOT / "config/site.yaml")
MODELS = yaml.safe_load((ROOT / "config/catalogue/models.yaml").read_text())


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").symlink_to(ROOT / "config")
    return Cluster(Campaign(RERUN))


@pytest.mark.parametrize("name", sorted(n for n, entry in MODELS.items() if entry.get("config")))
def test_parameters_of_the_catalogue_are_those_that_anatomy_counts(name):
    assert MODELS[name]["total_params"] == anatomy(name).total_params


@pytest.mark.parametrize(("precision", "scheme"), [("bf16", "bf16"), ("int8", "W8A8"), ("int4", "W4A16")])
def test_planned_bytes_are_close_and_not_too_few(precision, scheme):
    found = anatomy("mixtral-8x7b", precision)
    assert found.weight_bytes <= planned_bytes(found.total_params, scheme) <= 1.15 * found.weight_bytes


def test_every_row_of_the_paper_gets_what_its_model_needs(cluster):
    for name, row in cluster.campaign.deployments.items():
        asked = cluster.resources("measure", {"deployment": name})
        weights = cluster.weight_bytes(row.model, row.precision)
        assert asked["gpu"] == row.devices and asked["gpu_model"] == "a100" and asked["nodes"] == 1
        assert weights < row.devices * 80e9 or row.offload == "dram"
        assert asked["mem_mb"] * 1e6 > weights
        assert 60 * asked["runtime"] > weights / (SITE.read_gb_per_s * 1e9)


def test_a_stored_checkpoint_says_its_own_size(cluster):
    manifest = Path("results/paper-rerun/models/dbrx/bf16/manifest.json")
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"size_bytes": 300_000_000_000}))
    assert cluster.weight_bytes("dbrx", "bf16") == 300_000_000_000
    assert cluster.resources("measure", {"deployment": "t3-dbrx-bf16"})["mem_mb"] > 300_000


def test_jobs_of_a_variant_are_sized_by_what_they_read(cluster):
    need = cluster.need("quantize", {"variant": "mixtral-8x7b/int4-gptq"})
    assert need.weight_bytes == planned_bytes(MODELS["mixtral-8x7b"]["total_params"], "bf16") and need.gpu is None
    assert cluster.need("download", {"variant": "dbrx/bf16"}).weight_bytes > 250e9


def test_one_copy_of_the_model_is_scored_and_replayed(cluster):
    wildcards = {"model": "mixtral-8x7b", "precision": "bf16"}
    assert cluster.resources("replay", wildcards)["gpu"] == 4
    (file, wildcards) = next(j for j in cluster.campaign.graph.accuracy_jobs() if "8x22b" in j[0])
    assert "8x22b" in file and cluster.resources("evaluate", wildcards)["gpu"] == 4


def test_a_retry_gets_more_of_what_the_attempt_before_lacked(cluster):
    wildcards = {"deployment": "t2-pa"}
    log = Path(SLURM_LOGS, "rule_measure/t2-pa/17.log")
    log.parent.mkdir(parents=True)
    log.write_text("slurmstepd: error: Detected 1 oom-kill event(s) in StepId=17.batch")
    first, second = (cluster.resources("measure", wildcards, attempt) for attempt in (1, 2))
    assert second == first | {"mem_mb": 2 * first["mem_mb"]}
    grouped = Path(SLURM_LOGS, "group_tables-t2-pa_cost_metrics/18.log")
    grouped.parent.mkdir(parents=True)
    grouped.write_text("CANCELLED AT 2026-01-01 DUE TO TIME LIMIT")
    first, second = (cluster.resources("metrics", wildcards, attempt) for attempt in (1, 2))
    assert second == first | {"runtime": 2 * first["runtime"]}


def test_logs_are_looked_for_where_the_profile_puts_them():
    profile = yaml.safe_load((ROOT / "slurm/config.yaml").read_text())
    assert profile["slurm-logdir"] == SLURM_LOGS


def test_estimate_counts_what_is_not_there(cluster):
    before = cluster.estimate()
    rows = cluster.campaign.deployments
    variants = {(row.model, row.precision) for row in rows.values()}
    assert before.jobs == {
        "download": 4,
        "quantize": len([v for v in variants if v[1] != "bf16"]),
        "calibrate": 1,
        "evaluate": len(cluster.campaign.graph.all_accuracy_files()),
        "replay": len(variants),
        **dict.fromkeys(("measure", "metrics", "cost"), len(rows)),
    }
    assert before.gpu_hours > 0 and before.usd > 0 and 1.0e12 < before.disk_bytes < 1.5e12
    for rule, wildcards in list(cluster.pending()):
        if rule == "cost":
            path = Path(f"results/paper-rerun/cost/{wildcards['deployment']}.parquet")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    assert "cost" not in cluster.estimate().jobs


def test_engines_run_in_the_sites_container_or_that_of_their_build(cluster):
    engine = cluster.campaign.engine("vllm-cuda")
    assert cluster.container == f"docker://{engine.container}"
    for given, image in (("/images/vllm.sif", "/images/vllm.sif"), ("my/vllm:1", "docker://my/vllm:1")):
        assert Cluster(cluster.campaign, Site(container=given)).container == image


def test_a_config_without_a_site_file(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert Cluster(Campaign({**RERUN, "site": None})).site == Site()
