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

from moecap.reach.library import Library

__all__ = ["Library"]
