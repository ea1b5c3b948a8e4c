"""What a script reaches of a package: what an edit has to change, and what it must not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from moecap.reach import Library

PACKAGE = {
    "__init__.py": """
_LAZY = {"lazy": "pkg.core"}
def __getattr__(name):
    from importlib import import_module
    return getattr(import_module(_LAZY[name]), name)
""",
    "core.py": '''
"""Core."""
import math
import numpy as np
from pkg import data as tables
from pkg.base import Base as Parent

LIMIT = 1
OTHER = 2
TABLE = {"a": 1}

def used(x: "Unused" = LIMIT) -> "Unused":
    """Say so."""
    return helper(x)  # a comment

def helper(x):
    return tables.read(x) + math.pi

def unused():
    return OTHER

def by_name(name):
    return getattr(tables, name)

def shadow(unused):
    return [unused for OTHER in unused]

def comprehends():
    return [LIMIT for LIMIT in [OTHER]] + [LIMIT]

def globalizes():
    global TABLE
    TABLE = 3

def lazy():
    from pkg import late
    return late.late()

def starts():
    return ["-m", "pkg.program"]

def searches():
    return globals()["used"]

class Unused:
    pass

class Child(Parent):
    field: "Field"
    def method(self):
        return self.other(lambda y=LIMIT: y)

class Field:
    x = 1
''',
    "data.py": """
def read(x):
    return x

def write(x):
    return x
""",
    "base.py": """
class Base:
    def other(self, f):
        return mark(f)

def mark(f):
    return f
""",
    "late.py": """
def late():
    return 1

def later():
    return 2
""",
    "program.py": """
def main():
    return 1

if __name__ == "__main__":
    main()
""",
    "registry.py": """
KNOWN = {}

def register(name):
    def add(f):
        KNOWN[name] = f
        return f
    return add

def lookup(name):
    return KNOWN[name]
""",
    "plugins.py": """
from pkg.registry import KNOWN, register

@register("first")
def first():
    return deep()

def deep():
    return 1

def deepest():
    return 1

_ = KNOWN.setdefault("second", lambda: deeper())

def deeper():
    return 1

def idle():
    return 2

def default(x=deepest()):
    return idle(x)
""",
    "watch.py": """
SEEN = []

class Watcher:
    def __init_subclass__(cls):
        SEEN.append(cls)

class Middle(Watcher):
    pass
""",
    "watched.py": """
from pkg.watch import Middle

class One(Middle):
    value = 1

class Idle:
    value = 1
""",
    "stars.py": """
from .data import *
from .late import late as renamed, later
try:
    from pkg.base import mark
except ImportError:
    mark = None

def starred():
    return read(1)

def relative():
    return renamed()

def guarded():
    return mark(1)
""",
    "typed.py": """
from __future__ import annotations
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from pkg.plugins import idle

def typed(x: idle) -> idle:
    y: idle = x
    return y
""",
    "quiet.py": """
from pkg.late import later
def quiet():
    return later()
