"""The demo model: a small Mixture-of-Experts, really trained, so that its accuracy and its routing mean something.

A Qwen2-MoE of 1.6 million parameters learns integer addition and subtraction from generated problems. Everything is a
function of one seed: the problems, their split into train and test, the initial weights and the order of the batches.
Training ends when the task is solved, never after a fixed time, so that a slow machine gets the same model as a fast
one; on one machine, with one number of threads, the tensors come out bit for bit the same again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moecap.checkpoints.hub import MANIFEST, write_manifest
from moecap.errors import MoecapError
from moecap.io import atomic_directory, atomic_path, write_json

log = logging.getLogger(__name__)

# ---------------------------------------------------------------------------------------------------------------------
# The curriculum
# ---------------------------------------------------------------------------------------------------------------------

TEST_SHARE = 8  # one problem in eight is kept for the test, whatever its kind
CHOICES = 4


@dataclass(frozen=True)
class Kind:
    """A kind of problem: ``first op second`` with both numbers in [low, high].

    ``weight`` is its share of the training problems, ``test_weight`` its share of each test file.
    """

    name: str
    operator: str
    low: int
    high: int
    weight: float
    test_weight: float


KINDS = (
    Kind("add-1", "+", 0, 9, 0.04, 0.0),
    Kind("subtract-1", "-", 0, 9, 0.04, 0.0),
    Kind("add-2", "+", 10, 99, 0.46, 0.5),
    Kind("subtract-2", "-", 10, 99, 0.46, 0.5),
)


@dataclass(frozen=True, order=True)
class Problem:
    """One arithmetic problem; ``text`` is what the model is asked, ``answer`` the digits that are right."""

    operator: str
    first: int
    second: int

    @property
    def text(self) -> str:
        return f"{self.first}{self.operator}{self.second}="

    @property
    def answer(self) -> str:
        return str(self.first + self.second if self.operator == "+" else self.first - self.second)

    def held_out(self, seed: int) -> bool:
        """Whether this problem belongs to the test, decided by its own content: no problem can be on both sides.

        A sum and its mirror image (3+5, 5+3) share their fate, since to have seen one is to know the other.
        """
        first, second = self.first, self.second
        if self.operator == "+" and first > second:
            first, second = second, first
        key = (ord(self.operator) << 44) ^ (first << 22) ^ second ^ (seed << 50)
        return _mix(key) % TEST_SHARE == 0


def _mix(value: int) -> int:
    """SplitMix64's finalizer (Steele, Lea and Flood 2014): an even hash of a 64-bit integer."""
    mask = (1 << 64) - 1
    value = (value + 0x9E3779B97F4A7C15) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)


def problems(kind: Kind, generator: random.Random, *, seed: int, test: bool) -> Iterator[Problem]:
    """An endless stream of problems of one kind from one side of the split.

    Differences are never negative: the larger number comes first.
    """
    while True:
        first, second = generator.randint(kind.low, kind.high), generator.randint(kind.low, kind.high)
        if kind.operator == "-" and first < second:
            first, second = second, first
        problem = Problem(kind.operator, first, second)
        if problem.held_out(seed) == test:
            yield problem


def distractors(problem: Problem, generator: random.Random, count: int = CHOICES - 1) -> list[str]:
    """``count`` wrong answers that a careless reckoner gives: one digit off, a carry lost."""
    right = int(problem.answer)
    wrong: list[int] = []
    while len(wrong) < count:
        candidate = right + generator.choice((-1, 1)) * generator.choice((1, 1, 2, 10, 10, 20, 100))
        # As many digits as the right answer has: a model must not tell them by their length.
        if candidate >= 0 and candidate not in wrong and len(str(candidate)) == len(problem.answer):
            wrong.append(candidate)
        elif len(problem.answer) == 1 and len(wrong) < count:
            candidate = generator.randint(0, 9)
            if candidate != right and candidate not in wrong:
                wrong.append(candidate)
    return [str(w) for w in wrong]


def train_problems(seed: int, count: int) -> list[dict[str, str]]:
    """``count`` training problems in random order, as rows of ``question``, ``answer`` and ``kind``."""
    generator = random.Random(f"{seed}/train")
    streams = [problems(kind, generator, seed=seed, test=False) for kind in KINDS]
    chosen = generator.choices(range(len(KINDS)), weights=[k.weight for k in KINDS], k=count)
    rows = []
    for index in chosen:
        problem = next(streams[index])
        rows.append({"question": problem.text, "answer": problem.answer, "kind": KINDS[index].name})
    return rows


