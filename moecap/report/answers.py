"""Which deployment? Cards for the cheapest, the fastest, the most accurate, the best within a latency; and advice.

Two points tie where their difference is within the noise of their intervals; a tie is named as one. The page's script
(``templates/app/answers.js``) computes the same over the points that its filters leave; a test holds the two together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moecap.report.numbers import dollars, listing, number, percent, seconds, times

Row = Mapping[str, Any]

#: Costs that a reader may choose; the column's ends are its interval.
COSTS = {
    "usd_per_million_tokens": "per million generated tokens",
    "hardware_usd": "to buy",
    "rental_usd_per_million_tokens": "per million tokens, rented",
    "usd_per_correct_answer": "per correct answer",
}
TPOT_LIMIT_S = 0.1  # the paper's section 4.4 asks for this; a reader changes it
MAX_NAMED = 3


@dataclass(frozen=True)
class Card:
    """One answer: a title, the deployments (several: a tie), and what the figure is."""

    title: str
    names: tuple[str, ...]
    detail: str

    @property
    def text(self) -> str:
        """The names in words."""
        shown = list(self.names[:MAX_NAMED])
        more = len(self.names) - len(shown)
        return listing([*shown, *([f"{more} more"] if more else [])])


def within_noise(a: Row, b: Row, column: str) -> bool:
    """Whether two rows differ in ``column`` by no more than their noise.

    Accuracies: less than two standard errors of a difference, taken as independent. On the same hardware a price is
    shared, so that what costs per token differ by is the throughput's interval alone. Else: the intervals overlap;
    without intervals only equal figures tie.
    """
    if a[column] == b[column]:
        return True
    if column == "accuracy":
        errors = [r.get("accuracy_stderr") for r in (a, b)]
        if None not in errors and any(errors):
            return bool(abs(a[column] - b[column]) / math.hypot(*(e or 0.0 for e in errors)) < 2)
    machine = [(r.get("hardware"), r.get("devices")) for r in (a, b)]
    if "usd_per" in column and machine[0] == machine[1]:
        column = "output_tokens_per_s"
    (a_low, a_high), (b_low, b_high) = ((r.get(f"{column}_low"), r.get(f"{column}_high")) for r in (a, b))
    if a_low is None or a_high is None or b_low is None or b_high is None:
        return False
    return bool(a_low <= b_high and b_low <= a_high)


def leaders(rows: Sequence[Row], column: str, more_is_better: bool) -> list[Row]:
    """The best row of ``column``, then, best first, one row of each deployment that ties with it."""
    have = [r for r in rows if r.get(column) is not None]
    have.sort(key=lambda r: -r[column] if more_is_better else r[column])
    found: dict[str, Row] = {}
    for r in have:
        if r["deployment"] not in found and within_noise(have[0], r, column):
            found[r["deployment"]] = r
    return list(found.values())


def cards(
    rows: Sequence[Row],
    cost: str = "usd_per_million_tokens",
    tpot_limit_s: float | None = None,
    ttft_limit_s: float | None = None,
) -> list[Card]:
    """The answers for the points of one dataset; a card whose figures are missing is left out."""
    limit = TPOT_LIMIT_S if tpot_limit_s is None and ttft_limit_s is None else tpot_limit_s
    inside = [r for r in rows if _below(r, "tpot_s", limit) and _below(r, "ttft_s", ttft_limit_s)]
    limits = " and ".join(
        f"{name} ≤ {seconds(value)}" for name, value in (("TPOT", limit), ("TTFT", ttft_limit_s)) if value is not None
    )
    found = [
        _card("Cheapest", leaders(rows, cost, False), lambda r: f"{dollars(r[cost])} {COSTS[cost]}{_at(r)}"),
        _card(
            "Fastest",
            leaders(rows, "output_tokens_per_s", True),
            lambda r: f"{number(r['output_tokens_per_s'])} generated tokens/s{_at(r)}",
        ),
        _card("Most accurate", leaders(rows, "accuracy", True), _accuracy),
        _card(
            f"Cheapest with {limits}",
            leaders(inside, cost, False),
            lambda r: f"{dollars(r[cost])}, TPOT {seconds(r.get('tpot_s'))}{_at(r)}",
        ),
    ]
    return [card for card in found if card]


def _below(row: Row, column: str, limit: float | None) -> bool:
    return limit is None or (row.get(column) is not None and row[column] <= limit)


def _card(title: str, best: Sequence[Row], detail: Any) -> Card | None:
    if not best:
        return None
    tie = "a tie within noise; the first: " if len(best) > 1 else ""
    return Card(title, tuple(r["deployment"] for r in best), tie + detail(best[0]))


def _at(row: Row) -> str:
    return f", batch size {row['batch_size']}" if row.get("batch_size") else ""


def _accuracy(row: Row) -> str:
    stderr, n = row.get("accuracy_stderr"), row.get("accuracy_n")
    error = f" ± {100 * stderr:.1f} points (standard error)" if stderr is not None else ""
    return f"{percent(row['accuracy'])}{error}{f', {n:,} questions' if n else ''}"


def advice(rows: Sequence[Row], cost: str = "usd_per_million_tokens") -> str | None:
    """One sentence: what to take, and on which condition; None where nothing can be compared."""
    sets = [leaders(rows, cost, False), leaders(rows, "accuracy", True), leaders(rows, "output_tokens_per_s", True)]
    cheap, right, fast = sets
    if not cheap or len({r["deployment"] for r in rows}) < 2:
        return None
    if not right:
        return f"Take {cheap[0]['deployment']} if cost decides; no accuracy was measured."
    all_three = [r for r in right if all(r["deployment"] in {b["deployment"] for b in best} for best in sets)]
    if all_three:
        name = all_three[0]["deployment"]
        return f"Take {name}: nothing here is cheaper, faster or more accurate than it beyond the noise."
    accurate = {r["deployment"] for r in right}
    both = [r for r in cheap if r["deployment"] in accurate]
    if both:
        name, first = both[0]["deployment"], fast[0]
        return (
            f"Take {name}: the cheapest and the most accurate within noise; only if throughput decides, "
            f"{first['deployment']} ({number(first['output_tokens_per_s'])} tokens/s)."
        )
    costed = [r for r in rows if r["deployment"] in accurate and r.get(cost) is not None]
    if not costed:
        return None
    sure = min(costed, key=lambda r: r[cost])
    if cheap[0].get("accuracy") is None:
        return f"Take {sure['deployment']}; the cheapest, {cheap[0]['deployment']}, has no accuracy."
    loss, ratio = right[0]["accuracy"] - cheap[0]["accuracy"], sure[cost] / cheap[0][cost]
    return (
        f"Take {cheap[0]['deployment']} if {100 * loss:.1f} points less accuracy is acceptable; otherwise "
        f"{sure['deployment']}, at {times(ratio)} the cost."
    )
