"""The definitions of a package, and which of them a script reaches (see :mod:`moecap.reach`)."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from moecap.reach import source as reader
from moecap.reach.source import Module, Statement, read_source, within

#: Builtins that look through all names of the module that calls them.
BY_NAME = {"globals", "locals", "eval", "exec", "__import__"}
#: What every module has, of itself.
OWN_ATTRIBUTES = {"__name__", "__file__", "__doc__", "__path__", "__spec__", "__dict__"}
#: A definition: its module, and which of that module's statements it is.
Definition = tuple[str, int]


class Library:
    """The definitions of a package, and which of them a script reaches.

    Args:
        package: folder of the package.
        ignored: modules, or packages of them, that count for nothing, with what only they reach.
        cache: a JSON file that keeps what the sources say, by their content: a start then parses what was edited.
    """

    def __init__(self, package: Path, ignored: Iterable[str] = (), cache: Path | None = None) -> None:
        self.package, self.ignored, self.cache = package, frozenset(ignored), cache
        self._modules: dict[str, Module | None] = {}
        self._edges: dict[Definition, tuple[list[Definition], list[str], str]] = {}
        self._known: dict[str, dict[str, Any]] | None = None
        self._fresh: dict[str, dict[str, Any]] = {}

    # -- sources

    def file_of(self, name: str) -> Path | None:
        """The file of a module of the package; None where there is none."""
        first, *rest = name.split(".")
        if first != self.package.name or not all(part.isidentifier() for part in rest):
            return None
        path = self.package.joinpath(*rest)
        return next((f for f in (path / "__init__.py", path.with_suffix(".py")) if f.is_file()), None)

    def module_of(self, path: Path) -> str | None:
        """The name of the module that a file of the package is; None for another file."""
        with suppress(ValueError):
            parts = path.resolve().relative_to(self.package.resolve()).with_suffix("").parts
            return ".".join([self.package.name, *(parts[:-1] if parts and parts[-1] == "__init__" else parts)])
        return None

    def _ignores(self, module: str) -> bool:
        return any(within(module, name) for name in self.ignored)

    def module(self, name: str) -> Module | None:
        """What the source of a module says; None where there is none, or it does not count."""
        if name not in self._modules:
            file = None if self._ignores(name) else self.file_of(name)
            self._modules[name] = self._read(file, name) if file else None
        return self._modules[name]

    def _read(self, file: Path, name: str) -> Module:
        source = file.read_bytes()
        if self._known is None:
            self._known = _load_cache(self.cache)
        # Of a script its own name is enough: a copy of the repository finds what was kept.
        key = hashlib.sha256(name.rpartition("/")[2].encode() + b"\0" + source).hexdigest()[:32]
        if key in self._known:
            self._fresh[key] = self._known[key]
            return Module.from_json(self._known[key])
        found = read_source(source.decode("utf-8"), name, self.package.name, file.name == "__init__.py")
        self._fresh[key] = found.to_json()
        return found

    def save(self) -> None:
        """Keep what was read for the next start; where that cannot be written, it is read again."""
        if self.cache and self._fresh.keys() - (self._known or {}).keys():
            _save_cache(self.cache, self._fresh)
            self._known = dict(self._fresh)

    # -- what names mean

    def _find(self, module: str, chain: list[str], seen: frozenset[tuple[str, str]]) -> tuple[list[Definition], bool]:
        """Definitions that a dotted name stands for inside ``module``, and whether it is the library's at all."""
        source = self.module(module)
        name, rest = chain[0], chain[1:]
        if source is None or (module, name) in seen:
            return [], self._ignores(module)
        seen |= {(module, name)}
        found: list[Definition] = []
        if name in source.names:
            found += [(module, index) for index in source.names[name]]
        if name in source.aliases:
            origin, attribute = source.aliases[name]
            return [*found, *self._member(origin, [*([attribute] if attribute else []), *rest], seen)], True
        if not found and name in BY_NAME:
            return self.whole(module), True
        for origin in () if found else source.stars:
            inner, own = self._find(origin, chain, seen)
            if own:
                return inner, True
        return found, bool(found)

    def _member(self, module: str, chain: list[str], seen: frozenset[tuple[str, str]]) -> list[Definition]:
        """Definitions that ``module.a.b`` stands for; all of the module where that cannot be told."""
        if self.file_of(module) is None or self._ignores(module):
            return []
        if not chain:
            return self.whole(module)
        inner, own = self._find(module, chain, seen)
        if own or chain[0] in OWN_ATTRIBUTES:
            return inner
        if self.file_of(f"{module}.{chain[0]}"):
            return self._member(f"{module}.{chain[0]}", chain[1:], seen)
        return self.whole(module)  # a name that somebody puts there as it runs

    def whole(self, module: str) -> list[Definition]:
        """Every definition of a module."""
        source = self.module(module)
        return [(module, index) for index in range(len(source.statements))] if source else []

    def _refers(self, module: str, chain: list[str]) -> list[Definition]:
        """As :meth:`_find`; a first name of "" stands for a module that is named in full."""
        if chain[0] != "":
            return self._find(module, chain, frozenset())[0]
        return self._member(chain[1], chain[2:], frozenset())

    # -- what is reached

    def _acts(self, module: str) -> list[Definition]:
        """Statements that do something, or may, when the module is imported, and what they run for that."""
        source = self.module(module)
        if source is None:
            return []
        found = [d for statement in source.statements for chain in statement.runs for d in self._refers(module, chain)]

        def may(statement: Statement) -> bool:
            called = (d for chain in statement.calls for d in self._refers(module, chain))
            if statement.acts or any(not self._statement(d).foreign for d in called):
                return True
            return any(self._watches(*base) for chain in statement.bases for base in self._refers(module, chain))

        return found + [(module, index) for index, statement in enumerate(source.statements) if may(statement)]

    def _watches(self, module: str, index: int) -> bool:
        """Whether a class, or one that it is made from, does something with every class that is made from it."""
        source = self.module(module)
        statement = source.statements[index] if source else Statement("")
        return statement.subclassed or any(
            self._watches(*base)
            for chain in statement.bases
            for base in self._refers(module, chain)
            if base != (module, index)
        )

    def _edges_of(self, definition: Definition) -> tuple[list[Definition], list[str], str]:
        """What a definition reaches directly, the modules that it imports, and its hash with what its names mean."""
        if definition not in self._edges:
            module, index = definition
            source = self.module(module)
            assert source is not None
            statement = source.statements[index]
            combined = hashlib.sha256(statement.hash.encode())
            reached: list[Definition] = []
            for chain in sorted(statement.refers):
                found = self._refers(module, chain)
                reached += found
                if found:
                    hashes = [self._statement(d).hash for d in found]
                    combined.update(f"{'.'.join(chain[1:] if chain[0] == '' else chain)}={hashes}".encode())
            self._edges[definition] = (reached, statement.imports, combined.hexdigest()[:16])
        return self._edges[definition]

    def _statement(self, definition: Definition) -> Statement:
        source = self.module(definition[0])
        assert source is not None
        return source.statements[definition[1]]

    def reach(self, roots: Iterable[Definition], imports: Iterable[str] = ()) -> set[Definition]:
        """All definitions that can run, or be read, where the modules are imported and the roots are used."""
        reached: set[Definition] = set()
        imported: set[str] = set()
        waiting = list(roots)
        modules = [*imports, *(module for module, _ in waiting)]
        while waiting or modules:
            while modules:
                name = modules.pop()
                if name in imported:
                    continue
                imported.add(name)
                parts = name.split(".")
                modules += [".".join(parts[:i]) for i in range(1, len(parts))]
                if source := self.module(name):
                    modules += source.imports
                    waiting += self._acts(name)
            while waiting:
                definition = waiting.pop()
                if definition not in reached:
                    reached.add(definition)
                    modules.append(definition[0])
                    more, imports, _ = self._edges_of(definition)
                    waiting += more
                    modules += imports
        return reached

    def script(self, path: Path) -> tuple[set[Definition], str]:
        """What a script, or a file of the package, reaches; and the hash of the script itself with what its names mean.

        A script is no module of the package: it is read as one that only it can see.
        """
        own = self.module_of(path)
        if own is not None:
            return self.reach(self.whole(own), [own]), ""
        name = f"{self.package.name}.<{path}>"
        if name not in self._modules:
            self._modules[name] = self._read(path, name)
        roots = self.whole(name)
        source = self._modules[name]
        assert source is not None
        reached = self.reach(roots, source.imports)
        hashes = [self._edges_of(root)[2] for root in roots]
        return {d for d in reached if d[0] != name}, hashlib.sha256("".join(hashes).encode()).hexdigest()

    def hashes(self, definitions: Iterable[Definition]) -> list[str]:
        """Hashes of definitions, each with what its names mean, without where they stand."""
        return sorted(self._edges_of(definition)[2] for definition in definitions)

    def data_files(self, definitions: Iterable[Definition]) -> list[Path]:
        """Files of the package, other than code, that definitions name. Folders that are links are somebody else's."""
        named = {Path(name).name for definition in definitions for name in self._statement(definition).files}
        found = []
        for folder, folders, files in os.walk(self.package):
            folders[:] = [name for name in folders if name != "__pycache__"]
            found += [Path(folder, name) for name in files if name in named]
        return sorted(found)

    def label(self, definition: Definition) -> str:
        """``module:name`` of a definition, for people."""
        return f"{definition[0]}:{','.join(self._statement(definition).binds) or definition[1]}"


def _reader_version() -> str:
    return f"{sys.version_info[:2]} {hashlib.sha256(Path(reader.__file__).read_bytes()).hexdigest()[:16]}"


def _load_cache(path: Path | None) -> dict[str, dict[str, Any]]:
    if path is not None:
        with suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads(path.read_text(encoding="utf-8"))
            if known["reader"] == _reader_version():
                return dict(known["modules"])
    return {}


def _save_cache(path: Path, modules: dict[str, dict[str, Any]]) -> None:
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.fchmod(fd, 0o644)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            json.dump({"reader": _reader_version(), "modules": modules}, file, separators=(",", ":"))
        Path(temporary).replace(path)
