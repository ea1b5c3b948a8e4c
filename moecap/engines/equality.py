"""Whether an engine computed the model that it was given: its greedy tokens held against Transformers in fp32.

An engine may compute another model without a word (llama.cpp did, of a Qwen2-MoE whose top-k weights are normalized).
Whole outputs cannot be compared: after the first near-tie two right engines go different ways. So the engine's own
sequences are what Transformers reads, in one teacher-forced pass over the very weights that were served (dequantized
where they are quantized): at every position the engine's token has to be Transformers' best, or nearly. How far below
the best it lies is its *margin*, in nats (the difference of log-probabilities). Rounding makes small ones; another
model makes large ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moecap.errors import PermanentError

#: Sequences that are compared at the most, the first of them.
SEQUENCES = 32


@dataclass(frozen=True)
class Difference:
    """A token that Transformers would not have chosen."""

    sequence: int
    position: int
    token: int
    best: int
    margin: float


@dataclass(frozen=True)
class Equality:
    """What the comparison found. ``worst`` is the largest margin; None: every token was Transformers' own."""

    tokens: int
    equal: int
    first: Difference | None
    worst: Difference | None


def margins(log_probabilities: np.ndarray, tokens: Sequence[int]) -> np.ndarray:
    """How far each token lies below the best one, in nats.

    Args:
        log_probabilities: (tokens, vocabulary); anything that differs from them by a constant per row will do.

    Returns:
        Shape (tokens,), 0 for the best.

    >>> margins(np.array([[0.0, -1.5], [-2.0, -0.5]]), [1, 1]).tolist()
    [1.5, 0.0]
    """
    return log_probabilities.max(axis=1) - log_probabilities[np.arange(len(tokens)), list(tokens)]


def compare(model: Any, prompts: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]]) -> Equality:
    """Hold greedy outputs against a model of Transformers.

    Args:
        model: a causal language model, in the widest type that it has.
        prompts, outputs: token ids of each sequence.
    """
    import torch

    differences: list[Difference] = []
    count = 0
    for index, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        with torch.inference_mode():
            ids = torch.tensor([[*prompt, *output[:-1]]], device=model.device)
            logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :].float().cpu().numpy()
        found = margins(logits, output)
        count += len(output)
        differences += [
            Difference(index, int(at), int(output[at]), int(logits[at].argmax()), float(found[at]))
            for at in np.flatnonzero(found > 0)
        ]
    worst = max(differences, key=lambda d: d.margin, default=None)
    return Equality(count, count - len(differences), differences[0] if differences else None, worst)


def check(
    engine: str,
    checkpoint: str | Path,
    prompts: Sequence[Sequence[int]],
    outputs: Sequence[Sequence[int]],
    tolerance_nats: float,
    *,
    trust_remote_code: bool = False,
) -> Equality:
    """Refuse an engine whose tokens are not those of its checkpoint.

    Args:
        tolerance_nats: the largest margin that rounding may make (the entry's ``tolerance_nats``).

    Raises:
        PermanentError: a larger one; names the first token that lies so far below the best.
    """
    import torch

    from moecap.checkpoints.dequantize import load_causal_lm

    model = load_causal_lm(checkpoint, dtype=torch.float32, trust_remote_code=trust_remote_code)
    found = compare(model, prompts[:SEQUENCES], outputs[:SEQUENCES])
    if found.worst is not None and found.worst.margin > tolerance_nats:
        worst = found.worst
        raise PermanentError(
            f"Engine {engine} computes another model than {checkpoint}: of {found.tokens} greedy tokens {found.equal} "
            f"are those of Transformers in fp32, and token {worst.position} of sequence {worst.sequence} is "
            f"{worst.token}, {worst.margin:.2f} nats below {worst.best}; rounding may make {tolerance_nats} "
            "(`capabilities.tolerance_nats` of its entry in config/catalogue/engines.yaml). Its figures do not count. "
            "Serve the model with another engine, and add what it gets wrong to the entry's `capabilities.wrong`."
        )
    return found
