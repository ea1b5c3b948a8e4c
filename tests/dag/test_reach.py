"""`docs/reruns.md`'s promise over the whole library: which script an edit of one definition reruns.

What a script reaches is found here a second way: its imports are run, and names are looked up in the bytecode of live
functions, not in sources.
"""

from __future__ import annotations

import ast
import dis
import importlib
import random
import re
import shutil
import sys
import types
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from moecap.provenance import NO_RESULT, PACKAGE, ROOT
from moecap.reach import Library
from tests.dag.conftest import FUNCTION, with_function_edited

RULES = sorted(
    {
        ROOT / "scripts" / Path(line.strip().strip('"')).name
        for file in (ROOT / "rules").glob("*.smk")
        for line in file.read_text(encoding="utf-8").splitlines()
        if line.strip().startswith('"../scripts/')
    }
)
LIBRARY = Library(PACKAGE, NO_RESULT)


def prints(package: Path, cached: bool = True) -> dict[str, tuple[str, ...]]:
    """Script -> what its fingerprint is made from."""
    library = Library(package, NO_RESULT, package.parent / ".cache" / "definitions.json" if cached else None)
    found = {}
    for script in RULES:
        reached, own = library.script(script)
        found[script.name] = (own, *library.hashes(reached))
    library.save()
    return found


@pytest.fixture(scope="module")
def before() -> dict[str, tuple[str, ...]]:
    return prints(PACKAGE, cached=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PACKAGE, tmp_path / "moecap", ignore=shutil.ignore_patterns("__pycache__")))


def with_words(source: str) -> str:
    """The source with another docstring in everything that can have one, and a comment before every statement."""
    lines = source.splitlines()
    inserted: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt):
            start = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
            if lines[start - 1][: node.col_offset].isspace() or node.col_offset == 0:
                inserted.append((start - 1, " " * node.col_offset + "# edited"))
        if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTION)) and node.body:
            first = node.body[0]
            text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            if text and isinstance(first.value.value, str):
                inserted += [(line, None) for line in range(first.lineno - 1, first.end_lineno or first.lineno)]
            elif isinstance(node, ast.Module) or first.lineno == node.lineno:
                continue
            start = min([first.lineno, *(d.lineno for d in getattr(first, "decorator_list", []))])
            inserted.append((start - 1, " " * first.col_offset + '"""Edited."""'))
    removed = {line for line, text in inserted if text is None}
    before: dict[int, list[str]] = {}
    for line, text in inserted:
        if text is not None:
            # A docstring comes first, whatever comments stand before the statement.
            before.setdefault(line, []).insert(0 if '"""' in text else len(before.get(line, [])), text)
    result = []
    for number, line in enumerate(lines):
        result += before.get(number, [])
        if number not in removed:
            result.append(line)
    return "\n".join(result) + "\n"


def test_words_rerun_nothing(copy: Path, before: dict[str, tuple[str, ...]]) -> None:
    """Of every module at once: no edit makes good for another one, since hashes of definitions are compared."""
    edited = 0
    for file in copy.rglob("*.py"):
        source = file.read_text(encoding="utf-8")
        text = with_words(source)
        assert ast.parse(text), file
        edited += text != source
        file.write_text(text, encoding="utf-8")
    assert edited > 50
    after = prints(copy)
    assert {name for name in before if before[name] != after[name]} == set()


# -- what a script reaches, from live objects -------------------------------------------------------------------------


