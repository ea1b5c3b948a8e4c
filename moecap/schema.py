"""What users' files are checked with: strict pydantic models, and errors that name file, key and value."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moecap.errors import MoecapError, nearest

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$")]


class Strict(BaseModel):
    """A mapping with known keys only, that nobody changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def explain(error: ValidationError, where: str, model: type[BaseModel]) -> MoecapError:
    """One paragraph for the first thing that a pydantic model refuses: key, value, what is allowed, near misses."""
    first = error.errors()[0]
    # Of a list it is the column that the table has, and the value that is wrong in it.
    key = ".".join(part for part in first["loc"] if isinstance(part, str)) or "the row"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        known: set[str] = set()
        owner: Any = model
        for part in first["loc"][:-1]:
            annotation = owner.model_fields[part].annotation if hasattr(owner, "model_fields") else None
            owner = annotation
        known = set(getattr(owner, "model_fields", {}))
        return MoecapError(f"{where}: unknown key `{key}`. {nearest(first['loc'][-1], known)}")
    if first["type"] == "missing":
        return MoecapError(f"{where}: `{key}` is missing.")
    value = first.get("input")
    shown = "" if isinstance(value, (dict, BaseModel)) else f" (got {value!r})"
    more = len(error.errors()) - 1
    return MoecapError(f"{where}: `{key}`: {message}{shown}.{f' {more} more problem(s) after that.' if more else ''}")


def read_yaml(path: str | Path) -> Any:
    """Read a YAML file; a missing or broken one is a :class:`MoecapError` that names it."""
    try:
        return yaml.load(Path(path).read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError:
        raise MoecapError(f"{path} does not exist.") from None
    except yaml.YAMLError as error:
        raise MoecapError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
