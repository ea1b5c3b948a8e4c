"""lm-eval through what is served: a server that is started for it, or an endpoint that somebody else runs.

A server may accept a field and ignore it. So before any question is asked, the model that is served is asked with a
stop string that it is known to write, and, where choices are scored, for the log-probabilities of a prompt.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from moecap.engines.base import EngineSpec, spec_of
from moecap.engines.server.client import TRANSIENT
from moecap.engines.server.engine import MODEL, installed_version, serve
from moecap.engines.server.settings import RemoteOptions, ServerOptions
from moecap.errors import MoecapError, PermanentError

log = logging.getLogger(__name__)

#: lm-eval's models that ask a server, and ours for llama.cpp's own way of giving log-probabilities.
SERVED = ("local-completions", "local-chat-completions", "llamacpp")
#: Where an entry does not say: requests at a time.
CONCURRENT = 8
#: Prompts with which a stop string is tried, and tokens of each answer.
TRIES, TRIED_TOKENS = 8, 8
_RETRIES = 4


def is_served(engine: Mapping[str, Any]) -> bool:
    """Whether accuracy is evaluated through a server."""
    return (engine.get("lm_eval") or {}).get("model") in SERVED


def cannot_score(engine: Mapping[str, Any], kind: str, chat_template: bool = False) -> str | None:
    """Why a dataset of ``kind`` cannot be evaluated through a server; None: nothing is known against it."""
    if not is_served(engine):
        return None
    model = engine["lm_eval"]["model"]
    logprobs = ((engine.get("options") or {}).get("api") or {}).get("logprobs")
    remedy = (
        "Take a task in which the answer is written (mmlu_generative), or evaluate the precision with another engine."
    )
    if kind in ("multiple_choice", "perplexity"):
        if model == "local-chat-completions":
            return f"through chats no log-probabilities of a prompt are to be had, which {kind} asks for. {remedy}"
        if logprobs is None:
            return f"it gives no log-probabilities (`options.api.logprobs`), which {kind} asks for. {remedy}"
        if kind == "perplexity" and logprobs != "openai":
            return f"it gives log-probabilities of the next token alone, too slow for the tokens of a text. {remedy}"
    if model == "local-chat-completions" and not chat_template:
        return "it is asked by chats, and the dataset's `chat_template` is false. Set it to true, or take completions."
    return None


def spec_for(engine: Mapping[str, Any], model_dir: str, **more: Any) -> EngineSpec:
    """What the server of an entry (``for_accuracy``) is started with."""
    at_a_time = int((engine["lm_eval"].get("model_args") or {}).get("num_concurrent", CONCURRENT))
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return spec_of(
        engine["lm_eval"]["model"] if "name" not in engine else engine["name"],
        engine,
        model_dir,
        max_num_seqs=at_a_time,
        threads=threads,
        **more,
    )


def version_of(engine: Mapping[str, Any], model_dir: str) -> str:
    """The served engine's version; "unknown" of what somebody else runs."""
    return "unknown" if engine["kind"] == "remote" else installed_version(spec_for(engine, model_dir))


def load_served(
    engine: Mapping[str, Any],
    arguments: Mapping[str, Any],
    *,
    seed: int,
    prompts: Sequence[str],
    logprobs: bool,
    ends: ExitStack,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
) -> Any:
    """lm-eval's model of a server that answers and was tried; a server that was started ends with ``ends``.

    Args:
        engine: the entry (``for_accuracy``).
        arguments: ``pretrained`` (the checkpoint, whose tokenizer is used), ``max_length``, and lm-eval's own.
        prompts: a few questions of the task, to try the server with.
        logprobs: whether log-probabilities of prompts are needed.

    Raises:
        PermanentError: the server ignores stop strings, or gives no log-probabilities.
    """
    given = {**arguments}
    checkpoint, context = str(given.pop("pretrained")), given.pop("max_length", None)
    lm_name, path = engine["lm_eval"]["model"], None
    if engine["kind"] == "remote":
        remote = RemoteOptions.model_validate(engine["options"])
        url, name, path = remote.url.rstrip("/"), remote.model or MODEL, remote.api.path
        key = _key(remote)
    else:
        spec = spec_for(
            engine,
            checkpoint,
            seed=seed,
            context_tokens=context,
            tensor_parallel=tensor_parallel,
            pipeline_parallel=pipeline_parallel,
            trust_remote_code=bool(given.get("trust_remote_code")),
        )
        path = ServerOptions.model_validate(engine["options"]).api.path
        url, name, key = ends.enter_context(serve(spec)), MODEL, None
    chat = lm_name == "local-chat-completions"
    address = url + ("/v1/chat/completions" if chat else path)
    ask = Asker(address, name, lm_name, key)
    check_stop_strings(ask, prompts)
    if lm_name == "llamacpp":
        return llamacpp_model(ask, checkpoint, int(given.get("num_concurrent", CONCURRENT)), context)
    if logprobs:
        check_logprobs(ask, prompts)
    from lm_eval.api.registry import get_model

    own = {
        "base_url": address,
        "model": name,
        "tokenizer": checkpoint,
        "num_concurrent": CONCURRENT,
        "max_retries": _RETRIES,
        "seed": seed,
        "tokenizer_backend": None if chat else "huggingface",
        "header": {"Authorization": f"Bearer {key}"} if key else {"Accept": "application/json"},
        **({"max_length": context} if context else {}),
    }
    return get_model(lm_name).create_from_arg_obj({**own, **given}, {"batch_size": 1})


