"""How modules are called: in a checkpoint, in the lists of a quantization config, and in the model that we build.

Transformers fuses experts (``experts.gate_up_proj``), checkpoints and quantization configs name them one by one
(``experts.3.up_proj``, ``block_sparse_moe.experts.3.w3``). :class:`CheckpointNames` gives each matrix of a parameter
the names that a config may know it by, by transformers' own table of names; :class:`Patterns` is one such list.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from moecap.errors import MoecapError

if TYPE_CHECKING:
    from moecap.model.skeleton import Part

#: Prefixes by which a language model inside a multimodal one is called, and what it is called alone.
LANGUAGE_MODEL = {"model.language_model.": "model.", "language_model.model.": "model.", "language_model.": ""}
#: Per-expert projections of fused parameters, where transformers has no table for them.
FUSED_PROJECTIONS = {"gate_up_proj": ("gate_proj", "up_proj")}
#: Where a component lies in a model whose shapes are stated as data, which has no names of its own.
SHAPE_NAMES = {
    "attention": "self_attn.q_proj", "attention_kv": "self_attn.k_proj", "router": "mlp.gate",
    "shared": "mlp.shared_experts.up_proj", "dense_mlp": "mlp.up_proj", "expert": "mlp.experts.*.up_proj",
}  # fmt: skip


def alone(name: str) -> str:
    """A module's name without the prefix of a multimodal model.

    >>> alone("language_model.model.layers.0.self_attn"), alone("model.language_model.norm"), alone("lm_head")
    ('model.layers.0.self_attn', 'model.norm', 'lm_head')
    """
    for prefix, short in LANGUAGE_MODEL.items():
        if name.startswith(prefix):
            return short + name[len(prefix) :]
    return name


@dataclass(frozen=True)
class Patterns:
    """A list of modules: names or parts of them (whole words), globs, or regular expressions (``re:``)."""

    patterns: tuple[str, ...] = ()

    @classmethod
    def of(cls, patterns: Any, where: str = "ignore") -> Patterns:
        """From a config's list.

        Raises:
            MoecapError: it is no list of names, or holds a regular expression that is none.
        """
        if patterns is None:
            return cls()
        if isinstance(patterns, str):
            patterns = [patterns]
        if not isinstance(patterns, Sequence) or not all(isinstance(p, str) for p in patterns):
            raise MoecapError(f"quantization_config: {where} must be a list of modules' names, not {patterns!r:.100}.")
        found = cls(tuple(patterns))
        try:
            _ = found._regexes
        except re.error as error:
            raise MoecapError(f"quantization_config: {where} has a pattern that is none ({error}).") from error
        return found

    def __add__(self, other: Patterns) -> Patterns:
        return Patterns(self.patterns + other.patterns)

    def __bool__(self) -> bool:
        return bool(self.patterns)

    def match(self, names: Iterable[str]) -> bool:
        """Whether a module is meant that is known by these names."""
        return bool(self.patterns) and any(self._matches(name) for name in names)

    @cached_property
    def tells_experts_apart(self) -> bool:
        """Whether the list may treat two experts of a layer differently; it never does so where this is False."""
        return any(_tells_experts_apart(pattern) for pattern in self.patterns)

    def _matches(self, name: str) -> bool:
        name = alone(name)
        if self._words and any(run in self._words for run in _runs(name, self._lengths)):
            return True
        if self._globs and self._globs.match(name):
            return True
        return any(
            regex.match(spelling)
            for regex in self._regexes
            for spelling in (_spellings(name) if "language_model" in regex.pattern else (name,))
        )

    @cached_property
    def _words(self) -> frozenset[str]:
        return frozenset(alone(p).strip(".") for p in self.patterns if not _is_regex(p) and not _is_glob(p))

    @cached_property
    def _lengths(self) -> frozenset[int]:
        return frozenset(word.count(".") + 1 for word in self._words)

    @cached_property
    def _globs(self) -> re.Pattern[str] | None:
        globs = [alone(p) for p in self.patterns if not _is_regex(p) and _is_glob(p)]
        whole = [p if p.endswith("*") else f"{p}*" for p in globs]
        return re.compile("|".join(fnmatch.translate(p) for p in whole)) if globs else None

    @cached_property
    def _regexes(self) -> tuple[re.Pattern[str], ...]:
        return tuple(re.compile(p.removeprefix("re:")) for p in self.patterns if _is_regex(p))


def _tells_experts_apart(pattern: str) -> bool:
    if not _is_regex(pattern):
        return bool(re.search(r"experts\.[\d\[?]|^\d|[\[?]|\*.*\d", pattern))
    # What is left of a regular expression that any number matches says nothing of numbers.
    rest = re.sub(r"\.[*+]\??|\\\.|\\[dw][*+]|\[0-9\][*+]", "", pattern.removeprefix("re:"))
    return any(c.isdigit() or c in ".[{?\\" for c in rest)


def _is_regex(pattern: str) -> bool:
    """A pattern that says so, or one that could be nothing else (transformers takes regular expressions unmarked)."""
    return pattern.startswith("re:") or any(c in pattern for c in "\\^$(|+")


def _is_glob(pattern: str) -> bool:
    return any(c in pattern for c in "*?[")


def _spellings(name: str) -> Iterator[str]:
    """A module's name as it may be within a multimodal model, too."""
    yield name
    for prefix, short in LANGUAGE_MODEL.items():
        yield prefix + name.removeprefix(short)


