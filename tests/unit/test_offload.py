"""Which share of a model lies in the host's memory, and what each memory tier is then said to move."""

from __future__ import annotations

import shutil

import pytest
import yaml

from moecap.campaign.campaign import Campaign
from moecap.errors import MoecapError
from moecap.hardware.catalogue import load
from moecap.metrics.utilization import split_by_tier
from moecap.model.offload import placement_of, read_arguments
from moecap.model.parallel import per_device
from tests.conftest import ROOT

from .systems import deepseek_v3, mixtral_8x7b

GIB = 2**30


def away(placement, sizes):
    return sum(sizes[c] * shares["dram"] for c, shares in placement.items())


def test_a_budget_is_used_up_to_the_byte_and_no_further():
    model = mixtral_8x7b()
    sizes = {name: c.bytes for name, c in model.components.items()}
    placement = placement_of(model, {"cpu_offload_gb": 20})
    assert away(placement, sizes) == pytest.approx(20 * GIB)
    assert not {"embedding", "lm_head"} & set(placement)
    # 20 GiB are 7.4 of 32 layers; the eighth's attention comes before its experts.
    layer = model.kinds[0].weight_bytes
    whole, rest = divmod(20 * GIB, layer)
    assert placement["attention"]["dram"] == pytest.approx((whole + 1) / 32)
    part = (rest - model.kinds[0].attention_bytes - model.kinds[0].router_bytes) / (8 * model.kinds[0].expert_bytes)
    assert placement["routed_experts"]["dram"] == pytest.approx((whole + part) / 32)
    assert all(sum(shares.values()) == pytest.approx(1) for shares in placement.values())


def test_a_budget_larger_than_the_layers_takes_them_all():
    placement = placement_of(mixtral_8x7b(), {"cpu_offload_gb": 1000})
    assert {shares["dram"] for shares in placement.values()} == {1.0}


@pytest.mark.parametrize("degrees", [{"tensor_parallel": 4}, {"pipeline_parallel": 4}])
def test_the_budget_is_per_device(degrees):
    model = mixtral_8x7b()
    view = per_device(model, tp=degrees.get("tensor_parallel", 1), pp=degrees.get("pipeline_parallel", 1))
    placement = placement_of(model, {"cpu_offload_gb": 5}, **degrees)
    sizes = {name: sum(stage.components[name] for stage in view.stages) for name in view.components}
    assert away(placement, sizes) == pytest.approx(5 * GIB * degrees.get("pipeline_parallel", 1), rel=1e-6)


def test_only_the_experts():
    placement = placement_of(mixtral_8x7b(), {"cpu_offload_gb": 10, "cpu_offload_params": ["experts"]})
    assert set(placement) == {"routed_experts"}
    assert placement["routed_experts"]["dram"] * 32 * 8 * 176_160_768 * 2 == pytest.approx(10 * GIB)


def test_the_last_layers_of_each_group():
    """Layers 3, 7, … of DeepSeek-V3's 61: 15 of them, all with experts; the three dense layers stay."""
    placement = placement_of(deepseek_v3(), {"offload_group_size": 4, "offload_num_in_group": 1}, "dram")
    assert placement["routed_experts"]["dram"] == pytest.approx(15 / 58)
    assert "dense_mlp" not in placement
    assert placement["attention"]["dram"] == pytest.approx(15 / 61)


def test_what_is_offloaded_crosses_pcie_and_the_hosts_memory():
    model = mixtral_8x7b()
    placement = placement_of(model, {"cpu_offload_gb": 1000})
    read = {name: float(c.bytes) for name, c in model.components.items()}
    tiers = split_by_tier(read, placement)
    layers = sum(size for name, size in read.items() if name not in ("embedding", "lm_head"))
    outside = model.hidden_size * 2  # the last norm is offloaded with the others: the share is of bytes
    assert tiers["dram"] == tiers["pcie"] == pytest.approx(layers, abs=outside)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "how many"),
        ({"cpu_offload_params": ["experts"]}, "how many"),
        ({"cpu_offload_gb": -1}, "how many"),
        ({"cpu_offload_gb": 1, "cpu_offload_params": ["expert"]}, "Did you mean 'experts'"),
    ],
)
def test_arguments_that_do_not_say_it(arguments, message):
    with pytest.raises(MoecapError, match=message):
        read_arguments(arguments)


def test_bandwidth_of_the_tiers_comes_from_the_catalogue():
    catalogue = load("config/catalogue")
    tiers = catalogue.find("paper-offload").tiers(1)
    assert tiers["hbm"] == catalogue.gpus["RTX-6000-Ada-48GB"].memory_bytes_per_s
    assert tiers["dram"] == catalogue.cpus["AMD-EPYC-7773X"].memory_bytes_per_s
    bare = catalogue.find("H100-SXM5-80GB").tiers(2)
    assert (bare["hbm"], bare["pcie"]) == (2 * 3.35e12, 2 * 64e9)
    assert bare["dram"] is None  # the processors of its host are not entered: null, not a guess


TABLE = """deployment,model,precision,engine,hardware,devices,tensor_parallel,offload,datasets,batch_sizes
d,mixtral-8x7b,bf16,vllm-cuda,H100-SXM5-80GB,2,2,dram,gsm8k,1
"""


def test_a_deployment_says_how_much_before_anything_runs(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "config", tmp_path / "config")
    (tmp_path / "table.csv").write_text(TABLE)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MoecapError, match=r"line 2.*`offload` is 'dram'.*cpu_offload_gb"):
        Campaign({"deployments": "table.csv", "cost": {"usd_per_kwh": 0.1}})
    engines = tmp_path / "config/catalogue/engines.yaml"
    entries = yaml.safe_load(engines.read_text())
    entries["vllm-cuda"]["options"]["engine_args"]["cpu_offload_gb"] = 16
    engines.write_text(yaml.safe_dump(entries))
    campaign = Campaign({"deployments": "table.csv", "cost": {"usd_per_kwh": 0.1}})
    params = campaign.params.metrics(campaign.deployment("d"))
    assert params["offload"] == {"tier": "dram", "device": "hbm", "arguments": {"cpu_offload_gb": 16}}
    assert params["tiers"]["pcie"] == 2 * 64e9
