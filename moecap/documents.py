"""Users' text files, read strictly: YAML and CSV with the line of every value, and what is wrong with a file as a file.

YAML's rules let much pass without a word that nobody means: a key given twice (the last wins), `no` as false. Neither
is let pass here. What is meant is never guessed: a file that is not UTF-8 is refused, not read with other letters.
"""

from __future__ import annotations

import codecs
import csv
import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from moecap.errors import Collector, Mistake, Mistakes, Place, nearest

#: Larger than any file that a person writes; aliases that unfold to more values than that are a bomb.
LARGEST_BYTES = 32 * 2**20
LARGEST_VALUES = 1_000_000
DEEPEST = 100
#: Lines that one quoted cell may span before its quote counts as not closed.
LONGEST_CELL_LINES = 50

_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_LINE_END = re.compile(r"\r\n|\r|\n")
_MERGE = "tag:yaml.org,2002:merge"
_STRING = "tag:yaml.org,2002:str"

KeyPath = tuple[str | int, ...]


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a UTF-8 file, with or without a byte order mark.

    Raises:
        MoecapError: it does not exist, is a folder or a device, may not be read, is too large, or is not UTF-8.
    """
    file = Path(path)
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
            raise _refusal(path, f"is {kind}; the path of a text file is expected.")
        if status.st_size > LARGEST_BYTES:
            raise _refusal(path, f"has {status.st_size / 1e6:,.0f} MB, which is too much for a file of settings.")
        data = file.read_bytes()
    except FileNotFoundError:
        if file.is_symlink():
            raise _refusal(path, f"is a link to {file.readlink()}, which does not exist.") from None
        raise _refusal(path, "does not exist.") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise _refusal(_short(path), f"cannot be read: {reason}.") from None
    return _decoded(data, path)


def _decoded(data: bytes, path: str | os.PathLike[str]) -> str:
    remedy = "Save it as UTF-8 (in an editor: `Save with encoding`; in Excel: `CSV UTF-8`)."
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), None)
    if encoding is None and b"\0" in data[:4096]:
        encoding = "UTF-16 or binary"
    if encoding is not None:
        raise _refusal(path, f"is not UTF-8 text but {encoding}. {remedy}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = data[error.start : error.start + 1]
        meant = found.decode("cp1252", errors="replace")
        text = f"byte 0x{found.hex()} is not UTF-8 (in Windows-1252 or Latin-1 it is {meant!r}). {remedy}"
        raise _refusal(path, text, line) from None


def _refusal(path: object, text: str, line: int | None = None) -> Mistakes:
    return Mistakes([Mistake(Place(str(path), line), text)])


def _at(place: Place, text: str) -> Mistakes:
    return Mistakes([Mistake(place, text)])


def _short(path: object) -> str:
    text = str(path)
    return text if len(text) <= 120 else f"{text[:100]}… ({len(text)} characters)"


# -- YAML -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Document:
    """A YAML (or JSON) file: its data, and the line of every key."""

    path: str
    data: Any
    root: yaml.Node | None = field(default=None, repr=False)

    def line(self, path: Sequence[str | int]) -> int | None:
        """Line of the key (or list item) at ``path``; None: it is not there, or lines are not known."""
        node, line = self.root, None if self.root is None else self.root.start_mark.line + 1
        for part in path:
            if isinstance(node, yaml.MappingNode):
                # The last one counts: what a merge (`<<`) brings in stands before an entry's own keys.
                found = [(k, v) for k, v in node.value if isinstance(k, yaml.ScalarNode) and k.value == str(part)]
                if not found:
                    return None
                key, node = found[-1]
                line = key.start_mark.line + 1
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                line = node.start_mark.line + 1
            else:
                return None
        return line

    def place(self, path: Sequence[str | int], entry: str | None = None) -> Place:
        """Place of the key at ``path``, or of the nearest part of it that is there."""
        for end in range(len(path), 0, -1):
            if (line := self.line(path[:end])) is not None:
                return Place(self.path, line, entry)
        return Place(self.path, None, entry)


def read_document(path: str | os.PathLike[str]) -> Document:
    """Read a YAML file (JSON is YAML, too).

    Raises:
        MoecapError: it cannot be read, is not YAML, or repeats itself without end.
        Mistakes: a key is given twice, or is read by YAML as something else than a name; all of them, with lines.
    """
    name = os.fspath(path)
    text = read_text(path)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return Document(name, None)
        _check_nodes(root, name)
        return Document(name, loader.construct_document(root), root)
    except yaml.YAMLError as error:
        return _json_or(error, text, name)
    except RecursionError:
        raise _refusal(name, "is nested too deeply.") from None
    except (ValueError, OverflowError, TypeError) as error:  # a date that is none, a number of thousands of digits
        raise _refusal(name, f"not valid YAML: {_first_line(error)}. Put the value in quotes.") from None
    finally:
        loader.dispose()


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """The data of a YAML file; errors as in :func:`read_document`."""
    return read_document(path).data


def _json_or(error: yaml.YAMLError, text: str, name: str) -> Document:
    """JSON that is indented with tabs is no YAML, yet Snakemake reads it."""
    if text.lstrip().startswith("{"):
        try:
            return Document(name, json.loads(text, object_pairs_hook=lambda pairs: _once(pairs, name)))
        except (ValueError, RecursionError):
            pass
    mark = getattr(error, "problem_mark", None)
    place = Place(name, mark.line + 1 if mark is not None else None)
    problem = getattr(error, "problem", None) or _first_line(error)
    hint = ""
    if "\\t" in problem or "'\\t'" in str(error):
        hint = " Indent with spaces, not with tabs."
    elif "alias" in problem or "anchor" in problem:
        hint = " A value that begins with * or & goes in quotes."
    raise Mistakes([Mistake(place, f"not valid YAML: {' '.join(problem.split())}.{hint}")]) from None


def _once(pairs: list[tuple[str, Any]], name: str) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise _refusal(name, f"`{key}` is given twice. Keep one.")
    return dict(pairs)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _check_nodes(root: yaml.Node, name: str) -> None:
    """Keys that are given twice or are no names, and aliases that lead round in a circle or to too much."""
    found = Collector()
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node, depth: int) -> int:
        """Values that a node unfolds to; each node is looked at once, however often aliases name it."""
        if id(node) in open_nodes:
            text = "an anchor (&) contains an alias (*) of itself, which never ends. Write the value out."
            raise _refusal(name, text, node.start_mark.line + 1)
        if id(node) in sizes:
            return sizes[id(node)]
        if depth > DEEPEST:
            raise _refusal(name, f"nested more than {DEEPEST} levels deep.", node.start_mark.line + 1)
        open_nodes.add(id(node))
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            _check_keys(node, name, found)
            children = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        sizes[id(node)] = 1 + sum(size(child, depth + 1) for child in children)
        open_nodes.discard(id(node))
        return sizes[id(node)]

    if size(root, 0) > LARGEST_VALUES:
        raise _refusal(name, f"its aliases (*) unfold to more than {LARGEST_VALUES:,} values. Write the values out.")
    found.finish()


def _check_keys(node: yaml.MappingNode, name: str, found: Collector) -> None:
    first: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            place = Place(name, key.start_mark.line + 1)
            found.add(place, "a key is a list or a mapping; keys are names.")
            continue
        line = key.start_mark.line + 1
        place = Place(name, line)
        if key.tag not in (_STRING, _MERGE):
            found.add(
                place,
                f"the key `{key.value}` is not read as a name (YAML takes it for a {key.tag.rpartition(':')[2]}). Put "
                "it in quotes.",
                key.value,
            )
        if (key.tag, key.value) in first:
            found.add(
                place,
                f"`{key.value}` is given twice, in line {first[key.tag, key.value]} and in line {line}. Keep one.",
                key.value,
            )
        first.setdefault((key.tag, key.value), line)


# -- CSV ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A row of a CSV file: the line that it begins in, and its cells by column; empty cells are left out."""

    line: int
    cells: dict[str, str]