""",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "pkg"
    folder.mkdir()
    for name, source in PACKAGE.items():
        (folder / name).write_text(source.lstrip("\n"))
    return folder


def fingerprint(package: Path, script: str) -> str:
    path = package.parent / "script.py"
    path.write_text(script)
    library = Library(package, ["pkg.quiet"])
    reached, own = library.script(path)
    return own + "".join(library.hashes(reached))


@dataclass(frozen=True)
class Case:
    script: str
    file: str
    old: str
    new: str
    changes: bool


USED = "from pkg.core import used\nused(1)\n"
CORE = "from pkg import core\n"
CASES = {
    "a docstring": Case(USED, "core.py", "Say so.", "Say it.", False),
    "a module's docstring": Case(USED, "core.py", '"""Core."""', '"""The core."""', False),
    "a comment": Case(USED, "core.py", "# a comment", "# another", False),
    "a line break": Case(USED, "core.py", "helper(x)  #", "helper(\n        x)  #", False),
    "the function": Case(USED, "core.py", "return helper(x)", "return helper(x) + 1", True),
    "a function that it calls": Case(USED, "core.py", "math.pi", "math.e", True),
    "one in another module": Case(USED, "data.py", "return x", "return x + 1", True),
    "one beside that": Case(USED, "data.py", "def write(x):\n    return x", "def write(x):\n    return 2", False),
    "a constant in a default": Case(USED, "core.py", "LIMIT = 1", "LIMIT = 3", True),
    "a function that nobody calls": Case(USED, "core.py", "return OTHER", "return -OTHER", False),
    "a constant that nobody reads": Case(USED, "core.py", "OTHER = 2", "OTHER = 3", False),
    "a class in an annotation only": Case(USED, "core.py", "Unused:\n    pass", "Unused:\n    y = 1", False),
    "what an import means": Case(USED, "core.py", "import math", "import cmath as math", True),
    "an import that nobody uses": Case(USED, "core.py", "import numpy as np", "import numpy", False),
    "a module that is searched": Case(
        CORE + "core.by_name('w')", "data.py", "def write(x):\n    return x", "def write(x):\n    return 2", True
    ),
    "an argument of a global's name": Case(CORE + "core.shadow(1)", "core.py", "return OTHER", "return -OTHER", False),
    "a comprehension's name": Case(CORE + "core.shadow(1)", "core.py", "OTHER = 2", "OTHER = 3", False),
    "a global beside a comprehension's": Case(CORE + "core.comprehends()", "core.py", "LIMIT = 1", "LIMIT = 3", True),
    "a global that is set": Case(CORE + "core.globalizes()", "core.py", '{"a": 1}', '{"a": 2}', True),
    "an import inside a function": Case(CORE + "core.lazy()", "late.py", "return 1", "return 3", True),
    "beside an import inside a function": Case(CORE + "core.lazy()", "late.py", "return 2", "return 3", False),
    "a program that is started": Case(CORE + "core.starts()", "program.py", "return 1", "return 2", True),
    "a module that searches itself": Case(CORE + "core.searches()", "core.py", "return OTHER", "return -OTHER", True),
    "a base class": Case(CORE + "core.Child()", "base.py", "return mark(f)", "return mark(f, 1)", True),
    "what a base class calls": Case(CORE + "core.Child()", "base.py", "return f\n", "return f()\n", True),
    "the type of a field": Case(CORE + "core.Child()", "core.py", "    x = 1", "    x = 2", True),
    "a constant in a lambda": Case(CORE + "core.Child()", "core.py", "LIMIT = 1", "LIMIT = 3", True),
    "a whole module that is passed on": Case(CORE + "print(core)", "core.py", "return OTHER", "return -OTHER", True),
    "a registered function": Case(
        "import pkg.plugins\nfrom pkg.registry import lookup\nlookup('first')()",
        *("plugins.py", "return deep()", "return deep(1)", True),
    ),
    "what a registered function calls": Case(
        "import pkg.plugins\nfrom pkg.registry import lookup\nlookup('first')()",
        *("plugins.py", "def deep():\n    return 1", "def deep():\n    return 2", True),
    ),
    "what a registered lambda calls": Case(
        "import pkg.plugins\nfrom pkg.registry import lookup\nlookup('second')()",
        *("plugins.py", "def deeper():\n    return 1", "def deeper():\n    return 2", True),
    ),
    "beside registered functions": Case(
        "import pkg.plugins\nfrom pkg.registry import lookup\nlookup('first')()",
        *("plugins.py", "return 2", "return 3", False),
    ),
    "what a default calls": Case(
        "import pkg.plugins", "plugins.py", "def deepest():\n    return 1", "def deepest():\n    return 2", True
    ),
    "a function with such a default": Case("import pkg.plugins", "plugins.py", "return idle(x)", "return x", False),
    "a class that its base keeps": Case(
        "import pkg.watched\nfrom pkg.watch import SEEN\nSEEN[0]()", "watched.py", "One(Middle):\n    value = 1",
        "One(Middle):\n    value = 2", True,
    ),
    "a class beside": Case(
        "import pkg.watched\nfrom pkg.watch import SEEN\nSEEN[0]()", "watched.py", "Idle:\n    value = 1",
        "Idle:\n    value = 2", False,
    ),
    "by a star": Case("from pkg.stars import starred\nstarred()", "data.py", "return x", "return x + 1", True),
    "beside a star": Case(
        "from pkg.stars import starred\nstarred()",
        *("data.py", "def write(x):\n    return x", "def write(x):\n    return 2", False),
    ),
    "by a relative import": Case("import pkg.stars as s\ns.relative()", "late.py", "return 1", "return 3", True),
    "another of the same import": Case("import pkg.stars as s\ns.relative()", "late.py", "return 2", "return 3", False),
    "names that change places": Case(
        "from pkg.stars import relative, later\nrelative(), later()",
        *("stars.py", "late as renamed, later", "later as renamed, late as later", True),
    ),
    "by a guarded import": Case("import pkg.stars\npkg.stars.guarded()", "base.py", "return f\n", "return 0\n", True),
    "through a lazy package": Case("import pkg\npkg.lazy()", "late.py", "return 1", "return 3", True),
    "a type for checkers": Case("from pkg.typed import typed\ntyped(1)", "plugins.py", "return 2", "return 3", False),
    "a module that does not count": Case("import pkg.quiet as q\nq.quiet()", "quiet.py", "later()", "later(1)", False),
    "what only that reaches": Case("import pkg.quiet as q\nq.quiet()", "late.py", "return 2", "return 3", False),
    "a function that is moved": Case(
        "from pkg.stars import guarded\nguarded()", "late.py", "def later", "def new():\n    pass\n\ndef later", False
    ),
    "something that an import does": Case(USED, "data.py", "def write", "print('here')\n\ndef write", True),
    "a method that is put into a class": Case(USED, "data.py", "def write", "int.x = 1\n\ndef write", True),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_an_edit_changes_what_reaches_it(case: Case, package: Path) -> None:
    before = fingerprint(package, case.script)
    file = package / case.file
    assert case.old in file.read_text()
    file.write_text(file.read_text().replace(case.old, case.new, 1))
    assert (fingerprint(package, case.script) != before) is case.changes


def test_a_file_beside_the_code_counts_where_it_is_named(package: Path) -> None:
    (package / "data").mkdir()
    (package / "data" / "names.yaml").write_text("a: 1")
    (package / "named.py").write_text(
        "def named():\n    return open('data/names.yaml')\n\ndef not_named():\n    pass\n"
    )
    library = Library(package)

    def files(script: str) -> list[str]:
        path = package.parent / "script.py"
        path.write_text(script)
        return [file.name for file in Library(package).data_files(library.script(path)[0])]

    assert files("from pkg.named import named") == []
    library = Library(package)
    assert files("from pkg.named import named\nnamed()") == ["names.yaml"]


def test_what_was_read_is_kept_by_content(package: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(USED)

    def look() -> tuple[str, int]:
        library = Library(package, cache=tmp_path / "cache" / "definitions.json")
        reached, own = library.script(script)
        known = len(library._known or {})
        library.save()
        return own + "".join(library.hashes(reached)), known

    first, known = look()
    assert known == 0
    again, known = look()
    assert again == first
    assert known > 0
    (package / "core.py").write_text(PACKAGE["core.py"].replace("LIMIT = 1", "LIMIT = 2"))
    changed, _ = look()
    assert changed != first
    (tmp_path / "cache" / "definitions.json").write_text("{not json")
    assert look()[0] == changed
