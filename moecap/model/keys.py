"""The words of config files, as data: ``config/catalogue/config_keys.yaml``."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ConfigDict

from moecap.documents import read_yaml
from moecap.paths import PACKAGED_CATALOGUE


class ConfigKeys(BaseModel):
    """What config files call things.

    Attributes:
        same_as: a ``model_type`` → the one of transformers by whose class its configs are read.
        facts: a fact → the words that configs have for it.
        flags, patterns: what the model has, or what each layer is → the switches and lists that say so.
        any_value: patterns of keys that shape no parameter and no cache, whatever they say.
        as_built: keys that transformers builds in one way only → the values for which that is right.
        said_again: keys that repeat another key of the same file.
        structural: parts of a key's name that speak of shapes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    same_as: dict[str, str]
    facts: dict[str, tuple[str, ...]]
    flags: dict[str, tuple[str, ...]]
    patterns: dict[str, tuple[str, ...]]
    any_value: tuple[str, ...]
    as_built: dict[str, tuple[Any, ...]]
    said_again: dict[str, str]
    structural: frozenset[str]

    def fact(self, key: str) -> str | None:
        """The fact that a key states, if it is a word for one."""
        return next((fact for fact, words in self.facts.items() if key in words), None)

    def flag(self, key: str) -> str | None:
        """What a switch says that the model has."""
        return next((flag for flag, words in self.flags.items() if key in words), None)

    def pattern(self, key: str) -> str | None:
        """What a list says of each layer."""
        return next((pattern for pattern, words in self.patterns.items() if key in words), None)

    def is_harmless(self, key: str) -> bool:
        """Whether a key is known to shape nothing."""
        return any(fnmatchcase(key, pattern) for pattern in self.any_value)

    def speaks_of_shapes(self, key: str) -> bool:
        """Whether a key's name has a word that speaks of shapes."""
        return bool(self.structural & set(key.lower().split("_")))


@lru_cache(maxsize=1)
def config_keys() -> ConfigKeys:
    """The table of the catalogue that comes with the package."""
    return ConfigKeys.model_validate(read_yaml(PACKAGED_CATALOGUE / "config_keys.yaml"))
