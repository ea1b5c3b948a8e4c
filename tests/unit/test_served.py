"""What a server is tried with before lm-eval asks it: over real HTTP, with servers that ignore what they accept."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moecap.accuracy import served
from moecap.accuracy.counting import samples_of
from moecap.accuracy.served import Asker, cannot_score, check_logprobs, check_stop_strings, next_token
from moecap.campaign.catalogue import Catalogue
from moecap.errors import MoecapError, PermanentError

ENTRIES = {
    name: entry.for_accuracy() for name, entry in Catalogue().engines.items() if served.is_served(entry.for_accuracy())
}


@contextmanager
def server(fault: str = "", text: str = "42\n17") -> Iterator[str]:
    """OpenAI's completions and chats and llama.cpp's `/completion`, by one text."""

    class Handler(BaseHTTPRequestHandler):
        calls = 0

        def do_POST(self) -> None:
            Handler.calls += 1
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if fault == "busy" and Handler.calls == 1:
                return self.reply(503, {})
            if fault == "400":
                return self.reply(400, {"error": "told to refuse"})
            said = text[: body.get("max_tokens", body.get("n_predict"))]
            if fault != "stops":
                for stop in body.get("stop", []):
                    said = said.split(stop)[0]
            if "n_probs" in body:
                ids = range(body["n_probs"] if fault != "few" else 2)
                top = [{"id": i, "logprob": math.log(2.0 ** -(i + 1))} for i in ids]
                return self.reply(200, {"content": said, "completion_probabilities": [{"top_logprobs": top}]})
            if "n_predict" in body:
                return self.reply(200, {"content": said})
            if "messages" in body:
                return self.reply(200, {"choices": [{"message": {"content": said}}]})
            choice: dict[str, Any] = {"text": said, "logprobs": None}
            if body.get("echo") and fault != "echo":
                values = [None, *[-0.5] * len(body["prompt"])]
                choice = {"text": body["prompt"] + said, "logprobs": {"token_logprobs": values}}
            self.reply(200, {"choices": [choice]})

        def reply(self, status: int, body: Any) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_port}/v1/completions"
    finally:
        http.shutdown()
        http.server_close()


@pytest.mark.parametrize("api", served.SERVED)
def test_stop_strings_that_are_ignored_are_refused(api: str) -> None:
    with server() as url:
        assert check_stop_strings(Asker(url, "m", api), ["1+1="])
    with server("stops") as url, pytest.raises(PermanentError, match="ignores stop strings"):
        check_stop_strings(Asker(url, "m", api), ["1+1="])
    with server(text="") as url:
        assert not check_stop_strings(Asker(url, "m", api), ["1+1="])


def test_a_server_without_log_probabilities_of_a_prompt_is_refused() -> None:
    with server("busy") as url:
        check_logprobs(Asker(url, "m", "local-completions"), ["1+1="])
    with server("echo") as url, pytest.raises(PermanentError, match="no log-probabilities of a prompt"):
        check_logprobs(Asker(url, "m", "local-completions"), ["1+1="])
    with server("400") as url, pytest.raises(PermanentError, match=r"answered 400: .*told to refuse"):
        check_logprobs(Asker(url, "m", "local-completions"), ["1+1="])
    with pytest.raises(MoecapError, match="could not be asked"):
        served._RETRIES, kept = 1, served._RETRIES
        try:
            Asker("http://127.0.0.1:9/", "m", "local-completions").post({})
        finally:
            served._RETRIES = kept


def test_llama_cpps_next_token() -> None:
    with server() as url:
        ask = Asker(url, "m", "llamacpp")
        assert next_token(ask, [1, 2], 0, 8) == (pytest.approx(math.log(0.5)), True)
        assert next_token(ask, [1, 2], 5, 8) == (pytest.approx(math.log(2**-6)), False)
    with server("few") as url, pytest.raises(PermanentError, match="no log-probability of token 5"):
        next_token(Asker(url, "m", "llamacpp"), [1, 2], 5, 8)


@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.parametrize("kind", ["generate", "multiple_choice", "perplexity", "judged"])
def test_what_an_entry_cannot_score_is_known_before_it_is_started(name: str, kind: str) -> None:
    entry = ENTRIES[name]
    gives = entry["options"]["api"].get("logprobs")
    why = cannot_score(entry, kind)
    if kind in ("generate", "judged"):
        assert why is None
    else:
        assert (why is None) == (gives == "openai" or (gives == "llamacpp" and kind == "multiple_choice"))
    chats = {**entry, "lm_eval": {"model": "local-chat-completions"}}
    assert (cannot_score(chats, kind, chat_template=True) is None) == (kind in ("generate", "judged"))
    assert cannot_score(chats, kind) is not None


@given(st.lists(st.sampled_from(["7", "", " ", "12345678", "no number"]), min_size=1, max_size=8))
def test_cut_empty_and_unparsed_answers_are_told(texts: list[str]) -> None:
    config = {
        "output_type": "generate_until",
        "generation_kwargs": {"max_gen_toks": 8},
        "filter_list": [{"name": "f", "filter": [{"function": "regex"}, {"function": "take_first"}]}],
    }
    logged = [
        {
            "doc_id": i,
            "filter": "f",
            "target": "7",
            "arguments": [("q", {})],
            "resps": [[text]],
            "filtered_resps": [text if text.strip().isdigit() else "[invalid]"],
            "exact_match": float(text == "7"),
        }
        for i, text in enumerate(texts)
    ]
    results = {"configs": {"t": config}, "samples": {"t": logged}}
    rows = samples_of(results, "exact_match", "f", lambda given: [list(text) for text in given])
    assert [row["cut"] for row in rows] == [len(text) >= 8 for text in texts]
    assert [row["unparsed"] for row in rows] == [not text.strip().isdigit() for text in texts]
