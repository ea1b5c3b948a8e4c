"""A measured point as something that can be predicted: names found, model counted, terms computed; or why not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from moecap.errors import MoecapError
from moecap.hardware.catalogue import Hardware
from moecap.model.structure import Anatomy
from moecap.plan.anatomies import anatomy_of
from moecap.plan.names import engine_entry, hardware_entry, known_names, model_entry, precision_entry
from moecap.plan.points import Point
from moecap.plan.target import Workload
from moecap.plan.terms import Parallel, Terms, terms


@dataclass(frozen=True)
class Case:
    """A measured point with the catalogue's names, and its terms (for its one concurrency)."""

    point: Point
    model: str
    hardware: str
    engine: str
    precision: str
    parallel: Parallel
    workload: Workload
    terms: Terms
    anatomy: Anatomy

    @property
    def tpot_s(self) -> float | None:
        return self.point.tpot_s

    @property
    def ttft_s(self) -> float | None:
        return self.point.ttft_s

    @property
    def mixed(self) -> bool:
        """Whether the printed TPOT holds the prefill of others."""
        return self.point.tpot_kind == "mean"

    @property
    def prefill_share(self) -> float:
        return float(self.terms.running[0]) / self.workload.output_tokens if self.mixed else 0.0

    @property
    def cell(self) -> tuple[str, str, str, str]:
        return self.model, self.hardware, self.engine, self.precision


def case_of(point: Point, hardware: Hardware, catalogue: str | Path | None = None) -> Case:
    """The case of a point.

    Raises:
        MoecapError: what is missing or not known; one sentence.
    """
    folder = str(catalogue) if catalogue is not None else None
    model = model_entry(point.model, folder)
    if model is None:
        raise MoecapError(f"model {point.model!r} is not in the catalogue")
    name = hardware_entry(point.hardware, hardware)
    if name is None:
        raise MoecapError(f"hardware {point.hardware!r} is not in the catalogue")
    speeds = hardware.find(name).speeds
    if speeds is None:
        raise MoecapError(f"the speeds of {name} are measured, not catalogued")
    precision = precision_entry(point.precision, model) or (None if point.precision else "bf16")
    if precision is None:
        raise MoecapError(f"precision {point.precision!r} is not known")
    if point.disaggregated:
        raise MoecapError("prefill and decode on devices of their own are not predicted by a point's terms")
    open_requests = point.batch or point.concurrency
    if not open_requests:
        raise MoecapError("it does not say how many requests were open")
    parallel = _parallel(point)
    workload = _workload(point)
    anatomy = anatomy_of(model, precision, folder)
    found = terms(anatomy, speeds, parallel, [open_requests], workload)
    engine = engine_entry(point.engine, point.engine_version) or (point.engine or "unknown").lower()
    return Case(point, model, name, engine, precision, parallel, workload, found, anatomy)


def cases_of(
    points: Iterable[Point], hardware: Hardware, catalogue: str | Path | None = None
) -> tuple[list[Case], list[tuple[Point, str]]]:
    """The cases of points, and those that cannot be predicted, with the reason."""
    cases: list[Case] = []
    rest: list[tuple[Point, str]] = []
    for point in points:
        try:
            cases.append(case_of(point, hardware, catalogue))
        except MoecapError as error:
            rest.append((point, str(error)))
    return cases, rest


def _parallel(point: Point) -> Parallel:
    if point.tp and point.dp:
        return Parallel(point.tp, point.dp, point.ep or 1, point.pp)
    if not point.devices:
        raise MoecapError("it does not say how many devices there were")
    return Parallel(point.devices // point.pp, 1, point.ep or 1, point.pp)


def _workload(point: Point) -> Workload:
    prompt = point.prompt_tokens
    if prompt is None:
        task = (point.notes or "").removeprefix("task ")
        prompt = known_names()["task_prompt_tokens"].get(task)
    if prompt is None or point.output_tokens is None:
        raise MoecapError("it does not say how long requests were")
    return Workload(max(round(prompt), 1), max(round(point.output_tokens), 2))