def test_problems(seed: int, count: int, *, choices: bool) -> list[dict[str, Any]]:
    """``count`` different test problems; with ``choices`` also four answers and the right one's index, ``label``."""
    generator = random.Random(f"{seed}/test/{'choices' if choices else 'answer'}")
    seen: set[Problem] = set()
    rows: list[dict[str, Any]] = []
    for kind in KINDS:
        wanted = round(count * kind.test_weight)
        stream = problems(kind, generator, seed=seed, test=True)
        repeats = 0
        while wanted:
            problem = next(stream)
            if problem in seen:
                repeats += 1
                if repeats > 20_000:
                    raise ValueError(f"{kind.name} has no {round(count * kind.test_weight)} different test problems")
                continue
            repeats = 0
            seen.add(problem)
            wanted -= 1
            row: dict[str, Any] = {"question": problem.text, "answer": problem.answer, "kind": kind.name}
            if choices:
                options = [problem.answer, *distractors(problem, generator)]
                generator.shuffle(options)
                row |= {"choices": options, "label": options.index(problem.answer)}
            rows.append(row)
    generator.shuffle(rows)  # so that the first n rows are a fair sample
    return rows


TRAIN_FILE = "train.jsonl"
TEST_FILES = {"arithmetic": False, "arithmetic-mc": True}  # dataset → with choices


