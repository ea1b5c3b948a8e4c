"""Is a published row possible, and if not, what would explain it?

Each check compares a row with what the hardware allows, with the row's own other figures, or with another row of the
same configuration. A row that fails is not called false: the explanation says what would make it true.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from moecap.hardware.catalogue import Hardware
from moecap.plan.cases import Case
from moecap.plan.points import Point
from moecap.plan.terms import terms

#: A printed figure may differ by this much from what its own row implies.
TOLERANCE = 0.1
#: Two runs of one configuration, under two names of the model, that differ by more are not the same kind of run.
TWICE = 1.15


@dataclass(frozen=True)
class Finding:
    """What is odd about a row, and what would explain it.

    ``kind``: ``impossible`` (faster than the hardware, or it does not fit), ``inconsistent`` (its own figures
    disagree), ``suspect`` (possible, but not the run that its columns describe) or ``interpreted`` (the reader had to
    decide).
    """

    source: str
    kind: str
    problem: str
    explanation: str


def audit(cases: Sequence[Case], hardware: Hardware) -> list[Finding]:
    """Everything found about these rows, in their order."""
    suspects = suspected_speculation(cases)
    found: list[Finding] = []
    for index, case in enumerate(cases):
        found += [f for f in (_fits(case), bound_violation(case, hardware)) if f is not None]
        found += consistency(case.point)
        if index in suspects:
            found.append(suspects[index])
        if case.point.notes and case.point.notes.startswith("printed as"):
            found.append(_finding(case.point, "interpreted", case.point.notes, "the dump multiplies the same GPUs"))
    return found


def _finding(point: Point, kind: str, problem: str, explanation: str) -> Finding:
    return Finding(point.source, kind, problem, explanation)


def _fits(case: Case) -> Finding | None:
    if case.terms.fits_requests >= 1:
        return None
    need, size = case.terms.weight_bytes / 1e9, case.parallel.devices
    return _finding(
        case.point,
        "impossible",
        f"the weights alone take {need:,.0f} GB on each of {size} devices",
        "more devices than the row says, or weights stored in fewer bits",
    )


def bound_violation(case: Case, hardware: Hardware) -> Finding | None:
    """A time per token below what reading and computing take at least; None where the row keeps to it."""
    measured, bound = case.tpot_s, float(case.terms.roofline_s[0])
    if measured is None or measured >= bound:
        return None
    problem = f"TPOT {measured * 1e3:.3g} ms, below the {bound * 1e3:.3g} ms that reading and computing take at least"
    return _finding(case.point, "impossible", problem, "; or ".join(_explanations(case, hardware, measured, bound)))


def _explanations(case: Case, hardware: Hardware, measured: float, bound: float) -> list[str]:
    found = []
    speeds = hardware.find(case.hardware).speeds
    assert speeds is not None
    running = running_batch(case)
    if running < 0.95 * case.terms.running[0]:
        fewer = terms(case.anatomy, speeds, case.parallel, [max(running, 1.0)], case.workload)
        if measured >= fewer.roofline_s[0]:
            said = case.point.concurrency or case.terms.concurrency[0]
            found.append(f"some {running:.0f} requests ran together, not {said:.0f}: the rest waited for a first token")
    if case.point.speculative is not False:
        found.append(f"speculation with {bound / measured:.2f} tokens accepted per step or more")
    single = terms(case.anatomy, speeds, case.parallel, [1.0], case.workload)
    if case.anatomy.experts and measured >= single.roofline_s[0]:
        found.append("routing that reaches fewer distinct experts than uniform routing does")
    if bound / measured <= 2 and case.terms.flops[0] and _compute_bound(case):
        found.append("a peak counted with 2:4 sparsity")
    return found or ["a time that is not a time per output token, or another deployment"]


def _compute_bound(case: Case) -> bool:
    read = case.terms.read_bytes[0] / case.parallel.devices / case.terms.bytes_per_s
    return bool(case.terms.roofline_s[0] > read * (1 + 1e-9))


def running_batch(case: Case) -> float:
    """Requests in decode on average, by Little's law from the row's own latencies."""
    open_requests = float(case.terms.concurrency[0])
    if case.ttft_s is None or case.tpot_s is None:
        return open_requests
    decoding = case.workload.output_tokens * case.tpot_s
    return open_requests * decoding / (case.ttft_s + decoding)


def consistency(point: Point) -> list[Finding]:
    """Where a row's own figures disagree: latencies with each other, throughput with them, energy with power."""
    found = []
    output, tpot, ttft = point.output_tokens, point.tpot_s, point.ttft_s
    if point.e2e_s and tpot and ttft and output and output > 1:
        implied = (point.e2e_s - ttft) / (output - 1)
        if abs(tpot / implied - 1) > TOLERANCE:
            found.append(
                _finding(
                    point,
                    "inconsistent",
                    f"TPOT {tpot * 1e3:.3g} ms printed, {implied * 1e3:.3g} ms from its own latencies",
                    "tokens counted twice, or a mean over something else than output tokens",
                )
            )
    if point.output_tokens_per_s and tpot and point.concurrency and point.tpot_kind == "mean":
        most = point.concurrency / tpot
        if point.output_tokens_per_s > most * (1 + TOLERANCE):
            found.append(
                _finding(
                    point,
                    "inconsistent",
                    f"{point.output_tokens_per_s:,.0f} tokens/s, but {point.concurrency:.0f} requests at this TPOT "
                    f"make {most:,.0f} at most",
                    "prompt tokens counted as output, tokens counted twice, or more requests than the row says",
                )
            )
    if point.power_w and point.joules_per_token and point.output_tokens_per_s:
        implied = point.power_w / point.output_tokens_per_s
        if abs(point.joules_per_token / implied - 1) > 2 * TOLERANCE:
            found.append(
                _finding(
                    point,
                    "inconsistent",
                    f"{point.joules_per_token:.3g} J/token printed, {implied:.3g} from power and throughput",
                    "power and throughput of different windows",
                )
            )
    return found


