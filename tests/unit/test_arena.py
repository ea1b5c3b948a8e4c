"""Arena-Hard: verdicts, the score against an independent computation, and judging over real HTTP."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecap.accuracy.arena.answers import read_answers
from moecap.accuracy.arena.kept import Kept
from moecap.accuracy.arena.run import GAMES_SCHEMA, JUDGED_SCHEMA, judge_answers, skipped
from moecap.accuracy.arena.score import Game, score, style_of, win_rate
from moecap.accuracy.arena.settings import Judge, Judging
from moecap.accuracy.arena.verdicts import OWN, VERDICTS, battles, read_prompts, read_verdict
from moecap.errors import MoecapError, PermanentError
from tests.arena_judge import judge_server, said

LABELS = list(VERDICTS)


@given(
    st.text(alphabet="AB<>= []xy\n", max_size=40), st.sampled_from(LABELS), st.text(alphabet="AB<>= xy\n", max_size=40)
)
def test_a_verdict_is_read_strictly(before: str, label: str, after: str) -> None:
    text = f"{before}[[{label}]]{after}"
    others = set(re.findall(r"\[\[([AB<>=]+)\]\]", text)) - {label}
    assert read_verdict(text) == ((label, "verdict") if not others else (None, "contradictory"))


@pytest.mark.parametrize("text", ["", "A>B", "[A>B]", "[[A>B]", "[[ A>B ]]", "[[tie]]", "[[a>b]]"])
def test_what_is_no_label_is_no_verdict(text: str) -> None:
    assert read_verdict(text) == (None, "missing")


@pytest.mark.parametrize("label", ["A<B", "A<<B", "A>>>B", "B=A", "AB", ">"])
def test_a_label_beyond_the_five_is_unknown(label: str) -> None:
    assert read_verdict(f"[[{label}]]") == (None, "unknown")


def test_the_orders_mirror_each_other() -> None:
    mirrored = {"A>>B": "B>>A", "A>B": "B>A", "A=B": "A=B", "B>A": "A>B", "B>>A": "A>>B"}
    for verdict, other in mirrored.items():
        assert battles(verdict, 0, 3) == battles(other, 1, 3)


def independent(games: list[Game], whole: bool) -> tuple[float, float, float]:
    """Score and interval by counting: the likelihood of a Bradley-Terry model of two is largest at the share won."""
    table = {"A>>B": [1] * 3, "A>B": [1], "A=B": [0.5], "B>A": [0], "B>>A": [0] * 3}
    shares: list[float] = []
    by_question: dict[str, int] = Counter(g.question for g in games)
    for game in games:
        if whole and by_question[game.question] < 2:
            continue
        shares += [s if game.order == 1 else 1 - s for s in table[game.verdict]]
    np.random.seed(42)  # as the benchmark's script does
    rounds = [np.mean(np.asarray(shares)[np.random.choice(len(shares), size=len(shares))]) for _ in range(100)]
    low, high = np.percentile(rounds, (5, 95) if whole else (2.5, 97.5))
    return (float(np.mean(rounds)) if whole else float(np.mean(shares))), float(low), float(high)


@settings(max_examples=6)
@given(
    st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS), st.booleans()), min_size=12, max_size=40),
    st.sampled_from(["v0.1", "v2.0"]),
)
def test_score_and_interval_are_those_of_counting(verdicts: list[tuple[str, str, bool]], version: str) -> None:
    games = [
        Game(str(i), order, pair[order])
        for i, pair in enumerate(verdicts)
        for order in (0, 1)
        if order == 0 or pair[2] or i == 0
    ]
    found = score(games, version)
    value, low, high = independent(games, version == "v2.0")
    assert found is not None
    # The benchmark prints per cent with two decimals.
    got = [round(100 * x, 2) for x in (found.rate.value, found.rate.low, found.rate.high)]
    assert got == pytest.approx([100 * value, 100 * low, 100 * high], abs=0.0101)
    outcomes = np.asarray([s for g in games for s in battles(g.verdict, g.order, 3)])
    assert win_rate(outcomes) == pytest.approx(outcomes.mean(), abs=1e-6)
    assert found.by_question.low <= found.rate.value + 0.2 and found.styled is None


def test_a_model_that_always_wins_or_has_no_game() -> None:
    games = [Game("1", 0, "B>A"), Game("1", 1, "A>>B")]
    found = score(games, "v0.1")
    assert found is not None and (found.rate.value, found.rate.low, found.rate.high) == (1.0, 1.0, 1.0)
    assert score([], "v0.1") is None and score(games[:1], "v2.0") is None


def test_style_control_finds_a_judge_that_likes_length_alone() -> None:
    rng = np.random.default_rng(3)
    games, styles = [], {}
    for i in range(80):
        own, other = (int(n) for n in rng.integers(50, 900, 2))
        own += 250  # a model that talks more
        styles[str(i)] = (style_of("x", own), style_of("x", other))
        wins = rng.random() < 1 / (1 + np.exp(-6 * (own - other) / (own + other)))
        games += [Game(str(i), 1, "A>B" if wins else "B>A"), Game(str(i), 0, "B>A" if wins else "A>B")]
    for version in ("v0.1", "v2.0"):
        found = score(games, version, styles=styles)
        assert found is not None and found.styled is not None
        assert found.rate.value > 0.7
        # A centred difference: equal style is that of the average game, whose length favours the model.
        assert found.styled.low <= found.styled.value <= found.styled.high


def test_win_rate_with_styles_is_that_of_a_minimizer_of_the_likelihood() -> None:
    from scipy.optimize import minimize

    rng = np.random.default_rng(5)
    outcomes, features = rng.choice([0.0, 0.5, 1.0], 60), rng.normal(size=(60, 4))

    def loss(x: np.ndarray) -> float:
        z = x[0] + features @ x[1:]
        return float(np.sum(np.logaddexp(0, -z) * outcomes + np.logaddexp(0, z) * (1 - outcomes)))

    best = minimize(loss, np.zeros(5), tol=1e-12).x
    assert win_rate(outcomes, features, "v2.0") == pytest.approx(1 / (1 + np.exp(-best[0])), abs=1e-4)


# -- judging over HTTP ------------------------------------------------------------------------------------------------

#: What the made judge thinks of question i: (shown the baseline first, shown the model first).
PLAN = [("A>B", "A>>B"), ("B>>A", "A>B"), ("A=B", "A=B"), ("B>A", "B>A"), ("B>>A", "A>>B"), ("A>>B", "B>A")]


def question(number: int, form: str = "v0.1") -> dict[str, Any]:
    text = f"question {number}: what is {{answer_1}}?"
    if form == "v2.0":
        return {"uid": f"q{number}", "category": "hard_prompt" if number % 2 else "creative_writing", "prompt": text}
    return {"question_id": f"q{number}", "turns": [{"content": text}]}


def answer(number: int, form: str = "v0.1") -> dict[str, Any]:
    text = f"baseline {number}"
    if form == "v2.0":
        messages = [{"role": "user", "content": ""}, {"role": "assistant", "content": {"answer": text}}]
        return {"uid": f"q{number}", "model": "base", "messages": messages}
    return {"question_id": f"q{number}", "model_id": "base", "choices": [{"turns": [{"content": text}]}]}


def made(folder: Path, count: int = len(PLAN), form: str = "v0.1") -> tuple[list[dict[str, Any]], Path]:
    """Answers of a deployment, as lm-eval's run leaves them, and the baseline's file."""
    path = folder / "baseline.jsonl"
    path.write_text("".join(json.dumps(answer(i, form)) + "\n" for i in range(count)), encoding="utf-8")
    rows = [{"doc": json.dumps(question(i, form)), "response": f"model {i}", "cut": i == 0} for i in range(count)]
    return rows, path


def by_plan(message: str, _: int) -> Any:
    first = re.search(r"(baseline|model) (\d+)", message.split("assistant A>")[1])
    assert first is not None
    return said(f"I think [[{PLAN[int(first[2])][first[1] == 'model']}]]")


def words(text: str) -> int:
    return len(text.split())


PRICE = {"usd_per_million_input_tokens": 2.0, "usd_per_million_output_tokens": 8.0, "source": "made", "date": "2026-01"}


def judge(url: str, **more: Any) -> Judge:
    return Judge(model="j", url=url, concurrency=4, **more)


def test_known_verdicts_over_http(tmp_path: Path) -> None:
    rows, baseline = made(tmp_path)
    told: list[str] = []
    with judge_server(by_plan) as (url, seen):
        found, games = judge_answers(
            rows, Judging(version="v0.1", baseline="base"), judge(url, price=PRICE), baseline,
            Kept(tmp_path / "kept.jsonl"), words, told.append,
        )  # fmt: skip
        assert len(seen) == 12 and "question 1: what is {answer_1}?" in "".join(seen)
    expected = [Game(f"q{i}", order, pair[order]) for i, pair in enumerate(PLAN) for order in (0, 1)]
    value, low, high = independent(expected, whole=False)
    # By hand: 1 of (0, 111) 1 of (111, 1), halves, (1, 0), (111, 111), (000, 0): 15 of 22 battles.
    assert value == pytest.approx(15 / 22)
    got = [round(100 * found[k], 2) for k in ("accuracy", "accuracy_low", "accuracy_high")]
    assert got == [round(100 * x, 2) for x in (value, low, high)]
    assert (found["accuracy_n"], found["battles"], found["games_verdict"]) == (6, 22, 12)
    assert found["judge_usd"] == pytest.approx((12 * 100 * 2 + 12 * 10 * 8) / 1e6)
    assert found["judge_usd_at_most"] > found["judge_usd"]
    assert "12 games" in told[0] and "at most $" in told[0] and "12 verdicts of 12 games" in told[-1]
    assert found["accuracy_cut"] == 1 and found["answer_tokens"] == 2
    assert json.loads(found["prompts"])["template"] == OWN.template and "base, sha256" in found["baseline"]
    assert games.schema.equals(GAMES_SCHEMA) and set(found) <= set(JUDGED_SCHEMA.names)


def test_a_judge_that_misbehaves_is_counted_never_guessed(tmp_path: Path) -> None:
    rows, baseline = made(tmp_path)

    def reply(message: str, times: int) -> Any:
        first = re.search(r"(baseline|model) (\d+)", message.split("assistant A>")[1])
        assert first is not None
        game = (int(first[2]), int(first[1] == "model"))
        faults: dict[tuple[int, int], list[Any]] = {
            (0, 0): [(429, {"error": {"message": "slow down"}}, {"Retry-After": "7"}), said("[[A>B]]")],
            (0, 1): [said("no label"), said("[[A>>B]]")],
            (1, 0): [said("[[A>B]] or [[B>A]]")],
            (1, 1): [said("[[A>B]] and then it was cut", finish="length")],
            (2, 0): [said("", refusal="I will not")],
            (2, 1): [said("[[A<<B]]")],
            (3, 0): [(500, b"<html>", {}), (200, b"no json", {}), said("[[B>A]]")],
            (3, 1): [(200, {"choices": []}, {}), said("[[B>A]]")],
            (4, 0): [(400, {"error": {"message": "blocked by the content_filter"}}, {})],
        }
        wanted = faults.get(game)
        return wanted[min(times, len(wanted) - 1)] if wanted else by_plan(message, 0)

    waits: list[float] = []
    with judge_server(reply) as (url, _):
        found, games = judge_answers(
            rows, Judging(version="v0.1", baseline="base"), judge(url), baseline, Kept(tmp_path / "kept.jsonl"), words,
            sleep=waits.append,
        )  # fmt: skip
    counts = {
        name: found[f"games_{name}"] for name in ("verdict", "missing", "unknown", "contradictory", "cut", "refused")
    }
    assert counts == {"verdict": 6, "missing": 1, "unknown": 1, "contradictory": 1, "cut": 1, "refused": 2}
    assert found["rate_limited"] == 1 and 7.0 in waits and len(waits) == 4
    kept = [Game(g["question"], g["order"], g["winner"]) for g in games.to_pylist() if g["winner"]]
    assert found["accuracy"] == pytest.approx(independent(kept, whole=False)[0], abs=1e-6)
    assert found["judge_usd"] is None and found["judge_prompt_tokens"] is None  # one did not say


def test_what_was_judged_is_kept_and_a_change_is_judged_again(tmp_path: Path) -> None:
    rows, baseline = made(tmp_path)
    judging, path = Judging(version="v0.1", baseline="base"), tmp_path / "kept.jsonl"
    down = {"q4", "q5"}

    def sometimes(message: str, times: int) -> Any:
        number = re.search(r"question (\d+)", message)
        assert number is not None
        return (503, {}, {}) if f"q{number[1]}" in down else by_plan(message, times)

    with judge_server(sometimes) as (url, seen):
        patient = judge(url, retries=1)
        with pytest.raises(MoecapError, match="4 of 12 games could not be judged"):
            judge_answers(rows, judging, patient, baseline, Kept(path), words, sleep=lambda _: None)
        content = path.read_bytes()
        assert content.count(b"\n") == 8
        path.write_bytes(content + b'{"key": "half a li')  # a machine that lost its power
        down.clear()
        seen.clear()
        found, _ = judge_answers(rows, judging, patient, baseline, Kept(path), words)
        assert len(seen) == 4 and found["games_verdict"] == 12
        judge_answers(rows, judging, patient, baseline, Kept(path), words)
        assert len(seen) == 4
        rows[0]["response"] = "model 0 in other words"
        judge_answers(rows, judging, patient, baseline, Kept(path), words)
        assert len(seen) == 6


def test_keys_come_from_the_environment_and_stay_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows, baseline = made(tmp_path)
    judging, secret = Judging(version="v0.1", baseline="base"), "s3cr3t-of-the-judge"
    with judge_server(by_plan, key=secret) as (url, _):
        keyed = judge(url, key_variable="JUDGE_KEY")
        for environment, message in (({}, "JUDGE_KEY holds no key"), ({"JUDGE_KEY": "wrong-one"}, "answered 401")):
            with pytest.raises(PermanentError, match=message):
                judge_answers(rows, judging, keyed, baseline, Kept(tmp_path / "k"), words, environment=environment)
        found, games = judge_answers(
            rows, judging, keyed, baseline, Kept(tmp_path / "k"), words, environment={"JUDGE_KEY": secret}
        )
    everything = json.dumps(found) + str(games.to_pylist()) + (tmp_path / "k").read_text(encoding="utf-8") + caplog.text
    assert secret not in everything


def test_what_cannot_be_judged_is_refused_before_a_judge_is_asked(tmp_path: Path) -> None:
    rows, baseline = made(tmp_path)
    judging, kept = Judging(version="v0.1", baseline="base"), Kept(tmp_path / "k")
    nobody = judge("http://127.0.0.1:9", price=PRICE)
    cases: list[tuple[str, Any]] = [
        ("no answer to 1 of 7", ([*rows, {**rows[0], "doc": json.dumps(question(9))}], judging, nobody)),
        ("id twice", ([*rows, rows[0]], judging, nobody)),
        ("is of model 'base'", (rows, Judging(version="v0.1", baseline="gpt"), nobody)),
        (r"may cost \$0.40", (rows, judging, nobody.model_copy(update={"budget_usd": 0.1}))),
        ("unknown amount", (rows, judging, judge("http://127.0.0.1:9", budget_usd=1.0))),
        ("neither `uid` nor", ([{"doc": "{}", "response": "x"}], judging, nobody)),
    ]
    for message, (samples, how, who) in cases:
        with pytest.raises(PermanentError, match=message):
            judge_answers(samples, how, who, baseline, kept, words)
    row, games = skipped()
    assert "accuracy" not in row and "no `judge`" in row["note"] and games.num_rows == 0


def test_both_versions_files_and_a_category_alone(tmp_path: Path) -> None:
    rows, baseline = made(tmp_path, form="v2.0")
    assert read_answers(baseline, "base")["q3"] == "baseline 3"
    with judge_server(by_plan) as (url, _):
        found, games = judge_answers(
            [{**row, "response": None} if i == 1 else row for i, row in enumerate(rows)],
            Judging(version="v2.0", baseline="base", category="hard_prompt"), judge(url), baseline,
            Kept(tmp_path / "k"), words,
        )  # fmt: skip
    assert set(games["question"].to_pylist()) == {"q3", "q5"} and found["accuracy_failed"] == 1
    assert found["metric"] == "win_rate,v2.0"


def test_the_benchmarks_own_prompts_are_read(tmp_path: Path) -> None:
    path = tmp_path / "judge.yaml"
    path.write_text('system_prompt: judge!\nprompt_template: ["Q {question_1} A {answer_1} B {answer_2}"]\n')
    messages = read_prompts(path).messages("a {answer_2}", "b", "c")
    assert messages == [{"role": "system", "content": "judge!"}, {"role": "user", "content": "Q a {answer_2} A b B c"}]
    path.write_text("system_prompt: judge!\nprompt_template: '{QUESTION} {ANSWER_A}'\n")
    with pytest.raises(MoecapError, match="ANSWER_B"):
        read_prompts(path)
