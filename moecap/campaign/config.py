"""The user's config. Its larger parts are in ``cost/terms`` and ``plan_terms``, the table in ``deployments``.

The pydantic models below are the schema; ``config/schemas/config.json`` is generated from them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from moecap.accuracy.arena.settings import Judge
from moecap.campaign.plan_terms import Plan
from moecap.checkpoints.recipe import HeldOut
from moecap.cost.terms import Cost
from moecap.schema import FilePath, Name, Strict, expand_path

#: An `archive` that ends so exists already: charts and report are drawn from it.
ARCHIVE_SUFFIX = ".tar.zst"


class Slo(Strict):
    """What a request must hold to count as served well: goodput counts those that hold all that is given."""

    ttft_s: float | None = Field(default=None, gt=0, description="time to first token, at most")
    tpot_s: float | None = Field(default=None, gt=0, description="time per output token, at most")
    e2e_s: float | None = Field(default=None, gt=0, description="time to the last token, at most")


class Online(Strict):
    """Deployments with `load: online`: requests arrive while others are served, sent by AIPerf."""

    rounds: int = Field(default=8, ge=3, le=10_000, description="requests of one timed run, per request in flight")
    input_tokens: int | None = Field(
        default=None,
        ge=1,
        le=10_000_000,
        description="prompts of exactly this length, of the dataset's text; null: its prompts as they are",
    )
    saturation_gain: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="a sweep stops after a concurrency that adds less than this share to the throughput",
    )
    slo: Slo = Slo()


class Performance(Strict):
    """How a point (dataset × batch size) is timed."""

    repeats: int = Field(
        default=3, ge=3, le=1000, description="timed runs of each point; intervals need at least three"
    )
    warmup: int = Field(default=1, ge=1, le=1000, description="untimed passes before each point")
    requests_per_repeat: int | None = Field(
        default=None, ge=1, le=1_000_000, description="requests of one timed run; null: as many as the batch size"
    )
    output_tokens: int | None = Field(
        default=None, ge=2, le=10_000_000, description="overrides the dataset's own output length"
    )
    online: Online = Online()


class Accuracy(Strict):
    """How accuracy is evaluated."""

    limit: int | None = Field(default=None, ge=1, le=1_000_000_000, description="questions per task; null: all")


class Cap(Strict):
    """The named reference that classes and axes are measured against, so that a new row moves no other row."""

    reference: Name | None = None
    references: dict[Name, Name] = Field(
        default={}, description="a reference of its own for a model: model -> deployment"
    )
    reference_batch_size: int | None = Field(
        default=None, ge=1, le=1_000_000, description="one batch size of the reference for all"
    )
    accuracy_ratio: float = Field(
        default=0.98, gt=0, description="holds accuracy: at least this share of the reference"
    )
    performance_ratio: float = Field(default=1.0, gt=0, description="holds performance: at least this × the reference")
    cost_ratio: float = Field(default=0.9, gt=0, description="holds cost: at most this × the reference")


class Published(Strict):
    """Figures that somebody printed, entering where measured accuracy and throughput would."""

    tables: FilePath = Field(description="folder with table*.csv")
    hardware: Name = Field(description="hardware entry that the figures were measured on")
    hosts: tuple[Name, ...] = Field(
        default=(), description="hardware entries of which the report says what costing their GPUs alone would miss"
    )


class Config(Strict):
    """``config/config.yaml``: what is measured, where results go, and the site's choices."""

    deployments: FilePath | None = Field(default=None, description="the deployment table (CSV)")
    published: Published | None = Field(default=None, description="printed tables instead of, or beside, measurements")
    catalogue: FilePath = "config/catalogue"
    results: FilePath = "results"
    seed: int = Field(default=1, ge=0, le=2**32 - 1)
    performance: Performance = Performance()
    accuracy: Accuracy = Accuracy()
    judge: Judge | None = Field(
        default=None, description="who judges answers to open questions (Arena-Hard); null: they are not judged"
    )
    cost: Cost = Cost()
    cap: Cap = Cap()
    plan: Plan = Plan()
    archive: str = Field(
        default="moecap",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$|\.tar\.zst$",
        description="name of the archive that `snakemake archive` makes; or one that exists, `FILE.tar.zst`: charts "
        "and report are then drawn from it alone, below results/redrawn",
    )
    before: FilePath | None = Field(
        default=None, description="an archive: `snakemake compare --config before=A.tar.zst after=B.tar.zst`"
    )
    after: FilePath | None = Field(default=None, description="the archive that got better or worse")
    trust_remote_code: tuple[Name, ...] = Field(
        default=(), description="models whose own code from the hub may run here; none by default"
    )
    data_files: dict[Name, dict[str, FilePath]] = Field(
        default={}, description="local files for a dataset: split -> path, instead of a download"
    )
    fallback: bool = Field(
        default=False,
        description="a row whose engine has no kernel for its precision on this machine takes the engine's `instead`",
    )
    site: FilePath | None = Field(default="config/site.yaml", description="what the cluster decides; null: nothing")
    measured_bytes: Literal["trained", "all", "none"] = Field(
        default="trained",
        description="bf16 models whose bytes are counted, op by op, while Transformers decodes on the CPU, and shown "
        "beside the predicted ones: those that the workflow trains itself, all, or none",
    )
    replay_check: Literal["trained", "all", "none"] = Field(
        default="trained",
        description="deployments whose replayed routing is held against routers read inside a decode, where the "
        "engine lets them be read (vLLM on a CPU, in one piece): those of models that the workflow trains itself, all, "
        "or none",
    )
    partial: bool = Field(
        default=False,
        description="report over what there is, below results/partial: `snakemake report --config partial=true`",
    )
    quantize_python: FilePath = Field(
        default=".venv-quantize/bin/python", description="interpreter that has llmcompressor"
    )

    heldout: HeldOut | None = Field(
        default=None,
        description="text that is not calibrated on: each quantized variant's perplexity and errors are measured on it",
    )

    @field_validator("results")
    @classmethod
    def _a_folder_of_its_own(cls, value: str) -> str:
        path, here = Path(value).resolve(), Path.cwd().resolve()
        if path == Path(path.anchor):
            raise ValueError("is the root of the file system; results need a folder of their own")
        if path == here or path in here.parents:
            raise ValueError("is the working folder or one above it; results need a folder of their own")
        return os.path.normpath(value)

    @field_validator("archive")
    @classmethod
    def _an_archive_is_a_path(cls, value: str) -> str:
        return expand_path(value) if value.endswith(ARCHIVE_SUFFIX) else value

    @model_validator(mode="after")
    def _something_to_do(self) -> Config:
        if self.deployments is None and self.published is None:
            raise ValueError("`deployments` is missing: it names the deployment table")
        return self