def _runs(name: str, lengths: Iterable[int]) -> Iterator[str]:
    """Every run of so many whole words of a dotted name."""
    words = name.split(".")
    for length in lengths:
        for start in range(len(words) - length + 1):
            yield ".".join(words[start : start + length])


@dataclass(frozen=True)
class Module:
    """``copies`` matrices of (rows, columns) that a quantization config treats alike, and what it may call them."""

    names: tuple[str, ...]
    rows: int
    columns: int
    copies: int = 1


class CheckpointNames:
    """The names by which a checkpoint, and so its quantization config, knows the matrices of a parameter.

    Args:
        renamings: transformers' table of a model's names (``WeightRenaming``, ``WeightConverter``); None: names are
            the checkpoint's own.
    """

    def __init__(self, renamings: Any = None) -> None:
        transforms = list(renamings or ())
        #: fused parameter -> per-expert parameters in the checkpoint, with ``*`` for the expert
        self.experts: dict[str, list[str]] = {}
        self.backwards: list[Any] = []
        for transform in transforms:
            if not getattr(transform, "operations", None):
                self.backwards.insert(0, transform.reverse_transform())
            elif len(transform.target_patterns) == 1 and all("*" in s for s in transform.source_patterns):
                self.experts.setdefault(transform.target_patterns[0], list(transform.source_patterns))

    def modules(self, part: Part, experts: int = 0, apart: bool = True) -> Iterator[Module]:
        """The matrices of a parameter; ``experts`` of its layer, where it holds routed ones.

        Args:
            apart: each expert on its own; else all of them in one, by the names of the first.
        """
        for matrix in part.matrices:
            if part.component == "routed_experts" and experts and matrix.copies >= experts:
                sources = self._sources(part.name)
                # One source per matrix of an expert (gate and up), or one that holds them all.
                copies = matrix.copies // experts // len(sources) or 1
                for source in sources:
                    spellings = self._spellings((source, part.name))
                    for expert in range(experts if apart else 1):
                        names = tuple(name.replace("*", str(expert)) for name in spellings)
                        yield Module(names, matrix.rows, matrix.columns, copies if apart else copies * experts)
            else:
                yield Module(self._spellings((part.name,)), matrix.rows, matrix.columns, matrix.copies)

    def _sources(self, name: str) -> list[str]:
        for target, sources in self.experts.items():
            if target in name:
                return [name.replace(target, source) for source in sources]
        stated = _of_shape(name)
        if stated:
            return [stated]
        root, _, last = name.removesuffix(".weight").rpartition(".")
        return [f"{root}.*.{projection}" for projection in FUSED_PROJECTIONS.get(last, (last,))]

    def _spellings(self, names: Iterable[str]) -> tuple[str, ...]:
        found: dict[str, None] = {}
        for name in names:
            name = re.sub(r"\.(weight|bias)$", "", _of_shape(name) or name)
            found[name] = None
            older = name
            for transform in self.backwards:
                older = transform.rename_source_key(older)[0]
            found[older] = None
        return tuple(found)


def _of_shape(name: str) -> str | None:
    """A name as a checkpoint would have it, for a model whose shapes are stated as data."""
    match = re.fullmatch(r"layers\.(\d+)\.(\w+)\.\d+", name)
    return f"model.layers.{match[1]}.{SHAPE_NAMES[match[2]]}" if match and match[2] in SHAPE_NAMES else None
