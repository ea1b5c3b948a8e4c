"""Asking a judge: one game, one request, tried again after rate limits and errors; what came is counted."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

from moecap.accuracy.arena.kept import Kept
from moecap.accuracy.arena.settings import Judge
from moecap.accuracy.arena.verdicts import read_verdict
from moecap.engines.server.client import TRANSIENT
from moecap.errors import MoecapError, PermanentError
from moecap.redact import redact

log = logging.getLogger(__name__)

#: Seconds to wait before another try, where the server does not say: doubled each time, up to the second.
WAIT_S = (0.5, 60.0)
#: Longer than this nobody waits for a `Retry-After`: the job ends, and goes on where it was when it is started again.
LONGEST_WAIT_S = 900.0


@dataclass(frozen=True)
class Ask:
    """A game to be judged: ``order`` 0 shows the baseline's answer first, 1 the model's."""

    question: str
    order: int
    messages: list[dict[str, str]]

    def key(self, judge: Judge) -> str:
        """What a judgment is kept under: all that it depends on."""
        content = json.dumps([judge.decides(), self.messages], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:32]


@dataclass
class Tally:
    """What happened on the way, beside the verdicts."""

    asked: int = 0
    kept: int = 0
    rate_limited: int = 0
    errors: int = 0
    gave_up: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, **counts: int) -> None:
        """Count; safe to be called by several threads."""
        with self.lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)


def judge_games(
    asks: Iterable[Ask],
    judge: Judge,
    kept: Kept,
    *,
    tell: Callable[[str], None] = log.info,
    sleep: Callable[[float], None] = time.sleep,
    environment: Mapping[str, str] = os.environ,
) -> tuple[list[dict[str, Any] | None], Tally]:
    """The judgment of every game: as kept, else by asking. A record has ``winner``, ``outcome`` and what came.

    Returns:
        (records in the order of ``asks``, None where the judge could not be had; what happened on the way).

    Raises:
        PermanentError: the judge refuses the key, the model or the address.
    """
    games = list(asks)
    tally = Tally()
    missing = [ask for ask in games if ask.key(judge) not in kept.records]
    tally.kept = len(games) - len(missing)
    if missing:
        client = _client(judge, environment)
        with ThreadPoolExecutor(judge.concurrency) as pool:
            jobs = [pool.submit(_one, client, ask, judge, kept, tally, sleep) for ask in missing]
            done, _ = wait(jobs, return_when=FIRST_EXCEPTION)
            if failed := next((job.exception() for job in done if not job.cancelled() and job.exception()), None):
                pool.shutdown(cancel_futures=True)
                raise failed
        tell(f"judged {tally.asked} games by {judge.model} ({tally.kept} were kept from before)")
    return [kept.records.get(ask.key(judge)) for ask in games], tally


def _client(judge: Judge, environment: Mapping[str, str]) -> Any:
    import openai

    if judge.key_variable is not None and not environment.get(judge.key_variable):
        raise PermanentError(
            f"The environment variable {judge.key_variable} holds no key (`judge.key_variable` in the config). Export "
            "it where the job runs; no file of a campaign may hold it."
        )
    key = environment[judge.key_variable] if judge.key_variable else "none"
    return openai.OpenAI(api_key=key, base_url=judge.url, timeout=judge.timeout_s, max_retries=0)


def _one(client: Any, ask: Ask, judge: Judge, kept: Kept, tally: Tally, sleep: Callable[[float], None]) -> None:
    import openai

    for attempt in range(judge.retries + 1):
        pause: float | None = None
        try:
            answer = client.chat.completions.create(
                model=judge.model,
                messages=ask.messages,
                temperature=judge.temperature,
                max_tokens=judge.max_tokens,
                extra_body=judge.body,
            )
            kept.add(ask.key(judge), {"question": ask.question, "order": ask.order, **_record(answer)})
            tally.add(asked=1)
            return
        except openai.APIStatusError as error:
            said = redact(" ".join(str(error.message).split()))[:300]
            if error.status_code in (400, 422) and "content" in said.lower() and "filter" in said.lower():
                record = {"winner": None, "outcome": "refused", "judgment": said, "asked_tokens": None}
                kept.add(
                    ask.key(judge), {"question": ask.question, "order": ask.order, **record, "judgment_tokens": None}
                )
                tally.add(asked=1)
                return
            if error.status_code not in TRANSIENT:
                raise PermanentError(
                    f"The judge {judge.model} at {redact(judge.url)} answered {error.status_code}: {said}"
                ) from None
            tally.add(**{"rate_limited" if error.status_code == 429 else "errors": 1})
            pause = _retry_after(error.response.headers)
        except (openai.APIError, ValueError) as error:  # no connection, no answer in time, no JSON
            log.warning("question %s: %s", ask.question, redact(str(error)))
            tally.add(errors=1)
        if pause is not None and pause > LONGEST_WAIT_S:
            raise MoecapError(
                f"The judge {judge.model} asks for {pause:.0f} s of patience (Retry-After). Start again then: what was "
                "judged is kept."
            )
        if attempt < judge.retries:
            sleep(pause if pause is not None else min(WAIT_S[1], WAIT_S[0] * 2**attempt) * random.uniform(0.75, 1.25))
    tally.add(gave_up=1)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to be left alone, given as such or as a date."""
    text = headers.get("retry-after")
    if text is None:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _record(answer: Any) -> dict[str, Any]:
    """What a judge answered. A judgment that was cut off has no verdict, even if a label stands in it."""
    choices = getattr(answer, "choices", None)
    if not choices:
        raise ValueError("the judge's answer has no choice")
    message, reason = choices[0].message, choices[0].finish_reason
    text, refusal = message.content or "", getattr(message, "refusal", None)
    if reason == "content_filter" or refusal:
        verdict, outcome = None, "refused"
    elif reason == "length":
        verdict, outcome = None, "cut"
    else:
        verdict, outcome = read_verdict(text)
    usage = getattr(answer, "usage", None)
    return {
        "winner": verdict,
        "outcome": outcome,
        "judgment": refusal or text,
        "asked_tokens": getattr(usage, "prompt_tokens", None),
        "judgment_tokens": getattr(usage, "completion_tokens", None),
    }
