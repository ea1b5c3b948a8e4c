"""Which definitions of the library a script can reach, found by reading the sources: nothing is imported.

A definition is a statement at the top of a module: a function, a class (with all its methods), an assignment. It
reaches what its names refer to: other definitions of its module, what it imports, what it takes from a module
(``steps.read_steps``). Where that cannot be told, more is reached rather than less:

- a module that is passed on, searched by ``getattr`` or named in a string (``"moecap.engines.base"``) counts whole;
- a method is reached with its class, whoever calls it;
- a file beside the code (``names.yaml``) counts where its name stands in what is reached;
- code that runs when a module is imported and may change something (a bare call, a registration, a loop, a decorator
  or a call of the library's own) counts wherever the module is imported.

Only a name that is put together at run time (``import_module(f"moecap.engines.{kind}_engine")``) is not seen. Comments,
docstrings and line breaks do not enter a hash, nor does the module that a definition stands in.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
SCOPES = (*FUNCTIONS, ast.ClassDef, ast.Lambda)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
#: The name of a file that is no code.
DATA_FILE = re.compile(r"[\w./-]*\w\.(?!py$)[a-z][a-z0-9]{0,4}")
#: Builtins that look through all names of the module that calls them.
BY_NAME = {"globals", "locals", "eval", "exec", "__import__"}
#: What every module has, of itself.
OWN_ATTRIBUTES = {"__name__", "__file__", "__doc__", "__path__", "__spec__", "__dict__"}


@dataclass
class Statement:
    """One statement at the top of a module, as far as it matters to whoever reaches it."""

    hash: str
    #: Names that it gives a value to.
    binds: list[str] = field(default_factory=list)
    #: Dotted names that are looked up in the module: ``["steps", "read_steps"]``.
    refers: list[list[str]] = field(default_factory=list)
    #: Modules that it imports when it runs, or inside a function of its own.
    imports: list[str] = field(default_factory=list)
    #: Those of ``refers`` that are called, or decorate, while the module is imported.
    calls: list[list[str]] = field(default_factory=list)
    #: What a function's defaults look up where they call something: they do so when the module is imported.
    runs: list[list[str]] = field(default_factory=list)
    #: What it names that may be a file beside the code.
    files: list[str] = field(default_factory=list)
    #: Classes that it is made from.
    bases: list[list[str]] = field(default_factory=list)
    #: Whether it does something when the module is imported, whatever it calls.
    acts: bool = False
    #: Whether it imports a name of another library.
    foreign: bool = False
    #: Whether it says what becomes of subclasses (``__init_subclass__``).
    subclassed: bool = False


@dataclass
class Module:
    """What the source of one module says."""

    statements: list[Statement]
    #: Name -> module and, where a name of it was imported, that name.
    aliases: dict[str, tuple[str, str | None]]
    #: Modules whose public names were all imported.
    stars: list[str]
    #: What importing it imports.
    imports: list[str]

    @cached_property
    def names(self) -> dict[str, list[int]]:
        """Name -> the statements that give it a value."""
        found: dict[str, list[int]] = {}
        for index, statement in enumerate(self.statements):
            for name in statement.binds:
                found.setdefault(name, []).append(index)
        return found

    def to_json(self) -> dict[str, Any]:
        return {
            "statements": [vars(s) for s in self.statements],
            "aliases": self.aliases,
            "stars": self.stars,
            "imports": self.imports,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Module:
        aliases = {name: (module, attribute) for name, (module, attribute) in value["aliases"].items()}
        return cls([Statement(**s) for s in value["statements"]], aliases, value["stars"], value["imports"])


# -- one source -------------------------------------------------------------------------------------------------------


def read_source(source: str, name: str, package: str, is_package: bool = False) -> Module:
    """Read the source of the module ``name`` of ``package`` (``moecap.metrics.steps`` of ``moecap``)."""
    tree = ast.parse(source)
    module = Module([], {}, [], [])
    for node in tree.body:
        if not _is_text(node):
            _read_statement(node, module, name if is_package else name.rpartition(".")[0], package)
    return module


def _read_statement(node: ast.stmt, module: Module, parent: str, package: str) -> None:
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        _read_import(node, module, parent, package)
        return
    if _is_type_checking(node):
        for inner in ast.walk(node):
            if isinstance(inner, (ast.Import, ast.ImportFrom)):
                module.aliases.update(_aliases(inner, parent, package))
        return
    if _is_main_guard(node):
        # Runs only where the module is the program; whoever starts it so names the whole module.
        module.statements.append(Statement(_hash(node)))
        reader = _Reader(module.statements[-1], parent, package)
        reader.importing = False
        reader.visit(node)
        return
    statement = Statement(_hash(node), binds=sorted(_bound(node)))
    reader = _Reader(statement, parent, package)
    reader.visit(node)
    # A `try` around imports, or an `if`: its imports are the module's.
    for inner in _at_import(node):
        if isinstance(inner, (ast.Import, ast.ImportFrom)):
            module.aliases.update(_aliases(inner, parent, package))
            module.imports.extend(_imported(inner, parent, package))
    simple = (*FUNCTIONS, ast.ClassDef, ast.Assign, ast.AnnAssign)
    statement.acts = not isinstance(node, simple) or any(map(_changes_another, _at_import(node)))
    if isinstance(node, ast.ClassDef):
        statement.acts |= bool(node.keywords)  # a metaclass, or arguments of __init_subclass__
        statement.bases = [chain for base in node.bases if (chain := _chain(base))]
        statement.subclassed = any(isinstance(n, FUNCTIONS) and n.name == "__init_subclass__" for n in node.body)
    module.statements.append(statement)


def _read_import(node: ast.Import | ast.ImportFrom, module: Module, parent: str, package: str) -> None:
    """Names of the library are followed; another library's name is a definition like any other."""
    module.imports.extend(_imported(node, parent, package))
    own = _aliases(node, parent, package)
    module.aliases.update(own)
    for alias in node.names:
        bound = alias.asname or alias.name.split(".")[0]
        if alias.name == "*":
            if (origin := _origin(node, parent)) and _within(origin, package):
                module.stars.append(origin)
            else:
                module.statements.append(Statement(_hash(node), acts=True))
        elif bound not in own:
            what = f"{getattr(node, 'level', 0)} {getattr(node, 'module', None)} {alias.name} {alias.asname}"
            hashed = hashlib.sha256(what.encode()).hexdigest()[:16]
            module.statements.append(Statement(hashed, binds=[bound], foreign=True))


