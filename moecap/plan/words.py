"""A plan's answers, for a reader."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moecap.plan.answers import SYSTEM


def in_words(found: Mapping[str, Any]) -> str:
    """What :func:`answer` found (and ``required_bytes_per_s``, ``cross_check``, where they are there), for a reader."""
    served = " and ".join(f"{prompt} prompt + {output} output tokens" for prompt, output in found["workloads"])
    lines = [
        f"{found['points']:,} points ({served} a request), {found['feasible']:,} can be served, {found['meeting']:,} "
        "meet the limits",
        "",
    ]
    titles = {
        "cheapest_per_token": "cheapest per token",
        "cheapest_to_buy": "cheapest to buy",
        "mbu": "MBU-thinking would buy",
    }

    def choices(of: Mapping[str, Any]) -> list[str]:
        return [f"{title:24} {'none' if of[key] is None else _row_in_words(of[key])}" for key, title in titles.items()]

    lines += choices(found)
    if found["mbu_extra_usd"]:
        lines.append(f"{'':24} {found['mbu_extra_usd']:,.0f} USD more")
    lines += [f"{'why none':24} {reason}" for reason in found["why_none"]]
    chosen = [found[key] for key in ("cheapest_per_token", "cheapest_to_buy") if found[key] is not None]
    for row in found["largest_batch"]:
        if any(all(row[k] == c[k] for k in SYSTEM) for c in chosen):
            fits, in_time = row["largest_batch"], row["largest_batch_in_time"]
            lines.append(
                f"{'largest batch':24} {row['devices']} x {row['hardware']}: {row['model']} {row['precision']}, "
                f"{'no limit' if fits is None else f'{fits:,.0f}'} fit in memory, {in_time} is the largest planned one "
                "within the limits"
            )
    for need in found.get("required_bytes_per_s", []):
        lines.append(
            f"{need['model']} {need['precision']} at batch {need['batch_size']} needs {need['s_mbu'] / 1e12:,.3g} TB/s "
            f"by S-MBU, {need['mbu'] / 1e12:,.3g} TB/s by MBU, for that TPOT"
        )
    if found["bounds"]:
        lines += [
            "",
            "On hardware where nothing was measured, by the roofline alone. No engine reaches it: not to be compared "
            "with the above.",
            *choices(found["bounds"]),
        ]
    if found.get("cross_check"):
        lines += ["", found["cross_check"]]
    return "\n".join(lines)


def _row_in_words(row: Mapping[str, Any]) -> str:
    bound = (
        "a roofline's bound: throughput at the most, times and cost at the least"
        if row["upper_bound"]
        else f"rests on {row['calibration']}"
    )
    unsure = ", rests on unverified figures" if row["figures_unverified"] else ""
    low, high = row["usd_per_million_tokens_low"], row["usd_per_million_tokens_high"]
    by = "by prices alone: " if row["upper_bound"] else ""
    between = f" ({by}{low:,.3g} to {high:,.3g})" if low is not None and high > low else ""
    return (
        f"{row['devices']} x {row['hardware']}: {row['model']} {row['precision']}, batch {row['batch_size']}, TPOT "
        f"{row['tpot_s'] * 1e3:,.3g} ms, TTFT {row['ttft_s'] * 1e3:,.3g} ms, {row['output_tokens_per_s']:,.0f} "
        f"token/s, {row['hardware_usd']:,.0f} USD, {row['usd_per_million_tokens']:,.3g} USD per 10⁶ tokens{between}; "
        f"prices {row['price_status']}{unsure}; {bound}"
    )