def _key(options: RemoteOptions) -> str | None:
    if options.key_variable is None:
        return None
    if not os.environ.get(options.key_variable):
        raise PermanentError(
            f"The environment variable {options.key_variable} holds no key (`options.key_variable` of the engine)."
        )
    return os.environ[options.key_variable]


class Asker:
    """One request at a time to a server, by hand: what it does is what is looked at."""

    def __init__(self, address: str, model: str, api: str, key: str | None = None) -> None:
        self.address, self.model, self.api, self._key = address, model, api, key

    def post(self, body: Mapping[str, Any]) -> Any:
        """JSON for JSON, tried again after what may pass.

        Raises:
            PermanentError: the server refuses the request.
            MoecapError: it could not be had.
        """
        headers = {
            "Content-Type": "application/json",
            **({"Authorization": f"Bearer {self._key}"} if self._key else {}),
        }
        said = ""
        for attempt in range(_RETRIES):
            request = urllib.request.Request(self.address, json.dumps(body).encode(), headers, method="POST")
            try:
                with urllib.request.urlopen(request, timeout=600) as answer:
                    return json.loads(answer.read())
            except urllib.error.HTTPError as error:
                said = f"answered {error.code}: {' '.join(error.read().decode(errors='replace').split())[:300]}"
                if error.code not in TRANSIENT:
                    raise PermanentError(f"{self.address} {said}") from None
            except (OSError, ValueError) as error:
                said = f"could not be asked: {error}"
            time.sleep(0.5 * 2**attempt)
        raise MoecapError(f"{self.address} {said}")

    def text(self, prompt: str | Sequence[int], tokens: int, stop: Sequence[str] = (), **more: Any) -> str:
        """What the model writes after ``prompt``, greedily."""
        stops = {"stop": list(stop)} if stop else {}
        if self.api == "llamacpp":
            body = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "cache_prompt": False, **stops, **more}
            return str(self.post(body)["content"])
        body = {"model": self.model, "max_tokens": tokens, "temperature": 0, **stops, **more}
        if self.api == "local-chat-completions":
            answer = self.post({**body, "messages": [{"role": "user", "content": prompt}]})
            return str(answer["choices"][0]["message"]["content"] or "")
        return str(self.post({**body, "prompt": prompt})["choices"][0]["text"])


def check_stop_strings(ask: Asker, prompts: Sequence[str]) -> bool:
    """Whether a stop string stops: a letter that the model is known to write is asked for as one.

    Returns:
        False where no answer had two characters, so that nothing could be tried.

    Raises:
        PermanentError: it is ignored; every answer would run to its limit, and an exact match fail.
    """
    for prompt in prompts[:TRIES]:
        text = ask.text(prompt, TRIED_TOKENS)
        at = next((i for i in range(1, len(text)) if not text[i].isspace() and text[i] not in text[:i]), None)
        if at is None:
            continue
        stop = text[at]
        again = ask.text(prompt, TRIED_TOKENS, [stop])
        if stop in again[:-1] or len(again) > at + 1:
            raise PermanentError(
                f"{ask.address} ignores stop strings: asked to stop at {stop!r}, the model wrote {again!r}. Its "
                "answers would run on behind the answer and count as wrong. Evaluate accuracy with another engine."
            )
        return True
    log.warning("whether %s heeds stop strings could not be tried: its answers are empty", ask.address)
    return False


