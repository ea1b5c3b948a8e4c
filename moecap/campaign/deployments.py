"""The deployment table: a CSV file, one row per deployment."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from moecap.documents import read_csv
from moecap.errors import Collector, MoecapError, Place
from moecap.schema import Name, Strict, explain

#: Columns that spread a deployment over devices.
PARALLELISM = ("tensor_parallel", "pipeline_parallel", "expert_parallel", "data_parallel")


class Deployment(Strict):
    """One row of the deployment table: model × precision × engine × hardware × parallelism × offload."""

    deployment: Name = Field(description="its id: a name of your own, a target of snakemake")
    model: Name = Field(description="entry of config/catalogue/models.yaml")
    precision: Name = Field(description="`bf16`, or an entry of config/catalogue/precisions.yaml")
    engine: Name = Field(description="entry of config/catalogue/engines.yaml")
    hardware: Name = Field(description="entry of config/catalogue/hardware.yaml; `this-machine`: where the jobs run")
    devices: int = Field(ge=1, le=65536, description="in all: tensor_parallel × pipeline_parallel × data_parallel")
    tensor_parallel: int = Field(default=1, ge=1, le=65536, description="devices that share every layer")
    pipeline_parallel: int = Field(default=1, ge=1, le=65536, description="groups of devices that share the layers out")
    expert_parallel: int = Field(default=1, ge=1, le=65536, description="devices over which whole experts are placed")
    data_parallel: int = Field(default=1, ge=1, le=65536, description="copies of the model side by side")
    offload: Literal["none", "dram", "ssd"] = Field(
        default="none", description="where weights lie that device memory does not hold"
    )
    datasets: tuple[Name, ...] = Field(
        min_length=1, description="entries of config/catalogue/datasets.yaml, separated by spaces"
    )
    batch_sizes: tuple[Annotated[int, Field(ge=1, le=1_000_000)], ...] = Field(
        min_length=1, description="requests submitted together, at least 1, separated by spaces"
    )

    load: Literal["offline", "online"] = Field(
        default="offline",
        description="offline: a batch submitted together; online: requests arrive while others are served, and "
        "`batch_sizes` are how many are in flight (engines behind HTTP)",
    )
    request_rate: float | None = Field(
        default=None,
        gt=0,
        description="online: requests per second, arriving at random (Poisson), in place of a fixed number in flight; "
        "the one of `batch_sizes` is then how many the engine serves at a time",
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
    def _rate_is_of_one_load(self) -> Deployment:
        if self.request_rate is None:
            return self
        if self.load != "online":
            raise ValueError("request_rate is given, but load is offline: requests that arrive over time are `online`")
        if len(self.batch_sizes) > 1:
            raise ValueError("with a request_rate, batch_sizes has one entry: how many the engine serves at a time")
        return self

    @model_validator(mode="after")
    def _devices_match(self) -> Deployment:
        product = self.tensor_parallel * self.pipeline_parallel * self.data_parallel
        if product != self.devices:
            raise ValueError(
                f"devices is {self.devices}, but tensor_parallel × pipeline_parallel × data_parallel is {product}"
            )
        return self


COLUMNS = tuple(Deployment.model_fields)
_REQUIRED = tuple(name for name, field in Deployment.model_fields.items() if field.is_required())


@dataclass
class Deployments:
    """A deployment table: its rows by id, the ids of rows that are there but wrong, and the line of each."""

    file: str
    rows: dict[str, Deployment] = field(default_factory=dict)
    wrong: set[str] = field(default_factory=set)
    lines: dict[str, int] = field(default_factory=dict)

    def place(self, name: str) -> Place:
        """Where the row of a deployment stands."""
        return Place(self.file, self.lines.get(name), name)

    @property
    def ids(self) -> list[str]:
        """Everything that the table has a row of, right or wrong."""
        return [*self.rows, *sorted(self.wrong)]


def read_table(path: str | os.PathLike[str], found: Collector) -> Deployments:
    """Read a deployment table; what is wrong with it goes into ``found``, and a wrong row is left out."""
    deployments = Deployments(os.fspath(path))
    try:
        table = read_csv(path, COLUMNS, _REQUIRED, "deployment table")
    except MoecapError as error:
        if "does not exist" in str(error):
            error = MoecapError("the deployment table does not exist. `deployments` in the config names it.")
        found.take(error, Place(deployments.file))
        return deployments
    found.mistakes += table.mistakes
    folded: dict[str, str] = {}
    for row in table.rows:
        name = row.cells.get("deployment", "")
        place = Place(table.path, row.line, name or None)
        if (other := folded.get(name.lower())) is not None and name:
            first = deployments.lines[other]
            if other == name:
                text = f"deployment `{name}` is already defined in line {first}; ids are unique."
            else:
                text = f"deployment `{name}` differs only in case from `{other}` in line {first}; folders would not."
            found.add(place, text, "deployment")
            deployments.wrong.add(name)
            continue
        folded[name.lower()] = name
        deployments.lines[name] = row.line
        try:
            deployments.rows[name] = Deployment.model_validate(row.cells)
        except ValidationError as error:
            explain(error, Deployment, row.cells, lambda _, here=place: here, found)  # type: ignore[misc]
            deployments.wrong.add(name)
    deployments.wrong |= {m.place.entry for m in table.mistakes if m.place.entry}
    if not table.rows and not table.mistakes:
        found.add(Place(table.path), "no deployment below the header.", "deployment")
    return deployments


def read_deployments(path: str | os.PathLike[str]) -> list[Deployment]:
    """Read and check a deployment table.

    Raises:
        Mistakes: no such file, a column missing or unknown, a value out of range, an id given twice; all of them. Each
            names file, row (as an editor numbers lines), column and value.
    """
    found = Collector()
    table = read_table(path, found)
    found.finish()
    return list(table.rows.values())
