"""What is told of a variant when it is made: bits per weight, text per expert, perplexity, errors block by block."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moecap.checkpoints import mappings, perplexity, reconstruction
from moecap.checkpoints.modifiers import components_of
from moecap.checkpoints.recipe import Recipe
from moecap.model.headers import read_checkpoint

log = logging.getLogger(__name__)

#: Beside a variant's weights: its errors, block by block.
ERRORS = "reconstruction.parquet"
#: Tokens of the short text on which a model's structure is told, and of that on which errors are measured.
SHORT_TOKENS, ERROR_TOKENS = 32, 2048
#: Experts that a warning names; the manifest has all.
NAMED = 10


def short_pass(model: Any, ids: list[int]) -> Any:
    """The logits of a short text, every expert on every token, with norms as llmcompressor's transforms see them."""
    import torch
    from llmcompressor.modeling.moe.context import moe_calibration_context
    from llmcompressor.modeling.offset_norm import norm_calibration_context

    given = torch.tensor([ids[:SHORT_TOKENS]], device=model.device)
    with torch.no_grad(), moe_calibration_context(), norm_calibration_context(model):
        return model(input_ids=given, use_cache=False).logits


def bits_per_weight(folder: str | Path, weights: int) -> float:
    """Bits of all stored tensors over the model's weights."""
    return 8 * sum(tensor.bytes for tensor in read_checkpoint(folder).tensors) / weights


def calibration_facts(model: Any, recipe: Recipe, sequences: list[list[int]]) -> dict[str, Any] | None:
    """How much text each expert saw; those with too little are warned of by name. None: no text was needed."""
    if not sequences:
        return None
    tokens = reconstruction.expert_tokens(model, sequences)
    short = reconstruction.too_few(model, tokens)
    if short:
        named = ", ".join(f"{name} ({count})" for name, count in sorted(short.items(), key=lambda s: s[1])[:NAMED])
        log.warning(
            "%d of %d experts saw fewer calibration tokens than their matrices have inputs: %s%s. Raise "
            "`calibration_samples` (%d), or calibrate on text that is more varied.",
            *(len(short), len(tokens), named, " …" if len(short) > NAMED else "", recipe.calibration_samples),
        )
    return {
        "tokens": sum(map(len, sequences)),
        "fewest_expert_tokens": min(tokens.values(), default=None),
        "expert_tokens": tokens,
        "experts_with_too_few": sorted(short),
    }


class Judged:
    """The model before it is quantized, as far as the variant is to be held against it.

    Args:
        texts: held-out documents; perplexity is that of all, errors are those of the first ``ERROR_TOKENS`` tokens.
        sequences: the calibration text, of which each expert's share is put beside its error.
        run: :func:`short_pass` of the model.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        recipe: Recipe,
        texts: list[str],
        sequences: list[list[int]],
        run: Callable[[], Any],
    ) -> None:
        self.model, self.tokenizer, self.texts = model, tokenizer, texts
        self.before = perplexity.of_model(model, tokenizer, texts)
        self.expert_tokens = reconstruction.expert_tokens(model, sequences) if sequences else {}
        taken: list[list[int]] = []
        for text in texts:
            if sum(map(len, taken)) < ERROR_TOKENS:
                taken.append(tokenizer(text)["input_ids"][:ERROR_TOKENS])
        norms = [m.source for m in mappings.candidates(model, run) if m.norm]
        blocks = reconstruction.blocks_of(components_of(model, recipe))
        self.reference = reconstruction.Reference(model, taken, blocks, norms)

    def write(self, folder: Path) -> dict[str, Any]:
        """Write ``ERRORS`` into ``folder``; returns what goes into the manifest."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = [{**row, "calibration_tokens": self.expert_tokens.get(row["block"])} for row in self.reference.errors()]
        pq.write_table(pa.Table.from_pylist(rows), folder / ERRORS)
        after = perplexity.of_model(self.model, self.tokenizer, self.texts)
        known = [row for row in rows if row["relative_error"] is not None]
        worst = max(known, key=lambda row: row["relative_error"], default=None)
        log.info("perplexity per token %.4f, before quantization %.4f", after.per_token, self.before.per_token)
        return {"perplexity": after.to_json(), "perplexity_of_base": self.before.to_json(), "worst_block": worst}
