"""Entries of ``engines.yaml``: one build or setting of an engine each, and what it can do. They are the schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from moecap.engines.server.settings import RemoteOptions, ServerOptions
from moecap.schema import Strict

Parallelism = Literal["tensor_parallel", "pipeline_parallel", "expert_parallel", "data_parallel"]
#: Kinds that are asked over HTTP.
SERVED = ("server", "remote")


class VllmOptions(Strict):
    """What an entry of kind ``vllm`` may set."""

    engine_args: dict[str, Any] = Field(default={}, description="handed to vLLM's EngineArgs as they are")
    env: dict[str, str | int | float | bool] = Field(default={}, description="environment variables that vLLM reads")
    multiprocessing: bool = Field(default=False, description="the engine in a process of its own")
    prefix_caching: bool = False


class LoadOptions(Strict):
    """Arguments of Transformers' ``from_pretrained``."""

    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    experts_implementation: str | None = None
    attn_implementation: str | None = None


class TransformersOptions(LoadOptions):
    """What an entry of kind ``transformers`` may set."""

    device_map: str | dict[str, Any] | None = None


class AccelerateOptions(LoadOptions):
    """What an entry of kind ``accelerate`` may set."""

    engine_args: dict[str, Any] = Field(default={}, description="which weights lie elsewhere, in vLLM's words")


#: What the `options` of each kind may be; a kind that is added without a model of its own checks its options itself.
OPTIONS: dict[str, type[BaseModel]] = {
    "server": ServerOptions, "remote": RemoteOptions, "vllm": VllmOptions, "transformers": TransformersOptions,
    "accelerate": AccelerateOptions,
}  # fmt: skip


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

    def for_performance(self) -> dict[str, Any]:
        """What a timed run depends on: not the container's name, nor how accuracy is evaluated."""
        keys = {"kind", "device", "environment", "distribution", "options", "timeouts", "capabilities"}
        return self.model_dump(mode="json", include=keys)

    def for_accuracy(self) -> dict[str, Any]:
        """What an accuracy result depends on; of what is asked over HTTP also how it is started and asked."""
        keys = {"kind", "device", "lm_eval"}
        if self.kind in OPTIONS:
            keys |= {"options", "environment", "distribution", "timeouts"}
        return self.model_dump(mode="json", include=keys)


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
