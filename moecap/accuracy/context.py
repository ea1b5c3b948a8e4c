"""How many tokens of context an evaluation takes: its longest prompt and output, as in timed runs.

A model's own limit may be millions of tokens, for whose KV cache no machine has room.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

#: Tokens that lm-eval generates where a task does not say how many (`max_gen_toks` of its models).
GENERATED = 256
#: Beside prompt and output: tokens that begin or end a sequence, and lm-eval's own token of room.
ROOM = 16


def needed_tokens(
    tasks: Mapping[str, Any],
    tokenize: Callable[[list[str]], Iterable[Sequence[int]]],
    *,
    limit: int | None = None,
    chat_template: Callable[..., str] | None = None,
) -> int:
    """Tokens of the longest prompt with its output (or its longest choice) over all questions of lm-eval's tasks.

    Args:
        tasks: lm-eval's tasks by name, with `num_fewshot` set.
        tokenize: texts to token ids.
        limit: only the first so many questions of each.
        chat_template: lm-eval's way to a chat template; None: prompts go to the model as they are.
    """
    longest = 0
    for task in tasks.values():
        prompts: list[str] = []
        answers: list[str] = []
        if task.config.output_type == "loglikelihood_rolling":  # whole texts: a shorter window is another perplexity
            prompts = [str(task.doc_to_target(doc)) for doc in islice(task.eval_docs, limit)]
            longest = max(longest, max((len(ids) for ids in tokenize(prompts)), default=0))
            continue
        for doc in islice(task.eval_docs, limit):
            context = task.fewshot_context(
                doc,
                num_fewshot=int(task.config.num_fewshot or 0),
                apply_chat_template=chat_template is not None,
                fewshot_as_multiturn=chat_template is not None,
                chat_template=chat_template,
            )
            prompts += [context] if isinstance(context, str) else list(context)
            if task.config.output_type == "multiple_choice":
                choices = [str(choice) for choice in task.doc_to_choice(doc)]
                answers.append(f" {max(choices, key=len)}")
        output = max((len(ids) for ids in tokenize(answers)), default=0) if answers else 0
        if not answers:
            output = int((task.config.generation_kwargs or {}).get("max_gen_toks", GENERATED))
        longest = max(longest, max((len(ids) for ids in tokenize(prompts)), default=0) + output)
    return longest + ROOM


def model_limit(model_dir: str | os.PathLike[str]) -> int | None:
    """Tokens of context that a checkpoint's config allows; None where it says nothing."""
    path = Path(model_dir) / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for part in (config, config.get("text_config") or {}):
        for key in ("max_position_embeddings", "max_seq_len", "n_positions", "seq_length"):
            if isinstance(part.get(key), int):
                return part[key]
    return None


def context_tokens(
    model_dir: str | os.PathLike[str], tasks: Mapping[str, Any], *, limit: int | None, chat: bool, trust: bool
) -> int | None:
    """What an engine is loaded for: what the questions need, at most what the model has; None: the model's own.

    A tokenizer that does not load is the engine's to explain; then nothing is asked for.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(os.fspath(model_dir), trust_remote_code=trust)
    except (OSError, ValueError):
        return None

    def render(messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)

    def tokenize(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts)["input_ids"] if texts else []

    needed = needed_tokens(tasks, tokenize, limit=limit, chat_template=render if chat else None)
    own = model_limit(model_dir)
    if own is not None and needed > own:
        log.warning("the longest question needs %d tokens of context, the model has %d: it is cut", needed, own)
        return own
    return needed
