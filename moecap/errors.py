"""Errors that a user reads: one paragraph that says what is wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MoecapError(Exception):
    """An error to be shown to the user as it stands, without a traceback.

    The message is one paragraph that names the file, the key and the value, says what is allowed and how to go on.

    >>> from moecap import s_mbu
    >>> s_mbu(activated_bytes=25.8e9, kv_bytes=0, tpot_s=0.0, peak_bytes_per_s=2e12)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    moecap.errors.MoecapError: ...
    """


class PermanentError(MoecapError):
    """A failure that trying again cannot mend: no kernel, a gated model, out of device memory."""


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
