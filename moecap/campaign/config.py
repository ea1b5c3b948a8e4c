"""The user's config and deployment table: loaded, checked, and handed out in the parts that each rule needs.

The pydantic models below are the schema; ``config/schemas/config.json`` is generated from them.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from moecap.errors import MoecapError, nearest
from moecap.schema import Name, Strict, explain


class Deployment(Strict):
    """One row of the deployment table: model × precision × engine × hardware × parallelism × offload."""

    deployment: Name = Field(description="its id: a name of your own, a target of snakemake")
    model: Name = Field(description="entry of config/catalogue/models.yaml")
    precision: Name = Field(description="`bf16`, or an entry of config/catalogue/precisions.yaml")
    engine: Name = Field(description="entry of config/catalogue/engines.yaml")
    hardware: Name = Field(description="entry of config/catalogue/hardware.yaml; `this-machine`: where the jobs run")
    devices: int = Field(ge=1, description="in all: tensor_parallel × pipeline_parallel × data_parallel")
    tensor_parallel: int = Field(default=1, ge=1, description="devices that share every layer")
    pipeline_parallel: int = Field(default=1, ge=1, description="groups of devices that share the layers out")
    expert_parallel: int = Field(default=1, ge=1, description="devices over which whole experts are placed")
    data_parallel: int = Field(default=1, ge=1, description="copies of the model side by side")
    offload: Literal["none", "dram", "ssd"] = Field(
        default="none", description="where weights lie that device memory does not hold"
    )
    datasets: tuple[Name, ...] = Field(
        min_length=1, description="entries of config/catalogue/datasets.yaml, separated by spaces"
    )
    batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        min_length=1, description="requests submitted together, at least 1, separated by spaces"
    )

    @field_validator("datasets", "batch_sizes", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(value.split()) if isinstance(value, str) else value

    @field_validator("datasets", "batch_sizes")
    @classmethod
    def _no_duplicates(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(value)) != len(value):
            raise ValueError("names an entry twice")
        return value

    @model_validator(mode="after")
    def _devices_match(self) -> Deployment:
        product = self.tensor_parallel * self.pipeline_parallel * self.data_parallel
        if product != self.devices:
            raise ValueError(
                f"devices is {self.devices}, but tensor_parallel × pipeline_parallel × data_parallel is {product}"
            )
        return self


class Performance(Strict):
    """How a point (dataset × batch size) is timed."""

    repeats: int = Field(default=3, ge=3, description="timed runs of each point; intervals need at least three")
    warmup: int = Field(default=1, ge=1, description="untimed passes before each point")
    requests_per_repeat: int | None = Field(
        default=None, ge=1, description="requests of one timed run; null: as many as the batch size"
    )
    output_tokens: int | None = Field(default=None, ge=2, description="overrides the dataset's own output length")


class Accuracy(Strict):
    """How accuracy is evaluated."""

    limit: int | None = Field(default=None, ge=1, description="questions per task; null: all")


class Spot(Strict):
    """Rented instances that may be taken away."""

    usd_per_device_hour: float | None = Field(default=None, ge=0, description="null: the catalogue's spot offers")
    interruptions_per_hour: float = Field(ge=0, description="how often an instance is taken away")
    restart_s: float = Field(ge=0, description="paid seconds per interruption in which nothing is generated")


class Elastic(Strict):
    """Rented replicas that follow a demand."""

    demand_tokens_per_s: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        min_length=1, description="demand of each hour of a day (or week), which repeats"
    )
    least_replicas: int = Field(default=0, ge=0, description="kept however low the demand is")
    scale_up_s: float = Field(default=0.0, ge=0, description="paid seconds before a new replica serves")


class Serverless(Strict):
    """Workers paid by the second."""

    usd_per_device_second: float | None = Field(default=None, ge=0, description="null: the catalogue's offers")
    requests_per_hour: float = Field(gt=0, description="requests, arriving at random, one served at a time")
    tokens_per_request: float | None = Field(default=None, gt=0, description="null: as in the timed run")
    cold_start_s: float = Field(ge=0, description="paid seconds before a stopped worker serves")
    keep_warm_s: float = Field(default=0.0, ge=0, description="paid idle seconds before a worker stops")


Pue = Annotated[float, Field(ge=1.0)] | Name
PUE = "power usage effectiveness of the site: a figure, or a site of the catalogue"


class CostTerms(Strict):
    """What money and energy cost; null: as for all deployments."""

    years: float | None = Field(default=None, gt=0, description="life of the hardware; a year is 8,766 h")
    region: str | None = Field(default=None, description="electricity price by region of the catalogue")
    usd_per_kwh: float | None = Field(default=None, ge=0, description="overrides the region's price")
    pue: Pue | None = Field(default=None, description=PUE)
    utilisation: float | None = Field(default=None, gt=0, le=1, description="share of the lifetime under load")
    hardware_usd: float | None = Field(
        default=None, ge=0, description="price of a whole deployment, instead of the catalogue's"
    )
    rental_plan: Literal["on_demand", "reserved", "spot", "index"] | None = Field(
        default=None, description="which of the catalogue's rental offers"
    )
    rental_usd_per_device_hour: float | None = Field(
        default=None, ge=0, description="rent of one device, instead of the catalogue's offers"
    )
    spot: Spot | None = Field(default=None, description="spot instances, as a further way to rent")
    elastic: Elastic | None = Field(default=None, description="replicas that follow a demand, at the rental price")
    serverless: Serverless | None = Field(default=None, description="workers paid by the second")


class Cost(CostTerms):
    """What money and energy cost. Prices of devices are in the hardware catalogue."""

    years: float = Field(default=3.0, gt=0, description="life of the hardware; a year is 8,766 h")
    pue: Pue = Field(default=1.0, description=PUE)
    utilisation: float = Field(default=1.0, gt=0, le=1, description="share of the lifetime under load")
    rental_plan: Literal["on_demand", "reserved", "spot", "index"] = Field(
        default="on_demand", description="which of the catalogue's rental offers"
    )
    deployments: dict[Name, CostTerms] = Field(
        default={}, description="any of these keys for one deployment: deployment -> {key: value}"
    )


class PlanLimits(Strict):
    """What a planned deployment has to hold; null: no limit."""

    tpot_s: float | None = Field(default=None, gt=0, description="time per output token, at most")
    ttft_s: float | None = Field(default=None, gt=0, description="time to first token, at most")
    accuracy: float | None = Field(default=None, ge=0, le=1, description="accuracy on every dataset, at least")


class PlanWorkload(Strict):
    """What a planned request is."""

    prompt_tokens: int = Field(default=512, ge=1)
    output_tokens: int = Field(default=128, ge=2)


class Plan(Strict):
    """What `snakemake plan` looks through: the campaign's models on hardware that need not be owned."""

    limits: PlanLimits = PlanLimits()
    systems: tuple[Name, ...] | None = Field(
        default=None, description="hardware entries; null: the campaign's own and every GPU with a price"
    )
    devices: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1, 2, 4, 8), min_length=1)
    batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1, 4, 16, 64, 256), min_length=1)
    workload: PlanWorkload = PlanWorkload()
    calibrate_on: Name | None = Field(
        default=None, description="deployment whose measurements calibrate; null: `cap.reference`, else the first"
    )


