"""From a recipe to llmcompressor's modifiers: which modules, stored how, after which transform.

Runs in the environment that has llmcompressor. What is a routed expert, and whose scales may be moved where, is told
from the model's structure (:mod:`moecap.checkpoints.mappings`), never from its name.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from moecap.checkpoints import mappings
from moecap.checkpoints.recipe import Recipe
from moecap.errors import MoecapError, nearest
from moecap.model.modules import takes_cache

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

#: What llmcompressor calls a scheme, where it means another thing by our name.
PRESETS = {"MXFP4": "MXFP4A16", "MXFP4A4": "MXFP4"}


def scheme_of(name: str, recipe: Recipe | None = None) -> Any:
    """llmcompressor's ``QuantizationScheme``, with the recipe's group size and symmetry where it is the recipe's own.

    Raises:
        MoecapError: llmcompressor cannot make it.
    """
    from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES, preset_name_to_scheme

    preset = PRESETS.get(name, name)
    if preset not in PRESET_SCHEMES:
        raise MoecapError(
            f"The recipe's `scheme` is {name!r}, which llmcompressor does not make. {nearest(name, PRESET_SCHEMES)}"
        )
    scheme = preset_name_to_scheme(preset, ["Linear"])
    if recipe is not None and recipe.group_size is not None and scheme.weights.group_size is not None:
        scheme.weights.group_size = recipe.group_size
    if recipe is not None and recipe.symmetric is not None:
        scheme.weights.symmetric = recipe.symmetric
    return scheme


def components_of(model: torch.nn.Module, recipe: Recipe) -> dict[str, str]:
    """Linear layer -> component, for those that the recipe quantizes.

    Raises:
        MoecapError: nothing is left of them.
    """
    import torch

    places = _places(model)
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and not recipe.ignores(name):
            component = _within(name, places)
            if component in recipe.components:
                found[name] = component
    if not found:
        raise MoecapError(
            f"The recipe quantizes nothing of this model: `components` are {', '.join(recipe.components)}, and "
            f"`ignore` leaves out {', '.join(recipe.ignore)}."
        )
    return found


def _places(model: torch.nn.Module) -> dict[str, str]:
    """Attention, experts, what lies beside them, and layers -> the component that linear layers there are part of."""
    from llmcompressor.modeling.moe.linearize import get_linearized_moes

    keeps = {name for name, module in model.named_modules() if name and takes_cache(module)}
    around = {name[:i] for name in keeps for i, c in enumerate(name) if c == "."}
    layers = (re.match(r".*?\.\d+(?=\.|$)", name) for name in keeps)
    places = {match[0]: "dense_mlp" for match in layers if match}
    for name, _ in get_linearized_moes(model):
        places |= {name.rpartition(".")[0]: "shared_experts", name: "routed_experts"}
    return places | dict.fromkeys(keeps - around, "attention")


def _within(name: str, places: dict[str, str]) -> str | None:
    """What the closest of the modules around a module is."""
    while "." in name:
        name = name.rpartition(".")[0]
        if name in places:
            return places[name]
    return None


def modifiers_of(model: torch.nn.Module, recipe: Recipe, run: Callable[[], torch.Tensor]) -> list[Any]:
    """The transform, where there is one, and what rounds.

    Args:
        model: with an own linear layer for each expert's projection.
        run: a forward pass over a short text, every expert on every token; gives the logits.
    """
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier

    components = components_of(model, recipe)
    rounding: Any = GPTQModifier if recipe.algorithm == "gptq" else QuantizationModifier
    made: list[Any] = [_transform(model, recipe, components, run)] if recipe.transform else []
    return [*made, rounding(config_groups=_groups(recipe, components), ignore=_kept(model, recipe, components))]


def _groups(recipe: Recipe, components: dict[str, str]) -> dict[str, Any]:
    """One group for every Linear, or one per scheme that names its own."""
    if not recipe.component_schemes:
        return {"group_0": scheme_of(recipe.scheme, recipe)}
    targets: dict[str, list[str]] = {}
    for name, component in components.items():
        # Experts of a layer are one pattern, as are the layers: a config that names each is megabytes long.
        pattern = "re:" + mappings.role(name).replace(".", r"\.").replace("*", r"\d+") + "$"
        own = targets.setdefault(recipe.component_schemes.get(component, recipe.scheme), [])
        if pattern not in own:
            own.append(pattern)
    groups = {}
    for index, (name, patterns) in enumerate(sorted(targets.items())):
        scheme = scheme_of(name, recipe if name == recipe.scheme else None)
        scheme.targets = patterns
        groups[f"group_{index}"] = scheme
    return groups


def _kept(model: torch.nn.Module, recipe: Recipe, components: dict[str, str]) -> list[str]:
    """What the recipe ignores, and linear layers of components that it leaves as they are."""
    import torch

    others = (
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name not in components and not recipe.ignores(name)
    )
    return [*recipe.ignore, *others]


def _transform(
    model: torch.nn.Module, recipe: Recipe, components: dict[str, str], run: Callable[[], torch.Tensor]
) -> Any:
    """AWQ or SmoothQuant over what the model's structure allows.

    Raises:
        MoecapError: it allows nothing.
    """
    from llmcompressor.modifiers.transform.awq import AWQMapping, AWQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    found = [m for m in mappings.find(model, run) if any(name in components for name in m.readers)]
    if recipe.transform == "smoothquant":
        # One scale for all experts evens none of them out; llmcompressor and TensorRT-LLM smooth attention only.
        found = [m for m in found if m.norm and not any(_is_expert(components, name) for name in m.readers)]
    if not found:
        raise MoecapError(
            f"`transform: {recipe.transform}` finds no place where scales could move without changing what this model "
            "answers. Remove it from the recipe."
        )
    log.info("%s moves scales at %d places", recipe.transform, len(found))
    if recipe.transform == "smoothquant":
        pairs: list[tuple[Any, ...]] = [(readers, source) for source, readers in mappings.by_layer(found)]
        return SmoothQuantModifier(smoothing_strength=recipe.smoothing_strength, mappings=pairs)
    places = [AWQMapping(source, readers) for source, readers in mappings.by_layer(found)]
    return AWQModifier(mappings=places, n_grid=recipe.awq_grid)


def without_pinning() -> AbstractContextManager[None]:
    """llmcompressor 0.14 pins AWQ's inputs for a faster way to an accelerator, and fails where there is none."""
    import torch
    from compressed_tensors.utils import patch_attr
    from llmcompressor.pipelines.cache import IntermediatesCache

    if torch.accelerator.is_available():
        return nullcontext()
    return patch_attr(IntermediatesCache, "pin_memory", lambda *_args, **_options: None)


def _is_expert(components: dict[str, str], name: str) -> bool:
    return components.get(name) == "routed_experts"
