"""What a CAP table says, in sentences; each is computed, and none is said where its figures are missing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from moecap.cap.classes import differing
from moecap.report.answers import advice, within_noise
from moecap.report.numbers import listing, percent, signed, times
from moecap.report.pairs import Pairs, in_words

Row = dict[str, Any]

MAX_COMPARED = 8


def anchors_of(rows: Sequence[Row], reference: str | None) -> Callable[[Row], Row | None]:
    """Which row another is compared with: its ``cap_reference``'s (else ``reference``'s), same dataset and batch size.

    Where the reference has a single point on the dataset, that one; null where it has none that fits.
    """
    points: dict[tuple[Any, Any], dict[Any, Row]] = {}
    for r in rows:
        points.setdefault((r["deployment"], r["dataset"]), {})[r["batch_size"]] = r

    def anchor(row: Row) -> Row | None:
        found = points.get((row["cap_reference"] or reference, row["dataset"]), {})
        return found.get(row["batch_size"]) or (next(iter(found.values())) if len(found) == 1 else None)

    return anchor


def findings(rows: Sequence[Row], reference: str | None, pairs: Pairs | None = None) -> list[tuple[str, list[str]]]:
    """What the table says, as (heading, sentences). Each is computed; none is said where its figures are missing."""
    found: list[tuple[str, list[str]]] = []
    usable = [r for r in rows if r["output_tokens_per_s"] is not None]
    anchor_of = anchors_of(usable, reference)
    for dataset in dict.fromkeys(r["dataset"] for r in usable):
        group, batch = _at_common_batch([r for r in usable if r["dataset"] == dataset], reference)
        sentences = []
        models = list(dict.fromkeys(r["model"] for r in group))
        for model in models:
            named = f"{model}: " if len(models) > 1 else ""
            take = advice([r for r in group if r["model"] == model])
            sentences += [named + take] if take else []
        compared = [(r, a) for r in group if (a := anchor_of(r)) is not None and a is not r]
        sentences += [_compared(r, a, pairs or Pairs()) for r, a in compared[:MAX_COMPARED]]
        if len(compared) > MAX_COMPARED:
            sentences.append(f"More comparisons ({len(compared) - MAX_COMPARED}) are in the tables.")
        sentences += _frontier([r for r in rows if r["dataset"] == dataset])
        if sentences:
            found.append((dataset + (f", batch size {batch}" if batch else ""), sentences))
    if overestimates := _overestimates(rows):
        found.append(("MBU and S-MBU", overestimates))
    if notions := _differing(rows):
        found.append(("Two notions of cost", notions))
    if alone := _gpus_alone(rows):
        found.append(("Costing the GPUs alone", alone))
    return found


def _differing(rows: Sequence[Row]) -> list[str]:
    """Where a class depends on whether cost is per token or by purchase."""
    found = differing(rows)
    shown = [
        f"{deployment} ({dataset}{f', batch size {batch}' if batch else ''}) is {per_token} per token, {bought} by "
        "purchase"
        for deployment, dataset, batch, per_token, bought in found[:MAX_COMPARED]
    ]
    more = f"; {len(found) - len(shown)} more are in the leaderboard" if len(found) > len(shown) else ""
    return [f"The class depends on which cost is meant: {'; '.join(shown)}{more}."] if found else []


def _gpus_alone(rows: Sequence[Row]) -> list[str]:
    """How far costing by GPUs alone is off, where it is off the most: the paper's objection in its section 5."""
    have = [r for r in rows if r["gpu_only_error"] is not None]
    if not have:
        return []
    worst = max(have, key=lambda r: abs(r["gpu_only_error"]))
    parts = [
        f"{what} {signed(100 * worst[column])}%"
        for column, what in (("gpu_only_purchase_error", "purchase"), ("gpu_only_energy_error", "power"))
        if worst[column]
    ]
    detail = f" ({', '.join(parts)})" if parts else ""
    return [
        f"Without processors, memory and board, the cost per token of {worst['deployment']} would be off by "
        f"{signed(100 * worst['gpu_only_error'])}%{detail}; the cost table says it for every point."
    ]


def _at_common_batch(rows: Sequence[Row], reference: str | None) -> tuple[list[Row], int | None]:
    """The rows at the largest batch size that most deployments have, and that batch size.

    A deployment with a single point takes part with it (printed figures have no batch size, or one of their own); the
    batch size is then null unless it is everyone's.
    """
    of: dict[str, list[Row]] = {}
    for r in rows:
        of.setdefault(r["deployment"], []).append(r)
    counts: dict[Any, set[str]] = {}
    for r in rows:
        if len(of[r["deployment"]]) > 1:
            counts.setdefault(r["batch_size"], set()).add(r["deployment"])
    best = max(counts, key=lambda b: (len(counts[b]), reference in counts[b], b or 0)) if counts else None
    chosen = [r for r in rows if len(of[r["deployment"]]) == 1 or (counts and r["batch_size"] == best)]
    shared = {r["batch_size"] for r in chosen}
    return chosen, shared.pop() if len(shared) == 1 else None


