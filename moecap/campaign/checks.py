"""What can be wrong with a campaign, found before anything runs.

Every check notes what it finds and goes on, so that all mistakes are shown at once. What rests on an entry that is
wrong itself is not checked: one mistake is one line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from moecap.accuracy.served import cannot_score
from moecap.accuracy.tasks import check_data_files, check_scoring, check_task
from moecap.campaign.catalogue import ModelEntry, PlannedRecipe, PrecisionEntry
from moecap.campaign.config import ARCHIVE_SUFFIX
from moecap.campaign.deployments import PARALLELISM, Deployment
from moecap.campaign.targets import rule_names
from moecap.cost.settings import settings
from moecap.documents import KeyPath
from moecap.engines.arguments import lm_eval_arguments, lm_eval_models, vllm_arguments
from moecap.engines.base import kinds
from moecap.engines.capabilities import Machine, catalogue_machine, check_can_serve, this_machine
from moecap.engines.catalogue import OPTIONS, SERVED, EngineEntry, known_mismatch
from moecap.engines.vllm.limits import Scales, Split, refusals, scales_of_config, sizes_of_config
from moecap.errors import Collector, MoecapError, PermanentError, Place, nearest
from moecap.hardware.systems import System
from moecap.model.offload import read_arguments
from moecap.model.recipes import SCHEMES
from moecap.provenance import ROOT
from moecap.redact import secrets_in
from moecap.schema import expand_path, explain

if TYPE_CHECKING:
    from moecap.campaign.campaign import Campaign


def machine_of(name: str, system: System) -> Machine:
    """What kernels can ask of a deployment's hardware: facts of the catalogue, not of the machine that plans.

    An entry that is detected (`detect: true`) means the machine that runs the workflow.
    """
    if system.detect:
        return this_machine(name)
    return catalogue_machine(name, system.gpu.model_dump() if system.gpu else {})


def check_catalogue(campaign: Campaign, found: Collector) -> None:
    """What the schemas of the catalogues do not say: files that are named, tasks and how they are scored."""
    catalogue = campaign.catalogue
    for name, engine in catalogue.engines.items():
        place = catalogue.place("engines", name, "kind")
        if engine.kind not in kinds():
            text = f"`kind` is {engine.kind!r}, which is no file moecap/engines/{engine.kind}_engine.py, "
            text += f"nor a folder there. {nearest(engine.kind, kinds())}"
            found.add(place, text, "kind")
        _check_options(campaign, name, engine, found)
        known = {*catalogue.engines, *catalogue.wrong["engines"]}
        if engine.instead is not None and engine.instead not in known and "engines" not in catalogue.unread:
            text = f"`instead` is {engine.instead!r}, which is no engine. {nearest(engine.instead, known)}"
            found.add(catalogue.place("engines", name, "instead"), text, "instead")
    for name, model in catalogue.models.items():
        if model.config is not None and catalogue.model_config(name) is None:
            text = f"`config` is {model.config!r}, which is no JSON object in a file of the catalogue's folder."
            found.add(catalogue.place("models", name, "config"), text, "config")
    for name, precision in catalogue.precisions.items():
        _check_calibration(campaign, name, precision, found)
    for name, dataset in catalogue.datasets.items():
        place = catalogue.place("datasets", name, "task")
        try:
            check_task(dataset.task, where=f"{place}: `task`")
        except MoecapError as error:
            found.take(error, place, "task")
            continue
        for key, text in check_scoring(dataset.task, dataset.metric, dataset.kind):
            found.add(catalogue.place("datasets", name, key), f"`{key}`: {text}", key)


def _check_options(campaign: Campaign, name: str, engine: EngineEntry, found: Collector) -> None:
    """An engine's options, and arguments that it, or lm-eval's model of it, does not take (as far as what is installed
    here says)."""

    def place(*path: str) -> Place:
        return campaign.catalogue.place("engines", name, *path)

    def known_or_wrong(path: KeyPath, given: Iterable[str], known: Collection[str], owner: str) -> None:
        key = ".".join(map(str, path))
        for argument in given if known else ():
            if argument not in known:
                text = f"`{key}`: {owner} does not know {argument!r}. {nearest(str(argument), known)}"
                found.add(place(*map(str, path), argument), text, key)

    if (model := OPTIONS.get(engine.kind)) is not None:
        try:
            model.model_validate(engine.options)
        except ValidationError as error:
            explain(error, model, engine.options, lambda path: place(*map(str, path)), found, under=("options",))
    if engine.kind == "vllm" and isinstance(given := engine.options.get("engine_args") or {}, Mapping):
        known_or_wrong(("options", "engine_args"), given, vllm_arguments(), "vLLM's EngineArgs")
    evaluated, arguments = engine.lm_eval.get("model"), engine.lm_eval.get("model_args") or {}
    known_or_wrong(("lm_eval",), engine.lm_eval, ("model", "model_args"), "an engine's `lm_eval`")
    if not evaluated:
        return
    known_or_wrong(("lm_eval", "model"), [evaluated], lm_eval_models(), "lm-eval")
    if isinstance(arguments, Mapping):
        owner = f"lm-eval's model {evaluated!r}"
        known_or_wrong(("lm_eval", "model_args"), arguments, lm_eval_arguments(str(evaluated)), owner)
    else:
        text = f"`lm_eval.model_args` is {arguments!r}; a mapping of arguments is expected."
        found.add(place("lm_eval", "model_args"), text, "lm_eval.model_args")


def check_quantizer(campaign: Campaign, found: Collector) -> None:
    """The interpreter that has llmcompressor, where a variant is still to be made with it."""
    python = campaign.config.quantize_python
    made = [v for v in campaign.graph.variants_of("quantize") if not _is_made(campaign, v)]
    if not made or Path(python).exists():
        return
    text = (
        f"`quantize_python` is {python!r}, which does not exist, and {', '.join(sorted(made))} is made with it. "
        "`make env` creates it in the workflow's folder; or name an interpreter that has llmcompressor."
    )
    if "quantize_python" in campaign.config.model_fields_set:
        found.add(campaign.sources.place(("quantize_python",)), text, "quantize_python")
    else:  # it may be there where jobs run, or another campaign's variant in a shared cache
        campaign.warn(text)


def _is_made(campaign: Campaign, variant: str) -> bool:
    return (Path(campaign.config.results) / "models" / variant / "manifest.json").is_file()


def _check_calibration(campaign: Campaign, name: str, precision: PrecisionEntry, found: Collector) -> None:
    catalogue = campaign.catalogue
    wanted = (precision.recipe or {}).get("calibration_dataset")
    if wanted is None or wanted in catalogue.wrong["datasets"] or "datasets" in catalogue.unread:
        return
    place = catalogue.place("precisions", name, "recipe", "calibration_dataset")
    generated = [n for n, entry in catalogue.datasets.items() if entry.demo]
    if wanted not in generated:
        what = "is no dataset" if wanted not in catalogue.datasets else "is no dataset that the workflow generates"
        text = f"`recipe.calibration_dataset` is {wanted!r}, which {what}. {nearest(wanted, generated)} "
        found.add(place, f"{text}One of the hub is named by `calibration_hub`.", "recipe.calibration_dataset")


def _check_heldout(campaign: Campaign, found: Collector) -> None:
    """The held-out dataset is one that the workflow generates."""
    wanted = campaign.config.heldout.dataset if campaign.config.heldout else None
    generated = [n for n, entry in campaign.catalogue.datasets.items() if entry.demo]
    if wanted is not None and wanted not in generated:
        text = f"`heldout.dataset` is {wanted!r}, which is no dataset that the workflow generates. "
        text += f"{nearest(wanted, generated)} One of the hub is named by `heldout.hub`, a file by `heldout.file`."
        found.add(campaign.sources.place(("heldout", "dataset")), text, "heldout.dataset")


def check_config(campaign: Campaign, found: Collector) -> None:
    """The config itself: what its keys name is there."""
    config, sources = campaign.config, campaign.sources
    _check_results(campaign, found)
    _check_heldout(campaign, found)
    for key in secrets_in(config.model_dump(mode="json")):
        text = (
            f"`{key}` holds what looks like a secret. A config is copied into results, logs and archives: put the "
            "secret into an environment variable, and name that where one is asked for (HF_TOKEN and the like are "
            "found by themselves)."
        )
        found.add(sources.place(tuple(key.split("."))), text, key)
    for key in ("before", "after"):
        _check_archive(getattr(config, key), sources.place((key,)), key, found)
    if (config.before is None) != (config.after is None):
        given, other = ("before", "after") if config.before is not None else ("after", "before")
        text = f"`{given}` is given without `{other}`: two archives are compared, or none."
        found.add(sources.place((given,)), text, given)
    if campaign.archive_file:
        _check_archive(campaign.archive_file, sources.place(("archive",)), "archive", found)
        return
    if config.deployments is None and config.published is None and not campaign.is_wrong("deployments", "published"):
        found.add(sources.place(), "`deployments` is missing: it names the deployment table.", "deployments")
    for key, names, kind in (
        ("trust_remote_code", config.trust_remote_code, "models"),
        ("data_files", config.data_files, "datasets"),
    ):
        entries = getattr(campaign.catalogue, kind)
        for name in names:
            if (
                name not in entries
                and name not in campaign.catalogue.wrong[kind]
                and kind not in campaign.catalogue.unread
            ):
                place = sources.place((key, name))
                text = f"`{key}`: {name!r} is not in the catalogue of {kind}. {nearest(name, entries)}"
                found.add(place, text, key)
    for name, files in config.data_files.items():
        dataset = campaign.catalogue.datasets.get(name)
        if dataset is not None and files:
            for split, text in check_data_files(dataset.task, files, dataset.num_fewshot):
                path = ("data_files", name, split) if split else ("data_files", name)
                key = ".".join(path)
                found.add(sources.place(path), f"`{key}`: {text}", key)
        elif dataset is not None:
            found.add(sources.place(("data_files", name)), f"`data_files.{name}` names no file.", f"data_files.{name}")
    _check_published(campaign, found)
    _check_references(campaign, found)
    if not campaign.is_wrong("cost"):
        _check_cost(campaign, found)
    _check_plan(campaign, found)


def _check_results(campaign: Campaign, found: Collector) -> None:
    """Somewhere to write: a folder that is there, or can be made."""
    folder = Path(campaign.config.results)
    place, shown = campaign.sources.place(("results",)), f"`results` is {str(folder)!r}"
    try:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
        if not there.exists():
            found.add(place, f"{shown}, and {there} is a link to what does not exist.", "results")
        elif not there.is_dir():
            found.add(place, f"{shown}, and {there} is a file; a folder is expected.", "results")
        elif not os.access(there, os.W_OK | os.X_OK):
            found.add(place, f"{shown}, and {there} may not be written to. Choose another folder.", "results")
    except OSError as error:
        found.add(place, f"{shown}, which cannot be used: {error.strerror}.", "results")


def _check_archive(path: str | None, place: Place, key: str, found: Collector) -> None:
    if path is None:
        return
    if not Path(path).is_file():
        what = "is a folder" if Path(path).is_dir() else "does not exist"
        found.add(place, f"`{key}` is {path!r}, which {what}; an archive (FILE{ARCHIVE_SUFFIX}) is expected.", key)
    elif not os.access(path, os.R_OK):
        found.add(place, f"`{key}` is {path!r}, which may not be read.", key)


def _check_published(campaign: Campaign, found: Collector) -> None:
    published, hardware, sources = campaign.config.published, campaign.catalogue.hardware, campaign.sources
    if published is None:
        return
    if not campaign.catalogue.wrong_hardware:
        for key, names in (("hardware", [published.hardware]), ("hosts", published.hosts)):
            for name in names:
                place = sources.place(("published", key))
                with found.taking(place, f"published.{key}"):
                    hardware.find(name, f"{place}: `published.{key}`")
    with found.taking(sources.place(("published", "tables")), "published.tables"):
        rows = campaign.published_rows
        twice = {row["deployment"] for row in rows} & set(campaign.deployments)
        for name in sorted(twice):
            found.add(
                campaign.table.place(name), f"deployment `{name}` is an id of the printed tables, too.", "deployment"
            )


def _check_references(campaign: Campaign, found: Collector) -> None:
    """`cap.reference` and its kin name deployments."""
    config, sources = campaign.config, campaign.sources
    ids = campaign.known_ids()
    if ids is None:
        return
    named: list[tuple[tuple[str, ...], str | None]] = [(("cap", "reference"), config.cap.reference)]
    named += [(("cap", "references", model), name) for model, name in config.cap.references.items()]
    named += [(("cost", "deployments", name), name) for name in config.cost.deployments]
    named += [(("plan", "calibrate_on"), config.plan.calibrate_on)]
    tables = " or ".join(filter(None, [config.deployments, config.published.tables if config.published else None]))
    for path, name in named:
        if name is not None and name not in ids:
            key = ".".join(path)
            text = f"`{key}`: {name!r} is no deployment of {tables}. {nearest(name, ids)}"
            found.add(sources.place(path), text, key)
    models = {row["model"] for row in campaign.rows}
    for model in config.cap.references:
        if model not in models and not campaign.table.wrong:
            text = f"`cap.references`: no deployment is of model {model!r}. {nearest(model, models)}"
            found.add(sources.place(("cap", "references", model)), text, "cap.references")
    size = config.cap.reference_batch_size
    for name in {config.cap.reference, *config.cap.references.values()}:
        row = campaign.deployments.get(name or "")
        if size is not None and row is not None and size not in row.batch_sizes:
            sizes = " ".join(map(str, row.batch_sizes))
            text = f"`cap.reference_batch_size` is {size}, which the reference {name} does not measure: {sizes}."
            found.add(sources.place(("cap", "reference_batch_size")), text, "cap.reference_batch_size")


def _check_cost(campaign: Campaign, found: Collector) -> None:
    """Prices are asked for last, after days of measuring: what is wrong with them is said at the start."""
    catalogue, given, sources = campaign.catalogue.hardware, campaign.config.cost, campaign.sources
    if given.region is None and given.usd_per_kwh is None:
        regions = ", ".join(sorted(catalogue.electricity))
        found.add(
            sources.place(("cost",)),
            "`cost` gives neither `region` nor `usd_per_kwh`, so that energy has no price. Add `cost: {region: …}`, "
            f"one of: {regions}; or `cost: {{usd_per_kwh: 0.12}}` with your own.",
            "cost",
        )
        return
    if campaign.catalogue.wrong_hardware:
        return  # what names of regions and sites it would have, nobody knows
    sound = True
    for path, terms in [(("cost",), given), *((("cost", "deployments", n), t) for n, t in given.deployments.items())]:
        shown = ".".join(path)
        for key in ("region", "pue"):
            value, place = getattr(terms, key), sources.place((*path, key))
            try:
                if key == "region" and value is not None and terms.usd_per_kwh is None:
                    catalogue.region(value, f"{place}: `{shown}.region`")
                elif key == "pue" and isinstance(value, str):
                    catalogue.site(value, f"{place}: `{shown}.pue`")
            except MoecapError as error:
                found.take(error, place, f"{shown}.{key}")
                sound = False
    if not sound:
        return
    for name in (None, *given.deployments):
        with found.taking(sources.place(("cost", "deployments", name) if name else ("cost",)), "cost"):
            settings(campaign.terms, catalogue, name)
    _warn_of_prices(campaign)


def _warn_of_prices(campaign: Campaign) -> None:
    given = campaign.config.cost
    priced = {name for name, terms in given.deployments.items() if terms.hardware_usd is not None}
    bought: dict[str, list[str]] = {}
    for row in campaign.rows:
        if given.hardware_usd is None and row["deployment"] not in priced:
            bought.setdefault(row["hardware"], []).append(row["deployment"])
    for hardware, of in bought.items():
        if hardware not in campaign.catalogue.hardware.names:
            continue  # said elsewhere
        try:
            campaign.catalogue.hardware.find(hardware).purchase(1, {"cores": 1, "memory_bytes": 1})
        except MoecapError as error:
            campaign.warn(f"{error} Until then what {', '.join(of)} cost to buy is null.")


def _check_plan(campaign: Campaign, found: Collector) -> None:
    if campaign.catalogue.wrong_hardware:
        return
    for name in campaign.config.plan.systems or ():
        place = campaign.sources.place(("plan", "systems"))
        with found.taking(place, "plan.systems"):
            campaign.catalogue.hardware.find(name, f"{place}: `plan.systems`")


# -- rows of the deployment table -------------------------------------------------------------------------------------


def check_row(campaign: Campaign, row: Deployment, found: Collector) -> Deployment:
    """Check a row; returns it with the engine that will serve it."""
    place = campaign.table.place(row.deployment)
    if row.deployment in rule_names():
        text = f"`deployment` is {row.deployment!r}, which is a target of the workflow itself. Choose another id."
        found.add(place, text, "deployment")
    elif row.deployment.isdigit():
        found.add(place, f"`deployment` is {row.deployment!r}; an id is a name, not only a number.", "deployment")
    if not _check_names(campaign, row, place, found):
        return row
    _check_model(campaign, row, place, found)
    try:
        _check_device(campaign, row, f"{place}")
        _check_units(campaign, row, f"{place}")
        _warn_of_room(campaign, row, place)
        row = _engine_that_serves(campaign, row, place)
    except MoecapError as error:
        found.take(error, place, "engine")
        return row
    for text in limits(campaign, row):
        found.add(place, f"engine {row.engine} would not load it: {text}.", "tensor_parallel")
    _check_environment(campaign, row, found)
    engine = campaign.engine(row.engine)
    if row.load == "online" and engine.kind not in SERVED:
        text = (
            f"`load` is online, but engine {row.engine!r} is loaded in the process: nobody can send it requests over "
            "time. Name an engine of kind server or remote."
        )
        found.add(place, text, "load")
    if engine.kind not in SERVED and not engine.lm_eval.get("model"):  # what is served over HTTP needs no entry of it
        file = campaign.catalogue.file("engines")
        text = f"`engine` {row.engine!r} says in {file} nothing of how accuracy is evaluated (`lm_eval: {{model: …}}`)."
        found.add(place, text, "engine")
    _warn_of_scores(campaign, row, engine.for_accuracy())
    return row


def _warn_of_scores(campaign: Campaign, row: Deployment, engine: Mapping[str, Any]) -> None:
    """Datasets that will have no score: the rest of the row is measured all the same."""
    for name in row.datasets:
        dataset = campaign.dataset(name)
        if why := cannot_score(engine, dataset.kind, dataset.chat_template):
            campaign.warn(f"{row.deployment}: {name} cannot be evaluated through engine {row.engine}: {why}")
        if dataset.judging is None:
            continue
        judge = campaign.config.judge
        if judge is None:
            campaign.warn(f"{name} is not judged: the config names no `judge`. Its answers are kept, without a score.")
        elif name not in judge.baselines:
            campaign.warn(f"{name} cannot be judged: `judge.baselines` names no file of answers for it.")


def _check_environment(campaign: Campaign, row: Deployment, found: Collector) -> None:
    """The engine's pins: its version is part of what a result depends on."""
    name = campaign.engine(row.engine).environment
    known = sorted(path.stem for path in (ROOT / "envs").glob("engine-*.txt"))
    if known and name not in known:  # none where the workflow's files are not beside the library
        text = f"`environment` is {name!r}, of which envs has no pins. {nearest(name, known)}"
        found.add(campaign.catalogue.place("engines", row.engine, "environment"), text, "environment")