def _origin(node: ast.Import | ast.ImportFrom, parent: str) -> str | None:
    """The module that a ``from`` import takes its names from, in full; None for an ``import``."""
    if isinstance(node, ast.Import):
        return None
    if not node.level:
        return node.module or ""
    base = ".".join(parent.split(".")[: len(parent.split(".")) - node.level + 1])
    return f"{base}.{node.module}" if node.module else base


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def _aliases(node: ast.Import | ast.ImportFrom, parent: str, package: str) -> dict[str, tuple[str, str | None]]:
    """Local name -> what it stands for, for imports of the package."""
    found: dict[str, tuple[str, str | None]] = {}
    origin = _origin(node, parent)
    for alias in node.names:
        if origin is not None:
            if _within(origin, package) and alias.name != "*":
                found[alias.asname or alias.name] = (origin, alias.name)
        elif _within(alias.name, package):
            found[alias.asname or package] = (alias.name if alias.asname else package, None)
    return found


def _imported(node: ast.Import | ast.ImportFrom, parent: str, package: str) -> list[str]:
    """Modules that an import may run; that ``from a import b`` names a module is decided by whether there is one."""
    origin = _origin(node, parent)
    if origin is None:
        return [alias.name for alias in node.names if _within(alias.name, package)]
    if not _within(origin, package):
        return []
    return [origin, *(f"{origin}.{alias.name}" for alias in node.names if alias.name != "*")]


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and not node.orelse and (_chain(node.test) or [""])[-1] == "TYPE_CHECKING"


def _is_main_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and not node.orelse and ast.unparse(node.test) == "__name__ == '__main__'"


