"""The config's part on planning."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from moecap.schema import Name, Strict


class PlanLimits(Strict):
    """What a planned deployment has to hold; null: no limit."""

    tpot_s: float | None = Field(default=None, gt=0, description="time per output token, at most")
    ttft_s: float | None = Field(default=None, gt=0, description="time to first token, at most")
    accuracy: float | None = Field(default=None, ge=0, le=1, description="accuracy on every dataset, at least")


class PlanWorkload(Strict):
    """What a planned request is."""

    prompt_tokens: int = Field(default=512, ge=1, le=10_000_000)
    output_tokens: int = Field(default=128, ge=2, le=10_000_000)


class Plan(Strict):
    """What `snakemake plan` looks through: the campaign's models on hardware that need not be owned."""

    limits: PlanLimits = PlanLimits()
    systems: tuple[Name, ...] | None = Field(
        default=None, description="hardware entries; null: the campaign's own and every GPU with a price"
    )
    devices: tuple[Annotated[int, Field(ge=1, le=65536)], ...] = Field(default=(1, 2, 4, 8), min_length=1)
    batch_sizes: tuple[Annotated[int, Field(ge=1, le=1_000_000)], ...] = Field(
        default=(1, 4, 16, 64, 256), min_length=1
    )
    workload: PlanWorkload = PlanWorkload()
    calibrate_on: Name | None = Field(
        default=None, description="deployment whose measurements calibrate; null: `cap.reference`, else the first"
    )
