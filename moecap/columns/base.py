"""What a column is, and a table's schema from the names of its columns."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

#: Types by short names, for the groups of columns.
TEXT, FLAG, I16, I32, I64, F64 = pa.string(), pa.bool_(), pa.int16(), pa.int32(), pa.int64(), pa.float64()

#: Behind a name in a table: the table also has ``NAME_low`` and ``NAME_high``, the ends of its interval.
INTERVAL = "±"


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        unit: SI, ``1`` for shares, ratios and counts; empty for texts and flags.
        meaning: a sentence.
        source: the equation or section of the paper, or what says so.
        label: its heading in a table of the report; empty: made from the name.
        form: how its values are written, where unit and type do not say it.
    """

    name: str
    type: pa.DataType
    unit: str
    meaning: str
    source: str = ""
    label: str = ""
    form: str = ""

    def field(self, nullable: bool = True, **more: str) -> pa.Field:
        """As Arrow's field, with all that is known of it (and ``more``) as metadata."""
        about = {"unit": self.unit, "meaning": self.meaning, "source": self.source, "label": self.label}
        about |= {"form": self.form, **more}
        return pa.field(self.name, self.type, nullable, {key: text for key, text in about.items() if text})

    def ends(self, level: str) -> Iterator[pa.Field]:
        """Lower and upper end of an interval of that level (``95%``)."""
        for end, word in (("low", "Lower"), ("high", "Upper")):
            about = {"unit": self.unit, "meaning": f"{word} end of the interval of `{self.name}`.", "level": level}
            yield pa.field(f"{self.name}_{end}", self.type, metadata={key: text for key, text in about.items() if text})


def named(names: str | Iterable[str], *groups: Sequence[Column]) -> list[tuple[Column, bool]]:
    """The columns of these names out of the groups, and whether each has an interval (``NAME±``).

    Args:
        names: in a table's order; a text may have several, with spaces between.

    Raises:
        KeyError: a name that no group defines.
    """
    defined = {column.name: column for group in groups for column in group}
    texts = [names] if isinstance(names, str) else names
    listed = [name for text in texts for name in text.split()]
    return [(defined[name.removesuffix(INTERVAL)], name.endswith(INTERVAL)) for name in listed]


def schema(
    names: str | Iterable[str],
    *groups: Sequence[Column],
    required: Collection[str] = (),
    level: str = "95%",
    about: Mapping[str, Mapping[str, str]] | None = None,
) -> pa.Schema:
    """The schema of a table from the names of its columns.

    Args:
        names, groups: see :func:`named`.
        required: names of columns that are never null.
        level: of the intervals.
        about: column -> what else its field says in this table (``label``, a ``goal``).

    Raises:
        KeyError: a name that no group defines.
    """
    fields: list[pa.Field] = []
    for column, interval in named(names, *groups):
        fields.append(column.field(column.name not in required, **(about or {}).get(column.name, {})))
        fields.extend(column.ends(level) if interval else ())
    return pa.schema(fields)
