"""The paper's own figures for S-MBU and S-MFU (§4.4, Figures 2 and 3), from the models' shapes.

Within 1% of the printed number, or of what its arithmetic gives where the paper contradicts itself (said per case).
"""

from __future__ import annotations

import numpy as np
import pytest

from moecap import mbu, mfu, s_mbu, s_mfu
from moecap.metrics.utilization import (
    overestimation,
    printed_activated_bytes,
    printed_flops_per_token,
    printed_model_bytes,
    printed_sparse_flops_per_token,
)
from tests.unit.systems import anatomy_of, dbrx, mixtral_8x7b, mixtral_8x22b


def test_shapes_are_those_of_the_models():
    assert mixtral_8x7b().total_params == pytest.approx(46.703e9, rel=1e-4)
    assert mixtral_8x22b().total_params == pytest.approx(140.630e9, rel=1e-4)
    assert dbrx().total_params == pytest.approx(131.597e9, rel=1e-4)


def test_bandwidth_for_mixtral_8x22b_at_100_ms():
    """§4.4, bf16, batch 1. MBU: printed 2.36 TB/s, but 141e9 × 2 B / 0.1 s is 2.82. S-MBU: printed 0.780 TB/s."""
    anatomy = mixtral_8x22b()
    two = np.full(56, 2)
    needed = mbu(printed_model_bytes(anatomy), 0, tpot_s=0.1, peak_bytes_per_s=1e12)
    assert needed == pytest.approx(2.82, rel=0.01)
    assert needed != pytest.approx(2.36, rel=0.1)
    assert s_mbu(printed_activated_bytes(anatomy, two), 0, 0.1, 1e12) == pytest.approx(0.780, rel=0.01)


def test_flops_for_dbrx_at_2000_tokens_per_s():
    """§4.4: MFU "at least 500 TFLOPS" (528 by its arithmetic), S-MFU 140 TFLOPS."""
    anatomy = dbrx()
    assert mfu(2000, printed_flops_per_token(anatomy), 1e12) == pytest.approx(528, rel=0.01)
    assert s_mfu(2000, printed_sparse_flops_per_token(anatomy), 1e12) == pytest.approx(140, rel=0.01)


@pytest.mark.parametrize("used, ratio", [(1, 3.0), (2, 1.5)])
def test_figure_2_bandwidth(used, ratio):
    """(a) all tokens to one of three experts: 3×; (b) two tokens to two experts: 1.5×."""
    anatomy = anatomy_of([{"count": 1, "expert_params": 1000, "experts": 3, "top_k": 1}])
    model, active = printed_model_bytes(anatomy), printed_activated_bytes(anatomy, [used])
    assert overestimation(model, active) == pytest.approx(ratio)


def test_figure_2_flops():
    """(a) top-1 of three experts: 3×; (c) a shared expert and top-1 of two: 1.5×."""
    routed = anatomy_of([{"count": 1, "expert_params": 1000, "experts": 3, "top_k": 1}], hidden=1, vocab=0)
    shared = anatomy_of(
        [{"count": 1, "expert_params": 1000, "experts": 2, "top_k": 1, "shared_params": 1000}], hidden=1, vocab=0
    )
    for anatomy, ratio in ((routed, 3.0), (shared, 1.5)):
        dense = printed_flops_per_token(anatomy) - 2 * anatomy.components["norms"].params
        assert dense / printed_sparse_flops_per_token(anatomy) == pytest.approx(ratio)
    assert overestimation(printed_model_bytes(shared), printed_activated_bytes(shared, [1])) == pytest.approx(1.5)


def test_figure_3_overestimate_at_batch_1():
    """ "over 260%": one Mixtral-8x7B layer, (41.9M + 8 × 176.2M) / (41.9M + 2 × 176.2M) = 3.68, so +268%."""
    layer = mixtral_8x7b(layers=1)
    ratio = overestimation(printed_model_bytes(layer), printed_activated_bytes(layer, [2]))
    assert ratio == pytest.approx(3.68, abs=0.005)
    assert round(100 * (ratio - 1)) == 268
