"""A checked config, its deployment table and catalogues, and the slice of them that each rule depends on.

A rule's params hold exactly what its result depends on, so that Snakemake reruns what a change touches and nothing
else. The change -> jobs table in ``docs/reruns.md`` is tested row by row.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from moecap.catalogue import Catalogue, DatasetEntry, EngineEntry, ModelEntry, PrecisionEntry
from moecap.config import Config, Deployment, load_config, read_deployments, row_location
from moecap.errors import MoecapError, nearest
from moecap.paths import Paths, fill
from moecap.provenance import digest, pinned_version


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
        self.deployments: dict[str, Deployment] = {d.deployment: d for d in read_deployments(self.config.deployments)}
        self.warnings: list[str] = []
        self._check()

    # -- checks ---------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        config = self.config
        for row in self.deployments.values():
            self._check_row(row)
        if config.cap.reference is not None and config.cap.reference not in self.deployments:
            raise MoecapError(
                f"{self.source}: `cap.reference` is {config.cap.reference!r}, which is no deployment of "
                f"{config.deployments}. {nearest(config.cap.reference, self.deployments)}"
            )
        for name in [*config.trust_remote_code, *config.data_files]:
            known = self.catalogue.models if name in config.trust_remote_code else self.catalogue.datasets
            if name not in known:
                raise MoecapError(f"{self.source}: {name!r} is not in the catalogue. {nearest(name, known)}")
        self.catalogue.check_region(config.cost.region, self.source)

    def _check_row(self, row: Deployment) -> None:
        where = row_location(self.config.deployments, row.deployment)
        catalogue = self.catalogue
        model = catalogue.find("model", row.model, where)
        precision = catalogue.find("precision", row.precision, where)
        engine = catalogue.find("engine", row.engine, where)
        hardware = catalogue.find_hardware(row.hardware, where)
        for dataset in row.datasets:
            catalogue.find("dataset", dataset, where, key="datasets")
        if model.source.hub and not model.source.revision:
            self._warn(
                f"model {row.model} is not pinned to a revision ({catalogue.file('models')}); the commit that it "
                "resolves to will be recorded."
            )
        if row.precision not in ("bf16", *model.checkpoints) and precision.recipe is None:
            raise MoecapError(
                f"{where}: `precision` is {row.precision!r}, which can only be had as a ready-made checkpoint, and model "
                f"{row.model!r} lists none (its `checkpoints` in {catalogue.file('models')}: "
                f"{', '.join(model.checkpoints) or 'none'})."
            )
        engine.check_serves(row, precision, hardware, where)

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

    def accuracy_file(self, row: Deployment, dataset: str) -> str:
        return fill(
            self.paths.accuracy,
            model=row.model,
            precision=row.precision,
            engine=row.engine,
            dataset=dataset,
            settings=digest(self.accuracy_settings(row, dataset), 8),
        )

    def accuracy_files(self, row: Deployment) -> list[str]:
        return [self.accuracy_file(row, dataset) for dataset in row.datasets]

    @cached_property
    def _accuracy_rows(self) -> dict[str, tuple[Deployment, str]]:
        """Accuracy file -> a deployment and dataset that ask for it (any one: the settings are equal)."""
        return {self.accuracy_file(row, d): (row, d) for row in self.deployments.values() for d in row.datasets}

    def all_accuracy_files(self) -> list[str]:
        return list(self._accuracy_rows)

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