def _check_names(campaign: Campaign, row: Deployment, place: Place, found: Collector) -> bool:
    """Whether all catalogue entries that a row names are there and sound; names that are nowhere are mistakes."""
    catalogue, sound = campaign.catalogue, True
    named = [("model", row.model), ("precision", row.precision), ("engine", row.engine)]
    for kind, name in [*named, *(("dataset", d) for d in row.datasets)]:
        if name in catalogue.wrong[f"{kind}s"] or (f"{kind}s" in catalogue.unread and name not in catalogue.of(kind)):
            sound = False
            continue
        try:
            catalogue.find(kind, name, str(place), key="datasets" if kind == "dataset" else kind)  # type: ignore[arg-type]
        except MoecapError as error:
            found.take(error, place, "datasets" if kind == "dataset" else kind)
            sound = False
    if not catalogue.wrong_hardware or row.hardware in catalogue.hardware.names:
        try:
            catalogue.hardware.find(row.hardware, f"{place}")
        except MoecapError as error:
            found.take(error, place, "hardware")
            sound = False
    else:
        sound = False
    return sound and campaign.engine(row.engine).kind in kinds()


def _check_model(campaign: Campaign, row: Deployment, place: Place, found: Collector) -> None:
    catalogue, model = campaign.catalogue, campaign.model(row.model)
    ready = model.checkpoints.get(row.precision)
    source = ready or model.source
    if ready is None and not any((model.source.hub, model.source.path, model.source.train)):
        text = (
            f"`model` is {row.model!r}, which has no `source` in {catalogue.file('models')}: a hub id (`hub`) or a "
            "folder (`path`) to take its checkpoint from."
        )
        found.add(place, text, "model")
    if source.path is not None:
        path = ("checkpoints", row.precision, "path") if ready else ("source", "path")
        problem = _no_checkpoint(source.path)
        if problem is not None:
            key = ".".join(path)
            found.add(catalogue.place("models", row.model, *path), f"`{key}` is {source.path!r}, {problem}", key)
    if model.source.hub and not model.source.revision:
        campaign.warn(
            f"model {row.model} is not pinned to a revision ({catalogue.file('models')}); the commit that it resolves "
            "to will be recorded."
        )
    if row.precision not in ("bf16", *model.checkpoints) and campaign.precision(row.precision).recipe is None:
        text = (
            f"`precision` is {row.precision!r}, which can only be had as a ready-made checkpoint, and model "
            f"{row.model!r} lists none (its `checkpoints` in {catalogue.file('models')}: "
            f"{', '.join(model.checkpoints) or 'none'})."
        )
        found.add(place, text, "precision")
    elif ready is None and campaign.precision(row.precision).recipe_model is PlannedRecipe:
        text = f"`precision` is {row.precision!r}, whose `recipe` is for planning only: it names no `scheme` to make."
        found.add(place, text, "precision")


