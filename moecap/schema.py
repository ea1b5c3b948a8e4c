"""What users' files are checked with: strict pydantic models, and errors that name place, key and value."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from moecap.documents import KeyPath
from moecap.documents import read_yaml as read_yaml
from moecap.errors import Collector, Mistake, MoecapError, Place, nearest

#: Ids are parts of file names: nothing in them that a file system, a shell or Snakemake takes for something else.
_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$"
Name = Annotated[str, Field(pattern=_NAME_PATTERN, max_length=100)]

#: Beyond every size, price and speed that there is.
LARGEST_NUMBER = 1e21


class Strict(BaseModel):
    """A mapping with known keys only, that nobody changes afterwards; numbers are finite, and no booleans."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[info.field_name].annotation if info.field_name else None
        if _mentions(annotation, (BaseModel,)):
            return value  # it checks its own
        for part in _plain_parts(value):
            if isinstance(part, bool) and not _mentions(annotation, (bool, Any)):
                word = "true" if part else "false"
                raise ValueError(
                    f"is read as {word} (YAML takes yes, no, on and off for that), which is not allowed here; put a "
                    "word in quotes"
                )
            if isinstance(part, (int, float)) and abs(part) > LARGEST_NUMBER:
                raise ValueError("is larger than anything that can be meant")
        return value


def _plain_parts(value: Any) -> Iterator[Any]:
    """The values in nested lists and mappings, but not in models of their own."""
    if isinstance(value, Mapping):
        for part in value.values():
            yield from _plain_parts(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _plain_parts(part)
    else:
        yield value


def _mentions(annotation: Any, kinds: tuple[Any, ...]) -> bool:
    """Whether a type annotation has one of ``kinds`` in it, however deep; models count by their base."""
    if annotation in kinds or (
        isinstance(annotation, type) and issubclass(annotation, BaseModel) and BaseModel in kinds
    ):
        return True
    return any(_mentions(part, kinds) for part in get_args(annotation))


# -- paths ------------------------------------------------------------------------------------------------------------

_VARIABLE = re.compile(r"\$(\w+|\{\w+\})")


def expand_path(value: str) -> str:
    """A path with ``~`` and environment variables filled in, wherever a file of settings names one.

    Raises:
        ValueError: it is empty, a variable is not set, or it has a character that Snakemake reads as a wildcard.
    """
    if not value.strip():
        raise ValueError("is empty; a path is expected")
    path = os.path.expandvars(os.path.expanduser(value))  # noqa: PTH111
    if unset := _VARIABLE.search(path):
        raise ValueError(f"names the variable {unset.group()}, which is not set")
    if path.startswith("~"):
        raise ValueError(f"names the home of {path.split('/')[0]!r}, who is no user here")
    if bad := next((c for c in path if c in "{}\0\n\r\t" or ord(c) < 32), None):
        raise ValueError(f"has the character {bad!r}, which cannot be in the path of a file here")
    if len(path) > 1000 or any(len(os.fsencode(part)) > 255 for part in path.split("/")):
        raise ValueError(f"is too long for the path of a file ({len(path)} characters)")
    return path


#: A path in a user's file: ``~`` and ``$VARIABLES`` are filled in when the file is read.
FilePath = Annotated[str, AfterValidator(expand_path)]


# -- what is wrong ----------------------------------------------------------------------------------------------------


def mistakes_of(
    error: ValidationError,
    model: type[BaseModel],
    data: Any,
    place: Callable[[KeyPath], Place],
    under: KeyPath = (),
) -> list[tuple[KeyPath, Mistake]]:
    """Everything that a pydantic model refuses, one mistake per key: place, key, message, value, near misses.

    Args:
        model: what was validated.
        data: what it was validated against.
        place: the place of a key.
        under: the key that the data itself stands under.
    """
    by_path: dict[KeyPath, list[Any]] = {}
    for found in error.errors():
        by_path.setdefault(_path_in(data, found["loc"], found["type"]), []).append(found)
    return [
        (path, Mistake(place((*under, *path)), _said(path, found, model, under), _key((*under, *path))))
        for path, found in by_path.items()
    ]


def explain(
    error: ValidationError,
    model: type[BaseModel],
    data: Any,
    place: Callable[[KeyPath], Place],
    into: Collector,
    under: KeyPath = (),
) -> set[KeyPath]:
    """Note everything that a pydantic model refuses; returns the paths of the keys that are wrong."""
    found = mistakes_of(error, model, data, place, under)
    for _, mistake in found:
        into.add(mistake.place, mistake.text, mistake.key)
    return {path for path, _ in found}


def _path_in(data: Any, location: Sequence[str | int], kind: str) -> KeyPath:
    """The part of pydantic's location that is a path in the data: without the names of a union's branches."""
    path: list[str | int] = []
    value = data
    for number, part in enumerate(location):
        if isinstance(value, Mapping):
            if part not in value:
                if kind == "missing" and number == len(location) - 1:
                    path.append(part)
                if part == "[key]":
                    break
                if kind != "missing" or number < len(location) - 1:
                    continue
                break
            path.append(part)
            value = value[part]
        elif isinstance(value, (list, tuple)) and isinstance(part, int) and part < len(value):
            path.append(part)
            value = value[part]
        else:
            break
    return tuple(path)


def _key(path: KeyPath) -> str | None:
    """A path as people write it.

    >>> _key(("gpus", "H100", "price", "low")), _key(("rentals", 3, "gpu"))
    ('gpus.H100.price.low', 'rentals[3].gpu')
    """
    short = (part if len(str(part)) <= 100 else f"{str(part)[:60]}…" for part in path)
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in short)
    return text.lstrip(".") or None


