"""What the source of one module says: its statements, and what each of them refers to."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
SCOPES = (*FUNCTIONS, ast.ClassDef, ast.Lambda)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
#: The name of a file that is no code.
DATA_FILE = re.compile(r"[\w./-]*\w\.(?!py$)[a-z][a-z0-9]{0,4}")


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
            if (origin := _origin(node, parent)) and within(origin, package):
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


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def _aliases(node: ast.Import | ast.ImportFrom, parent: str, package: str) -> dict[str, tuple[str, str | None]]:
    """Local name -> what it stands for, for imports of the package."""
    found: dict[str, tuple[str, str | None]] = {}
    origin = _origin(node, parent)
    for alias in node.names:
        if origin is not None:
            if within(origin, package) and alias.name != "*":
                found[alias.asname or alias.name] = (origin, alias.name)
        elif within(alias.name, package):
            found[alias.asname or package] = (alias.name if alias.asname else package, None)
    return found


def _imported(node: ast.Import | ast.ImportFrom, parent: str, package: str) -> list[str]:
    """Modules that an import may run; that ``from a import b`` names a module is decided by whether there is one."""
    origin = _origin(node, parent)
    if origin is None:
        return [alias.name for alias in node.names if within(alias.name, package)]
    if not within(origin, package):
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
