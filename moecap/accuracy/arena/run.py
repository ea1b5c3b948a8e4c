"""A deployment's answers against a baseline's: games, what judging them may cost, verdicts, the score."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from moecap.accuracy.arena.answers import question_id, read_answers
from moecap.accuracy.arena.judge import Ask, judge_games
from moecap.accuracy.arena.kept import Kept
from moecap.accuracy.arena.score import Game, Score, score, style_of
from moecap.accuracy.arena.settings import Judge, Judging
from moecap.accuracy.arena.verdicts import OUTCOMES, Prompts, read_prompts
from moecap.columns.accuracy import ACCURACY, EVALUATION
from moecap.columns.base import schema
from moecap.columns.deployment import DEPLOYMENT, POINT
from moecap.columns.judged import GAME, JUDGED
from moecap.errors import MoecapError, PermanentError

log = logging.getLogger(__name__)


JUDGED_SCHEMA = schema(
    "model precision engine dataset metric accuracy± accuracy_stderr accuracy_n accuracy_failed accuracy_empty "
    "accuracy_cut by_question± style_controlled± answer_tokens baseline_tokens battles games_verdict games_missing "
    "games_unknown games_contradictory games_cut games_refused rate_limited judge_prompt_tokens judge_output_tokens "
    "judge_usd judge_usd_at_most judge baseline prompts note",
    *(DEPLOYMENT, POINT, ACCURACY, EVALUATION, JUDGED),
)
GAMES_SCHEMA = schema("question order winner outcome judgment asked_tokens judgment_tokens", GAME)

NO_JUDGE = (
    "not judged: the config names no `judge` (model and url), so that there is no win rate. The answers are kept; "
    "with a judge they are judged without the model."
)


def skipped(why: str = NO_JUDGE) -> tuple[dict[str, Any], pa.Table]:
    """What stands for a score where nobody judges."""
    return {"note": why}, GAMES_SCHEMA.empty_table()


def judge_answers(
    samples: Sequence[Mapping[str, Any]],
    judging: Judging,
    judge: Judge,
    baseline_file: str | Path,
    kept: Kept,
    count_tokens: Callable[[str], int],
    tell: Callable[[str], None] = log.info,
    **client: Any,
) -> tuple[dict[str, Any], pa.Table]:
    """Judge a deployment's answers and score them.

    Args:
        samples: rows of a table of answers: ``doc`` (JSON of the question as the benchmark has it), ``prompt``,
            ``response`` (None: none came) and ``cut``.
        judging, judge: as in the dataset's entry and the config.
        baseline_file: the baseline's answers.
        kept: judgments from before; new ones are added at once.
        count_tokens: of a text.
        client: for :func:`moecap.accuracy.arena.judge.judge_games`.

    Returns:
        (row of JUDGED_SCHEMA without what it is keyed by, table of GAMES_SCHEMA).

    Raises:
        PermanentError: the baseline lacks a question, the budget would not do, the judge refuses key or model.
        MoecapError: the judge could not be had for some games: start again, and they alone are asked for.
    """
    prompts = read_prompts(judge.prompts)
    questions = [(_id(row), row) for row in samples if _wanted(row, judging.category)]
    baseline = read_answers(baseline_file, judging.baseline)
    if lacking := [key for key, _ in questions if key not in baseline]:
        raise PermanentError(
            f"{baseline_file} has no answer to {len(lacking)} of {len(questions)} questions ({', '.join(lacking[:3])} "
            "…)."
        )
    if len({key for key, _ in questions}) != len(questions):
        raise PermanentError("the questions have an id twice; each is judged once. Check `data_files` of the dataset.")
    answered = [(key, row) for key, row in questions if row["response"] is not None]
    asks = [ask for key, row in answered for ask in _asks(key, row, baseline[key], prompts)]
    lengths = {key: (count_tokens(row["response"]), count_tokens(baseline[key])) for key, row in answered}
    estimate = _estimate([a for a in asks if a.key(judge) not in kept.records], judge, count_tokens)
    tell(estimate["text"])
    if judge.budget_usd is not None and (estimate["usd"] is None or estimate["usd"] > judge.budget_usd):
        at_most = (
            "an unknown amount (`judge.price` is missing)" if estimate["usd"] is None else f"${estimate['usd']:.2f}"
        )
        raise PermanentError(f"Judging may cost {at_most}, and `judge.budget_usd` is {judge.budget_usd}.")
    records, tally = judge_games(asks, judge, kept, tell=tell, **client)
    games: list[dict[str, Any]] = [
        {"question": a.question, "order": a.order, **{k: (r or {}).get(k) for k in GAMES_SCHEMA.names[2:]}}
        for a, r in zip(asks, records, strict=True)
    ]
    if tally.gave_up:
        raise MoecapError(
            f"{tally.gave_up} of {len(asks)} games could not be judged by {judge.model} ({tally.rate_limited} times a "
            f"rate limit, {tally.errors} errors). Start again: what was judged is kept, the rest is asked for."
        )
    found = score(
        [Game(g["question"], g["order"], g["winner"]) for g in games if g["winner"]],
        judging.version,
        strong=judging.strong,
        styles={
            key: (style_of(row["response"], lengths[key][0]), style_of(baseline[key], lengths[key][1]))
            for key, row in answered
        },
    )
    outcomes = Counter(g["outcome"] or "missing" for g in games)
    cost = _cost(games, judge)
    tell(
        f"{judge.model}: {outcomes['verdict']} verdicts of {len(games)} games"
        + ("" if cost["judge_usd"] is None else f", ${cost['judge_usd']:.2f}")
    )
    row = {
        "metric": f"win_rate,{judging.version}",
        **_figures(found),
        "accuracy_failed": len(questions) - len(answered),
        "answer_tokens": _mean([own for own, _ in lengths.values()]),
        "baseline_tokens": _mean([other for _, other in lengths.values()]),
        "accuracy_cut": _count(answered, "cut"),
        "accuracy_empty": sum(not row["response"].strip() for _, row in answered),
        **{f"games_{name}": outcomes[name] for name in OUTCOMES},
        "rate_limited": tally.rate_limited,
        **cost,
        "judge_usd_at_most": estimate["usd"],
        "judge": json.dumps(judge.decides(), sort_keys=True),
        "baseline": f"{judging.baseline}, sha256 {hashlib.sha256(Path(baseline_file).read_bytes()).hexdigest()}",
        "prompts": json.dumps(asdict(prompts), sort_keys=True),
        "note": None if found else "no game has a verdict that counts",
    }
    return row, pa.Table.from_pylist(games, schema=GAMES_SCHEMA)


def _figures(found: Score | None) -> dict[str, Any]:
    if found is None:
        return {"accuracy_n": 0, "battles": 0}
    row = {
        "accuracy": found.rate.value,
        "accuracy_low": min(found.rate.low, found.rate.value),
        "accuracy_high": max(found.rate.high, found.rate.value),
        "accuracy_stderr": found.by_question.stderr,
        "accuracy_n": found.questions,
        "battles": found.battles,
        "by_question": found.rate.value,
        "by_question_low": found.by_question.low,
        "by_question_high": found.by_question.high,
    }
    if found.styled is not None:
        row |= {"style_controlled": found.styled.value}
        row |= {f"style_controlled_{end}": getattr(found.styled, end) for end in ("low", "high")}
    return row


def _document(row: Mapping[str, Any]) -> dict[str, Any]:
    document = json.loads(row["doc"]) if row.get("doc") else {}
    return document if isinstance(document, dict) else {}


def _id(row: Mapping[str, Any]) -> str:
    found = question_id(_document(row))
    if found is None:
        raise PermanentError("a question has neither `uid` nor `question_id`: it is not in the benchmark's form.")
    return found


def _wanted(row: Mapping[str, Any], category: str | None) -> bool:
    return category is None or _document(row).get("category") == category


def _question(row: Mapping[str, Any]) -> str:
    """The question itself, without a chat template."""
    document = _document(row)
    return str(document["prompt"] if "prompt" in document else document["turns"][0]["content"])


def _asks(key: str, row: Mapping[str, Any], baseline: str, prompts: Prompts) -> list[Ask]:
    question, own = _question(row), row["response"]
    return [
        Ask(key, 0, prompts.messages(question, baseline, own)),
        Ask(key, 1, prompts.messages(question, own, baseline)),
    ]


def _estimate(asks: Sequence[Ask], judge: Judge, count_tokens: Callable[[str], int]) -> dict[str, Any]:
    """What is still to be judged, and the most that it may cost: every judgment at its limit."""
    prompt = sum(count_tokens(message["content"]) for ask in asks for message in ask.messages)
    output = len(asks) * judge.max_tokens
    usd = None
    if judge.price is not None:
        usd = (
            prompt * judge.price.usd_per_million_input_tokens + output * judge.price.usd_per_million_output_tokens
        ) / 1e6
    shown = "cost unknown: `judge.price` is missing" if usd is None else f"at most ${usd:.2f}"
    text = f"to be judged by {judge.model}: {len(asks)} games, about {prompt:,} tokens of prompts (by the deployment's "
    return {"usd": usd, "text": f"{text}tokenizer) and at most {output:,} of judgments; {shown}"}


def _cost(games: Sequence[Mapping[str, Any]], judge: Judge) -> dict[str, Any]:
    """Tokens and cost as the judge counted them; null where it left out any."""
    totals: dict[str, Any] = {}
    for name, of in (("prompt_tokens", "asked_tokens"), ("output_tokens", "judgment_tokens")):
        counts = [g[of] for g in games]
        totals[name] = None if None in counts else sum(counts)
    usd, price = None, judge.price
    if price is not None and None not in totals.values():
        usd = totals["prompt_tokens"] * price.usd_per_million_input_tokens
        usd = (usd + totals["output_tokens"] * price.usd_per_million_output_tokens) / 1e6
    return {**{f"judge_{name}": value for name, value in totals.items()}, "judge_usd": usd}


def _mean(values: Sequence[int]) -> float | None:
    return sum(values) / len(values) if values else None


def _count(answered: Sequence[tuple[str, Mapping[str, Any]]], key: str) -> int | None:
    """How many answers are marked so; null where nobody knows of some."""
    marks = [row.get(key) for _, row in answered]
    return None if None in marks else sum(map(bool, marks))
