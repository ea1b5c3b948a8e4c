"""Errors that a user reads: one paragraph that says what is wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

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


def nearest(name: object, known: Iterable[object]) -> str:
    """The sentence that helps somebody who mistyped ``name``: near misses first, else everything that is known.

    >>> nearest("bf61", ["bf16", "int8"])
    "Did you mean 'bf16'? Known: bf16, int8."
    """
    names = sorted(str(k) for k in known)
    close = difflib.get_close_matches(str(name), names, n=2, cutoff=0.6)
    listing = f"Known: {', '.join(names[:40])}{' …' if len(names) > 40 else ''}." if names else "None is known."
    if not close:
        return listing
    return f"Did you mean {' or '.join(repr(c) for c in close)}? {listing}"
