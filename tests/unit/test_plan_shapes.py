"""Plans of two pools and of offloaded experts: held against the plan without them, and against their own equations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecap import cli
from moecap.errors import MoecapError
from moecap.hardware.catalogue import load
from moecap.plan.anatomies import anatomy_of
from moecap.plan.expected import expected
from moecap.plan.offload import Tier, step_bound_s
from moecap.plan.pools import MOST_DECODE, workers
from moecap.plan.prior import prior_of
from moecap.plan.search import plan
from moecap.plan.target import Candidate, Target, Workload
from moecap.plan.terms import Parallel

HARDWARE = load()
MODEL = Candidate.of(anatomy_of("mixtral-8x7b", "bf16"))
SYSTEM = "H100-SXM5-80GB"


@given(st.floats(1e-6, 50))
def test_prefill_keeps_up_and_nothing_stands_idle_for_long(load: float) -> None:
    decode, prefill = workers(load)
    assert 1 <= decode <= MOST_DECODE and prefill >= 1
    assert prefill >= load * decode - 1e-6
    assert prefill == 1 or (prefill - 1) / decode < load


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([64, 2000, 16000]), st.sampled_from([32, 512, 4000]), st.sampled_from([1, 8, 64]))
def test_a_pool_decodes_no_slower_and_its_prefill_keeps_up(prompt: int, output: int, batch: int) -> None:
    workload = Workload(prompt, output)
    rows = plan([MODEL], HARDWARE, [SYSTEM], [2], [batch], workload, engine="vllm", kinds=("pools",)).to_pylist()
    both, pools = rows
    assert both["layout"] == "tp2" and "decode" in pools["layout"]
    decode, prefill = (int(pools["layout"].split()[i]) for i in (0, 3))
    assert pools["devices"] == 2 * (decode + prefill)
    assert pools["tpot_s"] <= both["tpot_s"]
    speeds = HARDWARE.find(SYSTEM).speeds
    assert speeds is not None
    target = Target.of(SYSTEM, speeds, 2, "bf16")
    own = expected(MODEL, target, speeds, Parallel(tp=2), [batch], workload, prior_of("vllm"), None)
    assert pools["output_tokens_per_s"] / output * own["prefill_s"][0] <= prefill * (1 + 1e-9)
    # The money of all devices over the tokens of the decode workers.
    per_device = both["usd_per_million_tokens"] * both["output_tokens_per_s"] / both["devices"]
    assert pools["usd_per_million_tokens"] * pools["output_tokens_per_s"] == pytest.approx(
        per_device * pools["devices"]
    )
    assert pools["joules_per_token"] is None


def test_more_experts_on_the_devices_are_faster_and_take_more_room() -> None:
    found = []
    for share in (0.0, 0.5, 1.0):
        tier = Tier(100e9, share)
        found.append(plan([MODEL], HARDWARE, [SYSTEM], [1], [1, 16], tier=tier).to_pylist())
        speeds = HARDWARE.find(SYSTEM).speeds
        assert speeds is not None
        bound = step_bound_s(MODEL.anatomy, speeds, Parallel(tp=1), [1, 16], Workload(), share, 100e9)
        np.testing.assert_allclose([r["tpot_s"] for r in found[-1]], bound)
        assert all(r["upper_bound"] and r["basis"] == "bound" and r["s_mbu"] is None for r in found[-1])
    for slower, faster in itertools.pairwise(found):
        for a, b in zip(slower, faster, strict=True):
            assert a["tpot_s"] > b["tpot_s"] and a["needed_bytes"] < b["needed_bytes"]
    assert not found[2][0]["feasible"] and found[0][0]["feasible"]  # 93 GB of weights on 80 GB
    whole = plan([MODEL], HARDWARE, [SYSTEM], [1], [1, 16]).to_pylist()
    assert [r["needed_bytes"] for r in whole] == pytest.approx([r["needed_bytes"] for r in found[2]])


@pytest.mark.parametrize(("rate", "share"), [(0.0, 0.5), (1e9, -0.1), (1e9, 1.1)])
def test_an_impossible_tier_is_refused(rate: float, share: float) -> None:
    with pytest.raises(MoecapError, match="Offload"):
        Tier(rate, share)


def test_offload_takes_both_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--model", "mixtral-8x7b", "--experts-on-gpu", "0.5"]) == 1
    assert "both --experts-on-gpu and --tier-bytes-per-s" in capsys.readouterr().err
