"""A hub on loopback that misbehaves on demand: real HTTP, real files, faults taken from a queue.

>>> with Hub({"org/model": files}) as hub:             # doctest: +SKIP
...     hub.fault("model.safetensors", cut_after(1000))
...     os.environ["HF_ENDPOINT"] = hub.url
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = 4096  # files of at least this many bytes are "LFS" files: their hash is a SHA-256


@dataclass
class Fault:
    """What the server does instead of answering properly, once."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None  # bytes of body, then the connection closes
    stall_after: int | None = None  # bytes of body, then nothing, for `stall_s`
    stall_s: float = 30.0
    garbage: bool = False  # the right length, the wrong bytes


def status(code: int, **headers: str) -> Fault:
    return Fault(status=code, headers={k.replace("_", "-"): v for k, v in headers.items()})


def cut_after(n: int) -> Fault:
    return Fault(cut_after=n)


def stall_after(n: int, seconds: float = 30.0) -> Fault:
    return Fault(stall_after=n, stall_s=seconds)


def garbage() -> Fault:
    return Fault(garbage=True)


@dataclass
class Request:
    method: str
    path: str
    range: str | None
    authorization: str | None


class Hub:
    """Serves ``{repository: {path: bytes}}`` at one commit each, under the hub's API paths that a download uses."""

    def __init__(self, repos: dict[str, dict[str, bytes]], licence: str = "apache-2.0") -> None:
        self.repos = repos
        self.licence = licence
        self.commits = {r: hashlib.sha1(r.encode()).hexdigest() for r in repos}
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.requests: list[Request] = []
        self.stop = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.server.shutdown()
        self.server.server_close()

    def fault(self, name: str, *faults: Fault) -> None:
        """Queue faults for a file, or for the repository's description (``name="api"``)."""
        self.faults[name].extend(faults)

    def gets(self, name: str) -> list[Request]:
        return [r for r in self.requests if r.method == "GET" and r.path.endswith(f"/{name}")]

    def describe(self, repo: str) -> dict[str, Any]:
        siblings = []
        for name, content in self.repos[repo].items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": blob}
            if len(content) >= LARGE:
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 130}
            siblings.append(entry)
        return {
            "id": repo,
            "modelId": repo,
            "sha": self.commits[repo],
            "private": False,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "cardData": {"license": self.licence},
            "siblings": siblings,
        }

    def tree(self, repo: str) -> list[dict[str, Any]]:
        """A repository's files, as `snapshot_download` asks for them."""
        return [
            {
                "type": "file",
                "path": entry["rfilename"],
                "size": entry["size"],
                "oid": entry["blobId"],
                **({"lfs": {"oid": entry["lfs"]["sha256"], **entry["lfs"]}} if "lfs" in entry else {}),
            }
            for entry in self.describe(repo)["siblings"]
        ]

    def _handler(hub) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, body: bool) -> None:
                path = unquote(urlsplit(self.path).path)
                hub.requests.append(
                    Request(self.command, path, self.headers.get("Range"), self.headers.get("Authorization"))
                )
                tree = re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+", path)
                api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
                resolve = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
                if tree:
                    self.send(200, json.dumps(hub.tree(tree[1])).encode(), {"Content-Type": "application/json"})
                elif api:
                    self.api(api[1], api[2])
                elif resolve:
                    self.file(resolve[1], resolve[3], body)
                else:
                    self.error(404)

            def api(self, repo: str, revision: str | None) -> None:
                if hub.faults["api"]:
                    fault = hub.faults["api"].pop(0)
                    if fault.stall_after is not None:
                        hub.stop.wait(fault.stall_s)
                        return
                    self.error(fault.status or 500, fault.headers)
                elif repo not in hub.repos:
                    self.error(404, {"X-Error-Code": "RepoNotFound"})
                elif revision not in (None, "main", hub.commits[repo]):
                    self.error(404, {"X-Error-Code": "RevisionNotFound"})
                else:
                    self.send(200, json.dumps(hub.describe(repo)).encode(), {"Content-Type": "application/json"})

            def file(self, repo: str, name: str, body: bool) -> None:
                content = hub.repos.get(repo, {}).get(name)
                if content is None:
                    self.error(404, {"X-Error-Code": "EntryNotFound"})
                    return
                large = len(content) >= LARGE
                digest = hashlib.sha256(content) if large else hashlib.sha1(b"blob %d\0" % len(content) + content)
                headers = {
                    "ETag": f'"{digest.hexdigest()}"',
                    "X-Repo-Commit": hub.commits[repo],
                    "Accept-Ranges": "bytes",
                }
                fault = hub.faults[name].pop(0) if body and hub.faults[name] else Fault()
                if fault.status:
                    self.error(fault.status, fault.headers)
                    return
                start, code, total = 0, 200, len(content)
                wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
                if wanted:
                    start, code = int(wanted[1]), 206
                    if start >= total:
                        self.error(416, {"Content-Range": f"bytes */{total}"})
                        return
                    headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
                part = content[start:]
                if fault.garbage:
                    part = bytes(255 - b for b in part)
                self.send(code, part, headers, body, fault)

            def send(
                self,
                code: int,
                content: bytes,
                headers: dict[str, str],
                body: bool = True,
                fault: Fault | None = None,
            ) -> None:
                fault = fault or Fault()
                self.send_response(code)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if not body:
                    return
                limit = next((n for n in (fault.cut_after, fault.stall_after) if n is not None), None)
                try:
                    self.wfile.write(content[:limit])
                    self.wfile.flush()
                    if fault.stall_after is not None:
                        hub.stop.wait(fault.stall_s)
                except OSError:
                    pass
                if limit is not None:
                    self.close_connection = True

            def error(self, code: int, headers: dict[str, str] | None = None) -> None:
                self.send(code, b'{"error": "no"}', {"Content-Type": "application/json", **(headers or {})})

        return Handler


def checkpoint(seed: int = 0, shards: int = 2, elements: int = 6000) -> dict[str, bytes]:
    """The files of a small checkpoint: config, sharded safetensors with an index, tokenizer, and things not wanted."""
    import random

    generator = random.Random(seed)
    files: dict[str, bytes] = {"config.json": json.dumps({"model_type": "mixtral", "seed": seed}).encode()}
    weight_map = {}
    for i in range(shards):
        data = generator.randbytes(elements * 2)
        name, tensor = f"model-{i + 1:05d}-of-{shards:05d}.safetensors", f"layers.{i}.weight"
        entry = {tensor: {"dtype": "BF16", "shape": [elements], "data_offsets": [0, len(data)]}}
        header = json.dumps(entry).encode()
        files[name] = struct.pack("<Q", len(header)) + header + data
        weight_map[tensor] = name
    files["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    files["tokenizer.json"] = b"{}"
    files["README.md"] = b"---\nlicense: apache-2.0\n---\n"
    files["pytorch_model.bin"] = b"pickle" * 10
    files["original/consolidated.00.safetensors"] = b"the same weights again"
    return files


if __name__ == "__main__":  # by hand: python -m tests.hub.server
    with Hub({"org/model": checkpoint()}) as running:
        print(running.url)
        while True:
            time.sleep(60)
