"""A checked config with its deployment table and catalogues: what is to be measured.

What Snakemake's rules ask of it lies beside it: files and wildcards in :mod:`moecap.campaign.graph`, what each rule's
result depends on in :mod:`moecap.campaign.params`, all that may be wrong in :mod:`moecap.campaign.checks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from moecap.campaign import checks
from moecap.campaign.catalogue import Catalogue, DatasetEntry, EngineEntry, ModelEntry, PrecisionEntry
from moecap.campaign.config import ARCHIVE_SUFFIX
from moecap.campaign.deployments import Deployment, Deployments, read_table
from moecap.campaign.graph import Graph
from moecap.campaign.params import Params
from moecap.campaign.sources import Sources, load_config
from moecap.cap import paper
from moecap.errors import Collector, MoecapError
from moecap.model.recipes import planned_bytes
from moecap.paths import Paths
from moecap.provenance import pinned_version


class Campaign:
    """What is to be measured. Construction checks everything that can be checked without running anything.

    Args:
        config: the config as plain data.
        source: what it was read from, or the name of that.
        found: takes down all that is wrong; None: it is raised.

    Raises:
        Mistakes: the config, the deployment table or a catalogue is wrong, or a row asks for something that cannot be
            served; all of it. Each names file, line, row, key, value, what is allowed and the nearest known name.
    """

    def __init__(
        self, config: Mapping[str, Any], source: Sources | str = "config", found: Collector | None = None
    ) -> None:
        mistakes = found if found is not None else Collector()
        self.sources = source if isinstance(source, Sources) else Sources(source)
        self.source = self.sources.name
        self.config, self._wrong = load_config(config, self.sources, mistakes)
        self.paths = Paths(self.config.results)
        self.warnings: list[str] = []
        # What is drawn from an archive alone asks for no deployment, and for no engine that this machine lacks.
        drawn = self.archive_file is not None
        try:
            self.catalogue = Catalogue(self.config.catalogue, Collector() if drawn else mistakes)
        except MoecapError as error:
            mistakes.take(error, self.sources.place(("catalogue",)), "catalogue")
            mistakes.finish()
        self.table = Deployments(self.config.deployments or self.source)
        if self.config.deployments and not drawn:
            self.table = read_table(self.config.deployments, mistakes)
        self.deployments: dict[str, Deployment] = self.table.rows
        self.published_rows = [] if drawn else self._read_published(mistakes)
        checks.check_config(self, mistakes)
        if not drawn:
            checks.check_catalogue(self, mistakes)
            for name, row in self.deployments.items():
                self.deployments[name] = checks.check_row(self, row, mistakes)
            if not mistakes.mistakes:
                checks.check_quantizer(self, mistakes)
        if found is None:
            mistakes.finish()

    def _read_published(self, found: Collector) -> list[dict[str, Any]]:
        """Rows of the printed tables, as rows of a deployment table; engines that are not printed are null."""
        published = self.config.published
        if published is None:
            return []
        try:
            return paper.deployments(paper.read_tables(published.tables), published.hardware)
        except MoecapError as error:
            found.take(error, self.sources.place(("published", "tables")), "published.tables")
            self._wrong.add(("published", "tables"))
            return []

    def is_wrong(self, *keys: str) -> bool:
        """Whether something under one of the config's keys is wrong, so that nothing is to be built on it."""
        return any(path and path[0] in keys for path in self._wrong)

    def known_ids(self) -> list[str] | None:
        """Ids of all deployments, printed ones among them; None: a table cannot be read, so nobody knows."""
        if self.is_wrong("deployments", "published") or (self.config.deployments and not self.table.ids):
            return None
        return [*self.table.ids, *(row["deployment"] for row in self.published_rows)]

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

    def computes_in(self, row: Deployment) -> str:
        """The dtype of a deployment's products: that of its precision, or bf16 where its GPU has no units for that.

        Engines then keep the weights as they are stored and multiply in 16 bits (weight-only kernels).
        """
        dtype, gpu = self.precision(row.precision).computes_in, self.catalogue.hardware.find(row.hardware).gpu
        return "bf16" if gpu is not None and dtype in gpu.lacks else dtype

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

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [*(row.model_dump(mode="json") for row in self.deployments.values()), *self.published_rows]
