"""Paired comparisons, against second ways of computing them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moecap.accuracy.paired import differing_answers, mcnemar, paired, scores_of


def table(values: list[float]) -> dict[int, float]:
    return dict(enumerate(values))


@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0])), min_size=2, max_size=200))
def test_right_and_wrong(pairs: list[tuple[float, float]]) -> None:
    a, b = (table([pair[i] for pair in pairs]) for i in (0, 1))
    found = paired(a, b)
    assert found is not None and found.n == len(pairs)
    assert found.difference == pytest.approx(np.mean(list(b.values())) - np.mean(list(a.values())))
    # The sum of the binomial's tails, by hand.
    few, all_ = min(found.only_a, found.only_b), found.differ
    tail = sum(math.comb(all_, k) for k in range(few + 1)) / 2**all_
    assert found.p_value == pytest.approx(min(1.0, 2 * tail))
    assert -1 <= found.low <= found.high <= 1
    back = paired(b, a)
    assert back is not None and (back.low, back.high) == pytest.approx((-found.high, -found.low))


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=50))
def test_graded_scores(pairs: list[tuple[float, float]]) -> None:
    a, b = (table([pair[i] for pair in pairs]) for i in (0, 1))
    found = paired(a, b)
    assert found is not None
    if found.p_value is None:
        differences = np.subtract(list(b.values()), list(a.values()))
        half = 1.959963984540054 * differences.std(ddof=1) / math.sqrt(len(pairs))
        assert (found.low, found.high) == pytest.approx(
            (differences.mean() - half, differences.mean() + half), abs=1e-9
        )


def test_the_interval_holds_the_true_difference_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(2000):
        draws = rng.choice(4, size=120, p=[0.80, 0.04, 0.09, 0.07])  # both, only A, only B, neither: B is 0.05 better
        found = paired(table([float(d in (0, 1)) for d in draws]), table([float(d in (0, 2)) for d in draws]))
        assert found is not None
        inside += found.low <= 0.05 <= found.high
    assert 0.94 <= inside / 2000 <= 0.98


def test_pairing_is_narrower_than_two_independent_errors() -> None:
    a = table([1.0] * 90 + [0.0] * 10)
    found = paired(a, {**a, 0: 0.0, 1: 0.0})
    assert found is not None
    independent = 2 * 1.96 * math.sqrt(0.9 * 0.1 / 99 + 0.88 * 0.12 / 99)
    assert found.high - found.low < independent / 2
    assert found.within_noise and found.p_value == 0.5 and mcnemar(0, 9) == pytest.approx(2 / 2**9)


def row(number: int, score: float | None, prompt: str = "q", response: str = "r") -> dict:
    return {"task": "t", "doc_id": number, "prompt": prompt, "score": score, "response": response}


def test_different_questions_are_not_paired() -> None:
    one = [row(i, 1.0, f"{i}") for i in range(10)]
    other = [row(i, 1.0, f"other {i}") for i in range(10)]
    assert paired(scores_of(one), scores_of(other)) is None
    found = paired(scores_of(one), scores_of(one[:9]))
    half = 1.959964 * math.sqrt(2 / 11 / 11)
    assert found is not None and (found.n, found.differ, found.p_value) == (9, 0, 1.0)
    assert (found.low, found.high) == pytest.approx((-half, half))
    assert scores_of([row(0, None)]) == {next(iter(scores_of([row(0, 0.0)]))): 0.0}


def test_two_runs_that_agree_and_that_do_not() -> None:
    one = [row(i, 1.0, f"{i}") for i in range(4)]
    assert differing_answers(one, one) == (0, 4)
    assert differing_answers(one, [*one[:3], row(3, 1.0, "3", "another")]) == (1, 4)


def test_the_report_compares_question_by_question_where_it_can() -> None:
    from moecap.report.pairs import Pairs, in_words

    def label(precision: str) -> dict[str, str]:
        return {"model": "m", "precision": precision, "engine": "e", "dataset": "d"}

    one = [row(i, 1.0, f"{i}") for i in range(64)]
    other = [row(i, float(i > 2), f"{i}") for i in range(64)]
    pairs = Pairs([(label("bf16"), one), (label("int8"), other)])
    found = pairs(label("int8"), label("bf16"))
    assert found is not None and (found.only_a, found.only_b) == (3, 0)
    assert "same 64 questions, 3 of them" in in_words(found) and "p = 0.25" in in_words(found)
    assert pairs(label("int4"), label("bf16")) is None and pairs(label("bf16"), label("bf16")) is None