def suspected_speculation(cases: Sequence[Case]) -> dict[int, Finding]:
    """Runs that are faster than the same configuration under another name of the same model: index → finding.

    A hub id's runs of one engine version on one GPU and precision are compared with those of another id of the same
    shapes, point by point. Where the median is more than :data:`TWICE` faster, the whole sweep is suspect: drafted
    tokens, which its columns do not mention.
    """
    configurations: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for index, case in enumerate(cases):
        if case.point.speculative is None and case.tpot_s:
            configurations[(*case.cell, case.parallel, case.workload, case.terms.concurrency[0])].append(index)
    sweeps: dict[tuple[object, ...], list[tuple[float, int]]] = defaultdict(list)
    for indices in configurations.values():
        for index in indices:
            case = cases[index]
            others = [cases[i].tpot_s for i in indices if cases[i].point.model != case.point.model]
            slower = [t for t in others if t is not None]
            if slower:
                sweeps[_sweep(case)].append((math.log(min(slower) / (case.tpot_s or math.inf)), index))
    faster = {key: float(np.median([r for r, _ in found])) for key, found in sweeps.items()}
    return {
        index: _finding(
            case.point,
            "suspect",
            f"this sweep of {case.point.model} is {math.exp(faster[_sweep(case)]):.2f} times faster (median) than the "
            "same configurations under another name of the model",
            "multi-token prediction or another kind of speculation that its columns do not mention",
        )
        for index, case in enumerate(cases)
        if faster.get(_sweep(case), 0.0) > math.log(TWICE)
    }


def _sweep(case: Case) -> tuple[object, ...]:
    return (*case.cell, case.point.model, case.point.engine_version)


def in_words(findings: Iterable[Finding], rows: int) -> str:
    """The findings by kind, most frequent first, with an example of each."""
    groups: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        groups[finding.kind, finding.explanation].append(finding)
    if not groups:
        return f"{rows:,} rows: nothing is impossible, and none disagrees with itself."
    lines = [f"{rows:,} rows"]
    for (kind, explanation), found in sorted(groups.items(), key=lambda item: -len(item[1])):
        lines.append(f"{len(found):6,} {kind:12} {explanation}")
        lines.append(f"{'':19} e.g. {found[0].source}: {found[0].problem}")
    return "\n".join(lines)
