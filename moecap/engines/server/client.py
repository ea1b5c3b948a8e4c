"""One client for every served engine: completions, streamed, with every chunk's time and token ids.

While the clock runs, the client only notes when bytes arrived; they are read afterwards. Chunks are not tokens: a chunk
may bring several ids, which then have its time.
"""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from moecap.engines.base import Request, RequestRecord, RunResult, Window, no_window
from moecap.engines.server.settings import Api, fill_body
from moecap.errors import MoecapError, PermanentError

if TYPE_CHECKING:
    import aiohttp

#: Answers that may be another the next time.
TRANSIENT = (408, 409, 425, 429, 500, 502, 503, 504)


#: Stands for an id that a stream left out, until the whole answer is asked for.
LEFT_OUT = -1


@dataclass
class Answer:
    """One request's answer as it came: monotonic times and bytes."""

    submitted_s: float
    status: int = 0
    pieces: list[tuple[float, bytes]] = field(default_factory=list)


def complete(
    url: str,
    api: Api,
    model: str,
    requests: Sequence[Request],
    *,
    seed: int = 1,
    headers: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
    beat: Callable[[], None] = lambda: None,
    window: Window = no_window,
) -> RunResult:
    """Submit ``requests`` together and read every answer to its end. The result has no steps: nobody told them.

    Args:
        url: the server's address, without a path.
        model: what requests call the model by.
        headers: beside the content's type (a key).
        timeout_s: seconds without a single byte of an answer; None: for ever (a watchdog looks at ``beat``).
        beat: called whenever bytes arrive.
        window: opened around the timed part.

    Raises:
        PermanentError: an answer that will not be another the next time (a request that the server refuses, ids that
            it does not give).
        MoecapError: an error of the server, a connection that broke, a number of tokens that was not asked for.
    """
    bodies = [
        fill_body(
            api.body,
            {
                "model": model,
                "prompt_token_ids": list(request.prompt_token_ids),
                "output_tokens": request.output_tokens,
                "seed": seed,
            },
        )
        for request in requests
    ]
    run = _run(url + api.path, bodies, dict(headers or {}), timeout_s, beat, window)
    answers, start, start_unix, end, measured = asyncio.run(run)
    records = [
        _record(request, answer, api, start, url + api.path) for request, answer in zip(requests, answers, strict=True)
    ]
    if api.whole is not None:
        for request, record, body in zip(requests, records, bodies, strict=True):
            if LEFT_OUT in record.output_token_ids or len(record.output_token_ids) < request.output_tokens:
                _fill_in(record, {**body, **api.whole}, api, url + api.path, headers, timeout_s)
    for request, record in zip(requests, records, strict=True):
        check_count(record, request, api, url + api.path)
    return RunResult(records, [], end - start, start_unix, measured)


async def _run(
    address: str,
    bodies: Sequence[Mapping[str, Any]],
    headers: dict[str, str],
    timeout_s: float | None,
    beat: Callable[[], None],
    window: Callable[[], AbstractContextManager[Any]],
) -> tuple[list[Answer], float, float, float, Any]:
    import aiohttp

    payloads = [json.dumps(body).encode() for body in bodies]
    timeout = aiohttp.ClientTimeout(total=None, sock_read=timeout_s, sock_connect=30)
    async with aiohttp.ClientSession(
        timeout=timeout,
        connector=aiohttp.TCPConnector(limit=0),
        headers={"Content-Type": "application/json", **headers},
        trust_env=True,
    ) as session:
        with window() as measured:
            start_unix, start = time.time(), time.monotonic()
            tasks = [asyncio.create_task(_one(session, address, payload, beat)) for payload in payloads]
            try:
                answers = await asyncio.gather(*tasks)
            except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
                for task in tasks:
                    task.cancel()
                what = "no byte came in time" if isinstance(error, TimeoutError) else str(error) or repr(error)
                raise MoecapError(f"The request to {address} failed: {what}.") from error
            end = time.monotonic()
    return answers, start, start_unix, end, measured


async def _one(session: aiohttp.ClientSession, address: str, payload: bytes, beat: Callable[[], None]) -> Answer:
    answer = Answer(time.monotonic())
    async with session.post(address, data=payload) as response:
        answer.status = response.status
        async for piece in response.content.iter_any():
            answer.pieces.append((time.monotonic(), piece))
            beat()
    return answer


