"""Which share of each component's bytes lies outside the devices, from how vLLM, or Accelerate, is told to offload.

vLLM keeps weights in the host's memory in one of two ways (its ``OffloadConfig``), both of which say which layers:

- ``cpu_offload_gb``: so many GiB per device, the first parameters of the first layers, until they are used up;
- ``offload_group_size`` and ``offload_num_in_group``: the last layers of every group of layers.

Embedding and head stay on the devices. Per component the share of its *bytes* is taken for the share of what is *read*
of it: exact for what every step reads whole, an estimate for routed experts as far as layers differ in how many a step
touches.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING, Any

from moecap.errors import MoecapError, nearest
from moecap.model.structure import LAYER_COMPONENTS

if TYPE_CHECKING:
    from moecap.model.structure import Anatomy

#: Words that a list of parameters to offload may hold, as vLLM matches them (whole parts of a name).
PARAMETER_WORDS = {"experts": ("routed_experts",), "self_attn": ("attention",), "shared_expert": ("shared_experts",),
                   "shared_experts": ("shared_experts",)}  # fmt: skip
#: vLLM's arguments that say how much is offloaded, and what.
ARGUMENTS = ("cpu_offload_gb", "cpu_offload_params", "offload_group_size", "offload_num_in_group", "offload_params")


def placement_of(
    anatomy: Anatomy,
    arguments: Mapping[str, Any],
    tier: str = "dram",
    *,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    expert_parallel: int = 1,
    device: str = "hbm",
) -> dict[str, dict[str, float]]:
    """Component → {tier: share}, as :func:`moecap.metrics.utilization.split_by_tier` takes it.

    Args:
        anatomy: the model.
        arguments: vLLM's (:data:`ARGUMENTS`; others are ignored).
        tier: where the offloaded weights lie.
        tensor_parallel, pipeline_parallel, expert_parallel: ``cpu_offload_gb`` is per device, of its own layers.
        device: the tier of the device's own memory.

    Raises:
        MoecapError: nothing says how much is offloaded, or it names parameters whose component is not known.
    """
    from moecap.model.parallel import per_device

    budget, group, last, wanted = read_arguments(arguments)
    view = per_device(anatomy, tp=tensor_parallel, pp=pipeline_parallel, ep=expert_parallel)
    away = dict.fromkeys(LAYER_COMPONENTS, Fraction(0))
    total = dict.fromkeys(LAYER_COMPONENTS, Fraction(0))
    for stage in view.stages:
        left = Fraction(budget)
        for position, index in enumerate(range(*stage.layers)):
            kind = view.kinds[anatomy.layer_kind[index]]
            for component, name in LAYER_COMPONENTS.items():
                size = Fraction(getattr(kind, f"{name}_bytes"))
                if component == "routed_experts":
                    size *= ceil(Fraction(kind.experts, expert_parallel))
                total[component] += size
                if component not in wanted:
                    continue
                if group:
                    taken = size if position % group >= group - last else Fraction(0)
                else:
                    taken = min(size, left)
                    left -= taken
                away[component] += taken
    if tier == device:  # a CPU's own memory: nothing moves
        return {}
    return {
        component: {tier: float(away[component] / size), device: float(1 - away[component] / size)}
        for component, size in total.items()
        if away[component]
    }


def read_arguments(arguments: Mapping[str, Any]) -> tuple[float, int, int, set[str]]:
    """Bytes per device, layers per group, how many of a group are offloaded, and the components that are.

    Raises:
        MoecapError: nothing says how much is offloaded, or it names parameters whose component is not known.
    """
    budget = float(arguments.get("cpu_offload_gb") or 0) * 2**30
    group, last = int(arguments.get("offload_group_size") or 0), int(arguments.get("offload_num_in_group") or 1)
    if budget < 0 or group < 0 or not (budget or group):
        raise MoecapError(
            "Weights are to be offloaded, but the engine's entry in config/catalogue/engines.yaml does not say how "
            "many: give it `engine_args: {cpu_offload_gb: …}` (GiB per device) or `{offload_group_size: …}`."
        )
    words = arguments.get("offload_params" if group else "cpu_offload_params") or ()
    unknown = [word for word in words if word not in PARAMETER_WORDS]
    if unknown:
        raise MoecapError(
            f"Which component the offloaded parameters {unknown[0]!r} belong to is not known, so the bytes per memory "
            f"tier could not be told. {nearest(unknown[0], PARAMETER_WORDS)}"
        )
    components = {c for word in words for c in PARAMETER_WORDS[word]} if words else set(LAYER_COMPONENTS)
    return budget, group, last, components
