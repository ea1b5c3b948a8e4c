"""Which interpreter has an engine: this process's own, or that of the engine family's own environment.

Engines whose pins clash live apart: ``environment: engine-NAME`` of a catalogue entry has its pins in
``envs/engine-NAME.txt`` and, made by ``envs/setup.sh NAME``, its folder ``.venv-NAME``. Inside a container or a conda
environment of that engine this very interpreter has it.
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

from moecap.errors import PermanentError
from moecap.provenance import ROOT


def folder_of(environment: str) -> str:
    """
    >>> folder_of("engine-llamacpp")
    '.venv-llamacpp'
    """
    return f".venv-{environment.removeprefix('engine-')}"


def interpreter(environment: str, distribution: str) -> Path:
    """The Python that has ``distribution``: this one, or that of the environment's folder here or in the repository.

    Raises:
        PermanentError: no environment has it; says how it is made.
    """
    if distribution in versions([distribution]):
        return Path(sys.executable)
    for root in dict.fromkeys((Path.cwd(), ROOT)):
        python = root / folder_of(environment) / "bin" / "python"
        if python.exists() and versions([distribution], python):
            return python
    raise PermanentError(
        f"{distribution} is not installed: neither in this environment nor in {folder_of(environment)}. Make it with "
        f"`envs/setup.sh {environment.removeprefix('engine-')}`."
    )


def versions(distributions: list[str], python: Path | None = None) -> dict[str, str]:
    """Installed versions, without importing anything; absent ones are left out.

    Args:
        python: of another environment; None: this one.
    """
    here = python is None or python == Path(sys.executable)
    paths = None if here or python is None else [str(p) for p in python.parents[1].glob("lib/python*/site-packages")]
    found = {}
    for name in distributions:
        where = {"name": name} if paths is None else {"name": name, "path": paths}
        for installed in metadata.distributions(**where):
            found[name] = installed.version
            break
    return found
