"""What each rule's result depends on: exactly that, so that Snakemake reruns what a change touches and nothing else.

The change -> jobs table in ``docs/reruns.md`` is tested row by row.
"""

from __future__ import annotations

from dataclasses import asdict
from os.path import relpath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moecap.campaign.deployments import PARALLELISM, Deployment
from moecap.model.offload import ARGUMENTS as OFFLOAD_ARGUMENTS
from moecap.provenance import digest
from moecap.report import extras

if TYPE_CHECKING:
    from moecap.campaign.campaign import Campaign
    from moecap.campaign.graph import Graph


def _shards(row: Deployment) -> dict[str, int]:
    """How one copy of the model is spread over devices."""
    return {"tensor_parallel": row.tensor_parallel, "pipeline_parallel": row.pipeline_parallel}


class Params:
    """The slices of config and catalogues that are the params of Snakemake's rules; one method per rule."""

    def __init__(self, campaign: Campaign) -> None:
        self.campaign = campaign
        self.config, self.catalogue = campaign.config, campaign.catalogue
        self.paths, self.deployments = campaign.paths, campaign.deployments
        self._slices: dict[tuple[tuple[str, ...], ...], dict[str, Any]] = {}

    @property
    def graph(self) -> Graph:
        return self.campaign.graph

    def performance(self, row: Deployment) -> dict[str, Any]:
        """What a timed run depends on: neither prices nor anything of accuracy."""
        settings = self.config.performance
        return {
            "deployment": row.model_dump(mode="json"),
            "datasets": {d: self.campaign.dataset(d).for_workload() for d in row.datasets},
            "data_files": {d: self.config.data_files[d] for d in row.datasets if d in self.config.data_files},
            "engine": self.campaign.engine(row.engine).for_performance(),
            "engine_version": self.campaign.engine_version(row.engine),
            "precision": self.campaign.precision(row.precision).for_serving(),
            "settings": settings.model_dump(
                mode="json", exclude={"online": {"slo"}} if row.load == "online" else {"online"}
            ),
            "seed": self.config.seed,
            "trust_remote_code": row.model in self.config.trust_remote_code,
        }

    def train(self, variant: str) -> dict[str, Any]:
        source = self.campaign.model(variant.split("/")[0]).source
        return {"seed": source.seed, "steps": source.steps}

    def download(self, variant: str) -> dict[str, Any]:
        name, precision = variant.split("/")
        entry = self.campaign.model(name)
        source = entry.checkpoints.get(precision, entry.source)
        return source.model_dump(mode="json", include={"hub", "revision", "path"}, exclude_none=True)

    def quantize(self, variant: str) -> dict[str, Any]:
        return dict(self.campaign.precision(variant.split("/")[1]).recipe or {})

    def heldout(self) -> dict[str, Any] | None:
        """The text that tells a variant's quality; null: none is told."""
        heldout = self.config.heldout
        return None if heldout is None else heldout.model_dump(mode="json", exclude_none=True)

    def trusted(self, variant: str) -> bool:
        """Whether the model's own code may run: only where the user said so (`trust_remote_code` in the config)."""
        return variant.split("/")[0] in self.config.trust_remote_code

    def anatomy(self, model: str, precision: str) -> dict[str, Any]:
        return {"model": model, "precision": precision, "trust_remote_code": model in self.config.trust_remote_code}

    def accuracy(self, **wildcards: str) -> dict[str, Any]:
        row, dataset = self.graph.accuracy_row(**wildcards)
        return {**self.graph.accuracy_settings(row, dataset), **_shards(row)}

    def judge(self, **wildcards: str) -> dict[str, Any]:
        """Who judges a dataset's answers, and against what; `judge` is null where nobody does."""
        _, name = self.graph.accuracy_row(**wildcards)
        judging, judge = self.campaign.dataset(name).judging, self.config.judge
        return {
            "judging": judging.model_dump(mode="json") if judging else None,
            "judge": judge.model_dump(mode="json") if judge else None,
            "trust_remote_code": wildcards["model"] in self.config.trust_remote_code,
        }

    def machine(self, hardware: str) -> dict[str, Any]:
        """What to calibrate, and what the driver must say of the GPUs there: a job on another machine fails."""
        gpu = self.catalogue.hardware.find(hardware).gpu
        if gpu is None:
            return {"device": "cpu"}
        return {"device": "cuda", "gpu_names": list(gpu.names), "gpu_memory_bytes": gpu.memory_bytes}

    def replay(self, model: str, precision: str) -> dict[str, Any]:
        row = self.graph.replay_row(model, precision)
        return {
            **_shards(row),
            "engine": self.campaign.engine(row.engine).for_performance(),
            "engine_version": self.campaign.engine_version(row.engine),
            "trust_remote_code": model in self.config.trust_remote_code,
        }

    def metrics(self, row: Deployment) -> dict[str, Any]:
        """Peaks come from the catalogue for known hardware, from the calibration for a detected machine."""
        system = self.catalogue.hardware.find(row.hardware)
        params: dict[str, Any] = {
            "deployment": row.deployment,
            "compute_dtype": self.campaign.computes_in(row),
            "devices": row.devices,
            **{key: getattr(row, key) for key in PARALLELISM},
            "seed": self.config.seed,
        }
        if row.load == "online":
            params["slo"] = self.config.performance.online.slo.model_dump(mode="json", exclude_none=True)
        if not system.detect:
            params["peaks"] = {
                "bytes_per_s": system.memory_bytes_per_s,
                "flops": system.peak_flops,
                "status": system.speed_status(params["compute_dtype"]),
            }
        if row.offload != "none":
            arguments = self.campaign.engine(row.engine).options.get("engine_args") or {}
            params["offload"] = {
                "tier": row.offload,
                "device": "hbm" if system.gpu else "dram",
                "arguments": {key: arguments[key] for key in OFFLOAD_ARGUMENTS if key in arguments},
            }
            params["tiers"] = system.tiers(row.devices)
        return params

    def cost(self, row: Deployment) -> dict[str, Any]:
        return {"deployment": row.model_dump(mode="json"), **self._cost([row.model_dump(mode="json")])}

    def _cost(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The slice of the catalogue and the terms that the cost of these deployments rests on."""
        names = {row["deployment"] for row in rows}
        own = {name: terms for name, terms in self.campaign.terms["deployments"].items() if name in names}
        terms = {**self.campaign.terms, "deployments": own}
        return {"hardware": self._prices(rows), "settings": terms}

    def _prices(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The slice of the hardware catalogue that the cost of these deployments rests on."""
        own = [terms for row in rows if (terms := self.config.cost.deployments.get(row["deployment"]))]
        regions = {t.region for t in (self.config.cost, *own) if t.region and t.usd_per_kwh is None}
        hardware, models = ({row[key] for row in rows} for key in ("hardware", "model"))
        asked = (tuple(sorted(hardware)), tuple(sorted(regions)), tuple(sorted(models)))
        if asked not in self._slices:  # a thousand deployments have a few dozen
            self._slices[asked] = self.catalogue.hardware.slice(*asked)
        return self._slices[asked]

    def published_cost(self) -> dict[str, Any]:
        return {"deployments": self.campaign.published_rows, **self._cost(self.campaign.published_rows)}

    def published_hosts(self) -> dict[str, Any]:
        names = list(self.config.published.hosts) if self.config.published else []
        terms = {k: v for k, v in self.campaign.terms.items() if k not in ("deployments", "hardware_usd")}
        regions = [terms["region"]] if terms.get("region") and "usd_per_kwh" not in terms else []
        return {"names": names, "hardware": self.catalogue.hardware.slice(names, regions), "settings": terms}

    def cap(self) -> dict[str, Any]:
        engines = self.catalogue.engines
        return {
            "deployments": [
                # (a printed row's engine is whatever its source calls so)
                {**row, "engine_kind": engines[row["engine"]].kind} if row["deployment"] in self.deployments else row
                for row in self.campaign.rows
            ],
            "failures": self.campaign.failures,
            **self.config.cap.model_dump(mode="json"),
            "provenance": {
                "config": digest(self.config.model_dump(mode="json", exclude={"site", "plan", "before", "after"})),
                "seed": self.config.seed,
            },
        }

    def measured_bytes(self, model: str, precision: str) -> dict[str, Any]:
        return {
            "model": model,
            "precision": precision,
            "seed": self.config.seed,
            "trust_remote_code": model in self.config.trust_remote_code,
        }

    def trace_decode(self, row: Deployment) -> dict[str, Any]:
        timed = self.performance(row)
        return {key: timed[key] for key in ("deployment", "engine", "engine_version", "seed", "trust_remote_code")}

    def charts(self) -> dict[str, Any]:
        return {"reference": self.config.cap.reference}

    def report(self) -> dict[str, Any]:
        graph = self.graph
        tables = [extras.measured_bytes(path) for path in graph.measured_bytes_files()]
        tables += [extras.plan(self.campaign.paths.plan)]
        tables += [extras.cross_check(path) for path in graph.cross_check_files()]
        tables += [extras.replay_check(path) for path in graph.replay_check_files()]
        tables += [extras.hosts(path) for path in graph.published_hosts_files()]
        return {
            "reference": self.config.cap.reference,
            "failures": self.campaign.failures,
            "tables": tables,
            "logs": self._logs(),
            "campaign": self.config.archive if "archive" in self.config.model_fields_set else None,
        }

    def _logs(self) -> dict[str, str]:
        """Logs of a deployment's stages, as links from the report's place: what a stage is called -> pattern."""
        place = Path(self.graph.report_paths.report).parent
        stages = {"timed run": "performance", "metrics": "metrics", "cost": "cost"}
        log = Path(self.campaign.paths.log)
        return {name: relpath(log / rule / "{deployment}.log", place) for name, rule in stages.items()}

    def archive(self) -> dict[str, Any]:
        hardware = self._prices(self.campaign.rows)
        used = {
            kind: sorted({name for row in self.deployments.values() for name in names(row)})
            for kind, names in {
                "models": lambda row: [row.model],
                "precisions": lambda row: [row.precision],
                "engines": lambda row: [row.engine],
                "datasets": lambda row: row.datasets,
            }.items()
        }
        catalogue = {
            kind: {name: getattr(self.catalogue, kind)[name].model_dump(mode="json") for name in names}
            for kind, names in used.items()
        }
        return {
            "results": self.config.results,
            "name": self.config.archive,
            "config": self.config.model_dump(mode="json", exclude={"site", "before", "after"}),
            "deployments": self.campaign.rows,
            "catalogue": {**catalogue, "hardware": hardware},
            "redraw": {"charts": self.charts(), "report": self.report()},
        }

    @property
    def _compute_dtypes(self) -> dict[str, str]:
        return {
            p: self.campaign.precision(p).computes_in for p in sorted({d.precision for d in self.deployments.values()})
        }

    def plan(self) -> dict[str, Any]:
        return {
            "deployments": [row.model_dump(mode="json") for row in self.deployments.values()],
            "reference": self.graph.calibrate_on,
            "compute_dtypes": self._compute_dtypes,
            "settings": {k: v for k, v in self.campaign.terms.items() if k != "deployments"},
            **self.config.plan.model_dump(mode="json", exclude={"calibrate_on"}),
        }

    def cross_check(self) -> dict[str, Any]:
        """Speeds alone of the hardware, so that a price reruns nothing here."""
        speeds = {name: self.catalogue.hardware.find(name).speeds for name in self.graph.hardware_in_use}
        return {
            "deployments": [self.deployments[d].model_dump(mode="json") for d in self.graph.reported],
            "speeds": {name: found and asdict(found) for name, found in speeds.items()},
            "compute_dtypes": self._compute_dtypes,
            "reference": self.graph.calibrate_on,
        }
