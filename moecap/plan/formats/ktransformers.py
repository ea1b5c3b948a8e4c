"""KTransformers' published runs with experts in the host's memory, gathered as a table."""

from __future__ import annotations

from collections.abc import Iterator

from moecap.plan.formats.file import File
from moecap.plan.points import OffloadPoint, number, text, whole

NAME = "KTransformers offload table"
_NEEDED = {"model", "precision", "gpu", "gpus", "cpu", "gpu_expert_share", "decode_tok_s"}
_UNITS = {"k": 1024.0}


def sniff(file: File) -> bool:
    """Whether the table has its columns."""
    return file.columns >= _NEEDED


def read(file: File) -> Iterator[OffloadPoint]:
    """One point per row."""
    for line, row in enumerate(file.rows, 2):
        said = text(row, "context_or_strategy") or ""
        tokens = _tokens(said)
        yield OffloadPoint(
            source=f"{file.name}:{line}",
            format=NAME,
            model=text(row, "model") or "",
            precision=text(row, "precision") or "",
            hardware=text(row, "gpu") or "",
            devices=whole(row, "gpus") or 1,
            processor=text(row, "cpu") or "",
            concurrency=number(row, "concurrency"),
            prompt_tokens=tokens,
            placement=said if tokens is None else None,
            experts_on_gpu=number(row, "gpu_expert_share") or 0.0,
            prefill_tokens_per_s=number(row, "prefill_tok_s"),
            decode_tokens_per_s=number(row, "decode_tok_s"),
        )


def _tokens(said: str) -> float | None:
    """``4K`` is 4,096 tokens; a word is none."""
    digits, unit = said.rstrip("kK"), said[-1:].lower()
    return float(digits) * _UNITS.get(unit, 1.0) if digits.isdigit() else None
