"""What must not leave this machine: secrets, the user's name, absolute paths.

Messages and records are made without secrets (:mod:`moecap.redact`); this is the net below, for what is given away. It
works on values (cells, strings, lines), never by chance on structure, and counts what it replaced, so that an archive
can say so.
"""

from __future__ import annotations

import getpass
import os
import re
import socket
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from moecap.redact import REMOVED, SECRET_NAME, by_form, is_secret, values_of

PATH = "[path]"

# Access tokens that are seen in a file that cannot be read as text. Only forms that no noise has.
_TOKEN = re.compile(
    rb"\bhf_[A-Za-z0-9]{16,}|\bsk-[A-Za-z0-9_-]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}"
    rb"|\bglpat-[\w-]{20,}|\bnvapi-[\w-]{20,}|\bAIza[\w-]{35}|\bxox[abpr]-[A-Za-z0-9-]{10,}|\bA[KS]IA[0-9A-Z]{16}\b"
)
# Folders below which people keep things. `/dev/shm` or a fraction such as `tokens/s` are no such path.
_ANY_PATH = re.compile(
    r"(?<![\w.~:/\]-])(?:file://)?/(?:home|Users|root|tmp|var|mnt|media|scratch|work|data|gpfs|lustre|nfs|net|opt|srv"
    r"|private|projects?|global|cluster|fsx|efs|shared|export|storage|beegfs|ssd|nvme)(?:/[\w.+@%=~-]+)+"
)
_QUOTED = re.compile(r"\"[^\"\n\\]{1,4096}\"")
# Accounts that say nothing about a person, and words that a table may well contain.
_IMPERSONAL = {"root", "user", "admin", "ubuntu", "debian", "runner", "slurm", "nobody", "model", "data", "test"}


