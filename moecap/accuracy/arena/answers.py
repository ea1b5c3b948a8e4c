"""Files of the benchmark: the baseline's answers, in the forms that its two versions publish."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moecap.errors import PermanentError


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """Objects of a JSONL file.

    Raises:
        PermanentError: the file is missing, or a line is no object.
    """
    rows = []
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PermanentError(f"{path} cannot be read: {error}.") from error
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise PermanentError(f"{path}, line {number}: no JSON object ({error.msg}).") from error
        if not isinstance(row, dict):
            raise PermanentError(f"{path}, line {number}: an object per line is expected.")
        rows.append(row)
    return rows


def question_id(row: Mapping[str, Any]) -> str | None:
    """The benchmark's id of a question or answer."""
    found = row.get("uid", row.get("question_id"))
    return None if found is None else str(found)


def read_answers(path: str | Path, model: str) -> dict[str, str]:
    """Question id → the answer of ``model``.

    Raises:
        PermanentError: a line is in neither of the benchmark's forms, is another model's, or comes twice.
    """
    found: dict[str, str] = {}
    for number, row in enumerate(read_lines(path), 1):
        where = f"{path}, answer {number}"
        of = row.get("model", row.get("model_id"))
        if of != model:
            raise PermanentError(
                f"{where} is of model {of!r}, and the dataset's `judging.baseline` is {model!r}. Name the file of that "
                "model's answers in `judge.baselines`."
            )
        key, text = question_id(row), _text(row)
        if key is None or text is None:
            raise PermanentError(
                f"{where}: neither `uid` and `messages` (v2.0) nor `question_id` and `choices` (v0.1) are there."
            )
        if key in found:
            raise PermanentError(f"{where}: question {key} is answered twice.")
        found[key] = text
    return found


def _text(row: Mapping[str, Any]) -> str | None:
    try:
        if "messages" in row:
            content = row["messages"][-1]["content"]
            content = content["answer"] if isinstance(content, Mapping) else content
        else:
            content = row["choices"][0]["turns"][0]["content"]
    except (KeyError, IndexError, TypeError):
        return None
    return content if isinstance(content, str) else None