def _no_checkpoint(path: str) -> str | None:
    """Why there is no checkpoint in a folder; None: there is one."""
    try:
        folder = Path(expand_path(path))
    except ValueError as error:
        return f"which {error}."
    if not folder.is_dir():
        return "which is no folder." if folder.exists() else "which does not exist."
    if not (folder / "config.json").is_file():
        return "which holds no config.json: it is no checkpoint in Hugging Face's format."
    return None


def _check_units(campaign: Campaign, row: Deployment, where: str) -> None:
    """A GPU without units for a precision's dtype still serves it, but in weights only: which is to be known."""
    wanted, found = campaign.precision(row.precision).computes_in, campaign.computes_in(row)
    if wanted != found:
        campaign.warn(
            f"{where}: {row.hardware} has no {wanted} units: in precision {row.precision!r} it keeps only the weights, "
            f"products run in {found}, and utilizations are against the {found} peak."
        )


def _check_device(campaign: Campaign, row: Deployment, where: str) -> None:
    """The engine and the hardware have to mean the same kind of device: else its price and peaks are another's."""
    device, gpu = campaign.engine(row.engine).device, campaign.catalogue.hardware.find(row.hardware, where).gpu
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


def _warn_of_room(campaign: Campaign, row: Deployment, place: Place) -> None:
    """One copy of the weights has to lie in the devices' memory. A warning: the checkpoint's true size is not known
    before it is there."""
    system = campaign.catalogue.hardware.find(row.hardware, str(place))
    needed = campaign.planned_weight_bytes(row.model, row.precision)
    if row.offload != "none" or not (needed and system.gpu and system.memory_bytes):
        return
    devices = row.devices // row.data_parallel
    there = devices * system.memory_bytes
    if needed > there:
        campaign.warn(
            f"{place}: `model` {row.model!r} in {row.precision} has weights of about {needed / 1e9:,.0f} GB, and "
            f"{devices} x {row.hardware} hold {there / 1e9:,.0f} GB: it will not fit, unless its checkpoint is "
            "smaller than that. Give it more `devices` (with `tensor_parallel` or `pipeline_parallel`), a smaller "
            "precision, or `offload`."
        )