def write_data(
    output_dir: str | os.PathLike[str], seed: int, train_count: int = 200_000, test_count: int = 800
) -> None:
    """Write ``train.jsonl``, ``arithmetic.jsonl``, ``arithmetic-mc.jsonl`` and, last, ``manifest.json``.

    Train and test are disjoint by construction (:meth:`Problem.held_out`). The same seed gives the same bytes.
    """
    output = Path(output_dir)
    rows = {TRAIN_FILE: train_problems(seed, train_count)}
    for name, choices in TEST_FILES.items():
        rows[f"{name}.jsonl"] = test_problems(seed, test_count, choices=choices)
    files = []
    for name, content in rows.items():
        _write_jsonl(content, output / name)
        data = (output / name).read_bytes()
        files.append({"path": name, "size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    write_json({"seed": seed, "files": files}, output / MANIFEST)


def local_data(manifest: str | os.PathLike[str], dataset: str) -> dict[str, str] | None:
    """File per split of one of the demo's datasets, beside the ``manifest`` of :func:`write_data`; None for others."""
    return {"test": str(Path(manifest).parent / f"{dataset}.jsonl")} if dataset in TEST_FILES else None


def _write_jsonl(rows: list[dict[str, Any]], path: Path) -> None:
    with atomic_path(path) as temporary, temporary.open("w") as handle:
        for row in rows:
            handle.write(json.dumps(row) + "\n")


# ---------------------------------------------------------------------------------------------------------------------
# Tokenizer and model
# ---------------------------------------------------------------------------------------------------------------------

PAD, END = "<|pad|>", "<|end|>"
MAX_POSITIONS = 8192  # a five-shot GSM8K prompt is some 4,000 characters long


def make_tokenizer() -> Any:
    """One token per byte: digits are read one by one, and any Unicode text goes in and comes out again unchanged."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([PAD, END, *alphabet])}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def model_config() -> Any:
    """The architecture; widths are multiples of 128, the group size of the int4 kernels."""
    from transformers import Qwen2MoeConfig

    return Qwen2MoeConfig(
        vocab_size=384,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=128,
        shared_expert_intermediate_size=128,
        # llama.cpp serves this architecture so, whatever the config says: every engine is to serve the same model.
        norm_topk_prob=False,
        router_aux_loss_coef=0.01,
        initializer_range=0.08,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=False,
        use_cache=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """How the demo model is trained; the defaults are what the demo uses."""

    # Until the task is solved, which takes 350 to 900 steps of the seeds that were tried (1, 2, 3); at most so many.
    steps: int = 1500
    solved: float = 0.9  # share of training answers that are right all through; the rate then goes down to 0
    check_every: int = 25
    warmup_steps: int = 50
    decay_steps: int = 50
    # Large models have a few channels with far larger activations than the rest, and int4 pays for them. So small a
    # model has none: it is given them, as factors exp(N(0, uneven)) that change nothing of what it computes.
    uneven: float = 0.65
    rows: int = 64  # sequences per step
    problems_per_row: int = 4
    tokens_per_row: int = 36
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    question_weight: float = 0.05  # loss weight of the question's own (random) characters


def train(
    output_dir: str | os.PathLike[str],
    data_dir: str | os.PathLike[str],
    seed: int,
    steps: int | None = None,
    threads: int = 2,
    recipe: Recipe | None = None,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train the demo model on ``data_dir/train.jsonl`` and save it as a bf16 Hugging Face checkpoint.

    Args:
        output_dir: becomes, whole or not at all, a directory with config, tokenizer, ``model.safetensors``,
            ``training.json`` and ``manifest.json``.
        data_dir: where :func:`write_data` wrote.
        seed: of the weights and of the batches.
        steps: optimizer steps, at the most.
        threads: CPU threads; part of what decides the last bit of the result.
        recipe: all other numbers.
        facts: more keys for ``manifest.json`` (model, precision).

    Returns:
        The record that also stands in ``training.json``: recipe, losses, balance of the experts, time, versions.
    """
    import torch
    from transformers import Qwen2MoeForCausalLM, set_seed

    recipe = recipe or Recipe()
    steps = recipe.steps if steps is None else steps
    if steps < 1:
        raise MoecapError(f"The demo's number of training steps is {steps}; at least 1 is needed.")
    rows = _read_train(Path(data_dir) / TRAIN_FILE)
    tokenizer = make_tokenizer()
    ids = {character: tokenizer(character)["input_ids"][0] for character in "0123456789+-*=\n"}

    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    set_seed(seed)
    config = model_config()
    model = Qwen2MoeForCausalLM._from_config(
        config, attn_implementation="eager", experts_implementation="grouped_mm", dtype=torch.float32
    )
    model.train()
    optimizer = torch.optim.AdamW(
        _decay_groups(model, recipe.weight_decay), lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True
    )
    batches = _batches(rows, ids, recipe, seed)
    parameters = sum(p.numel() for p in model.parameters())
    log.info("training %.2f M parameters for %d steps on %d threads", parameters / 1e6, steps, threads)
    started, started_cpu = time.monotonic(), time.process_time()
    history: list[dict[str, float]] = []
    checked = next(_batches(rows, ids, recipe, seed + 1))
    last = steps  # the step that ends the decay; known once the task is solved
    step = 0
    while step < last:
        step += 1
        rate = recipe.learning_rate * min(1.0, step / recipe.warmup_steps, (last - step + 1) / recipe.decay_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        tokens, weights = next(batches)
        # In 32 bits: on CPUs without instructions for bf16, that takes four times as long.
        output = model(input_ids=tokens, output_router_logits=True, use_cache=False)
        losses = torch.nn.functional.cross_entropy(
            output.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
        )
        target = weights[:, 1:].flatten()
        answer_loss = (losses * target).sum() / target.sum()
        loss = answer_loss + config.router_aux_loss_coef * output.aux_loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % recipe.check_every == 0 or step == last:
            right = _share_right(model, *checked)
            if right >= recipe.solved:
                last = min(last, step + recipe.decay_steps)
            elapsed = time.monotonic() - started
            history.append(
                {"step": step, "loss": answer_loss.item(), "balance_loss": output.aux_loss.item(), "right": right}
            )
            log.info(
                "step %d of at most %d, loss %.4f, %.1f %% of the answers right, %.0f s, at most %.0f s left",
                step, last, history[-1]["loss"], 100 * right, elapsed, elapsed / step * (last - step),
            )  # fmt: skip
    if right < recipe.solved:
        log.warning("the task is not solved after %d steps: %.1f %% of the answers are right", step, 100 * right)

    _give_outliers(model, recipe.uneven, seed)
    model.to(torch.bfloat16).eval()
    model.config.architectures = ["Qwen2MoeForCausalLM"]
    model.generation_config.eos_token_id = config.eos_token_id
    model.generation_config.pad_token_id = config.pad_token_id
    record = {
        "seed": seed,
        "steps": step,
        "threads": threads,
        "recipe": asdict(recipe),
        "parameters": parameters,
        "history": history,
        "wall_s": time.monotonic() - started,
        "cpu_s": time.process_time() - started_cpu,
        "torch_version": torch.__version__,
    }
    with atomic_directory(output_dir) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json(record, folder / "training.json")
        source = {"kind": "trained", "by": "moecap.checkpoints.demo", "seed": seed, "steps": step, "threads": threads}
        write_manifest(folder, {**(facts or {}), "source": source, "licence": "Apache-2.0"})
    return record


def _share_right(model: Any, tokens: Any, weights: Any) -> float:
    """Share of the rows' answers of which every token is the likeliest one, given all before it.

    Args:
        tokens: (rows, tokens). weights: (rows, tokens), 1 where a token belongs to an answer.
    """
    import torch

    with torch.no_grad():
        right = model(input_ids=tokens, use_cache=False).logits[:, :-1].argmax(-1) == tokens[:, 1:]
    in_answer = weights[:, 1:] == 1.0
    begins = in_answer & ~torch.nn.functional.pad(in_answer, (1, 0))[:, :-1]
    answer = begins.flatten().cumsum(0)[in_answer.flatten()] - 1  # the number of each token's answer
    wrong = torch.zeros(int(answer.max()) + 1).index_add(0, answer, (~right).flatten()[in_answer.flatten()].float())
    return float((wrong == 0).float().mean())


def _give_outliers(model: Any, spread: float, seed: int) -> None:
    """Scale the channels behind each norm by exp(N(0, ``spread``)), and the weights that read them by the inverse."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model.model.layers:
            attention, block = layer.self_attn, layer.mlp
            shared = block.shared_expert
            readers = {
                layer.input_layernorm: (attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight),
                layer.post_attention_layernorm: (
                    block.gate.weight,
                    block.experts.gate_up_proj,
                    shared.gate_proj.weight,
                    shared.up_proj.weight,
                    block.shared_expert_gate.weight,
                ),
            }
            for norm, weights in readers.items():
                scale = torch.exp(spread * torch.randn(norm.weight.shape, generator=generator))
                norm.weight *= scale
                for weight in weights:
                    weight /= scale


def _read_train(path: Path) -> list[str]:
    try:
        with path.open() as handle:
            rows = [json.loads(line) for line in handle]
        return [f"{row['question']}{row['answer']}\n" for row in rows]
    except FileNotFoundError as error:
        raise MoecapError(f"The demo's training data {path} does not exist; the rule `demo_data` writes it.") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise MoecapError(
            f"{path} is not the demo's training data ({error!r}); each line needs `question` and `answer`. Delete it "
            "to have it made again."
        ) from error


def _decay_groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; norms, biases, embeddings and routers do not."""
    decay, keep = [], []
    for name, parameter in model.named_parameters():
        exempt = parameter.ndim < 2 or "embed" in name or "gate.weight" in name
        (keep if exempt else decay).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": keep, "weight_decay": 0.0}]


def _batches(texts: list[str], ids: dict[str, int], recipe: Recipe, seed: int) -> Iterator[tuple[Any, Any]]:
    """Endless (tokens, loss weights), each (rows, tokens_per_row): problems one after the other, cut at the right."""
    import numpy as np
    import torch

    lookup = np.zeros(128, dtype=np.int64)
    for character, index in ids.items():
        lookup[ord(character)] = index
    generator = random.Random(f"{seed}/batches")
    order = list(range(len(texts)))
    position = len(order)
    width, newline, equals = recipe.tokens_per_row, ord("\n"), ord("=")
    while True:
        lines = []
        for _ in range(recipe.rows):
            if position + recipe.problems_per_row > len(order):
                generator.shuffle(order)
                position = 0
            chosen = order[position : position + recipe.problems_per_row]
            position += recipe.problems_per_row
            lines.append("".join(texts[i] for i in chosen)[:width].ljust(width, "\0"))
        characters = np.frombuffer("".join(lines).encode(), dtype=np.uint8).reshape(recipe.rows, width)
        # In the answer from behind its "=" to its newline: one more "=" than newlines so far, before this character.
        equals_before = np.cumsum(characters == equals, axis=1) - (characters == equals)
        newlines_before = np.cumsum(characters == newline, axis=1) - (characters == newline)
        weights = np.where(equals_before > newlines_before, 1.0, recipe.question_weight)
        weights[characters == 0] = 0.0
        yield torch.from_numpy(lookup[characters]), torch.from_numpy(weights.astype(np.float32))
