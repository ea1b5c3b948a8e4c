import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moecap.engines.base import Request
from moecap.errors import PermanentError
from moecap.measure import workload
from moecap.measure.workload import TaskPrompts, build, requests_sha256, seeded_order

TEXTS = [f"question {i}: {'x' * i}" for i in range(50)]


def tokenize(text):
    return [ord(c) for c in text]


def make(**more):
    return build("d", TEXTS, tokenize, **{"output_tokens": 4, "needed": 20, "seed": 1, **more})


def test_prompts_are_the_datasets_own():
    made = make()
    assert len(made.prompts) == 20
    assert len(set(made.prompts)) == 20
    assert {"".join(map(chr, p)) for p in made.prompts} <= set(TEXTS)  # whole: neither cut nor looped


def test_order_depends_on_seed_and_dataset_only():
    assert make() == make()
    assert make().prompts != make(seed=2).prompts
    assert make().prompts == make(needed=30).prompts[:20]
    assert seeded_order(50, 1, "a") != seeded_order(50, 1, "b")


@given(st.integers(0, 300), st.integers(0, 5))
def test_order_is_a_permutation(count, seed):
    assert sorted(seeded_order(count, seed, "x")) == list(range(count))


def test_only_chosen_prompts_are_rendered():
    rendered = []
    build("d", lambda i: rendered.append(i) or TEXTS[i], tokenize, count=50, output_tokens=4, needed=5, seed=1)
    assert len(rendered) == 5


def test_what_does_not_fit_is_left_out_and_counted():
    made = make(context_limit=40, needed=50)
    assert all(len(p) + 4 <= 40 for p in made.prompts)
    assert made.left_out == 50 - len(made.prompts) > 0
    with pytest.raises(PermanentError, match="none of its 50 prompts fits"):
        make(context_limit=10)


def test_equal_prompts_count_once():
    assert build("d", ["same"] * 9 + ["other"], tokenize, output_tokens=4, needed=10, seed=1).prompts.__len__() == 2


@given(st.integers(1, 20), st.integers(0, 50))
def test_a_batch_repeats_no_prompt(size, number):
    batch = make().batch(size, number)
    assert len({r.prompt_token_ids for r in batch}) == len(batch) == size
    assert {r.output_tokens for r in batch} == {4}


def test_batches_follow_each_other():
    made = make()
    assert [r.prompt_token_ids for n in range(4) for r in made.batch(5, n)] == list(made.prompts)
    assert made.batch(5, 4) == made.batch(5, 0)
    with pytest.raises(PermanentError, match="20 usable prompts, fewer than batch size 21"):
        made.batch(21, 0)


def test_warm_up_takes_the_other_end():
    made = make()
    assert [r.prompt_token_ids for r in made.warmup(2)] == [made.prompts[-1], made.prompts[-2]]
    assert len(made.warmup(20, 3)) == 20


def test_words():
    made = make()
    assert made.describe(4) == "d: 4 prompts, 4 output tokens fixed"
    assert made.describe(4, 3) == "d: 12 prompts, 4 output tokens fixed, 3 waves of 4"
    assert made.context_tokens == max(len(p) for p in made.prompts) + 4


def test_hash_of_requests():
    a, b = Request((1, 2), 3), Request((4,), 3)
    assert requests_sha256([a, b]) == requests_sha256([Request((1, 2), 3), Request((4,), 3)])
    hashes = {requests_sha256(x) for x in ([a, b], [b, a], [a], [Request((1, 2), 4), b], [Request((1,), 3), b])}
    assert len(hashes) == 5


def test_context_limit(tmp_path):
    assert workload.context_limit(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"max_position_embeddings": 77}}))
    assert workload.context_limit(tmp_path) == 77
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 9}))
    assert workload.context_limit(tmp_path) == 9


class FakeTask:
    def __init__(self, name, count):
        self.name, self.eval_docs = name, [f"{name}{i}" for i in range(count)]

    def fewshot_context(self, doc, num_fewshot, apply_chat_template, chat_template):
        text = f"{num_fewshot} {doc}"
        return [chat_template(text)] if apply_chat_template else text


def test_prompts_of_a_group_of_tasks():
    prompts = TaskPrompts((("a", FakeTask("a", 2), 2, 0), ("b", FakeTask("b", 3), 3, 5)))
    assert len(prompts) == 5
    assert [prompts(i) for i in range(5)] == ["0 a0", "0 a1", "5 b0", "5 b1", "5 b2"]
    with pytest.raises(IndexError):
        prompts(5)
    chat = TaskPrompts((("a", FakeTask("a", 2), 2, 0),), lambda text: f"<{text}>")
    assert chat(1) == "<0 a1>"


def test_chat_renderer():
    def apply_chat_template(messages, tokenize, add_generation_prompt):
        return messages, tokenize, add_generation_prompt

    tokenizer = SimpleNamespace(apply_chat_template=apply_chat_template)
    assert workload.chat_renderer(tokenizer)(["m"], add_generation_prompt=True) == (["m"], False, True)


@pytest.mark.engine
def test_prompts_through_lm_evals_own_template(tmp_path):
    """The task's YAML and a local file, as accuracy is evaluated on them."""
    pytest.importorskip("lm_eval", reason="needs the engine environment (make test)")
    (tmp_path / "sums.yaml").write_text(
        "task: sums\ndataset_path: json\ntest_split: test\noutput_type: multiple_choice\n"
        'doc_to_text: "Q: {{question}}"\ndoc_to_choice: choices\ndoc_to_target: label\n'
        "metric_list:\n  - metric: acc\n"
    )
    rows = [{"question": f"{i}+1=", "choices": ["1", "2"], "label": 0} for i in range(6)]
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = workload.task_prompts("sums", task_dir=tmp_path, data_files={"test": str(data)})
    assert [prompts(i) for i in range(len(prompts))] == [f"Q: {i}+1=" for i in range(6)]