def _engine_that_serves(campaign: Campaign, row: Deployment, place: Place) -> Deployment:
    """The row, with the engine's `instead` where it has no kernel here and the config allows that.

    Raises:
        PermanentError: it cannot be served; engines that could are named.
    """
    try:
        _check_engine(campaign, row, str(place))
        return row
    except PermanentError as error:
        engines, engine = campaign.catalogue.engines, campaign.engine(row.engine)
        able = [name for name in engines if _can_serve(campaign, row.model_copy(update={"engine": name}))]
        detected = campaign.catalogue.hardware.find(row.hardware).detect
        if not (campaign.config.fallback and detected and engine.instead in able):
            remedy = f"Engines that do: {', '.join(able)}." if able else "No engine of the catalogue does."
            raise PermanentError(f"{error} {remedy}") from None
        campaign.warn(f"{error} It will be served by {engine.instead} instead.")
        return row.model_copy(update={"engine": engine.instead})


def _can_serve(campaign: Campaign, row: Deployment) -> bool:
    try:
        _check_device(campaign, row, "")
        _check_engine(campaign, row, "")
    except PermanentError:
        return False
    return True


def _check_engine(campaign: Campaign, row: Deployment, where: str) -> None:
    engine = campaign.engine(row.engine)
    check_can_serve(
        engine,
        campaign.precision(row.precision).for_serving(),
        machine_of(row.hardware, campaign.catalogue.hardware.find(row.hardware)),
        engine=row.engine,
        offload=row.offload,
        where=where,
        **{key: getattr(row, key) for key in PARALLELISM},
    )
    wrong = known_mismatch(engine.capabilities, _model_config(campaign, row.model, campaign.model(row.model)) or {})
    if wrong is not None:
        raise PermanentError(
            f"{where}{': ' if where else ''}engine {row.engine} would compute another model than {row.model!r}: "
            f"{wrong.reason} ({wrong.source}; `capabilities.wrong` of its entry)."
        )
    if row.offload != "none":
        try:
            read_arguments(engine.options.get("engine_args") or {})
        except MoecapError as error:
            raise PermanentError(f"{where}{': ' if where else ''}`offload` is {row.offload!r}. {error}") from None


