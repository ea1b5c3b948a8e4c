"""A judge over real HTTP that says what it is told to: by the two answers it is shown, or misbehaving by a plan."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: (status, body, headers)
Reply = tuple[int, Any, dict[str, str]]


def said(text: str, finish: str = "stop", **message: Any) -> Reply:
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}
    body = {"id": "1", "object": "chat.completion", "created": 1, "model": "j", "choices": [choice], "usage": usage}
    return 200, body, {}


@contextmanager
def judge_server(reply: Callable[[str, int], Reply], key: str | None = None) -> Iterator[tuple[str, list[str]]]:
    """``reply``: what to answer to the user's message, the n-th time that it is seen. Yields (url, messages seen)."""
    seen: list[str] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            message = body["messages"][-1]["content"]
            with lock:
                times = seen.count(message)
                seen.append(message)
            status, answer, headers = reply(message, times)
            if key is not None and self.headers.get("Authorization") != f"Bearer {key}":
                status, answer, headers = 401, {"error": {"message": "wrong key"}}, {}
            content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(content)),
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        server.server_close()
