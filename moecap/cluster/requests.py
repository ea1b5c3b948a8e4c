"""What the jobs of a campaign ask of a cluster: the glue between a :class:`~moecap.campaign.campaign.Campaign` and
:mod:`moecap.cluster.site`, which knows how much a stage takes.

A job's size is that of its checkpoint: as stored where it lies there already, else planned from the parameters that
the model's catalogue entry states and the bits of its precision, else (a model of which nothing is known) as much as
the deployment's devices hold.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from moecap.campaign.campaign import Campaign
from moecap.campaign.deployments import Deployment
from moecap.cluster.site import (
    SLURM_LOGS,
    UNASKED,
    Estimate,
    Need,
    Site,
    earlier_failures,
    estimate,
    load_site,
    resources,
)
from moecap.cost.offers import rental_usd_per_hour
from moecap.errors import MoecapError
from moecap.hardware.entries import Cpu
from moecap.hardware.systems import System
from moecap.io import read_json
from moecap.paths import fill


class Cluster:
    """The requests of a campaign's jobs, and an estimate of them all.

    Args:
        campaign: what is measured.
        site: what the cluster decides; None: read from the file that the config names.
    """

    def __init__(self, campaign: Campaign, site: Site | None = None) -> None:
        self.campaign = campaign
        self.site = site or _site_of(campaign)
        self._asked: dict[tuple[Any, ...], dict[str, int | str]] = {}
        self._sizes: dict[tuple[str, str], int | None] = {}

    def resources(self, rule: str, wildcards: Mapping[str, str], attempt: int = 1) -> dict[str, int | str]:
        """What a rule's job with these wildcards asks for at its ``attempt``, more of what earlier ones lacked."""
        key = (rule, *wildcards.values(), attempt)
        if key not in self._asked:
            group = self.group(rule, wildcards)
            failures = earlier_failures(SLURM_LOGS, rule, list(wildcards.values()), attempt, group)
            self._asked[key] = resources(self.site, self.need(rule, wildcards), failures)
        return self._asked[key]

    @staticmethod
    def group(rule: str, wildcards: Mapping[str, str]) -> str | None:
        """Short jobs of a deployment that wait in the queue once: its tables."""
        return f"tables-{wildcards['deployment']}" if rule in GROUPED else None

    def need(self, rule: str, wildcards: Mapping[str, str]) -> Need:
        """What is known of a job before it is submitted."""
        if "variant" in wildcards:
            return self._variant_need(rule, *wildcards["variant"].split("/"))
        if rule == "measure_bytes":
            return self._variant_need(rule, wildcards["model"], wildcards["precision"])
        if rule == "calibrate":
            system = self.campaign.catalogue.hardware.find(wildcards["hardware"])
            return Need(rule, gpu=system.gpu_name, cores=_cores(system))
        if rule == "evaluate":
            row, _ = self.campaign.graph.accuracy_row(**wildcards)
            return self._row_need(rule, row, points=1, one_copy=True)
        if rule in ("measure", "trace_decode", "metrics", "cost"):
            row = self.campaign.deployment(wildcards["deployment"])
            return self._row_need(rule, row, points=len(row.datasets) * len(row.batch_sizes))
        if rule == "replay":
            names = self.campaign.graph.deployments_of(wildcards["model"], wildcards["precision"])
            rows = [self.campaign.deployment(name) for name in names]
            points = sum(len(row.datasets) * len(row.batch_sizes) for row in rows)
            return self._row_need(rule, self.campaign.graph.replay_row(**wildcards), points=points, one_copy=True)
        return Need(rule)

    def _row_need(self, rule: str, row: Deployment, points: int, one_copy: bool = False) -> Need:
        """``one_copy``: the stage runs one copy of the model, however many a deployment serves side by side."""
        system = self.campaign.catalogue.hardware.find(row.hardware)
        return Need(
            rule,
            gpu=system.gpu_name,
            devices=row.devices // row.data_parallel if one_copy else row.devices,
            device_memory_bytes=system.memory_bytes,
            weight_bytes=self.weight_bytes(row.model, row.precision),
            offload=row.offload,
            points=points,
            cores=_cores(system),
        )

    def _variant_need(self, rule: str, model: str, precision: str) -> Need:
        # What makes a precision reads the bf16 checkpoint: that is what has to fit.
        makes = rule == self.campaign.precision(precision).made_by
        weights = self.weight_bytes(model, "bf16" if makes else precision)
        if weights is None:
            sizes = [self._row_need(rule, r, 1) for r in self.campaign.deployments.values() if r.model == model]
            weights = max((n.devices * (n.device_memory_bytes or 0) for n in sizes), default=0)
        return Need(rule, weight_bytes=weights, points=1)

    def weight_bytes(self, model: str, precision: str) -> int | None:
        """Bytes of a variant: as stored, else as planned, else None."""
        stored = self._stored_bytes(model, precision)
        return self.campaign.planned_weight_bytes(model, precision) if stored is None else stored

    def _stored_bytes(self, model: str, precision: str) -> int | None:
        if (model, precision) not in self._sizes:
            try:
                manifest = read_json(fill(self.campaign.paths.manifest, model=model, precision=precision))
                self._sizes[model, precision] = int(manifest["size_bytes"])
            except (MoecapError, KeyError, TypeError, ValueError):
                self._sizes[model, precision] = None
        return self._sizes[model, precision]

    @property
    def container(self) -> str | None:
        """Where engines run for ``--sdm apptainer``: the site's image, else that of the engine build in use.

        A site has one build; where a campaign serves on GPUs and on CPUs, it is that for GPUs.
        """
        engines = {row.engine: self.campaign.engine(row.engine) for row in self.campaign.deployments.values()}
        images = [e.container for e in sorted(engines.values(), key=lambda e: e.device == "cpu") if e.container]
        image = self.site.container or next(iter(images), None)
        return image if image is None or "://" in image or Path(image).suffix == ".sif" else f"docker://{image}"

    # -- before anything is spent -----------------------------------------------------------------------------------

    @cached_property
    def jobs(self) -> list[tuple[str, dict[str, str], str]]:
        """(rule, wildcards, one of its outputs) of every job that may run elsewhere than where snakemake started."""
        campaign, paths = self.campaign, self.campaign.paths
        found: list[tuple[str, dict[str, str], str]] = []

        def add(rule: str, pattern: str, **wildcards: str) -> None:
            found.append((rule, wildcards, fill(pattern, **wildcards)))

        for (model, precision), rule in campaign.graph.variants.items():
            manifest = fill(paths.manifest, model=model, precision=precision)
            found.append((rule, {"variant": f"{model}/{precision}"}, manifest))
        for hardware in campaign.graph.hardware_in_use:
            add("calibrate", paths.machine, hardware=hardware)
        for _, wildcards in campaign.graph.accuracy_jobs():
            add("evaluate", paths.accuracy, **wildcards)
        for model, precision in dict.fromkeys((r.model, r.precision) for r in campaign.deployments.values()):
            add("replay", paths.routing, model=model, precision=precision)
        for model, precision in campaign.graph.measured_bytes_variants:
            add("measure_bytes", paths.measured_bytes, model=model, precision=precision)
        for name in campaign.graph.replay_checked:
            add("trace_decode", paths.decoded, deployment=name)
        for rule, pattern in (("measure", paths.points), ("metrics", paths.metrics), ("cost", paths.cost)):
            for name in campaign.deployments:
                add(rule, pattern, deployment=name)
        return found

    def shared(self, rule: str) -> tuple[dict[str, int | str], set[str]]:
        """What all jobs of a rule ask for alike, and the resources in which they differ or grow on a retry.

        Snakemake evaluates what differs job by job, which is most of a dry-run's time where there are thousands.
        """
        asked = []
        for job_rule, wildcards, _ in self.jobs:
            if job_rule == rule:
                # An error is said when the job is planned, if it is sent to a cluster at all.
                with contextlib.suppress(MoecapError):
                    asked.append(self.resources(rule, wildcards))
        keys = {key for found in asked for key in found}
        differ = {key for key in keys if len({found.get(key) for found in asked}) > 1}
        alike = {key: asked[0][key] for key in keys - differ if key not in UNASKED}
        return alike, differ | set(UNASKED)

    def pending(self) -> Iterator[tuple[str, dict[str, str]]]:
        """(rule, wildcards) of the jobs whose output is not there: what a first run would start.

        Rough: a change that reruns a job although its output exists is seen by Snakemake's own dry-run only.
        """
        return ((rule, wildcards) for rule, wildcards, output in self.jobs if not Path(output).exists())

    def estimate(self) -> Estimate | None:
        """Jobs per stage, GPU-hours, dollars and disk of what is not there yet; None when everything is."""
        jobs = list(self.pending())
        if not jobs:
            return None
        needs = [self.need(rule, wildcards) for rule, wildcards in jobs]
        hardware = self.campaign.catalogue.hardware
        prices = {}
        for name in self.campaign.graph.hardware_in_use:
            system = hardware.find(name)
            usd, _ = rental_usd_per_hour(system, 1)
            if system.gpu_name and usd is not None:
                prices[system.gpu_name] = usd.value
        disk = 0
        for _, wildcards in jobs:
            if "variant" in wildcards:
                disk += self.weight_bytes(*wildcards["variant"].split("/")) or 0
        return estimate(self.site, needs, prices, disk)


GROUPED = ("metrics", "cost")


def _site_of(campaign: Campaign) -> Site:
    path = campaign.config.site
    return load_site(path) if path is not None else Site()


def _cores(system: System) -> int | None:
    """Cores of a machine without GPUs, where its entry says which processors it has."""
    if system.gpu is not None or system.server is None:
        return None
    parts = [(use, system.catalogue.parts[use.part]) for use in system.server.parts if use.count is not None]
    return int(sum(use.count * part.cores for use, part in parts if isinstance(part, Cpu))) or None