# -- what the engine would refuse when it loads -----------------------------------------------------------------------


def limits(campaign: Campaign, row: Deployment) -> list[str]:
    """Why the engine would refuse the model's sizes, shared out as the row says: a sentence each."""
    if campaign.engine(row.engine).kind != "vllm":
        return []
    model = campaign.model(row.model)
    config = _model_config(campaign, row.model, model)
    split = Split(**{key: getattr(row, key) for key in PARALLELISM})
    scales = _scales(campaign.precision(row.precision), config or {}, made=row.precision not in model.checkpoints)
    return refusals(sizes_of_config(config or {}), split, scales)


def _model_config(campaign: Campaign, name: str, model: ModelEntry) -> Mapping[str, Any] | None:
    """The model's config.json: of its folder, or as the catalogue keeps it; None: it is not known before a download."""
    if model.source.path is not None:
        try:
            found = json.loads((Path(expand_path(model.source.path)) / "config.json").read_text(encoding="utf-8"))
            return found if isinstance(found, dict) else None
        except (OSError, ValueError):
            return None
    return campaign.catalogue.model_config(name)


def _scales(precision: PrecisionEntry, config: Mapping[str, Any], *, made: bool) -> Scales:
    """How many weights share a scale: as the recipe makes them, the precision says, or the checkpoint's config does."""
    recipe = (precision.recipe or {}) if made else {}
    scheme = SCHEMES.get(str(recipe.get("scheme") if made else precision.stored))
    options = scheme.options if scheme else {}
    block = options.get("block")
    group = recipe.get("group_size") or options.get("group_size")
    if block is not None:
        return Scales(block=(int(block[0]), int(block[1])))
    return Scales(group=group) if group else scales_of_config(config)