def events(pieces: Sequence[tuple[float, bytes]]) -> list[tuple[float, str]]:
    """Server-sent events (time at which each was complete, its data) of an answer in pieces.

    >>> events([(1.0, b'data: {"a"'), (2.0, b': 1}\\n\\ndata: [DONE]\\n\\n')])
    [(2.0, '{"a": 1}'), (2.0, '[DONE]')]
    """
    found = []
    rest = b""
    for when, piece in pieces:
        rest = (rest + piece).replace(b"\r\n", b"\n")
        *complete_events, rest = rest.split(b"\n\n")
        for event in complete_events:
            lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
            if lines:
                found.append((when, b"\n".join(lines).decode("utf-8", "replace")))
    return found


def look_up(data: Any, path: str | None) -> Any:
    """What lies at a path of keys and indices in JSON; None where it leads nowhere.

    >>> look_up({"choices": [{"token_ids": [7]}]}, "choices.0.token_ids")
    [7]
    """
    for key in path.split(".") if path else [""]:
        if isinstance(data, Mapping):
            data = data.get(key)
        elif isinstance(data, list) and key.isdigit() and int(key) < len(data):
            data = data[int(key)]
        else:
            return None
    return data


def _record(request: Request, answer: Answer, api: Api, start: float, address: str) -> RequestRecord:
    """A request's record from its answer."""
    text = b"".join(piece for _, piece in answer.pieces).decode("utf-8", "replace")
    if answer.status != 200:
        kind = MoecapError if answer.status in TRANSIENT else PermanentError
        raise kind(f"{address} answered {answer.status}: {' '.join(text.split())[:300]}")
    record = RequestRecord(list(request.prompt_token_ids), arrival_s=answer.submitted_s - start)
    read_chunks(record, [(when - start, data) for when, data in events(answer.pieces)], api, address)
    return record


def read_chunks(record: RequestRecord, found: Sequence[tuple[float, str]], api: Api, address: str) -> None:
    """Put what a streamed answer brought, (seconds from the start of the run, JSON) per event, into its record.

    Raises:
        MoecapError: what is no JSON, or an error of the server within the stream.
    """
    for when, data in found:
        if data == "[DONE]":
            break
        try:
            chunk = json.loads(data)
        except json.JSONDecodeError as error:
            raise MoecapError(f"{address} sent what is no JSON: {data[:200]!r}") from error
        if (failure := look_up(chunk, "error")) is not None:
            raise MoecapError(f"{address} sent an error in its stream: {str(failure)[:300]}")
        ids = look_up(chunk, api.token_ids)
        new = [int(token) for token in (ids if isinstance(ids, list) else [] if ids is None else [ids])]
        counted = look_up(chunk, api.counted) if api.counted else None
        if isinstance(counted, int):
            new = [LEFT_OUT] * (counted - len(record.output_token_ids) - len(new)) + new
        record.output_token_ids += new
        record.token_times_s += [when] * len(new)
        record.finish_reason = look_up(chunk, api.finish_reason) or record.finish_reason
        name = look_up(chunk, "id")
        record.served_as = name if isinstance(name, str) else record.served_as


def _fill_in(
    record: RequestRecord,
    body: Mapping[str, Any],
    api: Api,
    address: str,
    headers: Mapping[str, str] | None,
    timeout_s: float | None,
) -> None:
    """Ids that the stream left out, from the same answer in one piece; those that it gave must be the same.

    Raises:
        MoecapError: they are not: the server did not answer the same twice.
    """
    question = urllib.request.Request(
        address,
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", **(headers or {})},
        method="POST",
    )
    try:
        with urllib.request.urlopen(question, timeout=timeout_s) as answer:
            whole = look_up(json.loads(answer.read()), api.token_ids)
    except (OSError, ValueError) as error:
        raise MoecapError(f"{address}: the answer in one piece could not be had: {error}") from error
    given = record.output_token_ids
    ids = [int(token) for token in whole] if isinstance(whole, list) else []
    if any(a not in (LEFT_OUT, b) for a, b in zip(given, ids, strict=False)) or len(ids) < len(given):
        raise MoecapError(
            f"{address}: the stream left out ids of tokens, and the same question asked in one piece was answered "
            "otherwise; they cannot be filled in. Measure at a smaller batch size, or with another engine."
        )
    record.token_times_s += record.token_times_s[-1:] * (len(ids) - len(given))
    record.output_token_ids = ids


def check_count(record: RequestRecord, request: Request, api: Api, address: str) -> None:
    got = len(record.output_token_ids)
    if got == 0:
        raise PermanentError(
            f"{address} gave no token ids where `options.api.token_ids` ({api.token_ids}) expects them. Without ids "
            "nothing can be replayed; ask for them in `options.api.body`."
        )
    if got != request.output_tokens:
        raise MoecapError(
            f"{address} returned {got} tokens for a request of {request.output_tokens} (finish reason: "
            f"{record.finish_reason}). A field of the request that fixes the length was ignored, or the answer broke "
            "off."
        )
