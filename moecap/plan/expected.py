"""What an engine is expected to reach on a deployment: the prior's times, with intervals, in place of the
roofline's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moecap.errors import MoecapError
from moecap.hardware.systems import Speeds
from moecap.plan.energy import device_power_w, power_interval
from moecap.plan.pooling import Own, posterior
from moecap.plan.predict import predict
from moecap.plan.prior import Prior
from moecap.plan.target import Candidate, Target, Workload
from moecap.plan.terms import Parallel, terms

Figures = dict[str, np.ndarray]


@dataclass(frozen=True)
class Drafts:
    """Speculative decoding: ``tokens`` drafted per step, each accepted with probability ``acceptance`` if all before
    were.

    The drafts themselves cost ``cost`` of a step.
    """

    tokens: int = 0
    acceptance: float = 0.0
    cost: float = 0.0

    def __post_init__(self) -> None:
        if self.tokens < 0 or not 0 <= self.acceptance <= 1 or self.cost < 0:
            raise MoecapError(
                f"Speculation of {self.tokens} tokens, accepted at {self.acceptance:g}, at a cost of {self.cost:g} "
                "steps: a number from 0, a probability and a share from 0 are needed."
            )

    @property
    def per_step(self) -> float:
        """Tokens that a step makes on average: ``1 + a + a² + …``."""
        if self.acceptance == 1:
            return 1.0 + self.tokens
        return (1 - self.acceptance ** (self.tokens + 1)) / (1 - self.acceptance)


NO_DRAFTS = Drafts()


def expected(
    candidate: Candidate,
    target: Target,
    speeds: Speeds,
    parallel: Parallel,
    batch_sizes: Sequence[int],
    workload: Workload,
    prior: Prior,
    tdp_w: float | None,
    profile: Sequence[np.ndarray] | None = None,
    own: Own | None = None,
    drafts: Drafts = NO_DRAFTS,
    usable_memory: float = 0.9,
) -> Figures:
    """As :func:`moecap.plan.predict.predict`, with ``tpot_s_low``, ``tpot_s_high`` (90%), ``devices_power_w``;
    ``tpot_alone_s`` without others' prompts in between, ``prefill_s`` of one request."""
    anatomy = candidate.anatomy
    bound = predict(anatomy, target, batch_sizes, workload, profile=profile, usable_memory=usable_memory)
    found = terms(
        anatomy, speeds, parallel, batch_sizes, workload, profile, usable_memory=usable_memory, drafted=drafts.tokens
    )
    factor, low, high = posterior(prior, own, anatomy.model, target.hardware)
    gain = (1 + drafts.cost) / drafts.per_step
    raw = prior.coefficients.tpot_s(found, workload) * gain
    dense = raw + (found.dense_read_bytes - found.read_bytes) / parallel.devices / speeds.memory_bytes_per_s
    tpot, ttft = raw * factor, prior.coefficients.ttft_s(found, workload) * factor
    slower = tpot / bound["tpot_s"]
    size = float(parallel.devices)
    held = bound["batch_size"] / parallel.dp * found.request_bytes / parallel.pp
    whole = ttft + (workload.output_tokens - 1) * tpot
    fits = found.fits_requests >= bound["batch_size"]
    step = prior.coefficients.step_s(found) * factor
    power = np.full(len(tpot), np.nan)
    if tdp_w is not None:
        power = device_power_w(found, step, parallel.devices, tdp_w) * size
    ends = power_interval()
    return {
        **bound,
        "tpot_s": tpot,
        "tpot_s_low": raw * low,
        "tpot_s_high": raw * high,
        "tpot_dense_s": dense * factor,
        "ttft_s": ttft,
        "output_tokens_per_s": bound["batch_size"] * workload.output_tokens / whole,
        **{name: bound[name] / slower for name in ("s_mbu", "s_mbu_complete", "mbu", "s_mfu")},
        "needed_bytes": size * (found.weight_bytes + held),
        "fits": fits,
        "largest_batch": np.full(len(tpot), float(max(np.floor(found.fits_requests), 0.0))),
        "tpot_alone_s": prior.coefficients.tpot_s(found, workload, mixed=False) * gain * factor,
        "prefill_s": np.full(len(tpot), prior.coefficients.prefill_s(found) * factor),
        "devices_power_w": power,
        "devices_power_w_low": power * ends[0],
        "devices_power_w_high": power * ends[1],
    }
