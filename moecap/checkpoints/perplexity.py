"""Perplexity of a text from log-probabilities: sums over tokens, and per token, word and byte.

Documents are scored one by one, each token once. A document that is longer than the model's window is cut as lm-eval's
``loglikelihood_rolling`` cuts it (no overlap, but the last window is filled up from the left), so that figures per word
and byte compare with its ``wikitext`` task.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Perplexity:
    """Negative log-likelihood (nats) of a text, and what it is divided by.

    Attributes:
        nll: the sum over all tokens.
        tokens, words, bytes: of the text; words are what white space parts, bytes those of UTF-8.
    """

    nll: float
    tokens: int
    words: int
    bytes: int
    documents: int

    @property
    def per_token(self) -> float:
        """exp(nll / tokens)."""
        return math.exp(self.nll / self.tokens)

    @property
    def per_word(self) -> float:
        """exp(nll / words), lm-eval's ``word_perplexity``."""
        return math.exp(self.nll / self.words)

    @property
    def bits_per_byte(self) -> float:
        """nll / bytes / ln 2."""
        return self.nll / self.bytes / math.log(2)

    def to_json(self) -> dict[str, Any]:
        """All of it, for a manifest."""
        derived = {"per_token": self.per_token, "per_word": self.per_word, "bits_per_byte": self.bits_per_byte}
        return {**asdict(self), **derived}


def windows(count: int, window: int) -> Iterator[tuple[int, int, int]]:
    """(first input, first scored, end) of each forward pass over tokens 0..count, where token -1 is the prefix.

    >>> list(windows(7, 3))
    [(-1, 0, 3), (2, 3, 6), (3, 6, 7)]
    """
    done = 0
    while done < count:
        end = min(done + window, count)
        yield max(-1, end - 1 - window), done, end
        done = end


def perplexity(
    texts: Iterable[str],
    tokenize: Callable[[str], Sequence[int]],
    log_probabilities: Callable[[list[int]], Sequence[float]],
    prefix: int,
    window: int,
) -> Perplexity:
    """Score every document.

    Args:
        tokenize: text -> token ids, without special tokens.
        log_probabilities: token ids -> ln p of the second, third, … token, each given all before it.
        prefix: the token that a document begins after.
        window: tokens that the model scores in one pass.
    """
    nll, tokens, words, size, documents = 0.0, 0, 0, 0, 0
    for text in texts:
        ids = list(tokenize(text))
        for first, scored, end in windows(len(ids), window):
            given = [prefix, *ids][first + 1 : end + 1]
            nll -= math.fsum(log_probabilities(given)[-(end - scored) :])
        tokens += len(ids)
        words += len(re.split(r"\s+", text))
        size += len(text.encode("utf-8"))
        documents += 1
    return Perplexity(nll, tokens, words, size, documents)


def of_model(model: Any, tokenizer: Any, texts: Iterable[str], window: int | None = None) -> Perplexity:
    """Perplexity by a causal language model of Transformers."""
    import torch

    longest = getattr(model.config, "max_position_embeddings", None) or 2048
    prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id

    def log_probabilities(ids: list[int]) -> list[float]:
        given = torch.tensor([ids], device=model.device)
        with torch.no_grad():
            logits = model(input_ids=given[:, :-1], use_cache=False).logits[0]
        found = torch.log_softmax(logits.float(), -1).gather(1, given[0, 1:, None].to(logits.device))
        return [float(value) for value in found[:, 0]]

    tokenize = lambda text: tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
    return perplexity(texts, tokenize, log_probabilities, prefix, min(window or 2048, longest))
