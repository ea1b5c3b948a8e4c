"""From a dataset's prompts to requests of a fixed output length: what a timed run serves.

Prompts are the dataset's own, each once, as accuracy is evaluated on (lm-eval's documents through the task's template
with its few-shot examples), in an order that the seed decides. They are neither cut, nor looped, nor padded to a
length: routing follows the text. Output length is fixed, so that two engines do the same work whatever they answer.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moecap.engines.base import Request
from moecap.errors import MoecapError, PermanentError
from moecap.paths import PROJECT_TASKS

DEFAULT_OUTPUT_TOKENS = 48


@dataclass(frozen=True)
class Workload:
    """A dataset's prompts as token ids, in the order in which they are served, and how many tokens to generate."""

    dataset: str
    prompts: tuple[tuple[int, ...], ...]
    output_tokens: int
    left_out: int = 0

    @property
    def context_tokens(self) -> int:
        """Longest prompt and output together."""
        return max(map(len, self.prompts)) + self.output_tokens

    def batch(self, batch_size: int, number: int) -> list[Request]:
        """Batch ``number`` (0, 1, …) of ``batch_size`` requests: the next prompts in order, from the start again at the
        end; no prompt twice in one batch.

        Raises:
            PermanentError: the dataset has fewer prompts than the batch.
        """
        if batch_size > len(self.prompts):
            raise PermanentError(
                f"Dataset {self.dataset} has {len(self.prompts)} usable prompts, fewer than batch size {batch_size}. A "
                "prompt is not repeated within a batch (its copies would be routed alike): choose a smaller batch size "
                "or a larger dataset."
            )
        start = number * batch_size
        return [Request(self.prompts[(start + i) % len(self.prompts)], self.output_tokens) for i in range(batch_size)]

    def stream(self, count: int, start: int, in_flight: int) -> list[Request]:
        """``count`` requests from number ``start`` on, from the first prompt again after the last.

        Raises:
            PermanentError: fewer prompts than are in flight: copies would be routed alike in one step.
        """
        self.batch(in_flight, 0)
        return [Request(self.prompts[(start + i) % len(self.prompts)], self.output_tokens) for i in range(count)]

    def warmup(self, batch_size: int, number: int = 0) -> list[Request]:
        """A batch for warming up: taken from the other end."""
        ids = [-1 - (number * batch_size + i) % len(self.prompts) for i in range(batch_size)]
        return [Request(self.prompts[i], self.output_tokens) for i in ids]

    def describe(self, batch_size: int, waves: int = 1) -> str:
        """The workload in words: the column ``workload``.

        >>> Workload("arithmetic", ((1, 2),) * 64, 48).describe(64)
        'arithmetic: 64 prompts, 48 output tokens fixed'
        """
        text = f"{self.dataset}: {batch_size * waves} prompts, {self.output_tokens} output tokens fixed"
        if waves > 1:
            text += f", {waves} waves of {batch_size}"
        return text


