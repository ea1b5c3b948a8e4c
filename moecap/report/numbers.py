"""Numbers in words: how the report writes money, times, shares and bytes."""

from __future__ import annotations

import math

PREFIXES = {-4: "p", -3: "n", -2: "µ", -1: "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T", 5: "P"}


def number(value: float | None, digits: int = 4) -> str:
    """A number to at least ``digits`` significant digits, thousands set apart; an en dash for null.

    >>> number(1129.15), number(12345.6), number(139.08), number(0.00123), number(0), number(None)
    ('1,129', '12,346', '139.1', '0.00123', '0', '–')
    """
    if value is None:
        return "–"
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def prefixed(value: float | None, digits: int = 3) -> str:
    """A number with an SI prefix, to be followed by its unit.

    >>> prefixed(12345.6), prefixed(0.00123), prefixed(0), prefixed(None), prefixed(999.9)
    ('12.3 k', '1.23 m', '0 ', '–', '1 k')
    """
    if value is None:
        return "–"
    if value == 0 or not math.isfinite(value):
        return "0 " if value == 0 else f"{value} "
    rounded = float(f"{value:.{digits - 1}e}")
    power = min(max(math.floor(math.log10(abs(rounded)) / 3), -4), 5)
    text = f"{rounded / 1000.0**power:.{digits}g}"
    return f"{text if 'e' not in text else f'{rounded / 1000.0**power:.0f}'} {PREFIXES[power]}"


def dollars(value: float | None) -> str:
    """
    >>> dollars(1200), dollars(0.00056), dollars(92100.0), dollars(2.5), dollars(None)
    ('$1,200', '$0.00056', '$92,100', '$2.50', '–')
    """
    if value is None:
        return "–"
    if abs(value) >= 100:
        return f"${value:,.0f}"
    if abs(value) >= 0.1 or value == 0:
        return f"${value:,.2f}"
    decimals = min(12, 2 - math.floor(math.log10(abs(value))))
    return f"${value:.{decimals}f}".rstrip("0")


def percent(value: float | None, digits: int = 1) -> str:
    """
    >>> percent(0.8125), percent(None)
    ('81.2%', '–')
    """
    return "–" if value is None else f"{100 * value:.{digits}f}%"


def binary(value: float | None) -> str:
    """
    >>> binary(3 * 2**20), binary(500), binary(None)
    ('3.00 MiB', '500 B', '–')
    """
    if value is None:
        return "–"
    for power, prefix in ((4, "Ti"), (3, "Gi"), (2, "Mi"), (1, "Ki")):
        if abs(value) >= 1024**power:
            large = value >= 100 * 1024**power
            return f"{value / 1024**power:{'.3g' if large else '.2f'}} {prefix}B"
    return f"{value:.0f} B"


def seconds(value: float | None) -> str:
    """
    >>> seconds(0.00198), seconds(2.5), seconds(None)
    ('1.98 ms', '2.5 s', '–')
    """
    return "–" if value is None else f"{prefixed(value)}s"


def signed(value: float, digits: int = 1) -> str:
    """
    >>> signed(-1.5), signed(2)
    ('−1.5', '+2.0')
    """
    return f"{value:+.{digits}f}".replace("-", "−")


def times(ratio: float) -> str:
    """
    >>> times(1.834), times(0.55), times(12.3), times(0.03125)
    ('1.83×', '0.55×', '12.3×', '0.031×')
    """
    return f"{ratio:.2f}×" if 0.1 <= ratio < 10 else f"{ratio:.3g}×" if ratio >= 10 else f"{ratio:.2g}×"


def listing(parts: list[str]) -> str:
    """
    >>> listing(["a", "b", "c"])
    'a, b and c'
    """
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else "".join(parts)
