"""Routers of a Transformers model: read by forward hooks, in padded batches whose padding is left out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from moecap.engines.tokens import BATCH_TOKENS, expert_id_dtype
from moecap.engines.transformers.routers import find_routers, hook


class TransformersBackend:
    """Transformers with forward hooks; padded batches of sequences of like length.

    Args:
        max_tokens: length of the longest sequence.
        batch_tokens: tokens of a padded batch; at least one sequence.
        padding: "right" or "left"; padded tokens are routed too, and their rows are left out.
        options: more arguments for ``from_pretrained``.
    """

    name = "transformers"

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        max_tokens: int,
        *,
        batch_tokens: int = BATCH_TOKENS,
        padding: str = "right",
        device: str | None = None,
        **options: Any,
    ) -> None:
        import torch
        import transformers

        from moecap.checkpoints.dequantize import load_causal_lm

        self.version = transformers.__version__
        self._batch_tokens, self._padding = max(batch_tokens, max_tokens), padding
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        placement = {"device_map": "auto"} if device == "cuda" else {}
        self._attach(load_causal_lm(checkpoint, **{**placement, **options}), str(checkpoint))

    @classmethod
    def of(cls, model: Any, checkpoint: str = "the model", **options: Any) -> TransformersBackend:
        """A backend around a model that is loaded already."""
        import transformers

        backend = cls.__new__(cls)
        backend.version = transformers.__version__
        backend._batch_tokens = options.get("batch_tokens", BATCH_TOKENS)
        backend._padding = options.get("padding", "right")
        backend._attach(model, checkpoint)
        return backend

    def _attach(self, model: Any, checkpoint: str) -> None:
        # Without the head: logits of every position and the whole vocabulary would be the largest tensor by far.
        self._model = getattr(model, "base_model", model)
        self.sites = find_routers(self._model, checkpoint)
        self.layers = tuple(site.layer for site in self.sites)
        self.top_k, self.n_experts = self.sites[0].top_k, self.sites[0].n_experts
        self._captured: dict[int, Any] = {}
        modules = dict(self._model.named_modules())
        self._handles = [hook(modules[site.module], site, self._captured) for site in self.sites]

    def routing(self, sequences: Sequence[Sequence[int] | np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (index, expert ids) for each sequence."""
        order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
        while order:
            longest = len(sequences[order[0]])
            count = max(1, self._batch_tokens // max(longest, 1))
            batch, order = order[:count], order[count:]
            token_ids, mask = pad([sequences[index] for index in batch], self._padding)
            self._captured.clear()
            self._forward(token_ids, mask)
            ids = np.stack([self._captured[layer] for layer in self.layers], axis=1)
            ids = ids.reshape(*mask.shape, len(self.layers), self.top_k)
            for row, index in enumerate(batch):
                yield index, ids[row][mask[row]].astype(expert_id_dtype(self.n_experts))

    def latest(self) -> dict[int, np.ndarray]:
        """Layer → expert ids, shape (tokens, top-k), of the model's latest forward pass, whoever ran it."""
        return dict(self._captured)

    def _forward(self, token_ids: np.ndarray, mask: np.ndarray) -> None:
        import torch

        device = self._model.device
        positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
        with torch.inference_mode():
            self._model(
                input_ids=torch.from_numpy(token_ids).to(device),
                attention_mask=torch.from_numpy(mask.astype(np.int64)).to(device),
                position_ids=torch.from_numpy(positions).to(device),
                use_cache=False,
            )

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._model = None


def pad(sequences: Sequence[Sequence[int] | np.ndarray], side: str) -> tuple[np.ndarray, np.ndarray]:
    """(token ids int64, mask bool), both (sequences, longest); padding repeats each sequence's first token.

    >>> pad([[5, 6], [7]], "left")[0].tolist()
    [[5, 6], [7, 7]]
    """
    longest = max(map(len, sequences))
    token_ids = np.empty((len(sequences), longest), dtype=np.int64)
    mask = np.zeros((len(sequences), longest), dtype=bool)
    for row, tokens in enumerate(sequences):
        where = slice(longest - len(tokens), None) if side == "left" else slice(len(tokens))
        token_ids[row] = tokens[0]
        token_ids[row, where] = tokens
        mask[row, where] = True
    return token_ids, mask
