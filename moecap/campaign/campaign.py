"""A checked config with its deployment table and catalogues: what is to be measured.

What Snakemake's rules ask of it lies beside it: files and wildcards in :mod:`moecap.campaign.graph`, what each rule's
result depends on in :mod:`moecap.campaign.params`, all that may be wrong in :mod:`moecap.campaign.checks`.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from moecap.campaign import checks
from moecap.campaign.catalogue import Catalogue, DatasetEntry, EngineEntry, ModelEntry, PrecisionEntry
from moecap.campaign.config import ARCHIVE_SUFFIX, Config, load_config
from moecap.campaign.deployments import Deployment, read_deployments
from moecap.campaign.graph import Graph
from moecap.campaign.params import Params
from moecap.cap import paper
from moecap.model.recipes import planned_bytes
from moecap.paths import Paths
from moecap.provenance import pinned_version


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
            checks.check(self)

    @cached_property
    def graph(self) -> Graph:
        """The files and wildcards of the workflow."""
        return Graph(self)

    @cached_property
    def params(self) -> Params:
        """What each rule's result depends on."""
        return Params(self)

    def warn(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)

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

    @property
    def failures(self) -> str | None:
        """The folder of failure records that a report shows. A complete one has none: all that it needs was made."""
        return self.paths.failures if self.config.partial else None

    @property
    def archive_file(self) -> str | None:
        """The archive that charts and report are drawn from; None: from results."""
        return self.config.archive if self.config.archive.endswith(ARCHIVE_SUFFIX) else None

    def engine_version(self, engine: str) -> str | None:
        entry = self.engine(engine)
        return pinned_version(entry.environment, entry.distribution)

    @cached_property
    def terms(self) -> dict[str, Any]:
        """The `cost` part of the config, with the figures of the sites that it names."""
        terms = self.config.cost.model_dump(mode="json", exclude_none=True)
        for part in (terms, *terms["deployments"].values()):
            if isinstance(part.get("pue"), str):
                part["pue"] = self.catalogue.hardware.site(part["pue"]).pue
        return terms

    @cached_property
    def published_rows(self) -> list[dict[str, Any]]:
        """Rows of the printed tables, as rows of a deployment table; engines that are not printed are null."""
        published = self.config.published
        return paper.deployments(paper.read_tables(published.tables), published.hardware) if published else []

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [*(row.model_dump(mode="json") for row in self.deployments.values()), *self.published_rows]
