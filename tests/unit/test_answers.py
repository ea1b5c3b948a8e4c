"""No question is put to a model twice: outputs lost, limits raised, tasks added, kills in mid-task, damaged files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from moecap.accuracy import evaluate as accuracy
from moecap.accuracy.answers import FACTS, AnswerSpool, KeepingLM

pytest.importorskip("lm_eval")

QUESTIONS = 10


class Asked:
    """Stands in for an engine behind lm-eval, right to even sums; counts what it is asked, and its loads."""

    def __init__(self) -> None:
        self.questions: Counter[str] = Counter()
        self.loads = 0
        self.ends_after = 10**9

    def model(self, *arguments: Any, **named: Any) -> Any:
        self.loads += 1
        return self

    def _answer(self, request: Any) -> Any:
        if sum(self.questions.values()) >= self.ends_after:
            raise KeyboardInterrupt
        self.questions[json.dumps(request.args)] += 1
        return request.args

    def generate_until(self, requests: Any) -> list[str]:
        prompts = [self._answer(request)[0] for request in requests]
        sums = [sum(int(part) for part in prompt.rstrip("=").split("+")) for prompt in prompts]
        return [str(value if value % 2 == 0 else value + 1) for value in sums]

    def loglikelihood(self, requests: Any) -> list[tuple[float, bool]]:
        return [(-float(len(self._answer(request)[1])) - 0.1, False) for request in requests]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    counted = Asked()
    monkeypatch.setattr(accuracy, "_load_model", counted.model)
    return counted


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """Tasks and a group; in the folder beside it the group has one task more."""
    data = tmp_path / "data.jsonl"
    data.write_text(
        "".join(json.dumps({"q": f"{i}+{i + i % 3}=", "a": str(2 * i + i % 3)}) + "\n" for i in range(QUESTIONS))
    )
    common = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
    written = common | {
        "task": "sums", "output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "{{a}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
        "metric_list": [{"metric": "exact_match"}], "num_fewshot": 0,
    }  # fmt: skip
    chosen = common | {
        "task": "chosen", "output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_target": 0,
        "doc_to_choice": "{{[a, '12345']}}", "metric_list": [{"metric": "acc"}], "num_fewshot": 0,
    }  # fmt: skip
    others = written | {"task": "others", "doc_to_text": "0{{q}}"}
    for folder, members in (("tasks", ["sums"]), ("more", ["sums", "others"])):
        (tmp_path / folder).mkdir()
        means = [{"metric": "exact_match", "aggregation": "mean", "weight_by_size": True}]
        group = {"group": "all", "task": members, "aggregate_metric_list": means}
        for name, task in {"sums": written, "chosen": chosen, "others": others, "all": group}.items():
            (tmp_path / folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return tmp_path / "tasks"


ENGINE = {"device": "cpu", "lm_eval": {"model": "hf", "model_args": {"batch_size": 1}}}


def run(tasks: Path, **more: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    name = more.pop("task", "sums")
    entry = {"task": name, "metric": "acc" if name == "chosen" else "exact_match", **more.pop("dataset", {})}
    more = {"engine": ENGINE, "spool": tasks.parent / "spool", "checkpoint_sha256": "abc"} | more
    row, samples = accuracy.evaluate("/m", entry, task_dir=tasks, **more)
    return row, samples.to_pylist()


@pytest.mark.parametrize("task", ["sums", "chosen"])
def test_an_evaluation_whose_outputs_are_lost_asks_nothing_and_loads_nothing(
    tasks: Path, asked: Asked, task: str
) -> None:
    first = run(tasks, task=task)
    requests = QUESTIONS * (2 if task == "chosen" else 1)
    assert sum(asked.questions.values()) == requests and asked.loads == 1
    assert 0 < first[0]["accuracy"] <= 1 and first[0]["accuracy_n"] == QUESTIONS
    assert run(tasks, task=task) == first
    assert sum(asked.questions.values()) == requests and asked.loads == 1
    # Without a spool, the same score.
    assert run(tasks, task=task, spool=None) == first
    assert sum(asked.questions.values()) == 2 * requests


def test_a_higher_limit_asks_what_is_new_and_a_lower_one_nothing(tasks: Path, asked: Asked) -> None:
    run(tasks, limit=3)
    run(tasks, limit=7)
    assert set(asked.questions.values()) == {1} and len(asked.questions) == 7
    run(tasks, limit=2)
    assert asked.loads == 2 and sum(asked.questions.values()) == 7


def test_a_task_that_a_group_gets_is_asked_alone(tasks: Path, asked: Asked) -> None:
    before, _ = run(tasks, task="all")
    row, _ = run(tasks.parent / "more", task="all")
    assert (before["accuracy_n"], row["accuracy_n"]) == (QUESTIONS, 2 * QUESTIONS)
    assert set(asked.questions.values()) == {1} and len(asked.questions) == 2 * QUESTIONS


def test_an_evaluation_that_is_killed_in_mid_task_goes_on_where_it_was(tasks: Path, asked: Asked) -> None:
    asked.ends_after = 6  # slices of 4 questions at batch size 1: two of the next slice are lost
    with pytest.raises(KeyboardInterrupt):
        run(tasks)
    asked.ends_after = 10**9
    row, _ = run(tasks)
    assert row["accuracy_n"] == QUESTIONS and row["accuracy_failed"] == 0
    assert sum(asked.questions.values()) == QUESTIONS + 2
    assert sum(times == 2 for times in asked.questions.values()) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoint_sha256": "abd"},
        {"seed": 2},
        {"engine": {**ENGINE, "lm_eval": {"model": "hf", "model_args": {"batch_size": 1, "dtype": "float32"}}}},
        {"engine": {**ENGINE, "options": {"env": {"KERNELS": "new"}}}},
        {"trust_remote_code": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_an_answer_depends_on_is_asked_anew(tasks: Path, asked: Asked, change: dict[str, Any]) -> None:
    run(tasks)
    run(tasks, **change)
    assert set(asked.questions.values()) == {2}
    run(tasks, **change)
    run(tasks)
    assert set(asked.questions.values()) == {2}


def test_damaged_and_cut_off_answers_are_asked_again_and_only_these(tasks: Path, asked: Asked) -> None:
    first = run(tasks)
    (file,) = (tasks.parent / "spool").glob("??/*/*.jsonl")
    assert json.loads((file.parent / FACTS).read_text())["checkpoint"] == "abc"
    lines = file.read_text().splitlines(keepends=True)
    lines[2] = lines[2].replace('", "', '", "9', 1)  # another answer than was given
    lines[5] = "\x00\n"
    file.write_text("".join(lines)[:-9])
    assert run(tasks) == first
    assert sum(asked.questions.values()) == QUESTIONS + 3


def test_no_response_is_no_answer_and_a_repeated_question_is_sampled_as_often(tmp_path: Path) -> None:
    class Request:
        args = ("a question", {"do_sample": True, "temperature": 1.0})

    class Model:
        given = iter([None, "one", "two", "three"])

        def generate_until(self, requests: list[Request]) -> list[str | None]:
            return [next(self.given) for _ in requests]

    def ask(times: int) -> list[str | None]:
        return KeepingLM(Model, AnswerSpool(tmp_path, {})).generate_until([Request()] * times)

    assert ask(2) == [None, "one"]
    assert ask(2) == ["two", "one"]
    assert ask(3) == ["two", "one", "three"]
    assert ask(3) == ["two", "one", "three"]