def _chain(node: Any) -> list[str] | None:
    """``a.b.c`` as its names; None for anything else."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return [node.id, *reversed(names)] if isinstance(node, ast.Name) else None


def _hash(node: ast.AST) -> str:
    """Hash of a syntax tree without docstrings and other bare strings, the same under every version of Python."""
    parts: list[str] = []

    def add(value: Any) -> None:
        if isinstance(value, ast.AST):
            parts.append(type(value).__name__)
            for name in value._fields:
                inner = getattr(value, name, None)
                if inner is None or inner == [] or name in ("ctx", "type_comment", "kind"):
                    continue
                parts.append(name)
                add(inner)
            parts.append(")")
        elif isinstance(value, list):
            for item in value:
                if not _is_text(item):
                    add(item)
            parts.append("]")
        else:
            parts.append(repr(value))

    add(node)
    return hashlib.sha256("\x00".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """``node``'s descendants without the bodies of functions, lambdas and classes inside it."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, SCOPES):
            yield from _own_nodes(child)


def _at_import(node: ast.AST) -> Iterator[ast.AST]:
    """``node`` and what of it runs when its statement does: a class's body does, a function's does not."""
    yield node
    if isinstance(node, (*FUNCTIONS, ast.Lambda)):
        outside = [*node.args.defaults, *(d for d in node.args.kw_defaults if d)]
        outside += [] if isinstance(node, ast.Lambda) else node.decorator_list
        for part in outside:
            yield from _at_import(part)
    else:
        for child in ast.iter_child_nodes(node):
            yield from _at_import(child)


def _changes_another(node: ast.AST) -> bool:
    """Whether something is put into an object: ``a.b = …``, ``a[b] = …``."""
    return isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, (ast.Store, ast.Del))


def _bound(node: ast.AST) -> set[str]:
    """Names that a statement, or a function's body, gives a value to in its own scope."""
    if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
        return {node.name}
    return set().union(*map(_binds, [node, *_own_nodes(node)])) - _comprehension_names(node)


def _binds(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Name) and isinstance(node.ctx, (ast.Store, ast.Del)):
        return {node.id}
    if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
        return {node.name}
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {alias.asname or alias.name.split(".")[0] for alias in node.names}
    if isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)):
        return {node.name} if node.name else set()
    return {node.rest} if isinstance(node, ast.MatchMapping) and node.rest else set()


def _comprehension_names(node: ast.AST) -> set[str]:
    """Targets of comprehensions, which are no names of the scope around; unless it gives them a value itself."""
    inner: set[str] = set()
    outer: set[str] = set()

    def look(node: ast.AST, target: bool) -> None:
        if isinstance(node, ast.comprehension):
            look(node.target, True)
            for part in (node.iter, *node.ifs):
                look(part, False)
            return
        (inner if target else outer).update(_binds(node))
        if not isinstance(node, SCOPES):
            for child in ast.iter_child_nodes(node):
                look(child, target)

    for child in ast.iter_child_nodes(node):
        look(child, False)
    return inner - outer


@dataclass
class _Scope:
    names: set[str]
    aliases: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    is_class: bool = False


