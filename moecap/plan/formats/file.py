"""A file that is read once, whichever format asks for it."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from moecap.errors import MoecapError
from moecap.io import read_parquet


@dataclass
class File:
    """A result file: its rows where it is a table, its value where it is JSON, its text otherwise."""

    path: Path
    problem: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if not self.path.is_file():
            raise MoecapError(f"{self.path} does not exist.")

    @property
    def name(self) -> str:
        return self.path.name

    @cached_property
    def text(self) -> str:
        """The whole file, where it is text."""
        if self.path.suffix in (".parquet", ".zst"):
            return ""
        try:
            return self.path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            self.problem = f"It cannot be read as text ({error})."
            return ""

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Rows of a CSV or Parquet table; empty for anything else."""
        if self.path.suffix == ".parquet":
            return read_parquet(self.path).to_pylist()
        if self.path.suffix != ".csv":
            return []
        return list(csv.DictReader(self.text.splitlines()))

    @property
    def columns(self) -> set[str]:
        return set(self.rows[0]) if self.rows else set()

    @cached_property
    def json(self) -> Any:
        """The value of a JSON file, a list of the lines' values for JSON Lines; None for anything else."""
        if self.path.suffix not in (".json", ".jsonl"):
            return None
        try:
            if self.path.suffix == ".jsonl":
                return [json.loads(line) for line in self.text.splitlines() if line.strip()]
            return json.loads(self.text)
        except json.JSONDecodeError as error:
            self.problem = f"It is not valid JSON ({error})."
            return None

    @property
    def records(self) -> list[Mapping[str, Any]]:
        """The JSON objects of the file: itself, or those in its list."""
        value = self.json
        values = value if isinstance(value, list) else [value]
        return [v for v in values if isinstance(v, Mapping)]