def _compared(row: Row, anchor: Row, pairs: Pairs) -> str:
    parts = []
    a, b = row["output_tokens_per_s"], anchor["output_tokens_per_s"]
    noise = _noise(row, anchor, "output_tokens_per_s")
    parts.append(f"{times(a / b)} the generated tokens per second{noise}")
    if row["usd_per_million_tokens"] and anchor["usd_per_million_tokens"]:
        ratio = row["usd_per_million_tokens"] / anchor["usd_per_million_tokens"]
        parts.append(f"{times(ratio)} the cost per token")
    if row["hardware_usd"] and anchor["hardware_usd"] and row["hardware_usd"] != anchor["hardware_usd"]:
        parts.append(f"{times(row['hardware_usd'] / anchor['hardware_usd'])} the cost to buy")
    if row["accuracy"] is not None and anchor["accuracy"] is not None:
        points = 100 * (row["accuracy"] - anchor["accuracy"])
        z, same = standard_errors(row, anchor), pairs(row, anchor)
        if percent(row["accuracy"]) == percent(anchor["accuracy"]):
            parts.append(f"the same accuracy ({percent(row['accuracy'])})")
        else:
            size = "" if z is None else f", {abs(z):.1f} standard errors" + (": within noise" if abs(z) < 2 else "")
            if same is not None:
                size = f"; {in_words(same)}"
            change = f"accuracy {percent(row['accuracy'])} instead of {percent(anchor['accuracy'])}"
            parts.append(f"{change} ({signed(points)} points{size})")
    return f"{row['deployment']} against {anchor['deployment']}: {listing(parts)}."


def _noise(row: Row, anchor: Row, column: str) -> str:
    return " (the intervals overlap)" if within_noise(row, anchor, column) and row[column] != anchor[column] else ""


def standard_errors(row: Row, anchor: Row) -> float | None:
    """The difference of two accuracies in standard errors of a difference, taken as independent (an upper bound)."""
    errors = [r["accuracy_stderr"] for r in (row, anchor)]
    if None in errors or not any(errors):
        return None
    return (row["accuracy"] - anchor["accuracy"]) / math.hypot(*errors)


def _overestimates(rows: Sequence[Row]) -> list[str]:
    have = [r for r in rows if r["mbu_over_s_mbu"] is not None and r["batch_size"]]
    if not have:
        return []
    worst, least = (pick(have, key=lambda r: r["mbu_over_s_mbu"]) for pick in (max, min))

    def of(row: Row) -> str:
        where = f"{row['deployment']}, {row['dataset']}, batch size {row['batch_size']}"
        return f"{times(row['mbu_over_s_mbu'])} ({where})"

    range_ = f"from {of(least)} to {of(worst)} of" if worst is not least else f"{of(worst)} of"
    return [f"MBU, which counts every expert, counts {range_} the bytes that S-MBU counts in decode."]


def _frontier(rows: Sequence[Row]) -> list[str]:
    sure = sorted((r for r in rows if (r["pareto_frequency"] or 0) >= 0.5), key=lambda r: -r["pareto_frequency"])
    if not sure:
        return []
    shown = [
        r["deployment"]
        + (f" at batch size {r['batch_size']}" if r["batch_size"] else "")
        + f" ({percent(r['pareto_frequency'], 0)})"
        for r in sure[:MAX_COMPARED]
    ]
    more = f" and {len(sure) - len(shown)} more" if len(sure) > len(shown) else ""
    return [
        "On the Pareto frontier of cost, accuracy and throughput, over all batch sizes, in at least half of the draws "
        f"within their intervals: {', '.join(shown)}{more}."
    ]


# --- what a utilization is worth -----------------------------------------------------------------------------------


def cache_note(rows: Sequence[Row], machines: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Weights of each model × precision against the last-level cache of the machine that served it.

    Returns:
        Dicts with ``model``, ``precision``, ``hardware``, ``weight_bytes``, ``cache_bytes``, ``ratio`` and ``verdict``.
    """
    caches = {m.get("hardware"): m.get("last_level_cache_bytes") for m in machines}
    found: list[Row] = []
    for r in rows:
        cache, weights = caches.get(r["hardware"]), r["weight_bytes"]
        if not cache or not weights:
            continue
        key = {k: r[k] for k in ("model", "precision", "hardware")}
        if any(all(f[k] == v for k, v in key.items()) for f in found):
            continue
        ratio = weights / cache
        if ratio <= 1:
            verdict = (
                "The whole model fits into the cache: steps after the first need not read weights from memory. "
                "S-MBU says how many bytes the step has to touch, not how busy the memory was; it may even exceed 1."
            )
        elif ratio < 4:
            verdict = (
                "A part of the weights stays in the cache from step to step: S-MBU overstates how busy memory was."
            )
        else:
            verdict = (
                "Several times the cache: most weights come from memory in every step, so S-MBU means what it says."
            )
        found.append({**key, "weight_bytes": weights, "cache_bytes": cache, "ratio": ratio, "verdict": verdict})
    return found
