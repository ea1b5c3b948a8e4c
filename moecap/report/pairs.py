"""Which rows of a CAP table were asked the same questions, and how their answers differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from moecap.accuracy.paired import Paired, paired, scores_of

Row = Mapping[str, Any]
#: What an accuracy is keyed by.
KEYS = ("model", "precision", "engine", "dataset")


class Pairs:
    """Paired comparisons of the accuracies of two rows, from their answers question by question."""

    def __init__(self, samples: Iterable[tuple[Mapping[str, Any], Sequence[Row]]] = ()) -> None:
        self._samples = {tuple(label.get(key) for key in KEYS): rows for label, rows in samples}
        self._found: dict[tuple[Any, Any], Paired | None] = {}

    @cached_property
    def _scores(self) -> dict[Any, Any]:
        return {key: scores_of(rows) for key, rows in self._samples.items()}

    def __call__(self, row: Row, anchor: Row) -> Paired | None:
        """``row`` against ``anchor``; None where they were not asked the same, or nobody kept the answers."""
        keys = (tuple(anchor[k] for k in KEYS), tuple(row[k] for k in KEYS))
        if keys not in self._found:
            a, b = (self._scores.get(key) for key in keys)
            self._found[keys] = paired(a, b) if a and b and keys[0] != keys[1] else None
        return self._found[keys]


def in_words(found: Paired) -> str:
    """A comparison in words, beside the difference itself.

    >>> in_words(Paired(64, 3, 1, -0.03125, -0.09, 0.03, 0.625))
    '95% interval −9.0 to +3.0 points over the same 64 questions, 4 of them scored otherwise, p = 0.62: within noise'
    """
    low, high = (f"{100 * value:+.1f}".replace("-", "−") for value in (found.low, found.high))
    p = "" if found.p_value is None else f", p = {found.p_value:.2g}"
    noise = ": within noise" if found.within_noise else ""
    return (
        f"95% interval {low} to {high} points over the same {found.n:,} questions, {found.differ:,} of them scored "
        f"otherwise{p}{noise}"
    )
