"""Two sets of answers to the same questions: by how much they differ, and whether that is more than chance.

Answers to the same questions rise and fall together: the difference of two accuracies is known far better than two
independent errors would have it. Questions are told by their task, their number in it and their text.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

#: Two-sided 95% of a standard normal.
Z95 = 1.959963984540054
#: Fewer common questions than this share of the smaller set: two different tests, which are not paired.
COMMON = 0.95

Scores = Mapping[Hashable, float]


@dataclass(frozen=True)
class Paired:
    """A comparison of B with A, question by question.

    Attributes:
        n: questions that both were asked.
        only_a, only_b: questions that A, B alone scored better on.
        difference: mean of B's score minus A's.
        low, high: its 95% interval.
        p_value: of McNemar's exact test, that the discordant questions fall to either side alike; null where scores
            are not right or wrong.
    """

    n: int
    only_a: int
    only_b: int
    difference: float
    low: float
    high: float
    p_value: float | None

    @property
    def differ(self) -> int:
        """Questions on which the scores differ."""
        return self.only_a + self.only_b

    @property
    def within_noise(self) -> bool:
        """Whether no difference at all is within the interval."""
        return self.low <= 0.0 <= self.high


def question(row: Mapping[str, Any]) -> Hashable:
    """What tells one question from another: not its number alone, since a file of data may have changed."""
    text = hashlib.sha256(str(row.get("prompt")).encode()).hexdigest()[:16]
    return row.get("task"), row.get("doc_id"), text


def scores_of(samples: Iterable[Mapping[str, Any]]) -> dict[Hashable, float]:
    """Question → score of the rows of a table of answers; one without an answer is wrong."""
    return {question(row): float(row["score"] or 0.0) for row in samples}


def paired(a: Scores, b: Scores) -> Paired | None:
    """Compare B with A on the questions that both were asked.

    The interval is Bonett and Price's (adjusted Wald, https://doi.org/10.1177/0962280211415479) where every score is 0
    or 1: sound also where few or no questions are discordant. Else it is that of the mean of paired differences, by
    the normal distribution.

    Args:
        a, b: question → score.

    Returns:
        None where fewer than two questions, or less than 95% of the smaller set, are common.
    """
    common = [key for key in a if key in b]
    n = len(common)
    if n < 2 or n < COMMON * min(len(a), len(b)):
        return None
    differences = [b[key] - a[key] for key in common]
    only_a, only_b = sum(d < 0 for d in differences), sum(d > 0 for d in differences)
    mean = math.fsum(differences) / n
    if all(value in (0.0, 1.0) for key in common for value in (a[key], b[key])):
        centre, spread = (only_b - only_a) / (n + 2), (only_a + only_b + 2) / (n + 2)
        half = Z95 * math.sqrt((spread - centre**2) / (n + 2))
        return Paired(
            n, only_a, only_b, mean, max(-1.0, centre - half), min(1.0, centre + half), mcnemar(only_a, only_b)
        )
    variance = math.fsum((d - mean) ** 2 for d in differences) / (n - 1)
    half = Z95 * math.sqrt(variance / n)
    return Paired(n, only_a, only_b, mean, mean - half, mean + half, None)


def mcnemar(only_a: int, only_b: int) -> float:
    """The exact two-sided p-value of McNemar's test: discordant questions as tosses of a fair coin.

    >>> mcnemar(0, 0), round(mcnemar(1, 7), 6)
    (1.0, 0.070312)
    """
    if only_a + only_b == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(min(only_a, only_b), only_a + only_b, 0.5).pvalue)


def differing_answers(a: Iterable[Mapping[str, Any]], b: Iterable[Mapping[str, Any]]) -> tuple[int, int]:
    """(questions answered otherwise, questions that both were asked): 0 of two runs that agree to the letter."""
    answers = {question(row): row.get("response") for row in a}
    others = {question(row): row.get("response") for row in b}
    common = [key for key in answers if key in others]
    return sum(answers[key] != others[key] for key in common), len(common)