@dataclass(frozen=True)
class Table:
    """A CSV file with the line of every row."""

    path: str
    header_line: int
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    mistakes: tuple[Mistake, ...] = ()

    @cached_property
    def lines(self) -> dict[str, int]:
        """Line of each row by the value of its first column; of a value that stands twice, the first."""
        found: dict[str, int] = {}
        for row in self.rows:
            found.setdefault(row.cells.get(self.columns[0], ""), row.line)
        return found


def read_csv(path: str | os.PathLike[str], known: Sequence[str], required: Sequence[str], what: str) -> Table:
    """Read a CSV file whose first line names its columns; lines with a `#` first are comments.

    Args:
        known: columns that there may be; ``required``: those that there must be.
        what: what the file is, for messages.

    Returns:
        The table; rows that are not as long as the header are among its ``mistakes`` instead of its rows.

    Raises:
        MoecapError: it cannot be read as a file, or is empty.
        Mistakes: the header is wrong.
    """
    name = os.fspath(path)
    found = Collector()
    records = list(_records(read_text(path), name, found))
    if not records:
        found.finish()
        raise _refusal(name, f"the {what} is empty. Its first line names the columns: {','.join(known)}.")
    line, cells = records[0]
    header = [cell.strip() for cell in cells]
    _check_header(header, Place(name, line), known, required)
    rows = []
    for number, record in records[1:]:
        values = [cell.strip() for cell in record]
        if not any(values):
            continue  # what a spreadsheet leaves below a table
        if len(values) != len(header):
            found.add(Place(name, number, values[0] or None), _length(values, header))
            continue
        rows.append(Row(number, {column: value for column, value in zip(header, values, strict=True) if value}))
    return Table(name, line, tuple(header), tuple(rows), tuple(found.mistakes))


