"""Answers of a model, kept as they come, so that no question is put to it twice.

lm-eval computes scores from a model's answers, which takes seconds; the answers take the hours. They go into
``results/spool/answers`` a slice at a time, undeclared, as timed points do: an evaluation that was killed goes on where
it was, one whose outputs are lost, whose limit was raised or whose group got another task asks only what is new, and
where nothing is new the model is not loaded at all. Scores are always computed anew, by today's code.

lm-eval's own cache of answers (``use_cache``) hands an engine that batches by itself all questions at once, so that a
kill loses all of them, keeps no sampled answers, and lies in one SQLite file of pickles, which nodes cannot share.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from moecap.errors import MoecapError, no_space
from moecap.io import write_json
from moecap.provenance import digest

log = logging.getLogger(__name__)

#: Part of every key: raise it when what a model is asked, or how it is loaded, changes.
PROTOCOL = 1
#: Questions put to an engine that batches by itself before their answers are kept; its last ones run half empty.
SLICE = 512
FACTS = "facts.json"


class AnswerSpool:
    """The answers to questions under the same ``facts``: checkpoint, engine with its settings and versions, seed.

    A folder ``{2 first digits of key}/{key}/`` with the facts, and one JSONL file per evaluation that asked anything.
    No two processes write one file; a line that a kill cut off, or that is damaged, is no answer.
    """

    def __init__(self, folder: str | os.PathLike[str], facts: Mapping[str, Any]) -> None:
        self.facts = {"protocol": PROTOCOL, **facts}
        key = digest(self.facts, 64)
        self.folder = Path(folder) / key[:2] / key
        self.file = self.folder / f"{os.urandom(8).hex()}.jsonl"

    def read(self) -> dict[str, Any]:
        """question's key -> answer."""
        answers, damaged = {}, 0
        for path in sorted(self.folder.glob("*.jsonl")):
            for line in path.read_bytes().splitlines():
                try:
                    question, answer, check = json.loads(line)
                    if check != _check(question, answer):
                        raise ValueError(line)
                    answers[question] = answer
                except (ValueError, TypeError):
                    damaged += 1
        if damaged:
            log.warning("%s: %d kept answers are damaged or cut off; they are asked for again", self.folder, damaged)
        return answers

    def add(self, answers: Mapping[str, Any]) -> None:
        """Keep ``answers``, on the disk for good when this returns.

        Raises:
            MoecapError: the disk is full.
        """
        lines = [json.dumps([q, a, _check(q, a)]) + "\n" for q, a in answers.items()]
        try:
            if not (self.folder / FACTS).is_file():
                write_json(self.facts, self.folder / FACTS)
            with self.file.open("a", encoding="utf-8") as handle:
                handle.writelines(lines)
                handle.flush()
                os.fsync(handle.fileno())
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                doing = f"while the answers to {len(answers)} questions were kept: those are lost"
                raise MoecapError(no_space(self.folder, doing)) from error
            raise


def _check(question: str, answer: Any) -> str:
    return hashlib.sha256(json.dumps([question, answer]).encode()).hexdigest()[:16]


class KeepingLM:
    """Stands where lm-eval expects a model: answers from ``spool`` what it can, and asks the model the rest.

    Args:
        load: loads the model (lm-eval's ``LM``); called at the first question that has no answer yet.
        spool: None: nothing is kept.
        slice_size: questions that are asked before their answers are kept.
    """

    # Of the processes that lm-eval itself may start there is always one; engines spread a model by themselves.
    rank = 0
    world_size = 1
    # Text alone: timed runs serve nothing else.
    MULTIMODAL = False

    def __init__(self, load: Callable[[], Any], spool: AnswerSpool | None, slice_size: int = SLICE) -> None:
        self._load, self._model = load, None
        self.spool, self.slice_size = spool, slice_size
        self.answers = spool.read() if spool is not None else {}
        self.asked = self.reused = 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.model, name)

    @property
    def model(self) -> Any:
        """The model, loaded when it is first needed."""
        if self._model is None:
            self._model = self._load()
        return self._model

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """(log-likelihood, whether greedy decoding gives it) per request."""
        return [tuple(answer) for answer in self._answers("loglikelihood", requests)]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[Any]:
        """Log-likelihood of the whole text per request."""
        return self._answers("loglikelihood_rolling", requests)

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """Text per request."""
        return self._answers("generate_until", requests)

    def _answers(self, kind: str, requests: Sequence[Any]) -> list[Any]:
        # A question that stands there several times is sampled several times.
        times: Counter[str] = Counter()
        keys = []
        for request in requests:
            question = digest([kind, *request.args], 32)
            keys.append(f"{question}-{times[question]}")
            times[question] += 1
        missing = [(key, request) for key, request in zip(keys, requests, strict=True) if key not in self.answers]
        self.reused += len(keys) - len(missing)
        if len(keys) > len(missing):
            log.info("%d of %d answers are in the spool, %d to ask", len(keys) - len(missing), len(keys), len(missing))
        for start in range(0, len(missing), self.slice_size):
            part = missing[start : start + self.slice_size]
            given = getattr(self.model, kind)([request for _, request in part])
            self.asked += len(part)
            new = {key: answer for (key, _), answer in zip(part, given, strict=True)}
            self.answers.update(new)
            # No response is no answer: it may come the next time.
            if self.spool is not None and (responses := {k: a for k, a in new.items() if a is not None}):
                self.spool.add(responses)
        return [self.answers[key] for key in keys]
