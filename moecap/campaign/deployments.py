"""The deployment table: a CSV file, one row per deployment."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from moecap.errors import MoecapError, nearest
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


COLUMNS = tuple(Deployment.model_fields)
_REQUIRED = tuple(name for name, field in Deployment.model_fields.items() if field.is_required())


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
