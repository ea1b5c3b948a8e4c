"""From verdicts to a win rate, as Arena-Hard publishes it; pure.

A Bradley-Terry model of two players, by logistic regression: a tie is half a win and half a loss, a strong verdict
three battles. Without styles its likelihood is largest at the share of battles won, which is taken for the rounds of
the bootstrap (the tests hold the two together). The interval is that of 100 bootstrap rounds over
battles, drawn as the benchmark's scripts draw them (NumPy's Mersenne Twister, seed 42). Battles of one question are not
independent of each other, which that interval ignores: a second one draws whole questions.

Source: lmarena/arena-hard-auto, `show_result.py` and `utils/math_utils.py` of both versions.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moecap.accuracy.arena.settings import RULES
from moecap.accuracy.arena.verdicts import battles

ROUNDS = 100
SEED = 42
_LOG10 = math.log(10)


@dataclass(frozen=True)
class Style:
    """What of an answer a judge may like for itself: its length, and its markup outside of blocks of code."""

    tokens: int
    headers: int
    lists: int
    bold: int


@dataclass(frozen=True)
class Game:
    """A verdict. ``order`` 0: the baseline's answer was shown first, 1: the model's."""

    question: str
    order: int
    verdict: str


@dataclass(frozen=True)
class Rate:
    """A win rate against the baseline, 0 to 1, with its interval and the standard deviation of its rounds."""

    value: float
    low: float
    high: float
    stderr: float


@dataclass(frozen=True)
class Score:
    """A model's score. ``by_question``: its interval by whole questions; ``styled``: null without styles."""

    rate: Rate
    by_question: Rate
    styled: Rate | None
    questions: int
    battles: int


def style_of(text: str, tokens: int) -> Style:
    """Counts of an answer; ``tokens`` are counted by whoever has a tokenizer.

    >>> style_of("# A\\n- b **c**\\n```\\n# no header\\n```", 9)
    Style(tokens=9, headers=1, lists=1, bold=1)
    """
    bare = re.sub(r"```[^`]*```", "", text)
    return Style(
        tokens,
        headers=len(re.findall(r"^#{1,6}\s", bare, re.MULTILINE)),
        lists=len(re.findall(r"^\s*(?:\d+\.|[-*+])\s", bare, re.MULTILINE)),
        bold=len(re.findall(r"\*\*[^*\n]+\*\*|__[^_\n]+__", bare)),
    )


def score(
    games: Sequence[Game],
    version: str,
    *,
    strong: int = 3,
    styles: Mapping[str, tuple[Style, Style]] | None = None,
    seed: int = SEED,
) -> Score | None:
    """The score of all ``games``.

    Args:
        games: those that have a verdict, in the order of the questions.
        version: whose rules: see :data:`moecap.accuracy.arena.settings.RULES`.
        strong: battles that a strong verdict counts for.
        styles: question → styles of the model's and of the baseline's answer.

    Returns:
        None where no question counts.
    """
    rules = RULES[version]
    counted = list(games)
    if rules.whole:
        both = {g.question for g in games if g.order} & {g.question for g in games if not g.order}
        counted = [g for g in games if g.question in both]
    values, owners = [], []
    for number, game in enumerate(counted):
        own = battles(game.verdict, game.order, strong)
        values += own
        owners += [number] * len(own)
    if not values:
        return None
    outcomes = np.asarray(values)
    questions = list(dict.fromkeys(g.question for g in counted))
    at = {question: i for i, question in enumerate(questions)}
    of = np.asarray([at[counted[number].question] for number in owners])
    rng = np.random.RandomState(seed)  # the generator of the benchmark's own scripts
    draws = [rng.choice(len(outcomes), size=len(outcomes), replace=True) for _ in range(ROUNDS)]
    rounds = np.asarray([outcomes[draw].mean() for draw in draws])  # where the likelihood has its maximum
    # v2.0 publishes the mean of its rounds, v0.1 the fit to all battles.
    value = float(rounds.mean()) if rules.whole else win_rate(outcomes)
    members = [np.flatnonzero(of == i) for i in range(len(questions))]
    whole = [np.concatenate([members[i] for i in rng.choice(len(members), size=len(members))]) for _ in range(ROUNDS)]
    styled = None
    if styles is not None and all(question in styles for question in questions):
        features = _features([styles[questions[i]] for i in of], version)
        styled = _rate([win_rate(outcomes[d], features[d], version) for d in draws], None, rules.percentiles)
        if not rules.whole:
            styled = Rate(win_rate(outcomes, features, version), styled.low, styled.high, styled.stderr)
    return Score(
        _rate(rounds, value, rules.percentiles),
        _rate([float(outcomes[draw].mean()) for draw in whole], value, (2.5, 97.5)),
        styled,
        len(questions),
        len(outcomes),
    )


