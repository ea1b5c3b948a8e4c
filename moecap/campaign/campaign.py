"""A checked config, its deployment table and catalogues, and the slice of them that each rule depends on.

A rule's params hold exactly what its result depends on, so that Snakemake reruns what a change touches and nothing
else. The change -> jobs table in ``docs/reruns.md`` is tested row by row.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from moecap.accuracy.evaluate import check_task
from moecap.campaign.catalogue import Catalogue, DatasetEntry, EngineEntry, ModelEntry, PrecisionEntry
from moecap.campaign.config import Config, Deployment, load_config, read_deployments, row_lines
from moecap.cap import paper
from moecap.cost.deployment import settings
from moecap.engines.base import Machine, catalogue_machine, check_can_serve, kinds, this_machine
from moecap.errors import MoecapError, PermanentError, nearest
from moecap.hardware.catalogue import System, hardware_files
from moecap.io import write_json
from moecap.jobs.failures import applies, read_failures
from moecap.model.offload import ARGUMENTS as OFFLOAD_ARGUMENTS
from moecap.model.offload import read_arguments
from moecap.model.stored import planned_bytes
from moecap.paths import Paths, fill
from moecap.provenance import digest, pinned_version

#: What the report shows of measured bytes; the file has more.
MEASURED_COLUMNS = [
    *("layer", "batch_size", "unique_experts", "mbu_bytes", "s_mbu_bytes", "s_mbu_complete_bytes", "measured_bytes"),
    *("total_error", "predicted_weight_bytes", "measured_weight_bytes", "predicted_kv_bytes", "measured_kv_bytes"),
]
#: What it shows of the check of the replay.
REPLAY_COLUMNS = [
    *("batch_size", "runs", "same_tokens", "token_layers", "sets_equal", "control_sets_equal", "unique_equal"),
    *("unique_error", "s_mbu_error", "s_mbu_complete_error", "worst_run_error", "replay_over_run"),
]
ARCHIVE_SUFFIX = ".tar.zst"
PARALLELISM = ("tensor_parallel", "pipeline_parallel", "expert_parallel", "data_parallel")


def _shards(row: Deployment) -> dict[str, int]:
    """How one copy of the model is spread over devices."""
    return {"tensor_parallel": row.tensor_parallel, "pipeline_parallel": row.pipeline_parallel}


def machine_of(name: str, system: System) -> Machine:
    """What kernels can ask of a deployment's hardware: facts of the catalogue, not of the machine that plans.

    An entry that is detected (`detect: true`) means the machine that runs the workflow.
    """
    if system.detect:
        return this_machine(name)
    return catalogue_machine(name, system.gpu.model_dump() if system.gpu else {})


class Campaign:
    """What is to be measured. Construction checks everything that can be checked without running anything.

    Raises:
        MoecapError: the config, the deployment table or a catalogue is wrong, or a row asks for something that
            cannot be served. The message names file, row, key, value, what is allowed and the nearest known name.
    """

    def __init__(self, config: dict[str, Any], source: str = "config") -> None:
        self.source = source
        self.config: Config = load_config(config, source)
        self.catalogue = Catalogue(self.config.catalogue)
        self.paths = Paths(self.config.results)
        # What is drawn from an archive alone asks for no deployment, and for no engine that this machine lacks.
        table = None if self.archive_file else self.config.deployments
        self.deployments: dict[str, Deployment] = {d.deployment: d for d in read_deployments(table)} if table else {}
        self.warnings: list[str] = []
        if not self.archive_file:
            self._check()

    # -- checks ---------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        config = self.config
        lines = row_lines(config.deployments) if config.deployments else {}
        for name, row in self.deployments.items():
            where = f"{config.deployments}, line {lines.get(name, '?')} ({name})"
            self.deployments[name] = self._check_row(row, where)
        if config.published is not None:
            self.catalogue.hardware.find(config.published.hardware, f"{self.source}: `published.hardware`")
            for host in config.published.hosts:
                self.catalogue.hardware.find(host, f"{self.source}: `published.hosts`")
        known_ids = [row["deployment"] for row in self._rows()]
        for reference in filter(None, [config.cap.reference, *config.cap.references.values()]):
            if reference not in known_ids:
                raise MoecapError(
                    f"{self.source}: `cap` names the reference {reference!r}, which is no deployment of "
                    f"{config.deployments or config.published.tables}. {nearest(reference, known_ids)}"
                )
        for name in [*config.trust_remote_code, *config.data_files]:
            known = self.catalogue.models if name in config.trust_remote_code else self.catalogue.datasets
            if name not in known:
                raise MoecapError(f"{self.source}: {name!r} is not in the catalogue. {nearest(name, known)}")
        if config.cost.region is None and config.cost.usd_per_kwh is None:
            regions = ", ".join(sorted(self.catalogue.hardware.electricity))
            raise MoecapError(
                f"{self.source}: `cost` gives neither `region` nor `usd_per_kwh`, so that energy has no price. Add "
                f"`cost: {{region: …}}`, one of: {regions}; or `cost: {{usd_per_kwh: 0.12}}` with your own."
            )
        self._check_cost()
        self._check_plan()

    def _check_cost(self) -> None:
        """Prices are asked for last, after days of measuring: what is wrong with them is said at the start."""
        catalogue, given = self.catalogue.hardware, self.config.cost
        rows = {row["deployment"]: row for row in self._rows()}
        for name in given.deployments:
            if name not in rows:
                raise MoecapError(
                    f"{self.source}: `cost.deployments` names {name!r}, which is no deployment. {nearest(name, rows)}"
                )
        for where, terms in [("cost", given), *((f"cost.deployments.{n}", t) for n, t in given.deployments.items())]:
            if terms.region is not None and terms.usd_per_kwh is None:
                catalogue.region(terms.region, f"{self.source}: `{where}.region`")
            if isinstance(terms.pue, str):
                catalogue.site(terms.pue, f"{self.source}: `{where}.pue`")
        for name in (None, *given.deployments):
            try:
                settings(self._terms, catalogue, name)
            except MoecapError as error:
                raise MoecapError(f"{self.source}: {error}") from None
        priced = {name for name, terms in given.deployments.items() if terms.hardware_usd is not None}
        bought: dict[str, list[str]] = {}
        for name, row in rows.items():
            if given.hardware_usd is None and name not in priced:
                bought.setdefault(row["hardware"], []).append(name)
        for hardware, of in bought.items():
            try:
                catalogue.find(hardware).purchase(1, {"cores": 1, "memory_bytes": 1})
            except MoecapError as error:
                self._warn(f"{error} Until then what {', '.join(of)} cost to buy is null.")

    def _check_plan(self) -> None:
        for name in self.config.plan.systems or ():
            self.catalogue.hardware.find(name, f"{self.source}: `plan.systems`")
        chosen = self.config.plan.calibrate_on
        if chosen is not None and chosen not in self.deployments:
            raise MoecapError(
                f"{self.source}: `plan.calibrate_on` is {chosen!r}, which is no deployment of "
                f"{self.config.deployments}. {nearest(chosen, self.deployments)}"
            )

    def _check_row(self, row: Deployment, where: str) -> Deployment:
        """The row, with the engine that will serve it; an error for what cannot be served."""
        catalogue = self.catalogue
        model = catalogue.find("model", row.model, where)
        precision = catalogue.find("precision", row.precision, where)
        engine = catalogue.find("engine", row.engine, where)
        system = catalogue.hardware.find(row.hardware, where)
        if engine.kind not in kinds():
            raise MoecapError(
                f"{where}: engine {row.engine!r} of {catalogue.file('engines')}: `kind` is {engine.kind!r}, which is "
                f"no file moecap/engines/{engine.kind}_engine.py. {nearest(engine.kind, kinds())}"
            )
        for dataset in row.datasets:
            task = catalogue.find("dataset", dataset, where, key="datasets").task
            check_task(task, where=f"{where}: dataset {dataset!r} of {catalogue.file('datasets')}: `task`")
        if row.precision not in model.checkpoints and not any(
            (model.source.hub, model.source.path, model.source.train)
        ):
            raise MoecapError(
                f"{where}: `model` is {row.model!r}, which has no `source` in {catalogue.file('models')}: a hub id "
                "(`hub`) or a folder (`path`) to take its checkpoint from."
            )
        if model.source.hub and not model.source.revision:
            self._warn(
                f"model {row.model} is not pinned to a revision ({catalogue.file('models')}); the commit that it "
                "resolves to will be recorded."
            )
        if row.precision not in ("bf16", *model.checkpoints) and precision.recipe is None:
            raise MoecapError(
                f"{where}: `precision` is {row.precision!r}, which can only be had as a ready-made checkpoint, and "
                f"model {row.model!r} lists none (its `checkpoints` in {catalogue.file('models')}: "
                f"{', '.join(model.checkpoints) or 'none'})."
            )
        self._check_device(row, where)
        self._check_room(row, where)
        try:
            self._check_engine(row, where)
        except PermanentError as error:
            able = [name for name in catalogue.engines if self._can_serve(row.model_copy(update={"engine": name}))]
            if not (self.config.fallback and system.detect and engine.instead in able):
                remedy = f"Engines that do: {', '.join(able)}." if able else "No engine of the catalogue does."
                raise PermanentError(f"{error} {remedy}") from None
            row = row.model_copy(update={"engine": engine.instead})
            self._warn(f"{error} It will be served by {engine.instead} instead.")
        return row

    def _check_device(self, row: Deployment, where: str) -> None:
        """The engine and the hardware have to mean the same kind of device: else its price and peaks are another's."""
        device, gpu = self.engine(row.engine).device, self.catalogue.hardware.find(row.hardware, where).gpu
        if device != "cpu" and gpu is None:
            raise PermanentError(
                f"{where}: `engine` is {row.engine!r}, which runs on {device} GPUs, but `hardware` {row.hardware!r} "
                "has none in the catalogue. Name an entry with a GPU, or an engine on the cpu."
            )
        if device == "cpu" and gpu is not None:
            raise PermanentError(
                f"{where}: `engine` is {row.engine!r}, which runs on the cpu, but `hardware` is {row.hardware!r}, "
                "whose price and peaks are those of a GPU. Name the entry of a CPU, or an engine on GPUs."
            )

    def _check_room(self, row: Deployment, where: str) -> None:
        """One copy of the weights has to lie in the devices' memory. A warning: the checkpoint's true size is not known
        before it is there."""
        system = self.catalogue.hardware.find(row.hardware, where)
        needed = self.planned_weight_bytes(row.model, row.precision)
        if row.offload != "none" or not (needed and system.gpu and system.memory_bytes):
            return
        devices = row.devices // row.data_parallel
        there = devices * system.memory_bytes
        if needed > there:
            self._warn(
                f"{where}: `model` {row.model!r} in {row.precision} has weights of about {needed / 1e9:,.0f} GB, and "
                f"{devices} x {row.hardware} hold {there / 1e9:,.0f} GB: it will not fit, unless its checkpoint is "
                "smaller than that. Give it more `devices` (with `tensor_parallel` or `pipeline_parallel`), a smaller "
                "precision, or `offload`."
            )

    def _can_serve(self, row: Deployment) -> bool:
        try:
            self._check_device(row, "")
            self._check_engine(row, "")
        except PermanentError:
            return False
        return True

    def _check_engine(self, row: Deployment, where: str) -> None:
        check_can_serve(
            self.engine(row.engine).model_dump(),
            self.precision(row.precision).for_serving(),
            machine_of(row.hardware, self.catalogue.hardware.find(row.hardware)),
            engine=row.engine,
            offload=row.offload,
            where=where,
            **{key: getattr(row, key) for key in PARALLELISM},
        )
        if row.offload != "none":
            try:
                read_arguments(self.engine(row.engine).options.get("engine_args") or {})
            except MoecapError as error:
                raise PermanentError(f"{where}{': ' if where else ''}`offload` is {row.offload!r}. {error}") from None

    def _warn(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)

    # -- the parts ------------------------------------------------------------------------------------------------

    def deployment(self, name: str) -> Deployment:
        return self.deployments[name]

    def model(self, name: str) -> ModelEntry:
        return self.catalogue.models[name]

    def precision(self, name: str) -> PrecisionEntry:
        return self.catalogue.precisions[name]

    def engine(self, name: str) -> EngineEntry:
        return self.catalogue.engines[name]

    def planned_weight_bytes(self, model: str, precision: str) -> int | None:
        """Bytes of a checkpoint before it is there, by the catalogue; None: the model's parameters are not known."""
        total = self.model(model).total_params
        scheme = "bf16" if precision == "bf16" else self.precision(precision).scheme
        return None if total is None else planned_bytes(total, scheme)

    def dataset(self, name: str) -> DatasetEntry:
        return self.catalogue.datasets[name]

    @cached_property
    def variants(self) -> dict[tuple[str, str], str]:
        """(model, precision) -> the rule that makes it: ``train_demo``, ``download`` or ``quantize``.

        A quantized variant brings the bf16 one that it is made from.
        """
        found: dict[tuple[str, str], str] = {}
        for row in self.deployments.values():
            entry = self.model(row.model)
            if row.precision in entry.checkpoints:
                found[row.model, row.precision] = "download"
                continue
            base = "train_demo" if entry.source.train else "download"
            found[row.model, "bf16"] = base
            if row.precision != "bf16":
                found[row.model, row.precision] = "quantize"
        return found

    def variants_of(self, rule: str) -> list[str]:
        """``model/precision`` of every variant that ``rule`` makes."""
        return sorted(f"{m}/{p}" for (m, p), made_by in self.variants.items() if made_by == rule)

    @property
    def hardware_in_use(self) -> list[str]:
        return sorted({row.hardware for row in self.deployments.values()})

    # -- files ----------------------------------------------------------------------------------------------------

    def accuracy_settings(self, row: Deployment, dataset: str) -> dict[str, Any]:
        """All that an accuracy result depends on, beside the checkpoint: not the number of devices."""
        engine = self.engine(row.engine)
        return {
            "dataset": self.dataset(dataset).for_accuracy(),
            "data_files": self.config.data_files.get(dataset),
            "limit": self.config.accuracy.limit,
            "engine": engine.for_accuracy(),
            "engine_version": self.engine_version(row.engine),
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
        return [self.accuracy_file(row, dataset) for dataset in row.datasets]

    @cached_property
    def _accuracy_rows(self) -> dict[str, tuple[Deployment, str]]:
        """Accuracy file -> a deployment and dataset that ask for it (any one: the settings are equal)."""
        return {self.accuracy_file(row, d): (row, d) for row in self.deployments.values() for d in row.datasets}

    def all_accuracy_files(self) -> list[str]:
        return self._there(list(self._accuracy_rows))

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
    def failures(self) -> str | None:
        """The folder of failure records that a report shows. A complete one has none: all that it needs was made."""
        return self.paths.failures if self.config.partial else None

    @property
    def archive_file(self) -> str | None:
        """The archive that charts and report are drawn from; None: from results."""
        return self.config.archive if self.config.archive.endswith(ARCHIVE_SUFFIX) else None

    @property
    def report_paths(self) -> Paths:
        """Where CAP table, charts and report go: a partial report, or a redrawn one, leaves the complete one alone."""
        if self.archive_file:
            return Paths(fill(self.paths.redrawn, name=Path(self.archive_file).name.removesuffix(ARCHIVE_SUFFIX)))
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
            raise MoecapError(f"{path} was made with settings that {self.source} no longer has.")
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
        return any(self.dataset(d).demo for d in datasets)

    # -- what a result depends on -----------------------------------------------------------------------------------

    def engine_version(self, engine: str) -> str | None:
        entry = self.engine(engine)
        return pinned_version(entry.environment, entry.distribution)

    @property
    def conda_environment(self) -> str:
        """envs/NAME.yaml of the rules that load an engine: one for all of them, that of GPUs before that of CPUs."""
        engines = [self.engine(row.engine) for row in self.deployments.values()]
        return next((e.environment for e in sorted(engines, key=lambda e: e.device == "cpu")), "engine-cpu")

    def engine_file(self, deployment: str) -> str:
        """Path of the engine's own code, which is loaded by name and so seen by nobody who reads imports."""
        return f"moecap/engines/{self.engine(self.deployment(deployment).engine).kind}_engine.py"

    def performance_params(self, row: Deployment) -> dict[str, Any]:
        """What a timed run depends on: neither prices nor anything of accuracy."""
        settings = self.config.performance
        return {
            "deployment": row.model_dump(mode="json"),
            "datasets": {d: self.dataset(d).for_workload() for d in row.datasets},
            "data_files": {d: self.config.data_files[d] for d in row.datasets if d in self.config.data_files},
            "engine": self.engine(row.engine).for_performance(),
            "engine_version": self.engine_version(row.engine),
            "precision": self.precision(row.precision).for_serving(),
            "settings": settings.model_dump(mode="json"),
            "seed": self.config.seed,
            "trust_remote_code": row.model in self.config.trust_remote_code,
        }

    @property
    def demo_seed(self) -> int:
        seeds = [entry.source.seed for entry in self.catalogue.models.values() if entry.source.train == "demo"]
        return seeds[0] if seeds else 1

    def train_params(self, variant: str) -> dict[str, Any]:
        source = self.model(variant.split("/")[0]).source
        return {"seed": source.seed, "steps": source.steps}

    def download_params(self, variant: str) -> dict[str, Any]:
        name, precision = variant.split("/")
        entry = self.model(name)
        source = entry.checkpoints.get(precision, entry.source)
        return source.model_dump(mode="json", include={"hub", "revision", "path"}, exclude_none=True)

    def base_manifest(self, variant: str) -> str:
        return fill(self.paths.manifest, model=variant.split("/")[0], precision="bf16")

    def quantize_params(self, variant: str) -> dict[str, Any]:
        return dict(self.precision(variant.split("/")[1]).recipe or {})

    def calibration_datasets(self, variant: str) -> list[str]:
        """Datasets that the variant's recipe calibrates on (GPTQ); none for round-to-nearest."""
        return [name for name in [self.quantize_params(variant).get("calibration_dataset")] if name]

    def anatomy_params(self, model: str, precision: str) -> dict[str, Any]:
        return {"model": model, "precision": precision, "trust_remote_code": model in self.config.trust_remote_code}

    def accuracy_params(self, **wildcards: str) -> dict[str, Any]:
        row, dataset = self.accuracy_row(**wildcards)
        return {**self.accuracy_settings(row, dataset), **_shards(row)}

    def machine_params(self, hardware: str) -> dict[str, Any]:
        """What to calibrate, and what NVML must call the GPUs there: a job on another machine fails."""
        gpu = self.catalogue.hardware.find(hardware).gpu
        return {"device": "cpu"} if gpu is None else {"device": "cuda", "gpu_names": list(gpu.names)}

    def replay_row(self, model: str, precision: str) -> Deployment:
        """The deployment on whose devices the sequences of all are replayed."""
        return self.deployment(self.deployments_of(model, precision)[0])

    def replay_params(self, model: str, precision: str) -> dict[str, Any]:
        row = self.replay_row(model, precision)
        return {
            **_shards(row),
            "engine": self.engine(row.engine).for_performance(),
            "engine_version": self.engine_version(row.engine),
            "trust_remote_code": model in self.config.trust_remote_code,
        }

    def metrics_params(self, row: Deployment) -> dict[str, Any]:
        """Peaks come from the catalogue for known hardware, from the calibration for a detected machine."""
        system = self.catalogue.hardware.find(row.hardware)
        params: dict[str, Any] = {
            "deployment": row.deployment,
            "compute_dtype": self.precision(row.precision).compute_dtype,
            "devices": row.devices,
            **{key: getattr(row, key) for key in PARALLELISM},
            "seed": self.config.seed,
        }
        if not system.detect:
            params["peaks"] = {
                "bytes_per_s": system.memory_bytes_per_s,
                "flops": system.peak_flops,
                "status": system.speed_status(params["compute_dtype"]),
            }
        if row.offload != "none":
            arguments = self.engine(row.engine).options.get("engine_args") or {}
            params["offload"] = {
                "tier": row.offload,
                "arguments": {key: arguments[key] for key in OFFLOAD_ARGUMENTS if key in arguments},
            }
            params["tiers"] = system.tiers(row.devices)
        return params

    def cost_params(self, row: Deployment) -> dict[str, Any]:
        return {"deployment": row.model_dump(mode="json"), **self._cost_params([row.model_dump(mode="json")])}

    def _cost_params(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The slice of the catalogue and the terms that the cost of these deployments rests on."""
        names = {row["deployment"] for row in rows}
        own = {name: terms for name, terms in self._terms["deployments"].items() if name in names}
        terms = {**self._terms, "deployments": own}
        return {"hardware": self._prices(rows), "settings": terms}

    @cached_property
    def _terms(self) -> dict[str, Any]:
        """The `cost` part of the config, with the figures of the sites that it names."""
        terms = self.config.cost.model_dump(mode="json", exclude_none=True)
        for part in (terms, *terms["deployments"].values()):
            if isinstance(part.get("pue"), str):
                part["pue"] = self.catalogue.hardware.site(part["pue"]).pue
        return terms

    def _prices(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The slice of the hardware catalogue that the cost of these deployments rests on."""
        own = [terms for row in rows if (terms := self.config.cost.deployments.get(row["deployment"]))]
        regions = {t.region for t in (self.config.cost, *own) if t.region and t.usd_per_kwh is None}
        hardware, models = ({row[key] for row in rows} for key in ("hardware", "model"))
        asked = (tuple(sorted(hardware)), tuple(sorted(regions)), tuple(sorted(models)))
        if asked not in self._slices:  # a thousand deployments have a few dozen
            self._slices[asked] = self.catalogue.hardware.slice(*asked)
        return self._slices[asked]

    @cached_property
    def _slices(self) -> dict[tuple[tuple[str, ...], ...], dict[str, Any]]:
        return {}

    @cached_property
    def published_rows(self) -> list[dict[str, Any]]:
        """Rows of the printed tables, as rows of a deployment table; engines that are not printed are null."""
        published = self.config.published
        return paper.deployments(paper.read_tables(published.tables), published.hardware) if published else []

    @cached_property
    def published_tables(self) -> list[str]:
        return sorted(map(str, Path(self.config.published.tables).glob("table*.csv"))) if self.config.published else []

    def published_files(self, stage: str) -> list[str]:
        """The file of a stage (metrics, accuracy, cost) that the printed tables stand for; none without them."""
        return [fill(self.paths.published, stage=stage)] if self.config.published else []

    def published_cost_params(self) -> dict[str, Any]:
        return {"deployments": self.published_rows, **self._cost_params(self.published_rows)}

    def published_hosts_files(self) -> list[str]:
        """What the GPUs alone are of the cost of the config's `published.hosts`; nothing where there are none."""
        return self.published_files("hosts") if self.config.published and self.config.published.hosts else []

    def published_hosts_params(self) -> dict[str, Any]:
        names = list(self.config.published.hosts) if self.config.published else []
        terms = {k: v for k, v in self._terms.items() if k not in ("deployments", "hardware_usd")}
        regions = [terms["region"]] if terms.get("region") and "usd_per_kwh" not in terms else []
        return {"names": names, "hardware": self.catalogue.hardware.slice(names, regions), "settings": terms}

    def _rows(self) -> list[dict[str, Any]]:
        return [*(row.model_dump(mode="json") for row in self.deployments.values()), *self.published_rows]

    def cap_params(self) -> dict[str, Any]:
        return {
            "deployments": self._rows(),
            "failures": self.failures,
            **self.config.cap.model_dump(mode="json"),
            "provenance": {
                "config": digest(self.config.model_dump(mode="json", exclude={"site", "plan", "before", "after"})),
                "seed": self.config.seed,
            },
        }

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

    def measured_bytes_params(self, model: str, precision: str) -> dict[str, Any]:
        return {
            "model": model,
            "precision": precision,
            "seed": self.config.seed,
            "trust_remote_code": model in self.config.trust_remote_code,
        }

    @property
    def replay_checked(self) -> list[str]:
        """Deployments whose replay is to be held against the decode: of engines whose routers can be read in it."""

        def readable(row: Deployment) -> bool:
            engine = self.engine(row.engine)
            return engine.kind == "vllm" and engine.device == "cpu" and all(getattr(row, p) == 1 for p in PARALLELISM)

        wanted = {"trained": lambda row: self.model(row.model).source.train, "all": lambda row: True}
        chosen = wanted.get(self.config.replay_check, lambda row: False)
        return [name for name, row in self.deployments.items() if chosen(row) and readable(row)]

    def replay_check_files(self) -> list[str]:
        return self._there([fill(self.paths.replay_check, deployment=name) for name in self.replay_checked])

    def trace_decode_params(self, row: Deployment) -> dict[str, Any]:
        timed = self.performance_params(row)
        return {key: timed[key] for key in ("deployment", "engine", "engine_version", "seed", "trust_remote_code")}

    def machine_files(self) -> list[str]:
        return self._there([fill(self.paths.machine, hardware=name) for name in self.hardware_in_use])

    def sample_files(self) -> list[str]:
        suffix = ".parquet"
        return [path.removesuffix(suffix) + ".samples.parquet" for path in self.all_accuracy_files()]

    def chart_params(self) -> dict[str, Any]:
        return {"reference": self.config.cap.reference}

    def report_params(self) -> dict[str, Any]:
        title = "Planner: predicted against measured time per output token"
        tables = [
            {
                "title": f"Predicted against measured bytes: {Path(path).parent.name}, {Path(path).stem}",
                "note": "Of one decode step of random prompts, counted op by op while Transformers executes it. The "
                "complete count is S-MBU's for the experts that this very step chose; its activations are an estimate, "
                "its weights and KV cache are not.",
                "path": path,
                "columns": MEASURED_COLUMNS,
                "chart": "measured_bytes",
            }
            for path in self.measured_bytes_files()
        ]
        tables += [{"title": title, "path": path} for path in self.cross_check_files()]
        tables += [
            {
                "title": f"Replayed routing against routers read inside the decode: {Path(path).stem}",
                "path": path,
                "columns": REPLAY_COLUMNS,
            }
            for path in self.replay_check_files()
        ]
        tables += [
            {
                "title": "What costing the GPUs alone would miss",
                "note": "Of full servers: the GPUs' own price and power against those of the whole, processors, memory "
                "and board included. A negative error is how much too cheap the GPUs alone look. Prices and powers are "
                "the catalogue's. A power that nobody says is null; the lifetime then has the GPUs' energy on both "
                "sides.",
                "path": path,
            }
            for path in self.published_hosts_files()
        ]
        return {"reference": self.config.cap.reference, "failures": self.failures, "tables": tables}

    def archive_params(self) -> dict[str, Any]:
        hardware = self._prices(self._rows())
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
            "deployments": self._rows(),
            "catalogue": {**catalogue, "hardware": hardware},
            "redraw": {"charts": self.chart_params(), "report": self.report_params()},
        }

    @property
    def hardware_files(self) -> list[str]:
        """The whole hardware catalogue: a plan looks through all of it."""
        return [str(path) for path in hardware_files(self.config.catalogue)]

    @property
    def _calibrate_on(self) -> str | None:
        return self.config.plan.calibrate_on or self.config.cap.reference

    @property
    def _compute_dtypes(self) -> dict[str, str]:
        return {p: self.precision(p).compute_dtype for p in sorted({d.precision for d in self.deployments.values()})}

    def plan_params(self) -> dict[str, Any]:
        return {
            "deployments": [row.model_dump(mode="json") for row in self.deployments.values()],
            "reference": self._calibrate_on,
            "compute_dtypes": self._compute_dtypes,
            "settings": {k: v for k, v in self._terms.items() if k != "deployments"},
            **self.config.plan.model_dump(mode="json", exclude={"calibrate_on"}),
        }

    def cross_check_params(self) -> dict[str, Any]:
        """Speeds alone of the hardware, so that a price reruns nothing here."""
        speeds = {name: self.catalogue.hardware.find(name).speeds for name in self.hardware_in_use}
        return {
            "deployments": [self.deployments[d].model_dump(mode="json") for d in self.reported],
            "speeds": {name: found and asdict(found) for name, found in speeds.items()},
            "compute_dtypes": self._compute_dtypes,
            "reference": self._calibrate_on,
        }

    def cross_check_files(self) -> list[str]:
        """What the planner's predictions were held against; nothing where nothing was measured."""
        return [self.report_paths.cross_check] if self.reported else []