class Scrubber:
    """Replaces secrets, names and paths in text and in plain data.

    Args:
        root: the repository; a path below it becomes relative to it.
        environment: where secrets are looked for by the names of variables.
        more: further secrets (such as values of secret-looking keys of a config).
        names: of people and machines; None: this user's and this machine's.
        words: ids that the tables use. A user who is called as a part of one of them (`demo`) stays: without it the
            tables would be useless.
    """

    def __init__(
        self,
        root: Path,
        environment: Mapping[str, str] | None = None,
        more: Iterable[str] = (),
        names: Iterable[str] | None = None,
        words: Iterable[str] = (),
    ) -> None:
        environment = os.environ if environment is None else environment
        secrets = {*values_of(environment), *more}
        self.secrets = sorted(secrets, key=len, reverse=True)
        own_names = {
            getpass.getuser(),
            environment.get("USER", ""),
            environment.get("LOGNAME", ""),
            socket.gethostname(),
        }
        spoken = _IMPERSONAL.union(*(re.split(r"\W+", word) for word in words))
        chosen = set(names) if names is not None else {n for n in own_names if len(n) >= 4 and n not in spoken}
        self.names = [re.compile(rf"(?<![\w]){re.escape(n)}(?![\w])") for n in sorted(chosen, key=len, reverse=True)]
        here = re.escape(str(root.resolve()))
        self.root = re.compile(rf"(?<![\w.~/-])(?:file://)?{here}(?:/|(?![\w.-]))")
        folders = {str(Path.home()), tempfile.gettempdir(), sys.prefix, str(Path.cwd())} - {"/"}
        choice = "|".join(map(re.escape, sorted(folders, key=len, reverse=True)))
        self.own_path = re.compile(rf"(?<![\w.~/-])(?:file://)?(?:{choice})(?:/[\w.+@%=~-]+)*(?![\w-])")

    def text(self, text: str, *, any_path: bool = True, code: bool = False) -> str:
        """``text`` without them. ``any_path=False`` leaves alone what merely looks like a path, ``code`` what merely
        stands where a secret may stand."""
        for secret in self.secrets:
            text = text.replace(secret, REMOVED)
        text = by_form(text, code=code)
        if "/" in text:
            text = self.root.sub("./", text)
            text = self.own_path.sub(_base_name, text)
            if any_path:
                text = _ANY_PATH.sub(_base_name, text)
        for name in self.names:
            text = name.sub(REMOVED, text)
        return text

    def markup(self, text: str) -> str:
        """HTML or SVG. In a minified script ``/data/x/`` can be an expression: there only quoted strings are paths."""
        parts = re.split(r"(<script\b[\s\S]*?</script>)", text)
        for i, part in enumerate(parts):
            if i % 2:
                parts[i] = self.text(_QUOTED.sub(self._quoted, part), any_path=False, code=True)
            else:
                parts[i] = self.text(_ANY_PATH.sub(_base_name, part), any_path=False)
        return "".join(parts)

    def _quoted(self, match: re.Match[str]) -> str:
        """A string in a script: a path or a secret as anywhere, but nothing that would end the string sooner."""
        return f'"{by_form(_ANY_PATH.sub(_base_name, match[0][1:-1]))}"'

    def data(self, value: Any) -> Any:
        """Plain data (mappings, lists, strings) with every string value cleaned; keys stay."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {
                k: REMOVED if isinstance(v, str) and v and SECRET_NAME.search(str(k)) else self.data(v)
                for k, v in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self.data(v) for v in value]
        return value

    def table(self, table: pa.Table) -> pa.Table:
        """``table`` with its string cells and its metadata cleaned; the very same object when nothing had to be."""
        for i, field in enumerate(table.schema):
            column = self._column(table.column(i))
            if column is not None:
                table = table.set_column(i, field, column)
        metadata = table.schema.metadata or {}
        clean = {
            k: self.text(v.decode(errors="surrogateescape")).encode(errors="surrogateescape")
            for k, v in metadata.items()
        }
        if clean != metadata:
            table = table.replace_schema_metadata(clean)
        return table

    def _column(self, column: pa.ChunkedArray) -> pa.ChunkedArray | None:
        kind = column.type
        if pa.types.is_dictionary(kind):
            plain = self._column(column.cast(kind.value_type))
            return None if plain is None else plain.cast(kind)
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            seen = pc.unique(column).to_pylist()
            new = {v: self.text(v) for v in seen if v is not None}
            if all(k == v for k, v in new.items()):
                return None
            cells = [None if v is None else new[v] for v in column.to_pylist()]
            return pa.chunked_array([pa.array(cells, kind)])
        if (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_struct(kind)) and _holds_strings(
            kind
        ):
            old = column.to_pylist()
            cells = [self.data(v) for v in old]
            return None if cells == old else pa.chunked_array([pa.array(cells, kind)])
        return None

    def leaks(self, content: bytes) -> str | None:
        """What secret or name a file that cannot be cleaned holds, by kind; None when nothing is seen."""
        if any(secret.encode() in content for secret in self.secrets):
            return "the value of a secret environment variable"
        if _TOKEN.search(content):
            return "something in the form of an access token"
        return None


def _base_name(match: re.Match[str]) -> str:
    """Only a file's own name is kept, and only where folders enough lie above it for it not to be a person's."""
    parts = match[0].removeprefix("file://").strip("/").split("/")
    return f"{PATH}/{parts[-1]}" if len(parts) > 2 else PATH


def secrets_of(value: Any) -> set[str]:
    """Values of keys that are named like secrets, anywhere in plain data."""
    if isinstance(value, Mapping):
        found = {v for k, v in value.items() if isinstance(v, str) and SECRET_NAME.search(str(k)) and is_secret(v)}
        return found.union(*(secrets_of(v) for v in value.values())) if value else found
    if isinstance(value, (list, tuple)):
        return set().union(*(secrets_of(v) for v in value)) if value else set()
    return set()


def _holds_strings(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(_holds_strings(kind.field(i).type) for i in range(kind.num_fields))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _holds_strings(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