def check_logprobs(ask: Asker, prompts: Sequence[str]) -> None:
    """Whether a server gives the log-probabilities of a prompt's tokens, as choices are scored by.

    Raises:
        PermanentError: it does not.
    """
    prompt = next((p for p in prompts if p), "1+1=")
    answer = ask.post(
        {"model": ask.model, "prompt": prompt, "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0}
    )
    try:
        found = answer["choices"][0]["logprobs"]["token_logprobs"]
        values = list(found[1:-1])
        sound = len(found) >= 2 and all(isinstance(v, int | float) and math.isfinite(v) and v <= 0 for v in values)
        sound = sound and str(answer["choices"][0]["text"]).startswith(prompt[:1])
    except (KeyError, IndexError, TypeError):
        sound = False
    if not sound or not values:
        raise PermanentError(
            f"{ask.address} gives no log-probabilities of a prompt (`echo` with `logprobs` is ignored), by which "
            "choices are scored. Take a task in which the answer is written (mmlu_generative), or evaluate the "
            "precision with another engine."
        )


def llamacpp_model(ask: Asker, checkpoint: str, concurrent: int, context: int | None) -> Any:
    """lm-eval's model over llama.cpp's `/completion`: token ids in, log-probabilities of all next tokens out."""
    from lm_eval.api.model import TemplateLM
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    config = json.loads((Path(checkpoint) / "config.json").read_text(encoding="utf-8"))
    vocabulary = max(len(tokenizer), int(config.get("vocab_size") or 0))

    class LlamaCpp(TemplateLM):
        """Choices by one request per token of them; answers by one request each."""

        @property
        def eot_token_id(self) -> int:
            return int(tokenizer.eos_token_id)

        @property
        def tokenizer_name(self) -> str:
            return checkpoint

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            return list(tokenizer(string, add_special_tokens=bool(add_special_tokens))["input_ids"])

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            return tokenizer.apply_chat_template(
                chat_history, tokenize=False, add_generation_prompt=add_generation_prompt
            )

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            return _all(lambda request: self._choice(request[1], request[2]), requests, concurrent)

        def _choice(self, before: list[int], choice: list[int]) -> tuple[float, bool]:
            total, greedy = 0.0, True
            for number, token in enumerate(choice):
                value, best = next_token(ask, [*before, *choice[:number]], token, vocabulary)
                total, greedy = total + value, greedy and best
            return total, greedy

        def loglikelihood_rolling(self, requests: Any, **_: Any) -> list[float]:
            raise PermanentError("llama.cpp gives log-probabilities of the next token alone: no perplexity of a text.")

        def generate_until(self, requests: Any, **_: Any) -> list[str]:
            return _all(lambda request: self._answer(*request.args), requests, concurrent)

        def _answer(self, prompt: str, settings: Mapping[str, Any]) -> str:
            until = settings.get("until") or []
            stops = [s for s in ([until] if isinstance(until, str) else until) if s]
            most = int(settings.get("max_gen_toks") or 256)
            ids = self.tok_encode(prompt)
            ids = ids[-(context - most) :] if context and len(ids) + most > context else ids
            return ask.text(ids, most, stops, temperature=settings.get("temperature") or 0)

    return LlamaCpp()


def next_token(ask: Asker, prompt: Sequence[int], token: int, vocabulary: int) -> tuple[float, bool]:
    """(log-probability of ``token`` after ``prompt``, whether it is the likeliest), from llama.cpp.

    Raises:
        PermanentError: the server does not say it of that token.
    """
    answer = ask.post(
        {"prompt": list(prompt), "n_predict": 1, "n_probs": vocabulary, "temperature": 0, "cache_prompt": True}
    )
    try:
        found = {int(entry["id"]): entry["logprob"] for entry in answer["completion_probabilities"][0]["top_logprobs"]}
        value = float(found[token])
    except (KeyError, IndexError, TypeError, ValueError):
        raise PermanentError(
            f"{ask.address} gave no log-probability of token {token} (`n_probs` of {vocabulary} is ignored, or another "
            "version answers otherwise)."
        ) from None
    return value, value >= max(found.values())


def _all(function: Callable[[Any], Any], requests: Sequence[Any], concurrent: int) -> list[Any]:
    with ThreadPoolExecutor(concurrent) as pool:
        return list(pool.map(function, requests))