def parts(code: types.CodeType) -> Iterator[types.CodeType]:
    """A code object and those inside it, but what is checked types only."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from parts(constant)


def is_ours(module: Any) -> bool:
    name = str(module or "")
    return name.startswith("moecap.") and not any(name == n or name.startswith(f"{n}.") for n in NO_RESULT)


class Walk:
    """Functions and classes of the library that live objects lead to, as ``module:name``.

    Args:
        generous: follow also what a name in a class's annotations or in a string leads to, and what imports run.
    """

    def __init__(self, generous: bool = False) -> None:
        self.generous = generous
        self.found: set[str] = set()
        # By identity, and held: what is freed would leave its number to another object.
        self._seen: dict[int, Any] = {}
        self._modules: set[str] = set()

    def code(self, code: types.CodeType, names: dict[str, Any]) -> None:
        """Follow the global names of a code object, through modules to their attributes."""
        local: dict[str, Any] = {}
        for part in parts(code):
            holding: Any = None
            member: Any = None
            for instruction in dis.get_instructions(part):
                name, value = instruction.opname, instruction.argval
                if name == "IMPORT_NAME":
                    holding = importlib.import_module(value) if is_ours(value) else None
                    self.runs(value)
                elif name == "IMPORT_FROM":
                    member = member_of(holding, value)
                    self.value(member)
                    self.runs(getattr(member, "__name__", ""))
                elif name.startswith("STORE_") and name != "STORE_SUBSCR":  # the next name of the import may follow
                    local[value], member = member, None
                elif name in ("LOAD_GLOBAL", "LOAD_NAME"):
                    holding = names.get(value)
                    self.value(holding)
                elif name.startswith("LOAD_") and isinstance(local.get(value), types.ModuleType):
                    holding = local[value]
                elif name in ("LOAD_ATTR", "LOAD_METHOD") and isinstance(holding, types.ModuleType):
                    holding = getattr(holding, value, None) if is_ours(holding.__name__) else None
                    self.value(holding)
                elif name not in ("CACHE", "PRECALL"):
                    holding = None
            if self.generous:
                for constant in part.co_consts:
                    if isinstance(constant, str) and is_ours(constant) and LIBRARY.file_of(constant):
                        for value in vars(importlib.import_module(constant)).values():
                            if getattr(value, "__module__", None) == constant:
                                self.value(value)

    def runs(self, name: str) -> None:
        """What importing a module runs."""
        if not self.generous or not is_ours(name) or name in self._modules:
            return
        self._modules.add(name)
        for label in run_by_import(name):
            self.found.add(label)
            owner, function = label.split(":")
            self.value(getattr(importlib.import_module(owner), function, None))
        module = importlib.import_module(name)
        for statement in ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8")).body:
            calls = any(isinstance(n, ast.Call) for n in ast.walk(statement))
            if calls and not isinstance(statement, (ast.ClassDef, *FUNCTION)):
                self.code(compile(ast.Module([statement], []), name, "exec"), vars(module))
            if isinstance(statement, ast.ImportFrom):
                for imported in (str(statement.module), *(f"{statement.module}.{a.name}" for a in statement.names)):
                    if LIBRARY.file_of(imported):
                        self.runs(imported)

    def value(self, value: Any, depth: int = 0) -> None:
        value = getattr(value, "__wrapped__", value)
        if id(value) in self._seen or depth > 8 or isinstance(value, types.ModuleType):
            return
        self._seen[id(value)] = value
        if isinstance(value, dict):
            for inner in value.values():
                self.value(inner, depth + 1)
        elif isinstance(value, (list, tuple, set, frozenset)):
            for inner in value:
                self.value(inner, depth + 1)
        elif isinstance(value, types.FunctionType) and is_ours(value.__module__):
            name = value.__qualname__.split(".")[0]
            if name not in ("<lambda>", "__create_fn__"):  # the latter are made by dataclasses
                self.found.add(f"{value.__module__}:{name}")
            self.runs(value.__module__)
            self.code(value.__code__, value.__globals__)
            for inner in (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()):
                self.value(inner, depth + 1)
        elif isinstance(value, type) and is_ours(value.__module__):
            self.found.add(f"{value.__module__}:{value.__qualname__.split('.')[0]}")
            self.runs(value.__module__)
            for annotation in vars(value).get("__annotations__", {}).values() if self.generous else ():
                for name in names_of(annotation):
                    self.value(vars(importlib.import_module(value.__module__)).get(name))
            for base in value.__mro__[1:]:
                self.value(base)
            for member in vars(value).values():
                for function in functions_of(member):
                    self.value(function)
        elif is_ours(type(value).__module__):
            self.value(type(value))
            for inner in getattr(value, "__dict__", {}).values():
                self.value(inner, depth + 1)


def member_of(module: Any, name: str) -> Any:
    """What `from module import name` gives: a submodule may not have been imported yet."""
    if module is not None and not hasattr(module, name):
        return importlib.import_module(f"{module.__name__}.{name}")
    return getattr(module, name, None)


def functions_of(member: Any) -> Iterable[Any]:
    if isinstance(member, property):
        return filter(None, (member.fget, member.fset))
    inner = getattr(member, "__func__", None) or getattr(member, "func", None) or getattr(member, "__wrapped__", None)
    return [inner or member] if isinstance(inner or member, (types.FunctionType, type)) else []


def names_of(annotation: Any) -> set[str]:
    """Names in an annotation, which may be a string."""
    text = annotation if isinstance(annotation, str) else repr(annotation)
    return set(re.findall(r"\w+", text))


@cache
def run_by_import(name: str) -> frozenset[str]:
    """Functions and classes of the library that run when a module is imported: it is, once more, and watched."""
    module = importlib.import_module(name)
    found: set[str] = set()

    def watch(frame: types.FrameType, event: str, argument: object) -> None:
        owner = frame.f_globals.get("__name__")
        if event == "call" and is_ours(owner) and not frame.f_code.co_name.startswith("<"):
            found.add(f"{owner}:{getattr(frame.f_code, 'co_qualname', frame.f_code.co_name).split('.')[0]}")

    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    names = {"__name__": name, "__file__": module.__file__, "__package__": module.__package__}
    code = compile(source, str(module.__file__), "exec")
    sys.setprofile(watch)
    try:
        exec(code, names)
    finally:
        sys.setprofile(None)
    return frozenset(found)


@cache
def leads_to(script: Path, generous: bool = False) -> frozenset[str]:
    """Functions and classes that a script's code leads to, its imports having been run."""
    tree = ast.parse(script.read_text(encoding="utf-8"))
    imports = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
    names: dict[str, Any] = {}
    exec(compile(ast.Module(imports, []), str(script), "exec"), names)
    walk = Walk(generous)
    walk.code(compile(tree, str(script), "exec"), names)
    return frozenset(walk.found)


