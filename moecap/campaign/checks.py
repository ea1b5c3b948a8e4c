"""What can be wrong with a campaign, found before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moecap.accuracy.evaluate import check_task
from moecap.campaign.deployments import PARALLELISM, Deployment, row_lines
from moecap.cost.deployment import settings
from moecap.engines.base import kinds
from moecap.engines.capabilities import Machine, catalogue_machine, check_can_serve, this_machine
from moecap.errors import MoecapError, PermanentError, nearest
from moecap.hardware.catalogue import System
from moecap.model.offload import read_arguments
from moecap.redact import secrets_in

if TYPE_CHECKING:
    from moecap.campaign.campaign import Campaign


def check(campaign: Campaign) -> None:
    """All checks."""
    Checks(campaign)._check()


def machine_of(name: str, system: System) -> Machine:
    """What kernels can ask of a deployment's hardware: facts of the catalogue, not of the machine that plans.

    An entry that is detected (`detect: true`) means the machine that runs the workflow.
    """
    if system.detect:
        return this_machine(name)
    return catalogue_machine(name, system.gpu.model_dump() if system.gpu else {})


class Checks:
    def __init__(self, campaign: Campaign) -> None:
        self.campaign, self.source = campaign, campaign.source

    # -- checks ---------------------------------------------------------------------------------------------------
    def _check(self) -> None:
        config = self.campaign.config
        for key in secrets_in(config.model_dump(mode="json")):
            raise MoecapError(
                f"{self.source}: `{key}` holds what looks like a secret. A config is copied into results, logs and "
                "archives: put the secret into an environment variable, and name that where one is asked for (HF_TOKEN "
                "and the like are found by themselves)."
            )
        lines = row_lines(config.deployments) if config.deployments else {}
        for name, row in self.campaign.deployments.items():
            where = f"{config.deployments}, line {lines.get(name, '?')} ({name})"
            self.campaign.deployments[name] = self._check_row(row, where)
        if config.published is not None:
            self.campaign.catalogue.hardware.find(config.published.hardware, f"{self.source}: `published.hardware`")
            for host in config.published.hosts:
                self.campaign.catalogue.hardware.find(host, f"{self.source}: `published.hosts`")
        known_ids = [row["deployment"] for row in self.campaign.rows]
        for reference in filter(None, [config.cap.reference, *config.cap.references.values()]):
            if reference not in known_ids:
                raise MoecapError(
                    f"{self.source}: `cap` names the reference {reference!r}, which is no deployment of "
                    f"{config.deployments or config.published.tables}. {nearest(reference, known_ids)}"
                )
        for name in [*config.trust_remote_code, *config.data_files]:
            known = (
                self.campaign.catalogue.models if name in config.trust_remote_code else self.campaign.catalogue.datasets
            )
            if name not in known:
                raise MoecapError(f"{self.source}: {name!r} is not in the catalogue. {nearest(name, known)}")
        if config.cost.region is None and config.cost.usd_per_kwh is None:
            regions = ", ".join(sorted(self.campaign.catalogue.hardware.electricity))
            raise MoecapError(
                f"{self.source}: `cost` gives neither `region` nor `usd_per_kwh`, so that energy has no price. Add "
                f"`cost: {{region: …}}`, one of: {regions}; or `cost: {{usd_per_kwh: 0.12}}` with your own."
            )
        self._check_cost()
        self._check_plan()

    def _check_cost(self) -> None:
        """Prices are asked for last, after days of measuring: what is wrong with them is said at the start."""
        catalogue, given = self.campaign.catalogue.hardware, self.campaign.config.cost
        rows = {row["deployment"]: row for row in self.campaign.rows}
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
                settings(self.campaign.terms, catalogue, name)
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
                self.campaign.warn(f"{error} Until then what {', '.join(of)} cost to buy is null.")

    def _check_plan(self) -> None:
        for name in self.campaign.config.plan.systems or ():
            self.campaign.catalogue.hardware.find(name, f"{self.source}: `plan.systems`")
        chosen = self.campaign.config.plan.calibrate_on
        if chosen is not None and chosen not in self.campaign.deployments:
            raise MoecapError(
                f"{self.source}: `plan.calibrate_on` is {chosen!r}, which is no deployment of "
                f"{self.campaign.config.deployments}. {nearest(chosen, self.campaign.deployments)}"
            )

    def _check_row(self, row: Deployment, where: str) -> Deployment:
        """The row, with the engine that will serve it; an error for what cannot be served."""
        catalogue = self.campaign.catalogue
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
            self.campaign.warn(
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
            if not (self.campaign.config.fallback and system.detect and engine.instead in able):
                remedy = f"Engines that do: {', '.join(able)}." if able else "No engine of the catalogue does."
                raise PermanentError(f"{error} {remedy}") from None
            row = row.model_copy(update={"engine": engine.instead})
            self.campaign.warn(f"{error} It will be served by {engine.instead} instead.")
        return row

    def _check_device(self, row: Deployment, where: str) -> None:
        """The engine and the hardware have to mean the same kind of device: else its price and peaks are another's."""
        device, gpu = (
            self.campaign.engine(row.engine).device,
            self.campaign.catalogue.hardware.find(row.hardware, where).gpu,
        )
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
        system = self.campaign.catalogue.hardware.find(row.hardware, where)
        needed = self.campaign.planned_weight_bytes(row.model, row.precision)
        if row.offload != "none" or not (needed and system.gpu and system.memory_bytes):
            return
        devices = row.devices // row.data_parallel
        there = devices * system.memory_bytes
        if needed > there:
            self.campaign.warn(
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
            self.campaign.engine(row.engine),
            self.campaign.precision(row.precision).for_serving(),
            machine_of(row.hardware, self.campaign.catalogue.hardware.find(row.hardware)),
            engine=row.engine,
            offload=row.offload,
            where=where,
            **{key: getattr(row, key) for key in PARALLELISM},
        )
        if row.offload != "none":
            try:
                read_arguments(self.campaign.engine(row.engine).options.get("engine_args") or {})
            except MoecapError as error:
                raise PermanentError(f"{where}{': ' if where else ''}`offload` is {row.offload!r}. {error}") from None
