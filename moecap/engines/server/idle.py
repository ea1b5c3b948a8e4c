"""A server that does nothing: every token is there at once. What a client gets from it is the client's own ceiling."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from moecap.engines.server.settings import Api, placeholder

HOST = "127.0.0.1"


@contextmanager
def idle_server(api: Api) -> Iterator[str]:
    """Its address for the block. It answers any POST with as many events as tokens are asked for, each with an id where
    ``api`` has it, and any GET with 200."""
    loop = asyncio.new_event_loop()
    length_key = next(key for key, value in api.body.items() if placeholder(value) == "output_tokens")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            size = [line.partition(":")[2] for line in head.split("\r\n") if line.lower().startswith("content-length:")]
            body = json.loads(await reader.readexactly(int(size[0]))) if size else {}
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
            for number in range(int(body.get(length_key, 0))):
                writer.write(b"data: " + json.dumps(_chunk(api, number)).encode() + b"\n\n")
                await writer.drain()
            writer.write(b"data: [DONE]\n\n")
            await writer.drain()
        except (OSError, ValueError, asyncio.IncompleteReadError):
            pass  # the client counts what it got
        finally:
            writer.close()

    server = loop.run_until_complete(asyncio.start_server(answer, HOST, 0))
    thread = threading.Thread(target=loop.run_forever, name="moecap-idle-server", daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _chunk(api: Api, number: int) -> Any:
    """An event that brings one token, as ``api`` says where."""
    chunk: dict[str, Any] = {}
    for path, value in ((api.token_ids, [1]), (api.counted, number + 1)):
        if path is not None:
            _put(chunk, path.split("."), value)
    return chunk


def _put(data: Any, path: list[str], value: Any) -> None:
    """Set what :func:`~moecap.engines.server.client.look_up` finds at a path; an index is that of a list of one."""
    here, *rest = path
    if not rest:
        data[here] = value
    elif rest[0].isdigit():
        if len(rest) == 1:
            data[here] = [value]
        else:
            _put(data.setdefault(here, [{}])[0], rest[1:], value)
    else:
        _put(data.setdefault(here, {}), rest, value)