class Cap(Strict):
    """The named reference that classes and axes are measured against, so that a new row moves no other row."""

    reference: Name | None = None
    references: dict[Name, Name] = Field(
        default={}, description="a reference of its own for a model: model -> deployment"
    )
    reference_batch_size: int | None = Field(default=None, ge=1, description="one batch size of the reference for all")
    accuracy_ratio: float = Field(
        default=0.98, gt=0, description="holds accuracy: at least this share of the reference"
    )
    performance_ratio: float = Field(default=1.0, gt=0, description="holds performance: at least this × the reference")
    cost_ratio: float = Field(default=0.9, gt=0, description="holds cost: at most this × the reference")


class Published(Strict):
    """Figures that somebody printed, entering where measured accuracy and throughput would."""

    tables: str = Field(description="folder with table*.csv")
    hardware: Name = Field(description="hardware entry that the figures were measured on")
    hosts: tuple[Name, ...] = Field(
        default=(), description="hardware entries of which the report says what costing their GPUs alone would miss"
    )


class Config(Strict):
    """``config/config.yaml``: what is measured, where results go, and the site's choices."""

    deployments: str | None = Field(default=None, description="the deployment table (CSV)")
    published: Published | None = Field(default=None, description="printed tables instead of, or beside, measurements")
    catalogue: str = "config/catalogue"
    results: str = "results"
    seed: int = Field(default=1, ge=0)
    performance: Performance = Performance()
    accuracy: Accuracy = Accuracy()
    cost: Cost = Cost()
    cap: Cap = Cap()
    plan: Plan = Plan()
    archive: str = Field(
        default="moecap",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$|\.tar\.zst$",
        description="name of the archive that `snakemake archive` makes; or one that exists, `FILE.tar.zst`: charts "
        "and report are then drawn from it alone, below results/redrawn",
    )
    before: str | None = Field(
        default=None, description="an archive: `snakemake compare --config before=A.tar.zst after=B.tar.zst`"
    )
    after: str | None = Field(default=None, description="the archive that got better or worse")
    trust_remote_code: tuple[Name, ...] = Field(
        default=(), description="models whose own code from the hub may run here; none by default"
    )
    data_files: dict[Name, dict[str, str]] = Field(
        default={}, description="local files for a dataset: split -> path, instead of a download"
    )
    fallback: bool = Field(
        default=False,
        description="a row whose engine has no kernel for its precision on this machine takes the engine's `instead`",
    )
    site: str | None = Field(default="config/site.yaml", description="what the cluster decides; null: nothing")
    measured_bytes: Literal["trained", "all", "none"] = Field(
        default="trained",
        description="bf16 models whose bytes are counted, op by op, while Transformers decodes on the CPU, and shown "
        "beside the predicted ones: those that the workflow trains itself, all, or none",
    )
    replay_check: Literal["trained", "all", "none"] = Field(
        default="trained",
        description="deployments whose replayed routing is held against routers read inside a decode, where the "
        "engine lets them be read (vLLM on a CPU, in one piece): those of models that the workflow trains itself, all, "
        "or none",
    )
    partial: bool = Field(
        default=False,
        description="report over what there is, below results/partial: `snakemake report --config partial=true`",
    )
    quantize_python: str = Field(default=".venv-quantize/bin/python", description="interpreter that has llmcompressor")

    @model_validator(mode="after")
    def _something_to_do(self) -> Config:
        if self.deployments is None and self.published is None:
            raise ValueError("`deployments` is missing: it names the deployment table")
        return self

    @field_validator("data_files")
    @classmethod
    def _files_exist(cls, value: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
        for splits in value.values():
            for path in splits.values():
                if not Path(os.path.expandvars(path)).exists():
                    raise ValueError(f"{path} does not exist")
        return value


COLUMNS = tuple(Deployment.model_fields)
_REQUIRED = tuple(name for name, field in Deployment.model_fields.items() if field.is_required())


def load_config(config: dict[str, Any], source: str = "config/config.yaml") -> Config:
    """Check a config that was read from ``source``.

    Raises:
        MoecapError: a key is unknown or a value is not allowed.
    """
    try:
        return Config.model_validate(config)
    except ValidationError as error:
        raise explain(error, source, Config) from None


def read_deployments(path: str | Path) -> list[Deployment]:
    """Read and check a deployment table.

    Raises:
        MoecapError: no such file, a column missing or unknown, a value out of range, an id given twice. The message
            names file, row (as an editor numbers lines), column and value.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise MoecapError(
            f"{path}: the deployment table does not exist. `deployments` in the config names it."
        ) from None
    rows = list(csv.reader(line for line in text.splitlines()))
    numbered = [(n, row) for n, row in enumerate(rows, 1) if row and not row[0].lstrip().startswith("#")]
    if not numbered:
        raise MoecapError(
            f"{path}: the deployment table is empty. Its first line names the columns: {','.join(COLUMNS)}."
        )
    header = [cell.strip() for cell in numbered[0][1]]
    for column in header:
        if column not in COLUMNS:
            raise MoecapError(f"{path}, line {numbered[0][0]}: unknown column `{column}`. {nearest(column, COLUMNS)}")
    missing = [column for column in _REQUIRED if column not in header]
    if missing:
        raise MoecapError(
            f"{path}, line {numbered[0][0]}: column `{missing[0]}` is missing. Needed: {', '.join(_REQUIRED)}; "
            f"optional: {', '.join(c for c in COLUMNS if c not in _REQUIRED)}."
        )
    deployments: dict[str, tuple[int, Deployment]] = {}
    for number, cells in numbered[1:]:
        where = f"{path}, line {number}"
        if len(cells) != len(header):
            raise MoecapError(f"{where}: {len(cells)} values for {len(header)} columns ({','.join(header)}).")
        given = {column: cell.strip() for column, cell in zip(header, cells, strict=True) if cell.strip()}
        try:
            row = Deployment.model_validate(given)
        except ValidationError as error:
            raise explain(error, f"{where} ({given.get('deployment', '?')})", Deployment) from None
        if row.deployment in deployments:
            first = deployments[row.deployment][0]
            raise MoecapError(
                f"{where}: deployment `{row.deployment}` is already defined in line {first}; ids are unique."
            )
        deployments[row.deployment] = (number, row)
    if not deployments:
        raise MoecapError(f"{path}: no deployment below the header.")
    return [row for _, row in deployments.values()]


def row_lines(path: str | Path) -> dict[str, int]:
    """Line of every deployment in its table, for messages about a row that is well-formed but impossible."""
    lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    return {line.split(",", 1)[0].strip().strip('"'): number for number, line in enumerate(lines, 1) if "," in line}
