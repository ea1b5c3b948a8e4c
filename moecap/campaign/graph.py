"""Which files the workflow makes for a campaign, and the wildcards behind them: what its graph is built from."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moecap.campaign.config import ARCHIVE_SUFFIX
from moecap.campaign.deployments import PARALLELISM, Deployment
from moecap.engines.base import engine_file
from moecap.errors import MoecapError
from moecap.hardware.catalogue import layer_files
from moecap.io import write_json
from moecap.jobs.failures import applies, read_failures
from moecap.paths import Paths, fill
from moecap.provenance import digest, pinned_version

if TYPE_CHECKING:
    from moecap.campaign.campaign import Campaign


class Graph:
    """Files and wildcards of a campaign. In a partial report only those that exist."""

    def __init__(self, campaign: Campaign) -> None:
        self.campaign = campaign
        self.config, self.catalogue = campaign.config, campaign.catalogue
        self.paths, self.deployments = campaign.paths, campaign.deployments

    @cached_property
    def variants(self) -> dict[tuple[str, str], str]:
        """(model, precision) -> the rule that makes it: ``train_demo``, ``download``, ``quantize`` or ``convert_gguf``.

        A variant that is made here brings the bf16 one that it is made from.
        """
        found: dict[tuple[str, str], str] = {}
        for row in self.deployments.values():
            entry = self.campaign.model(row.model)
            if row.precision in entry.checkpoints:
                found[row.model, row.precision] = "download"
                continue
            base = "train_demo" if entry.source.train else "download"
            found[row.model, "bf16"] = base
            if row.precision != "bf16":
                found[row.model, row.precision] = self.campaign.precision(row.precision).made_by
        return found

    def variants_of(self, rule: str) -> list[str]:
        """``model/precision`` of every variant that ``rule`` makes."""
        return sorted(f"{m}/{p}" for (m, p), made_by in self.variants.items() if made_by == rule)

    @property
    def hardware_in_use(self) -> list[str]:
        return sorted({row.hardware for row in self.deployments.values()})

    def accuracy_settings(self, row: Deployment, dataset: str) -> dict[str, Any]:
        """All that an accuracy result depends on, beside the checkpoint: not the number of devices."""
        engine = self.campaign.engine(row.engine)
        return {
            "dataset": self.campaign.dataset(dataset).for_accuracy(),
            "data_files": self.config.data_files.get(dataset),
            "limit": self.config.accuracy.limit,
            "engine": engine.for_accuracy(),
            "engine_version": self.campaign.engine_version(row.engine),
            "lm_eval_version": pinned_version(engine.environment, "lm-eval"),
            "seed": self.config.seed,
            "trust_remote_code": row.model in self.config.trust_remote_code,
        }

    def _accuracy_wildcards(self, row: Deployment, dataset: str) -> dict[str, str]:
        return {
            "model": row.model,
            "precision": row.precision,
            "engine": row.engine,
            "dataset": dataset,
            "settings": digest(self.accuracy_settings(row, dataset), 8),
        }

    def accuracy_file(self, row: Deployment, dataset: str) -> str:
        return fill(self.paths.accuracy, **self._accuracy_wildcards(row, dataset))

    def accuracy_files(self, row: Deployment) -> list[str]:
        return [self._scored(self.accuracy_file(row, dataset)) for dataset in row.datasets]

    @cached_property
    def _accuracy_rows(self) -> dict[str, tuple[Deployment, str]]:
        """Accuracy file -> a deployment and dataset that ask for it (any one: the settings are equal)."""
        return {self.accuracy_file(row, d): (row, d) for row in self.deployments.values() for d in row.datasets}

    def all_accuracy_files(self) -> list[str]:
        """The files that have a row with an accuracy: of a judged dataset what the judge made of its answers."""
        return self._there([self._scored(file) for file in self._accuracy_rows])

    def _scored(self, file: str) -> str:
        row, dataset = self._accuracy_rows[file]
        if self.campaign.dataset(dataset).judging is None:
            return file
        return fill(self.paths.judged, **self._accuracy_wildcards(row, dataset))

    def accuracy_jobs(self) -> list[tuple[str, dict[str, str]]]:
        """Every accuracy file with its wildcards."""
        return [(file, self._accuracy_wildcards(row, dataset)) for file, (row, dataset) in self._accuracy_rows.items()]

    def _there(self, files: list[str]) -> list[str]:
        """All of ``files``; in a partial report those that exist."""
        return [file for file in files if Path(file).exists()] if self.config.partial else files

    @cached_property
    def reported(self) -> list[str]:
        """Deployments whose figures the report shows: all; in a partial report those that got as far as their cost."""
        return self.reported_now() if self.config.partial else list(self.deployments)

    def reported_now(self) -> list[str]:
        """Deployments that have got as far as their cost by now, and of which nothing failed on the way there.

        A failed job loses its outputs, but what was made from earlier ones may still lie about: it is not reported.
        """
        failed = [record for record in read_failures(self.paths.failures) if record["stage"] != "evaluate"]

        def there(row: Deployment) -> bool:
            files = (
                fill(getattr(self.paths, kind), deployment=row.deployment) for kind in ("points", "metrics", "cost")
            )
            fields = row.model_dump(mode="json")
            return all(Path(f).exists() for f in files) and not any(applies(record, fields) for record in failed)

        return [name for name, row in self.deployments.items() if there(row)]

    @property
    def report_paths(self) -> Paths:
        """Where CAP table, charts and report go: a partial report, or a redrawn one, leaves the complete one alone."""
        if self.campaign.archive_file:
            return Paths(
                fill(self.paths.redrawn, name=Path(self.campaign.archive_file).name.removesuffix(ARCHIVE_SUFFIX))
            )
        return Paths(f"{self.config.results}/partial") if self.config.partial else self.paths

    # All that a partial report may run.
    reporting_rules = ("cap", "cross_check", "charts", "report")

    def partial_config(self) -> str:
        """Write down the config of a partial report: this one, as it is. Returns the file's path."""
        path = f"{self.config.results}/partial/config.json"
        write_json({**self.config.model_dump(mode="json"), "partial": True}, path)
        return path

    def accuracy_row(self, **wildcards: str) -> tuple[Deployment, str]:
        """The deployment and dataset behind an accuracy file's wildcards.

        Raises:
            MoecapError: the file belongs to settings that the config no longer has.
        """
        path = fill(self.paths.accuracy, **wildcards)
        if path not in self._accuracy_rows:
            raise MoecapError(f"{path} was made with settings that {self.campaign.source} no longer has.")
        return self._accuracy_rows[path]

    @cached_property
    def _deployments_by_variant(self) -> dict[tuple[str, str], list[str]]:
        found: dict[tuple[str, str], list[str]] = {}
        for row in self.deployments.values():
            found.setdefault((row.model, row.precision), []).append(row.deployment)
        return found

    def deployments_of(self, model: str, precision: str) -> list[str]:
        return self._deployments_by_variant[model, precision]

    def uses_demo_data(self, *datasets: str) -> bool:
        return any(self.campaign.dataset(d).demo for d in datasets)

    @property
    def conda_environment(self) -> str:
        """envs/NAME.yaml of the rules that load an engine: one for all of them, that of GPUs before that of CPUs."""
        engines = [self.campaign.engine(row.engine) for row in self.deployments.values()]
        return next((e.environment for e in sorted(engines, key=lambda e: e.device == "cpu")), "engine-cpu")

    def engine_file(self, deployment: str) -> str:
        """Path of the engine's own code, which is loaded by name and so seen by nobody who reads imports."""
        return engine_file(self.campaign.engine(self.campaign.deployment(deployment).engine).kind)

    @property
    def demo_seed(self) -> int:
        seeds = [entry.source.seed for entry in self.catalogue.models.values() if entry.source.train == "demo"]
        return seeds[0] if seeds else 1

    def base_manifest(self, variant: str) -> str:
        return fill(self.paths.manifest, model=variant.split("/")[0], precision="bf16")

    def calibration_datasets(self, variant: str) -> list[str]:
        """Datasets of the workflow's own that the variant's recipe calibrates on, or that its quality is told on."""
        heldout = self.campaign.config.heldout
        judged_on = heldout.dataset if heldout else None
        names = [self.campaign.params.quantize(variant).get("calibration_dataset"), judged_on]
        return [name for name in dict.fromkeys(names) if name]

    def replay_row(self, model: str, precision: str) -> Deployment:
        """The deployment on whose devices the sequences of all are replayed."""
        return self.campaign.deployment(self.deployments_of(model, precision)[0])

    @cached_property
    def published_tables(self) -> list[str]:
        return sorted(map(str, Path(self.config.published.tables).glob("table*.csv"))) if self.config.published else []

    def published_files(self, stage: str) -> list[str]:
        """The file of a stage (metrics, accuracy, cost) that the printed tables stand for; none without them."""
        return [fill(self.paths.published, stage=stage)] if self.config.published else []

    def published_hosts_files(self) -> list[str]:
        """What the GPUs alone are of the cost of the config's `published.hosts`; nothing where there are none."""
        return self.published_files("hosts") if self.config.published and self.config.published.hosts else []

    def anatomy_files(self) -> list[str]:
        used = sorted({(row.model, row.precision) for row in self.deployments.values()})
        return self._there([fill(self.paths.anatomy, model=m, precision=p) for m, p in used])

    @property
    def measured_bytes_variants(self) -> list[tuple[str, str]]:
        """(model, precision) whose bytes are to be measured: at full precision only, since Transformers serves a
        quantized checkpoint dequantized, and would read other bytes than the engine does."""
        makers = {"trained": ("train_demo",), "all": ("train_demo", "download"), "none": ()}[self.config.measured_bytes]
        used = {(row.model, row.precision) for row in self.deployments.values() if row.precision == "bf16"}
        return sorted(variant for variant in used if self.variants[variant] in makers)

    def measured_bytes_files(self) -> list[str]:
        variants = self.measured_bytes_variants
        return self._there([fill(self.paths.measured_bytes, model=m, precision=p) for m, p in variants])

    @property
    def replay_checked(self) -> list[str]:
        """Deployments whose replay is to be held against the decode: of engines whose routers can be read in it."""

        def readable(row: Deployment) -> bool:
            engine = self.campaign.engine(row.engine)
            return engine.kind == "vllm" and engine.device == "cpu" and all(getattr(row, p) == 1 for p in PARALLELISM)

        wanted = {"trained": lambda row: self.campaign.model(row.model).source.train, "all": lambda row: True}
        chosen = wanted.get(self.config.replay_check, lambda row: False)
        return [name for name, row in self.deployments.items() if chosen(row) and readable(row)]

    def replay_check_files(self) -> list[str]:
        return self._there([fill(self.paths.replay_check, deployment=name) for name in self.replay_checked])

    def machine_files(self) -> list[str]:
        return self._there([fill(self.paths.machine, hardware=name) for name in self.hardware_in_use])

    def sample_files(self) -> list[str]:
        suffix = ".parquet"
        return [path.removesuffix(suffix) + ".samples.parquet" for path in self._there(list(self._accuracy_rows))]

    @property
    def hardware_files(self) -> list[str]:
        """The whole hardware catalogue: a plan looks through all of it."""
        return [str(path) for path in layer_files(self.catalogue.layers)]

    @property
    def calibrate_on(self) -> str | None:
        return self.config.plan.calibrate_on or self.config.cap.reference

    def plan_files(self) -> list[str]:
        """What `snakemake plan` predicted, if it was asked for: the report shows it, and does not ask for it."""
        asked = not self.config.partial and not self.campaign.archive_file and Path(self.paths.plan).is_file()
        return [self.paths.plan] if asked else []

    def cross_check_files(self) -> list[str]:
        """What the planner's predictions were held against; nothing where nothing was measured."""
        return [self.report_paths.cross_check] if self.reported else []