@pytest.fixture(scope="module")
def reached() -> dict[str, set[str]]:
    """Script -> functions and classes that the product says it reaches."""

    def is_one(label: str) -> bool:
        module, name = label.split(":")
        value = getattr(importlib.import_module(module), name, None)
        value = getattr(value, "__wrapped__", value)
        return isinstance(value, (types.FunctionType, type)) and value.__module__ == module

    found = {script.name: set(map(LIBRARY.label, LIBRARY.script(script)[0])) for script in RULES}
    return {name: set(filter(is_one, labels)) for name, labels in found.items()}


@pytest.mark.engine
def test_no_function_that_a_script_leads_to_is_overlooked(reached: dict[str, set[str]]) -> None:
    overlooked = {script.name: sorted(leads_to(script) - reached[script.name]) for script in RULES}
    assert {name: labels for name, labels in overlooked.items() if labels} == {}
    assert sum(map(len, reached.values())) > 500


@pytest.mark.engine
def test_nothing_is_reached_that_a_script_does_not_lead_to(reached: dict[str, set[str]]) -> None:
    surplus = {script.name: sorted(reached[script.name] - leads_to(script, generous=True)) for script in RULES}
    assert {name: labels for name, labels in surplus.items() if labels} == {}


@pytest.mark.engine
def test_an_edit_changes_the_scripts_that_lead_to_the_function(copy: Path, before: dict[str, tuple[str, ...]]) -> None:
    """Of a sample of functions, drawn anew at each run: each is edited, alone, in a copy."""
    seed = random.randrange(2**32)
    for label, file, source, edited in random.Random(seed).sample(sorted(edits()), 40):
        (copy / file).write_text(edited, encoding="utf-8")
        after = prints(copy)
        (copy / file).write_text(source, encoding="utf-8")
        changed = {name for name in before if before[name] != after[name]}
        assert changed >= {script.name for script in RULES if label in leads_to(script)}, (label, seed)
        assert changed <= {script.name for script in RULES if label in leads_to(script, generous=True)}, (label, seed)


def edits() -> Iterator[tuple[str, str, str, str]]:
    """Every function of the library: ``module:name``, its file, the source, and the source with the function edited."""
    for file in PACKAGE.rglob("*.py"):
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        source = file.read_text(encoding="utf-8")
        for node in ast.parse(source).body if is_ours(module) else ():
            if isinstance(node, FUNCTION) and node.body[-1].lineno > node.lineno:
                path = str(file.relative_to(PACKAGE))
                yield f"{module}:{node.name}", path, source, with_function_edited(source, node.name)
