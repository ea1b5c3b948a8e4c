"""Where a Transformers model's expert ids can be read: found by what its modules are called with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from moecap.errors import MoecapError

#: Tokens of the pass that looks for routers: no power of two, so that no other dimension is mistaken for it.
PROBE_TOKENS = 11
#: Ways to read a layer's expert ids, the best first.
WAYS = ("arguments", "output", "scores")


@dataclass(frozen=True)
class RouterSite:
    """Where a layer's expert ids can be read.

    ``how``: "arguments" (a module is called with ids and weights), "output" (a router returns ids), or "scores" (a
    router returns one score per expert and has a ``top_k``). ``n_experts`` 0: not known from this module.
    """

    layer: int
    module: str
    how: str
    top_k: int
    n_experts: int


def find_routers(model: Any, checkpoint: str = "the model") -> list[RouterSite]:
    """Find, by one short forward pass, where each MoE layer's expert ids can be read; ascending by layer.

    Nothing is known of model types. A module that is called with an integer tensor (tokens, k) beside a float tensor of
    the same shape executes experts. Where no such call is seen in a layer (a model that multiplies by dense scores), a
    router that returns ids, or one score per expert and has a ``top_k``, is read.

    Raises:
        MoecapError: no router found, several in one layer, or layers of different shape.
    """
    import torch

    found: list[RouterSite] = []
    with _probed(model, found), torch.inference_mode():
        token_ids = torch.arange(1, PROBE_TOKENS + 1, device=model.device)[None]
        model(input_ids=token_ids % model.get_input_embeddings().num_embeddings, use_cache=False)
    layers = sorted({site.layer for site in found})
    sites = [_choose([site for site in found if site.layer == layer], checkpoint) for layer in layers]
    _check_shapes(sites, checkpoint)
    return sites


@contextmanager
def _probed(model: Any, found: list[RouterSite]) -> Iterator[None]:
    """Hooks on every module of every layer, which add to ``found`` each place where expert ids were seen."""

    def before(layer: int, name: str, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = _ids_and_weights([*args, *kwargs.values()])
        if ids is not None:
            found.append(RouterSite(layer, name, "arguments", ids.shape[-1], _expert_count(module)))

    def after(layer: int, name: str, module: Any, _args: Any, output: Any) -> None:
        site = _router_output(layer, name, module, output)
        if site is not None:
            found.append(site)

    handles = []
    for name, module in model.named_modules():
        layer = layer_of(name)
        if layer is not None:
            handles.append(module.register_forward_pre_hook(partial(before, layer, name), with_kwargs=True))
            handles.append(module.register_forward_hook(partial(after, layer, name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _router_output(layer: int, name: str, module: Any, output: Any) -> RouterSite | None:
    """What a module's output says, if it is a router's: expert ids beside wider scores, or scores and a ``top_k``."""
    import torch

    values = [value for value in output if torch.is_tensor(value)] if isinstance(output, tuple) else []
    width = max((v.shape[1] for v in values if v.is_floating_point() and _one_row_per_token(v)), default=0)
    ids = _ids_and_weights(values)
    if ids is not None and width > ids.shape[-1]:
        return RouterSite(layer, name, "output", ids.shape[-1], width)
    top_k = getattr(module, "top_k", None)
    if isinstance(top_k, int) and 0 < top_k < width:
        return RouterSite(layer, name, "scores", top_k, width)
    return None


def _one_row_per_token(value: Any) -> bool:
    return value.ndim == 2 and len(value) == PROBE_TOKENS and value.shape[1] > 1


def _ids_and_weights(values: Sequence[Any]) -> Any:
    """The integer tensor (tokens, k) among ``values`` if a float tensor of the same shape is there too, else None."""
    import torch

    tensors = [v for v in values if torch.is_tensor(v) and v.ndim == 2 and len(v) == PROBE_TOKENS]
    weights = {tuple(value.shape) for value in tensors if value.is_floating_point()}
    for value in tensors:
        if value.dtype in (torch.int32, torch.int64) and tuple(value.shape) in weights:
            return value
    return None


def _choose(here: Sequence[RouterSite], checkpoint: str) -> RouterSite:
    """The one place of a layer that is read, from all that were seen in it."""
    how = next(way for way in WAYS if any(site.how == way for site in here))
    sites = {site.module: site for site in here if site.how == how}
    # A wrapper hands expert ids on to the module inside it: the outermost call counts. A block may return what its
    # router returned: the innermost router counts.
    inside, outside = {}, {}
    for name, site in sites.items():
        if not any(name.startswith(f"{other}.") for other in sites):
            outside[name] = site
        if not any(other.startswith(f"{name}.") for other in sites):
            inside[name] = site
    best = outside if how == "arguments" else inside
    if len(best) > 1:
        raise MoecapError(
            f"{checkpoint}: layer {here[0].layer} has several routers ({', '.join(sorted(best))}); it cannot be "
            "replayed."
        )
    (site,) = best.values()
    return site if site.n_experts else replace(site, n_experts=max(other.n_experts for other in here))


def _check_shapes(sites: Sequence[RouterSite], checkpoint: str) -> None:
    shapes = {(site.top_k, site.n_experts) for site in sites}
    if not shapes:
        raise MoecapError(
            f"{checkpoint}: no module is called with expert ids, and no router returns any: a dense model has no "
            "routing."
        )
    if len(shapes) > 1 or not all(k <= experts for k, experts in shapes):
        raise MoecapError(
            f"{checkpoint}: MoE layers of different shape, (top-k, experts) {sorted(shapes)}: such a model cannot be "
            "replayed."
        )


def _expert_count(module: Any) -> int:
    """Experts of a module: the leading dimension of its stacked parameters, or its list of experts; 0: unknown."""
    leading = {parameter.shape[0] for parameter in module.parameters(recurse=False) if parameter.ndim >= 3}
    if len(leading) == 1:
        return int(leading.pop())
    count = getattr(module, "num_experts", None)
    if isinstance(count, int):
        return count
    return len([name for name, _ in module.named_children() if name.isdigit()])


def layer_of(name: str) -> int | None:
    """The first number in a module's path: the index of its layer."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def hook(module: Any, site: RouterSite, captured: dict[int, Any]) -> Any:
    """Hook ``module``: each forward pass leaves ids (tokens, top-k) in ``captured[layer]``. Returns the handle."""
    import torch

    def keep(ids: Any) -> None:
        captured[site.layer] = ids.reshape(-1, site.top_k).cpu().numpy()

    def arguments(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        values = [value for value in (*args, *kwargs.values()) if torch.is_tensor(value)]
        keep(next(v for v in values if not v.is_floating_point() and v.shape[-1] == site.top_k))

    def output(_module: Any, _args: Any, output: tuple[Any, ...]) -> None:
        keep(next(v for v in output if not v.is_floating_point() and v.shape[-1] == site.top_k))

    def scores(_module: Any, _args: Any, output: tuple[Any, ...]) -> None:
        # The last tensor of that width is the logits where scores come first; both rank experts alike.
        values = [v for v in output if torch.is_tensor(v) and v.shape[-1] == site.n_experts]
        keep(values[-1].reshape(-1, site.n_experts).topk(site.top_k, dim=-1).indices)

    if site.how == "arguments":
        return module.register_forward_pre_hook(arguments, with_kwargs=True)
    after: dict[str, Callable[..., None]] = {"output": output, "scores": scores}
    return module.register_forward_hook(after[site.how])
