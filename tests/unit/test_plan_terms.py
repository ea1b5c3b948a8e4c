"""The terms of a step, the prior's sum of them, and the fit that finds the coefficients again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecap.errors import MoecapError
from moecap.hardware.systems import Speeds
from moecap.plan import fitting
from moecap.plan.cases import Case
from moecap.plan.points import Point
from moecap.plan.prior import POOLED, Coefficients
from moecap.plan.target import Workload, stored_format
from moecap.plan.terms import DECODE, PREFILL, Parallel, Terms, native, terms
from tests.unit.systems import deepseek_v3, mixtral_8x7b, qwen3_30b

CHIP = Speeds(80e9, 3.35e12, {"bf16": 989e12, "fp8": 1979e12, "fp4": None, "int8": 1979e12}, 450e9, 64e9)
ONES = Coefficients(np.ones(len(DECODE)), np.ones(len(PREFILL)), 1.0)


def _term(found: Terms, name: str) -> np.ndarray:
    return found.decode[:, DECODE.index(name)]


@given(st.sampled_from([1, 2, 4, 8]), st.integers(1, 512))
@settings(max_examples=30, deadline=None)
def test_no_prediction_with_coefficients_of_one_beats_the_roofline(devices: int, requests: int) -> None:
    found = terms(qwen3_30b(), CHIP, Parallel(tp=devices), [requests], Workload(512, 128))
    assert (ONES.tpot_s(found, Workload(512, 128)) >= found.roofline_s).all()
    assert (found.read_bytes <= found.dense_read_bytes * (1 + 1e-9)).all()


@given(st.sampled_from([1, 2, 4]), st.lists(st.integers(1, 400), min_size=2, max_size=6, unique=True))
@settings(max_examples=30, deadline=None)
def test_more_requests_never_make_a_step_shorter(devices: int, requests: list[int]) -> None:
    asked = sorted(requests)
    for model in (mixtral_8x7b(), deepseek_v3(), qwen3_30b()):
        found = terms(model, replace_memory(CHIP), Parallel(tp=devices), asked, Workload(256, 64))
        assert (np.diff(ONES.tpot_s(found, Workload(256, 64))) >= -1e-12).all()


def replace_memory(chip: Speeds, factor: float = 100.0) -> Speeds:
    """A chip with room for anything."""
    return replace(chip, memory_bytes=chip.memory_bytes * factor)


def test_weights_shared_by_devices_are_read_faster_and_devices_must_agree() -> None:
    chip, workload = replace_memory(CHIP), Workload(512, 128)
    one = terms(mixtral_8x7b(), chip, Parallel(), [8], workload)
    four = terms(mixtral_8x7b(), chip, Parallel(tp=4), [8], workload)
    assert _term(four, "experts")[0] == pytest.approx(_term(one, "experts")[0] / 4)
    assert _term(one, "sync")[0] == _term(one, "links")[0] == 0 and _term(four, "sync")[0] > 0 < _term(four, "links")[0]


def test_expert_parallelism_waits_for_its_busiest_rank() -> None:
    chip, workload = replace_memory(CHIP), Workload(512, 128)
    split = terms(qwen3_30b(), chip, Parallel(tp=4), [4], workload)
    placed = terms(qwen3_30b(), chip, Parallel(tp=4, ep=4), [4], workload)
    assert _term(placed, "experts")[0] > _term(split, "experts")[0]
    assert placed.read_bytes[0] == pytest.approx(split.read_bytes[0], rel=1e-6)


def test_data_parallel_attention_keeps_no_copies_of_a_latent_cache() -> None:
    chip = replace_memory(CHIP)
    tensor = terms(deepseek_v3(), chip, Parallel(tp=8), [64], Workload(4096, 512))
    data = terms(deepseek_v3(), chip, Parallel(dp=8, ep=8), [64], Workload(4096, 512))
    assert data.fits_requests > 7 * tensor.fits_requests


def test_requests_whose_cache_does_not_fit_wait() -> None:
    workload = Workload(8192, 1024)
    found = terms(mixtral_8x7b(), replace_memory(CHIP, 1.5), Parallel(), [1, 10_000], workload)
    assert found.running[0] == 1 and found.running[1] == pytest.approx(found.fits_requests)
    assert found.over[0] == 0 and found.over[1] > 0
    assert ONES.ttft_s(found, workload)[1] > 10 * ONES.ttft_s(found, workload)[0]


def test_a_format_that_the_chip_cannot_multiply_in_is_unpacked() -> None:
    blackwell = replace(CHIP, peak_flops={**CHIP.peak_flops, "fp4": 9e15})
    assert native("fp8", CHIP) and not native("nvfp4", CHIP) and native("nvfp4", blackwell)
    assert not native("int4", blackwell), "weight-only everywhere"
    model = qwen3_30b()
    kinds = tuple(replace(k, expert_bytes=k.expert_bytes * 4.5 / 16) for k in model.kinds)
    model = replace(model, precision="nvfp4", kinds=kinds)
    times = [_term(terms(model, c, Parallel(), [16], Workload()), "experts")[0] for c in (CHIP, blackwell)]
    assert times[0] > times[1]
    assert [stored_format(p) for p in ("int4-g128", "awq-int4", "fp8-block", "w8a8", "bf16")] == [
        "int4",
        "int4",
        "fp8",
        "int8",
        "bf16",
    ]
    with pytest.raises(MoecapError, match="int3"):
        stored_format("int3")


def _cases(truth: dict[str, Coefficients], noise: float = 0.0) -> list[Case]:
    rng = np.random.default_rng(1)
    found = []
    for engine, own in truth.items():
        for model in (mixtral_8x7b(), qwen3_30b(), deepseek_v3()):
            for parallel in (Parallel(), Parallel(tp=2), Parallel(tp=8)):
                for workload in (Workload(256, 256), Workload(4096, 512)):
                    for requests in (1.0, 8.0, 64.0, 256.0):
                        counted = terms(model, replace_memory(CHIP), parallel, [requests], workload)
                        factor = float(np.exp(rng.normal(0, noise))) if noise else 1.0
                        tpot = float(own.tpot_s(counted, workload)[0]) * factor
                        point = Point(
                            source="made",
                            format="made",
                            tpot_s=tpot,
                            ttft_s=float(own.ttft_s(counted, workload)[0]),
                            concurrency=requests,
                        )
                        found.append(Case(point, model.model, "x", engine, "bf16", parallel, workload, counted, model))
    return found


def test_the_fit_predicts_what_known_coefficients_made() -> None:
    guess = np.array([fitting.GUESSES[n][0] for n in fitting.NAMES])
    own = Coefficients(guess[: len(DECODE)] * 1.3, guess[len(DECODE) : -1] * 0.7, 0.5)
    cases = _cases({"a": own}, noise=0.02)
    fitted = fitting.fit(cases)
    errors = [float(fitted.of("a").tpot_s(c.terms, c.workload)[0]) / (c.tpot_s or 1) - 1 for c in cases]
    assert np.mean(np.abs(errors)) < 0.05
    first = [float(fitted.of("a").ttft_s(c.terms, c.workload)[0]) / (c.ttft_s or 1) - 1 for c in cases]
    assert np.mean(np.abs(first)) < 0.1


def test_a_broken_run_does_not_decide_and_an_unknown_engine_has_the_pooled_coefficients() -> None:
    guess = np.array([fitting.GUESSES[n][0] for n in fitting.NAMES])
    own = Coefficients(guess[: len(DECODE)], guess[len(DECODE) : -1], 0.4)
    cases = _cases({"a": own, "b": own})
    spoilt = [replace(c, point=replace(c.point, tpot_s=c.tpot_s * 5)) if i % 25 == 0 else c  # type: ignore[operator]
              for i, c in enumerate(cases)]  # fmt: skip
    fitted = fitting.fit(spoilt, first_token=False)
    errors = [float(fitted.of("a").tpot_s(c.terms, c.workload)[0]) / (c.tpot_s or 1) - 1 for c in cases]
    assert np.median(np.abs(errors)) < 0.05
    assert fitted.of("never measured") is fitted.engines[POOLED]
    assert fitting.fit([]).of(None).overload == pytest.approx(fitting.GUESSES["overload"][0])
