"""Counting, checking and loading of lm-eval tasks; the engine itself is in the tests marked so."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from moecap.accuracy import counting
from moecap.accuracy import evaluate as accuracy
from moecap.checkpoints import demo
from moecap.errors import MoecapError

ROOT = Path(__file__).resolve().parents[2]
TASKS = ROOT / "config" / "tasks"


@given(st.lists(st.sampled_from([0.0, 1.0, None]), min_size=2, max_size=50), st.integers(0, 20))
def test_what_failed_counts_as_wrong(values: list[float | None], missing: int) -> None:
    attempted = len(values) + missing
    mean, stderr = counting.score(values, attempted)
    right = sum(value == 1.0 for value in values)
    assert mean == pytest.approx(right / attempted)
    # Of a share p of n: sqrt(p (1-p) / (n-1)).
    assert stderr == pytest.approx(math.sqrt(mean * (1 - mean) / (attempted - 1)), abs=1e-12)


def test_a_single_question_has_no_standard_error_and_more_answers_than_questions_are_an_error() -> None:
    assert counting.score([1.0], 1) == (1.0, None)
    with pytest.raises(ValueError, match="2 scores for 1"):
        counting.score([1.0, 0.0], 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", True), (" \n", True), ("0000", True), ("!!!!!!!!", True), ("111", False), ("1112", False), ("7", False)],
)
def test_degenerate_answers(text: str, expected: bool) -> None:
    assert counting.is_degenerate(text) is expected


def test_a_task_that_does_not_exist_is_refused_with_the_nearest_name() -> None:
    pytest.importorskip("lm_eval")
    for name in ("arithmetic", "arithmetic-mc", "gsm8k", "mmlu", "mmlu_anatomy"):
        accuracy.check_task(name, TASKS)
    with pytest.raises(MoecapError, match="gsm8k") as refused:
        accuracy.check_task("gsm8kk", TASKS)
    assert "\n" not in str(refused.value)


def test_every_dataset_of_the_catalogue_names_a_task_that_exists_and_a_metric_that_it_computes() -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.tasks._yaml_loader import load_yaml

    for name, entry in yaml.safe_load((ROOT / "config/catalogue/datasets.yaml").read_text()).items():
        accuracy.check_task(entry["task"], TASKS)
        if entry.get("demo"):
            config = load_yaml(TASKS / f"{entry['task']}.yaml")
            assert "dataset_kwargs" not in config, "the path of the data is filled in, not written down"
            assert (config["output_type"] == "multiple_choice") == (entry["kind"] == "multiple_choice")
            assert entry["metric"] in [m["metric"] for m in config["metric_list"]], name


def sample(**more: object) -> dict:
    base = {"doc_id": 0, "filter": "none", "target": "42", "arguments": [("6*7=", {})], "resps": [["42"]]}
    return {**base, "exact_match": 1.0, **more}


def test_samples_of_written_answers() -> None:
    results = {
        "configs": {"t": {"output_type": "generate_until"}},
        "samples": {
            "t": [
                sample(),
                sample(doc_id=1, resps=[["00000"]], exact_match=0.0),
                sample(doc_id=2, target="1111", resps=[["1111"]]),
                sample(doc_id=3, resps=[[None]], exact_match=0.0),
                sample(doc_id=0, filter="other", exact_match=0.0),
            ]
        },
    }
    rows = counting.samples_of(results, "exact_match", "none")
    assert [row["doc_id"] for row in rows] == [0, 1, 2, 3]
    assert [row["score"] for row in rows] == [1.0, 0.0, 1.0, None]
    assert [row["degenerate"] for row in rows] == [False, True, False, False]
    assert [row["failed"] for row in rows] == [False, False, False, True]
    assert rows[0]["prompt"] == "6*7=" and rows[0]["response"] == "42"


def test_samples_of_choices_hold_the_likeliest_and_every_likelihood() -> None:
    arguments = [("6*7=", choice) for choice in ("41", "42", "52")]
    resps = [[(-3.0, False)], [(-0.5, True)], [(-4.0, False)]]
    results = {
        "configs": {"t": {"output_type": "multiple_choice"}},
        "samples": {"t": [sample(target=1, arguments=arguments, resps=resps, acc=1.0)]},
    }
    (row,) = counting.samples_of(results, "acc", "none")
    assert (row["target"], row["response"], row["loglikelihoods"]) == ("42", "42", [-3.0, -0.5, -4.0])


def test_a_tasks_hash_follows_its_content_not_its_place(tmp_path: Path) -> None:
    first, copy, other = (tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl"))
    first.write_text("{}\n")
    copy.write_text("{}\n")
    other.write_text('{"x": 1}\n')
    config = {"t": {"doc_to_text": "{{question}}", "dataset_kwargs": {"data_files": {"test": "here"}}, "metadata": {}}}
    moved = {"t": {**config["t"], "dataset_kwargs": {"data_files": {"test": "there"}}}}
    reworded = {"t": {**config["t"], "doc_to_text": "Q: {{question}}"}}
    hash_of = accuracy.task_hash
    assert hash_of(config, {"test": str(first)}) == hash_of(moved, {"test": str(copy)})
    assert hash_of(config, {"test": str(first)}) != hash_of(config, {"test": str(other)})
    assert hash_of(config) != hash_of(reworded)


def test_the_engines_entry_says_how_lm_eval_runs_it() -> None:
    name, arguments, batch_size = accuracy.model_arguments("/m", accuracy.VLLM_CPU, tensor_parallel=2, seed=3)
    assert (name, batch_size) == ("vllm", "auto")
    assert arguments["tensor_parallel_size"] == 2 and arguments["seed"] == 3 and arguments["enforce_eager"] is True
    assert "batch_size" not in arguments
    cpu = {"device": "cpu", "lm_eval": {"model": "hf", "model_args": {"batch_size": "auto", "device": "cpu"}}}
    assert accuracy.model_arguments("/m", cpu)[2] == 32
    with pytest.raises(MoecapError, match="lm_eval"):
        accuracy.model_arguments("/m", {"device": "cpu"})


@pytest.fixture(scope="module")
def gsm8k_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two files with the columns of GSM8K (made up here)."""
    folder = tmp_path_factory.mktemp("gsm8k")
    files = {}
    for split, count in (("train", 8), ("test", 5)):
        path = folder / f"{split}.jsonl"
        rows = [
            {"question": f"What is {i} plus 1?", "answer": f"It is <<{i}+1={i + 1}>>.\n#### {i + 1}"}
            for i in range(count)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files[split] = str(path)
    return files


def test_local_files_stand_in_for_a_tasks_download(gsm8k_files: dict[str, str]) -> None:
    pytest.importorskip("lm_eval")
    loaded = accuracy.load_task("gsm8k", TASKS, gsm8k_files)
    (task,) = loaded["tasks"].values()
    assert len(task.eval_docs) == 5
    assert task.config.num_fewshot == 5 and task.config.doc_to_text.startswith("Question:")
    with pytest.raises(MoecapError, match="train"):  # the worked examples come from there
        accuracy.load_task("gsm8k", TASKS, {"test": gsm8k_files["test"]})
    with pytest.raises(MoecapError, match="does not exist"):
        accuracy.load_task("gsm8k", TASKS, {**gsm8k_files, "test": "nowhere.jsonl"})
    with pytest.raises(MoecapError, match="group"):
        accuracy.load_task("mmlu", TASKS, gsm8k_files)


def test_the_context_is_that_of_the_longest_question(gsm8k_files: dict[str, str]) -> None:
    pytest.importorskip("lm_eval")
    from moecap.accuracy.context import GENERATED, ROOM, needed_tokens

    tasks = accuracy.load_task("gsm8k", TASKS, gsm8k_files)["tasks"]
    (task,) = tasks.values()
    # Every made-up question and answer has as many words, whichever examples are drawn.
    words = len(task.fewshot_context(task.eval_docs[0], num_fewshot=5).split())
    assert needed_tokens(tasks, lambda texts: [text.split() for text in texts]) == words + GENERATED + ROOM
    task.set_config(key="num_fewshot", value=0)
    bare = len(task.fewshot_context(task.eval_docs[0], num_fewshot=0).split())
    assert needed_tokens(tasks, lambda texts: [text.split() for text in texts]) == bare + GENERATED + ROOM


def test_the_demos_tasks_load_with_the_generated_data(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    demo.write_data(tmp_path, seed=1, train_count=10)
    for name in demo.TEST_FILES:
        loaded = accuracy.load_task(name, TASKS, demo.local_data(tmp_path / "manifest.json", name))
        (task,) = loaded["tasks"].values()
        document = task.eval_docs[0]
        assert task.doc_to_text(document) == document["question"]
        assert task.fewshot_context(document, num_fewshot=0) == document["question"]


def test_an_unknown_metric_is_refused_before_a_model_is_loaded(gsm8k_files: dict[str, str]) -> None:
    pytest.importorskip("lm_eval")
    entry = {"task": "gsm8k", "metric": "exact_mach,strict-match"}
    with pytest.raises(MoecapError, match="'exact_match'"):
        accuracy.evaluate("no-such-model", entry, data_files=gsm8k_files)