def _said(path: KeyPath, found: list[Any], model: type[BaseModel], under: KeyPath) -> str:
    first, key = found[0], _key((*under, *path))
    if first["type"] == "extra_forbidden":
        owner = _model_at(model, path[:-1])
        return f"unknown key `{key}`. {nearest(path[-1], owner.model_fields if owner else ())}"
    if first["type"] == "missing":
        owner = _model_at(model, path[:-1])
        field = owner.model_fields.get(str(path[-1])) if owner else None
        meaning = f" ({field.description})" if field is not None and field.description else ""
        return f"`{key}` is missing{meaning}."
    if first["type"] == "model_type":
        expected = f"a mapping of keys is expected ({', '.join(_fields(_model_at(model, path)))})"
    else:
        messages = dict.fromkeys(_message(f) for f in found)
        expected = ", or: ".join(messages)
    value = first.get("input")
    if key is None:
        return f"{expected}."
    return f"`{key}`: {expected}{_shown_value(value)}.{_hint(value, first)}"


def _message(error: Mapping[str, Any]) -> str:
    """What pydantic says, in plain words where its own are a pattern or lead into another model."""
    inner = (error.get("ctx") or {}).get("error")
    if isinstance(inner, ValidationError):  # a part that is checked by a model of its own
        return "; ".join(f"`{_key(tuple(e['loc']))}`: {e['msg']}" for e in inner.errors()[:3])
    if error["type"] == "string_pattern_mismatch" and error["ctx"]["pattern"] == _NAME_PATTERN:
        return "a name has letters, digits, `.`, `_` and `-` only, a letter or digit first"
    return str(error["msg"]).removeprefix("Value error, ").rstrip(".")


def _fields(model: type[BaseModel] | None) -> list[str]:
    return list(model.model_fields) if model is not None else []


def _shown_value(value: Any) -> str:
    if isinstance(value, BaseModel) or (isinstance(value, (dict, list, tuple)) and value):
        return ""
    try:
        text = repr(value)
    except ValueError:  # a number of thousands of digits
        text = "a very long number"
    return f" (got {text if len(text) <= 80 else text[:60] + '…'})"


def _hint(value: Any, error: Mapping[str, Any]) -> str:
    if error["type"] == "string_type" and isinstance(value, (datetime.date, int, float)):
        return " Put it in quotes: YAML reads it as a " + ("date." if isinstance(value, datetime.date) else "number.")
    if error["type"] == "literal_error" and isinstance(value, (str, int)):
        expected = re.findall(r"'([^']*)'", error["msg"])
        close = nearest(value, expected)
        return f" {close.split(' Known:')[0]}" if close.startswith("Did you mean") else ""
    return ""


def _model_at(model: Any, path: KeyPath) -> type[BaseModel] | None:
    """The model that a path of keys leads to; through lists, mappings and what may be null."""
    for part in path:
        if isinstance(model, type) and issubclass(model, BaseModel):
            field = model.model_fields.get(str(part))
            model = field.annotation if field is not None else None
        else:
            arguments = [a for a in get_args(model) if a not in (type(None), Ellipsis)]
            if get_origin(model) in (dict, Mapping):
                model = arguments[-1]
            elif get_origin(model) in (tuple, list):
                model = arguments[0]
        model = _only_model(model)
    return model if isinstance(model, type) and issubclass(model, BaseModel) else None


def _only_model(annotation: Any) -> Any:
    """Of ``Model | None`` the model."""
    if get_origin(annotation) in (dict, Mapping, tuple, list) or isinstance(annotation, type):
        return annotation
    models = [a for a in get_args(annotation) if a is not type(None)]
    found = [a for a in models if _mentions(a, (BaseModel,))]
    return found[0] if found else annotation


def check(model: type[Any], data: Any, place: Callable[[KeyPath], Place]) -> Any:
    """``data`` as a ``model``.

    Raises:
        Mistakes: all that is wrong with it.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        found = Collector()
        explain(error, model, data, place, found)
        found.finish()
        raise MoecapError(str(error)) from None  # not reached: an error has at least one mistake
