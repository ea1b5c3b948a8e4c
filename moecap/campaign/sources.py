"""Where a config's keys were written: in files (a later one lies over an earlier one), or on the command line."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from moecap.campaign.config import Config
from moecap.documents import Document, KeyPath, read_document
from moecap.errors import Collector, MoecapError, Place
from moecap.schema import explain

COMMAND_LINE = "--config"


@dataclass(frozen=True)
class Sources:
    """The files that a config was read from, and what the command line laid over them."""

    name: str
    documents: tuple[Document, ...] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)
    #: Where in these files the config stands: another workflow may have ours under a key of its own.
    below: KeyPath = ()

    @classmethod
    def read(cls, files: Iterable[str | os.PathLike[str]], overrides: Mapping[str, Any] | None = None) -> Sources:
        """Read the files strictly.

        Raises:
            MoecapError: a file cannot be read, is no YAML or no mapping of keys.
            Mistakes: a key is given twice.
        """
        documents = []
        found = Collector()
        for file in files:
            with found.taking(Place(os.fspath(file))):
                document = read_document(_shown(file))
                documents.append(document)
                if document.data is None:
                    raise MoecapError(
                        f"{document.path}: the config is empty. It needs at least `deployments` and `cost`."
                    )
                if not isinstance(document.data, dict):
                    raise MoecapError("a mapping of keys is expected, as in `seed: 1`.")
        found.finish()
        return cls(" + ".join(d.path for d in documents), tuple(documents), overrides or {})

    @property
    def data(self) -> dict[str, Any]:
        """The config: all files and the command line, laid over each other key by key, as Snakemake does it."""
        merged: dict[str, Any] = {}
        for part in (*(document.data for document in self.documents), self.overrides):
            _lay_over(merged, part)
        return merged

    def holding(self, config: Mapping[str, Any]) -> Sources:
        """Of these files those that hold ``config``: all, laid over each other, or one; as a whole, or below a key.

        Where none does, another workflow made it up: nothing but its name is known then.
        """
        for documents in (self.documents, *((document,) for document in reversed(self.documents))):
            found = replace(self, name=" + ".join(d.path for d in documents), documents=documents)
            data = found.data
            if data == config:
                return found
            for key, part in data.items():
                if part and part == config:
                    return replace(found, below=(key,))
        return Sources("`config:` of the module")

    def place(self, path: KeyPath = ()) -> Place:
        """Where the key at ``path`` was given last; of a key that is not there, where its nearest part is."""
        full = (*self.below, *path)
        for end in range(len(full), 0, -1):
            if _has(self.overrides, full[:end]):
                return Place(COMMAND_LINE)
            for document in reversed(self.documents):
                if (line := document.line(full[:end])) is not None:
                    return Place(document.path, line)
        return Place(self.name)


def _shown(file: str | os.PathLike[str]) -> str:
    """A path below the working folder as one would write it: Snakemake makes all of them absolute."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_absolute() and path.is_relative_to(Path.cwd()) else str(path)


def _lay_over(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(below.get(key), dict):
            _lay_over(below[key], value)
        else:
            below[key] = copy.deepcopy(value)


def _has(data: Any, path: KeyPath) -> bool:
    for part in path:
        if not isinstance(data, Mapping) or part not in data:
            return False
        data = data[part]
    return True


def load_config(config: Mapping[str, Any], sources: Sources, found: Collector) -> tuple[Config, set[KeyPath]]:
    """Check a config; what is wrong goes into ``found``.

    Returns:
        The config without the keys that are wrong (their defaults stand in, so that the rest can be checked), and the
        paths of those keys.

    Raises:
        Mistakes: nothing is left that could be checked.
    """
    data = copy.deepcopy(dict(config))
    wrong: set[KeyPath] = set()
    try:
        return Config.model_validate(data), wrong
    except ValidationError as error:
        wrong = explain(error, Config, data, sources.place, found)
    for _ in range(8):  # a value that is taken away may be one that another needs
        for path in sorted(wrong, key=len, reverse=True):
            _remove(data, path)
        try:
            return Config.model_validate(data), wrong
        except ValidationError as error:
            wrong |= explain(error, Config, data, sources.place, Collector())
    found.finish()
    raise MoecapError(f"{sources.name}: no config.")  # not reached: something was found


def _remove(data: Any, path: KeyPath) -> None:
    """Take a key away; one that is missing takes the mapping along that it is missing from."""
    if not path:
        return
    owner = data
    for part in path[:-1]:
        if (isinstance(owner, Mapping) and part not in owner) or not isinstance(owner, (dict, list)):
            return
        owner = owner[part]  # type: ignore[index]
    if isinstance(owner, dict) and path[-1] in owner:
        del owner[path[-1]]
    elif isinstance(owner, list) and isinstance(path[-1], int) and path[-1] < len(owner):
        _remove(data, path[:-1])
    else:
        _remove(data, path[:-1])
