"""The keys of a quantization config: each is read, or changes no stored byte, or is refused by its name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from moecap.errors import MoecapError, nearest
from moecap.model.names import Patterns
from moecap.schema import read_yaml

#: Kept as they are by tools that quantize the projections of attention and MLP only.
GATES = Patterns(("re:.*gate$",))
HEAD = Patterns(("lm_head",))


@lru_cache(maxsize=1)
def _table() -> Mapping[str, list[str]]:
    return read_yaml(Path(__file__).with_name("harmless.yaml"))


def _harmless(part: str) -> frozenset[str]:
    return frozenset(_table().get(part, ()))


class Keys:
    """A part of a quantization config, which knows what of it was read."""

    def __init__(self, method: str, data: Any, part: str = "") -> None:
        self.method, self.where = method, f"{method}.{part}" if part else method
        if not isinstance(data, Mapping):
            raise MoecapError(f"quantization_config ({self.where}) must be a table of keys, not {data!r:.100}.")
        self.data = data
        self.unread = {key for key, value in data.items() if value is not None}

    def get(self, key: str, default: Any = None) -> Any:
        self.unread.discard(key)
        value = self.data.get(key)
        return default if value is None else value

    def number(self, key: str, default: int | None = None, least: int = -1) -> int | None:
        """A whole number.

        Raises:
            MoecapError: it is none, or too small.
        """
        value = self.get(key, default)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise MoecapError(f"quantization_config: {key} is {value!r}, it must be a whole number.")
        return value

    def group_size(self, default: int | None = None) -> int | None:
        """Weights that share a scale; None: all of a row (stored as -1).

        Raises:
            MoecapError: it is no number, or 0.
        """
        value = self.number("group_size", default)
        if value == 0:
            raise MoecapError("quantization_config: group_size is 0; -1 says one group per row.")
        return None if value in {-1, None} else value

    def one_of(self, key: str, known: Iterable[str], default: str | None = None) -> str | None:
        """A word out of those that are known.

        Raises:
            MoecapError: it is another.
        """
        value, known = self.get(key, default), tuple(known)
        if value is not None and str(value) not in known:
            raise self.refuse(key, f"{value!r} is not known. {nearest(str(value), known)}")
        return None if value is None else str(value)

    def names(self, *keys: str) -> Patterns:
        """The modules that any of these keys lists."""
        found = Patterns()
        for key in keys:
            found += Patterns.of(self.get(key), key)
        return found

    def refuse(self, key: str, why: str) -> MoecapError:
        return MoecapError(
            f"quantization_config: `{key}` of {self.where}: {why} Give the checkpoint itself (its headers say what it "
            "weighs) or a precision."
        )

    def done(self) -> None:
        """Every key must have been read, or change nothing.

        Raises:
            MoecapError: names the first that is not understood.
        """
        unknown = sorted(self.unread - _harmless("any") - _harmless(self.where))
        if unknown:
            raise self.refuse(unknown[0], "what it does to the stored weights is not known.")


def flat(names: Any) -> Iterator[str]:
    for name in names:
        if isinstance(name, str):
            yield name
        else:
            yield from flat(name)


def block_of(keys: Keys, block: Any) -> tuple[int, int] | None:
    if block is None:
        return None
    sides = [int(side) for side in block.lower().split("x")] if isinstance(block, str) else block
    if not (isinstance(sides, list | tuple) and len(sides) == 2 and all(isinstance(s, int) and s > 0 for s in sides)):
        raise keys.refuse("weight_block_size", f"{block!r} is no pair of sizes.")
    return sides[0], sides[1]