class _Reader(ast.NodeVisitor):
    """Collects what a statement refers to outside itself, by Python's rules of scope."""

    def __init__(self, statement: Statement, parent: str, package: str) -> None:
        self.statement, self.parent, self.package = statement, parent, package
        self.scopes: list[_Scope] = []
        # Whether what is visited runs while the module is imported.
        self.importing = True

    # What a name means where it stands: a local (None), or dotted names to be looked up in the module.
    def _meaning(self, chain: list[str]) -> list[str] | None:
        for depth, scope in enumerate(reversed(self.scopes)):
            if scope.is_class and depth:
                continue  # names of a class are not seen by its methods
            if chain[0] in scope.aliases:
                module, attribute = scope.aliases[chain[0]]
                return ["", module, *([attribute] if attribute else []), *chain[1:]]
            if chain[0] in scope.names:
                # In a class's own body a name may still be the module's when it is read.
                return chain if scope.is_class else None
        return chain

    def _refer(self, chain: list[str]) -> list[str] | None:
        meaning = self._meaning(chain)
        if meaning and meaning not in self.statement.refers:
            self.statement.refers.append(meaning)
        return meaning

    def _call(self, function: Any) -> None:
        """Something is called; a call on what another call returned is one of that one."""
        while isinstance(function, (ast.Call, ast.Attribute, ast.Subscript)) and not _chain(function):
            function = function.func if isinstance(function, ast.Call) else function.value
        chain = _chain(function)
        meaning = self._meaning(chain) if chain else None
        if self.importing and meaning and meaning not in self.statement.calls:
            self.statement.calls.append(meaning)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load) or self.scopes:
            self._refer([node.id])

    def visit_Attribute(self, node: ast.Attribute) -> None:
        chain = _chain(node)
        if chain:
            self._refer(chain)
        else:
            self.visit(node.value)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str) and node.value.startswith(f"{self.package}."):
            self._refer(["", node.value])
        elif isinstance(node.value, str) and DATA_FILE.fullmatch(node.value):
            self.statement.files.append(node.value)

    def visit_Call(self, node: ast.Call) -> None:
        self._call(node.func)
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if not _is_text(node):
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        self.statement.imports.extend(_imported(node, self.parent, self.package))

    visit_ImportFrom = visit_Import

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        # Of a local variable it is never evaluated; of a class's field it is, by dataclasses and pydantic.
        if not self.scopes or self.scopes[-1].is_class:
            self._annotation(node.annotation)
        for child in filter(None, (node.target, node.value)):
            self.visit(child)

    def _annotation(self, node: ast.AST | None) -> None:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            with suppress(SyntaxError):
                node = ast.parse(node.value, mode="eval").body
        if node is not None:
            self.visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for decorator in node.decorator_list:
            self._call(decorator)
        for child in (*node.decorator_list, *node.bases, *node.keywords):
            self.visit(child)
        names = {name for part in node.body for name in _bound(part)}
        self._inside(_Scope(names, is_class=True), node.body, self.importing)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for decorator in node.decorator_list:
            self._call(decorator)
            self.visit(decorator)
        self._function(node.args, node.body, annotations=bool(node.decorator_list))
        if node.decorator_list:
            self._annotation(node.returns)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._function(node.args, [node.body], annotations=False)

    def _function(self, args: ast.arguments, body: Iterable[ast.AST], annotations: bool) -> None:
        """Defaults belong to the scope around. What a signature is annotated with, only a decorator could look at."""
        for default in (*args.defaults, *(d for d in args.kw_defaults if d)):
            if self.importing and not self.scopes:
                self._default(default)
            else:
                self.visit(default)
        arguments = [*args.posonlyargs, *args.args, *args.kwonlyargs, *filter(None, (args.vararg, args.kwarg))]
        if annotations:
            for argument in arguments:
                self._annotation(argument.annotation)
        body = list(body)
        names = {argument.arg for argument in arguments}
        elsewhere: set[str] = set()
        for part in body:
            names |= _bound(part)
            for inner in (part, *([] if isinstance(part, SCOPES) else _own_nodes(part))):
                if isinstance(inner, (ast.Global, ast.Nonlocal)):
                    elsewhere.update(inner.names)
        self._inside(_Scope(names - elsewhere), body, False)

    def _default(self, node: ast.expr) -> None:
        """Of a function at the top of a module: what its default calls runs with the import, the function does not."""
        own, self.statement = self.statement, Statement("")
        self.visit(node)
        inner, self.statement = self.statement, own
        own.refers += [chain for chain in inner.refers if chain not in own.refers]
        own.runs += inner.refers if inner.calls else []

    def _inside(self, scope: _Scope, body: Iterable[ast.AST], importing: bool) -> None:
        before = self.importing
        body = list(body)
        for part in body:
            for node in (part, *([] if isinstance(part, SCOPES) else _own_nodes(part))):
                if isinstance(node, (ast.Import, ast.ImportFrom)):
                    scope.aliases.update(_aliases(node, self.parent, self.package))
        self.scopes.append(scope)
        self.importing = importing
        for part in body:
            self.visit(part)
        self.scopes.pop()
        self.importing = before

    def _comprehension(self, node: Any) -> None:
        names = {n.id for g in node.generators for n in ast.walk(g.target) if isinstance(n, ast.Name)}
        # The first thing that is gone through belongs to the scope around: `[x for x in x]`.
        self.visit(node.generators[0].iter)
        self._inside(_Scope(names), ast.iter_child_nodes(node), self.importing)

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension


# -- the library ------------------------------------------------------------------------------------------------------

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
        return any(_within(module, name) for name in self.ignored)

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


# -- what was read before ---------------------------------------------------------------------------------------------


def _reader_version() -> str:
    return f"{sys.version_info[:2]} {hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]}"


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