def _rate(rounds: Sequence[float] | np.ndarray, value: float | None, percentiles: tuple[float, float]) -> Rate:
    """``value`` None: the median of the rounds."""
    low, high = np.percentile(rounds, percentiles)
    middle = float(np.median(rounds)) if value is None else value
    return Rate(middle, float(low), float(high), float(np.std(rounds, ddof=1)))


def win_rate(outcomes: np.ndarray, features: np.ndarray | None = None, version: str = "v0.1") -> float:
    """The chance that the model wins a battle at equal style, by a Bradley-Terry model.

    Args:
        outcomes: 1, 0 or 0.5 per battle.
        features: (battles, kinds of style): what they explain is not the model's.
        version: v0.1 fits style with scikit-learn's default penalty, v2.0 without one.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if np.all(outcomes == outcomes[0]) and outcomes[0] in (0.0, 1.0):
        return float(outcomes[0])  # where the likelihood has its limit
    scale = _LOG10 if version == "v0.1" else 1.0
    ones = np.full((len(outcomes), 1), scale)
    design = np.hstack([ones, -ones, *([] if features is None else [features])])
    # Each battle twice: a tie is a win and a loss, any other two of its kind.
    labels = np.concatenate([outcomes > 0, outcomes == 1.0]).astype(int)
    penalised = features is not None and version == "v0.1"
    fit = LogisticRegression(
        fit_intercept=False, C=1.0 if penalised else np.inf, tol=1e-4 if penalised else 1e-8, max_iter=1000
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # styles may tell all winners from losers: then no maximum
        fit.fit(np.vstack([design, design]), labels)
    advantage = scale * (fit.coef_[0][0] - fit.coef_[0][1])
    return float(1 / (1 + np.exp(-advantage)))


def _features(pairs: Sequence[tuple[Style, Style]], version: str) -> np.ndarray:
    """Differences of style, model less baseline, (battles, 4), each with mean 0 and deviation 1 over these battles.

    The leaderboard of the benchmark takes them over the battles of all of its models.
    """
    counts = np.asarray([[[s.tokens, s.headers, s.lists, s.bold] for s in pair] for pair in pairs], dtype=float)
    own, other = counts[:, 0], counts[:, 1]
    if version == "v0.1":
        relative, ddof = (own - other) / (own + other + 1), 0
    else:  # markup per token of length
        lengths = np.maximum(own[:, :1], 1), np.maximum(other[:, :1], 1)
        own_density, other_density = own[:, 1:] / lengths[0], other[:, 1:] / lengths[1]
        length = (own[:, :1] - other[:, :1]) / np.maximum(own[:, :1] + other[:, :1], 1)
        relative, ddof = np.hstack([length, (own_density - other_density) / (own_density + other_density + 1)]), 1
    deviation = relative.std(axis=0, ddof=ddof) if len(relative) > 1 else np.zeros(relative.shape[1])
    return np.divide(relative - relative.mean(axis=0), deviation, out=np.zeros_like(relative), where=deviation > 1e-12)
