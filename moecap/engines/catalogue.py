"""Entries of ``engines.yaml``: one build or setting of an engine each, and what it can do. They are the schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from moecap.engines.server.settings import RemoteOptions, ServerOptions
from moecap.schema import Strict

Parallelism = Literal["tensor_parallel", "pipeline_parallel", "expert_parallel", "data_parallel"]
#: Kinds whose `options` are data alone; those of the others are read by the engine's own file.
OPTIONS: dict[str, type[BaseModel]] = {"server": ServerOptions, "remote": RemoteOptions}


class Way(Strict):
    """One way to run experts of a precision: what it asks of the machine."""

    name: str = "kernel"
    isa: str | list[str] = Field(default=[])
    vendor: str | list[str] = Field(default=[], description="of the CPU, as in /proc/cpuinfo")
    flags: str | list[str] = Field(default=[], description="of the CPU, as in /proc/cpuinfo")
    gpu_vendor: str | list[str] = Field(default=[])
    dtypes: str | list[str] = Field(default=[], description="units that the GPU must have")
    packages: str | list[str] = Field(default=[])


class Mismatch(Strict):
    """A model that the engine computes as another one, without a word."""

    config: dict[str, Any] = Field(min_length=1, description="keys of config.json and the values that it has then")
    reason: str
    source: str


class Capabilities(Strict):
    """What an engine can do where."""

    schedule: Literal["exact", "estimated"]
    weights: Literal["stored", "dequantized"]
    parallelism: list[Parallelism] = Field(default=[])
    offload: list[Literal["dram", "ssd"]] = Field(default=[])
    precisions: dict[str, list[Way]] = Field(description="scheme of the experts -> ways to run it, one is enough")
    tolerance_nats: float | None = Field(
        default=None,
        gt=0,
        description="how far below the best a greedy token may lie by rounding, where the model is compared with "
        "Transformers before the figures count; null: it is not compared",
    )
    wrong: list[Mismatch] = Field(default=[], description="models that it is known to compute as another")


class EngineEntry(Strict):
    """One build or setting of an engine, and what it can do."""

    kind: str
    device: Literal["cpu", "cuda", "rocm", "remote"]
    environment: str
    distribution: str
    container: str | None = None
    options: dict[str, Any] = Field(default={})
    lm_eval: dict[str, Any] = Field(default={})
    timeouts: dict[Literal["load_s", "stall_s"], Annotated[float, Field(gt=0, le=10_000_000)]] = Field(default={})
    instead: str | None = None
    source: str | None = Field(default=None, description="documentation that a command was taken from")
    tried: bool = Field(default=True, description="false: a template, which was never run with the engine itself")
    capabilities: Capabilities

    @model_validator(mode="after")
    def _options(self) -> EngineEntry:
        if self.kind in OPTIONS:
            OPTIONS[self.kind].model_validate(self.options)
        return self

    def for_performance(self) -> dict[str, Any]:
        """What a timed run depends on: not the container's name, nor how accuracy is evaluated."""
        keys = {"kind", "device", "environment", "distribution", "options", "timeouts", "capabilities"}
        return self.model_dump(mode="json", include=keys)

    def for_accuracy(self) -> dict[str, Any]:
        """What an accuracy result depends on."""
        return self.model_dump(mode="json", include={"kind", "device", "lm_eval"})


def known_mismatch(capabilities: Capabilities, config: Mapping[str, Any]) -> Mismatch | None:
    """The first known way in which an engine would compute a model of this ``config.json`` as another; None: none.

    >>> wrong = Mismatch(config={"norm_topk_prob": True}, reason="r", source="s")
    >>> known_mismatch(Capabilities(schedule="exact", weights="stored", precisions={}, wrong=[wrong]), {}) is None
    True
    """
    for wrong in capabilities.wrong:
        if all(key in config and config[key] == value for key, value in wrong.config.items()):
            return wrong
    return None
