"""Judgments as they come, a line of JSON each: what is paid for once is kept, whatever ends the job."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any


class Kept:
    """An append-only file of records by key. A line is written whole, at once, and to the disk.

    A half line at its end (a machine that lost its power) is cut off when the file is opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._lock = threading.Lock()
        self.records: dict[str, dict[str, Any]] = {}
        if self._path.is_file():
            self._read()

    def _read(self) -> None:
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            with self._path.open("r+b") as file:
                file.truncate(len(whole))
        for line in whole.splitlines():
            record = json.loads(line)
            self.records[record["key"]] = record

    def add(self, key: str, record: dict[str, Any]) -> None:
        """Keep a record; safe to be called by several threads."""
        line = json.dumps({"key": key, **record}, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab", buffering=0) as file:
                file.write(line)
                os.fsync(file.fileno())
            self.records[key] = {"key": key, **record}
