"""What came of each question, out of lm-eval's logged samples, and what of it is no proper answer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from moecap.accuracy.context import GENERATED

#: Steps of lm-eval's filters that look for an answer in a text, and what they leave where there is none.
_FINDERS, _NOT_FOUND = ("regex", "multi_choice_regex"), "[invalid]"

Tokenize = Callable[[list[str]], Sequence[Sequence[int]]]


def is_degenerate(text: str) -> bool:
    """Whether an answer is empty, blank, or one character four times or more: the marks of a broken model.

    >>> [is_degenerate(t) for t in ("", " ", "0000000", "111", "42")]
    [True, True, True, False, False]
    """
    bare = text.strip()
    return not bare or (len(bare) >= 4 and len(set(bare)) == 1)


def score(values: Iterable[float | None], attempted: int) -> tuple[float, float | None]:
    """(accuracy, its standard error) over all ``attempted`` questions; None, or a value that is not there, is wrong.

    The standard error is the sample standard deviation over √n, as in lm-eval; None for fewer than two questions.
    """
    given = [0.0 if value is None else float(value) for value in values]
    if attempted < max(1, len(given)):
        raise ValueError(f"{len(given)} scores for {attempted} questions")
    padded = given + [0.0] * (attempted - len(given))
    mean = math.fsum(padded) / attempted
    if attempted < 2:
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in padded) / (attempted - 1)
    return mean, math.sqrt(variance / attempted)


def samples_of(
    results: Mapping[str, Any],
    metric: str | None,
    filter_name: str,
    tokenize: Tokenize | None = None,
) -> list[dict[str, Any]]:
    """One row of SAMPLES_SCHEMA per question.

    Args:
        metric: None: nobody scores here (a judge will), and the question's own data are kept.
        tokenize: texts to token ids, to tell which answers are as long as they may be; None: nobody knows.
    """
    rows = []
    for task, logged in results["samples"].items():
        config = results["configs"][task]
        make = {"multiple_choice": _choice, "loglikelihood_rolling": _text_itself}.get(config["output_type"], _written)
        kept = [sample for sample in logged if sample["filter"] == filter_name]
        made = [
            {
                "task": task,
                "doc_id": sample["doc_id"],
                "prompt": sample["arguments"][0][0],
                "degenerate": False,
                **make(sample, metric, config, filter_name),
            }
            for sample in kept
        ]
        if make is _written and tokenize is not None:
            limit = int((config.get("generation_kwargs") or {}).get("max_gen_toks", GENERATED))
            for row, ids in zip(made, tokenize([row["response"] or "" for row in made]), strict=True):
                row["cut"] = len(ids) >= limit
        if metric is None:
            for row, sample in zip(made, kept, strict=True):
                row["doc"] = json.dumps(sample["doc"], default=str)
        rows += made
    return rows


def _choice(sample: Mapping[str, Any], metric: str | None, *_: Any) -> dict[str, Any]:
    responses = [_first(r) for r in sample["resps"]]
    value = sample.get(metric or "")
    failed = value is None or any(r is None for r in responses)
    texts = [arguments[1] for arguments in sample["arguments"]]
    likelihoods = None if failed else [float(r[0]) for r in responses]
    best = None if likelihoods is None else max(range(len(texts)), key=likelihoods.__getitem__)
    target = sample["target"]
    return {
        "score": None if value is None or failed else float(value),
        "failed": failed,
        "target": texts[target] if isinstance(target, int) and target < len(texts) else str(target),
        "response": None if best is None or best >= len(texts) else texts[best],
        "loglikelihoods": likelihoods,
    }


def _written(
    sample: Mapping[str, Any], metric: str | None, config: Mapping[str, Any], filter_name: str
) -> dict[str, Any]:
    text = _first(sample["resps"][0])
    value = None if metric is None else _number(sample.get(metric))
    failed = text is None or (value is None and metric is not None)
    return {
        "score": None if failed else value,
        "failed": failed,
        "target": str(sample["target"]),
        "response": text,
        "degenerate": not failed and not value and is_degenerate(text),
        "unparsed": _unparsed(sample, config, filter_name),
    }


def _text_itself(sample: Mapping[str, Any], metric: str | None, *_: Any) -> dict[str, Any]:
    """A text whose likelihood is asked for: lm-eval gives (its logarithm, words or bytes) as the metric."""
    value: Any = sample.get(metric or "")
    failed = not isinstance(value, list | tuple) or len(value) != 2 or not value[1]
    return {
        "score": None if failed else math.exp(min(700.0, -value[0] / value[1])),
        "failed": failed,
        "target": None,
        "response": None,
        "prompt": sample["arguments"][0][0],
        "loglikelihoods": None if failed else [float(value[0])],
    }


def _number(value: Any) -> float | None:
    """A metric's value; the share of right ones of several (ifeval's instructions of a prompt)."""
    if isinstance(value, list | tuple):
        return math.fsum(map(float, value)) / len(value) if value else None
    return None if value is None else float(value)


def _unparsed(sample: Mapping[str, Any], config: Mapping[str, Any], filter_name: str) -> bool | None:
    """Whether the filter found no answer in the text; None: it looks for none."""
    listed = config.get("filter_list")
    steps = [
        step
        for entry in (listed if isinstance(listed, list) else [])
        if entry.get("name") == filter_name
        for step in entry.get("filter") or []
    ]
    if not any(step.get("function") in _FINDERS for step in steps):
        return None
    return _first(sample.get("filtered_resps")) == _NOT_FOUND


def _first(response: Any) -> Any:
    return response[0] if isinstance(response, list) and response else response
