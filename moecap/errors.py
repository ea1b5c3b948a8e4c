"""Errors that a user reads: one paragraph that says what is wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from moecap.redact import redact


class MoecapError(Exception):
    """An error to be shown to the user as it stands, without a traceback.

    The message is one paragraph that names the file, the key and the value, says what is allowed and how to go on.

    >>> from moecap import s_mbu
    >>> s_mbu(activated_bytes=25.8e9, kv_bytes=0, tpot_s=0.0, peak_bytes_per_s=2e12)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    moecap.errors.MoecapError: ...

    Secrets are taken out of the message when it is made: it goes to terminals, logs and records.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(redact(a) if isinstance(a, str) else a for a in args))


class PermanentError(MoecapError):
    """A failure that trying again cannot mend: no kernel, a gated model, out of device memory."""


def no_space(folder: object, doing: str) -> str:
    """What to say of a full disk. ``doing``: what was being done, as a clause."""
    return (
        f"No space left on the disk that holds {folder}, {doing}. Nothing was overwritten, and what was finished is "
        "kept: free some space, or set `results` in the config (the model cache in the site's file) to a larger disk, "
        "and start again."
    )


@dataclass(frozen=True)
class Place:
    """Where something stands: a file, a line as an editor counts them, and the name of the entry or row there."""

    file: str
    line: int | None = None
    entry: str | None = None

    def __str__(self) -> str:
        line = f", line {self.line}" if self.line is not None else ""
        return f"{self.file}{line}{f' ({self.entry})' if self.entry else ''}"


@dataclass(frozen=True)
class Mistake:
    """One thing that is wrong in a user's file."""

    place: Place
    text: str
    key: str | None = None

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


class Mistakes(MoecapError):
    """All that is wrong in a user's files, a line each."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(map(str, mistakes)))


class Collector:
    """Takes mistakes down, so that all of them can be shown at once."""

    def __init__(self) -> None:
        self.mistakes: list[Mistake] = []

    def add(self, place: Place, text: str, key: str | None = None) -> None:
        """Note a mistake; the same one twice counts once."""
        mistake = Mistake(place, redact(" ".join(text.split())), key)
        if mistake not in self.mistakes:
            self.mistakes.append(mistake)

    def take(self, error: MoecapError, place: Place, key: str | None = None) -> None:
        """Note what an error says: its own mistakes, or its message as one of ``place``."""
        if isinstance(error, Mistakes):
            for mistake in error.mistakes:
                self.add(mistake.place, mistake.text, mistake.key)
        else:
            self.add(place, str(error).removeprefix(f"{place}: "), key)

    @contextmanager
    def taking(self, place: Place, key: str | None = None) -> Iterator[None]:
        """Note an error of the block and go on behind it."""
        try:
            yield
        except MoecapError as error:
            self.take(error, place, key)

    def finish(self) -> None:
        """Show what was noted.

        Raises:
            Mistakes: anything was.
        """
        if self.mistakes:
            raise Mistakes(self.mistakes)


def shown(error: MoecapError) -> str:
    """What a user reads of an error: a line of its own for each mistake.

    >>> shown(MoecapError("my.yaml: `seed` is -1."))
    'error: my.yaml: `seed` is -1.'
    """
    return "\n".join(f"error: {line}" for line in str(error).splitlines() if line.strip())


def nearest(name: object, known: Iterable[object]) -> str:
    """The sentence that helps somebody who mistyped ``name``: near misses first, else everything that is known.

    >>> nearest("bf61", ["bf16", "int8"])
    "Did you mean 'bf16'? Known: bf16, int8."
    """
    names = sorted(str(k) for k in known)
    lower = {n.lower(): n for n in names}
    close = difflib.get_close_matches(str(name)[:200], names, n=2, cutoff=0.6)
    if not close and str(name).lower() in lower:
        close = [lower[str(name).lower()]]
    listing = f"Known: {', '.join(names[:40])}{' …' if len(names) > 40 else ''}." if names else "None is known."
    if not close:
        return listing
    return f"Did you mean {' or '.join(repr(c) for c in close)}? {listing}"