def requests_sha256(requests: Sequence[Request]) -> str:
    """sha256 (hex) of what is asked for: the token ids of every prompt and its output length, in order."""
    text = json.dumps([[list(r.prompt_token_ids), r.output_tokens] for r in requests], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def seeded_order(count: int, seed: int, label: str) -> list[int]:
    """A permutation of ``range(count)`` that depends on ``seed`` and ``label`` and nothing else.

    >>> seeded_order(5, 1, "gsm8k") == seeded_order(5, 1, "gsm8k")
    True
    """
    order = list(range(count))
    random.Random(f"{seed}:{label}").shuffle(order)
    return order


def build(
    dataset: str,
    texts: Sequence[str] | Callable[[int], str],
    tokenize: Callable[[str], Sequence[int]],
    *,
    output_tokens: int,
    needed: int,
    seed: int,
    count: int | None = None,
    context_limit: int | None = None,
    input_tokens: int | None = None,
) -> Workload:
    """Choose, in seeded order, up to ``needed`` prompts that fit.

    Args:
        texts: the dataset's prompts, or a function that renders prompt i (then ``count`` says how many there are);
            only those that are chosen are rendered.
        needed: how many are wanted; fewer come back where the dataset has fewer.
        context_limit: tokens that the model can take; a prompt that does not fit with its output is left out.
        input_tokens: prompts of exactly this length, the dataset's texts one after the other; None: as they are.

    Raises:
        PermanentError: no prompt is left, or all are empty.
    """
    render = texts if callable(texts) else texts.__getitem__
    total = count if count is not None else len(texts)  # type: ignore[arg-type]
    prompts: list[tuple[int, ...]] = []
    seen: set[tuple[int, ...]] = set()
    left_out = 0
    held: list[int] = []
    for i in seeded_order(total, seed, dataset):
        if len(prompts) >= needed:
            break
        ids = tuple(int(token) for token in tokenize(render(i)))
        if input_tokens is not None:
            held.extend(ids)
            if len(held) < input_tokens:
                continue
            ids, held = tuple(held[:input_tokens]), held[input_tokens:]
        if not ids or (context_limit is not None and len(ids) + output_tokens > context_limit):
            left_out += 1
        elif ids not in seen:
            seen.add(ids)
            prompts.append(ids)
    if not prompts:
        raise PermanentError(
            f"Dataset {dataset}: none of its {total} prompts fits into the model's context of {context_limit} tokens "
            f"with {output_tokens} output tokens. Choose a smaller `output_tokens` or another dataset."
        )
    return Workload(dataset, tuple(prompts), output_tokens, left_out)


# -- prompts from lm-eval -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TaskPrompts:
    """Prompts of one or more lm-eval tasks (a group such as ``mmlu`` has many), rendered when asked for."""

    tasks: tuple[tuple[str, Any, int, int], ...]  # name, task, number of documents, few-shot examples
    chat_template: Callable[..., str] | None = None

    def __len__(self) -> int:
        return sum(documents for _, _, documents, _ in self.tasks)

    def __call__(self, i: int) -> str:
        for _, task, documents, fewshot in self.tasks:
            if i < documents:
                context = task.fewshot_context(
                    task.eval_docs[i],
                    num_fewshot=fewshot,
                    apply_chat_template=self.chat_template is not None,
                    chat_template=self.chat_template,
                )
                return context if isinstance(context, str) else context[0]
            i -= documents
        raise IndexError(i)


def task_prompts(
    task: str,
    *,
    data_files: Mapping[str, str] | None = None,
    num_fewshot: int | None = None,
    seed: int = 1,
    chat_template: Callable[..., str] | None = None,
    task_dir: str | Path = PROJECT_TASKS,
) -> TaskPrompts:
    """The prompts of an lm-eval task or group, as accuracy is evaluated on them.

    Args:
        task: a task of ``task_dir``, of the package or of lm-eval.
        data_files: split -> local file, in place of the task's own download.
        num_fewshot: in place of the task's own.

    Raises:
        MoecapError: lm-eval knows no such task, or its data cannot be had.
    """
    from moecap.accuracy.evaluate import load_task

    loaded = load_task(task, task_dir, data_files)["tasks"]
    tasks = []
    for name in sorted(loaded):
        one = loaded[name]
        one.set_fewshot_seed(seed=seed)
        fewshot = num_fewshot if num_fewshot is not None else one.config.num_fewshot
        tasks.append((name, one, len(one.eval_docs), int(fewshot or 0)))
    return TaskPrompts(tuple(tasks), chat_template)


# -- tokens ----------------------------------------------------------------------------------------------------------


def load_tokenizer(checkpoint: str | Path, trust_remote_code: bool = False) -> Any:
    """The checkpoint's tokenizer."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(checkpoint), trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise MoecapError(f"{checkpoint} has no tokenizer that loads: {' '.join(str(error).split())[:300]}") from error


def context_limit(checkpoint: str | Path) -> int | None:
    """Tokens of context that the checkpoint's config (or its nested text config) allows; None where it says nothing."""
    path = Path(checkpoint) / "config.json"
    config = json.loads(path.read_text()) if path.is_file() else {}
    for part in (config, config.get("text_config") or {}):
        for key in ("max_position_embeddings", "max_seq_len", "n_positions", "seq_length"):
            if isinstance(part.get(key), int):
                return part[key]
    return None


def chat_renderer(tokenizer: Any) -> Callable[..., str]:
    """lm-eval's ``chat_template`` from a tokenizer's own."""

    def render(messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)

    return render
