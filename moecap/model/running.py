"""A small model run for real, and what its cache and its routers then hold: the count's independent check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moecap.errors import MoecapError
from moecap.model.built import build, first_line, quiet
from moecap.model.words import EXPERT_WORDS

if TYPE_CHECKING:
    from transformers import PretrainedConfig

#: What a layer that compresses its KV calls the tokens of a run that is not whole yet, and those of the run before.
WAITING = ("buffer_", "overlap_")


@dataclass(frozen=True)
class Measured:
    """What a real forward pass of a (small) model kept and did."""

    kv_elements_per_token: int
    state_elements: int
    top_k: int


def measure(config: PretrainedConfig, tokens: tuple[int, int] = (5, 9)) -> Measured:
    """Run a small model on random weights and read its cache and its routing: the count's independent check.

    The KV per token is the growth of the cache between two prompt lengths (both below any window, and where a layer
    compresses runs of tokens into one entry both whole runs); ``top_k`` is the number of expert ids per token that
    reach the block of experts, 0 if none do. The model is built for real, so its config must be small.

    Raises:
        MoecapError: the model cannot be built or run.
    """
    import torch

    caches = []
    chosen: set[int] = set()
    model = build(config, device="cpu").eval().float()

    def spy(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.Tensor) and value.dtype in (torch.int32, torch.int64) and value.ndim >= 2:
                mask = int(value.max()) <= 1 and value.shape[-1] > 2  # one column per expert, not one per choice
                if not mask:
                    chosen.add(int(value.shape[-1]))

    for name, module in model.named_modules():
        if name.rpartition(".")[2] in EXPERT_WORDS:
            module.register_forward_pre_hook(spy, with_kwargs=True)
    with torch.no_grad(), quiet():
        for length in tokens:
            ids = torch.arange(2, 2 + length).remainder(16)[None]
            extra = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {"use_cache": True}
            try:
                caches.append(model(input_ids=ids, **extra).past_key_values)
            except Exception as error:
                raise MoecapError(f"The model does not run: {type(error).__name__}: {first_line(error)}") from error
    kept = [_cache_elements(cache) for cache in caches]
    grown = (kept[1][0] - kept[0][0]) // (tokens[1] - tokens[0])
    return Measured(grown, kept[1][1], max(chosen, default=0))


def _cache_elements(cache: Any) -> tuple[int, int]:
    """Elements that a cache holds: per-token ones, and constant state; what waits to be compressed is neither."""
    import torch

    growing = constant = 0
    cache = getattr(cache, "self_attention_cache", cache)
    constant += sum(t.numel() for t in getattr(cache, "linear_cache", ()) if isinstance(t, torch.Tensor))
    for layer in cache.layers:
        seen: set[int] = set()  # keys that are the values too are kept once
        for name, value in vars(layer).items():
            if name.startswith(WAITING):
                continue
            inner = (
                value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
            )
            tensors = [t for t in inner if isinstance(t, torch.Tensor)]
            count = sum(t.numel() for t in tensors if t.ndim > 1 and id(t) not in seen)
            seen.update(map(id, tensors))
            if "conv" in name or "recurrent" in name or "state" in name:
                constant += count
            else:
                growing += count
    return growing, constant
