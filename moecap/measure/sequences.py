"""What names a sequence of tokens wherever it is met again: in requests, in the routing store, in a replay."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def sequence_hash(token_ids: Sequence[int] | np.ndarray) -> str:
    """sha256 (hex) of the token ids as little-endian int32: the name under which a sequence's routing is kept.

    >>> sequence_hash([1, 2, 3])[:12]
    '4636993d3e1d'
    """
    return hashlib.sha256(np.ascontiguousarray(token_ids, dtype="<i4").tobytes()).hexdigest()