def _length(values: list[str], header: list[str]) -> str:
    text = f"{len(values)} values for {len(header)} columns ({','.join(header)})."
    separator = next((mark for mark in (";", "\t") if any(mark in value for value in values)), None)
    if separator:
        return f"{text} Values are separated by commas, here by {_SEPARATORS[separator]}."
    if len(values) > len(header):
        return f"{text} A list within a cell is separated by spaces, not by commas."
    return f"{text} `{header[len(values)]}` and what follows have none."


_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}


def _check_header(header: list[str], place: Place, known: Sequence[str], required: Sequence[str]) -> None:
    found = Collector()
    separator = next((mark for mark in _SEPARATORS if mark in header[0]), None)
    if separator and (len(header) == 1 or header[0].split(separator)[0].strip() in known):
        raise _at(
            place,
            f"values are separated by {_SEPARATORS[separator]}; commas are expected. Save it as CSV with commas "
            "(Excel: `CSV UTF-8 (comma delimited)`).",
        )
    if header[0].lower().startswith("sep="):
        raise _at(place, f"`{header[0]}` is a line for Excel. Delete it: the first line names the columns.")
    for column in dict.fromkeys(header):
        if not column:
            found.add(place, "a column has no name. Delete the empty column, or name it.")
        elif column not in known:
            found.add(place, f"unknown column `{column}`. {nearest(column, known)}", column)
        elif header.count(column) > 1:
            found.add(place, f"column `{column}` is given twice. Keep one.", column)
    optional = [column for column in known if column not in required]
    for column in required:
        if column not in header:
            more = f"; optional: {', '.join(optional)}" if optional else ""
            found.add(place, f"column `{column}` is missing. Needed: {', '.join(required)}{more}.", column)
    found.finish()


def _records(text: str, name: str, found: Collector) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of every record that is neither empty nor a comment. A quoted cell may span lines."""
    lines = _LINE_END.split(text)
    number = 0
    while number < len(lines):
        start, record = number, lines[number]
        number += 1
        if not record.strip() or record.lstrip().startswith("#"):
            continue
        while True:
            try:
                cells = next(csv.reader([record], strict=True))
                break
            except csv.Error as error:
                unclosed = "unexpected end of data" in str(error)
                if unclosed and number < len(lines) and number - start < LONGEST_CELL_LINES:
                    record += "\n" + lines[number]
                    number += 1
                    continue
                reason = 'a quote (") is opened and not closed' if unclosed else str(error)
                found.add(Place(name, start + 1), f"{reason}. Double a quote that belongs to a value, or leave it out.")
                number = start + 1
                cells = None
                break
        if cells is not None:
            yield start + 1, cells
