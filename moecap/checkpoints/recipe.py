"""How a checkpoint is quantized, as data: `recipe` of an entry in ``config/catalogue/precisions.yaml``."""

from __future__ import annotations

import fnmatch
import re
import string
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from moecap.errors import Place, nearest
from moecap.model.recipes import SCHEMES
from moecap.schema import Strict, check

DEFAULT_IGNORE = ("lm_head", r"re:.*gate$", r"re:.*router.*")


class Recipe(Strict):
    """How a checkpoint is quantized."""

    scheme: str = Field(description="llmcompressor's name of what is stored and multiplied: W8A8, W4A16, …")
    algorithm: Literal["rtn", "gptq"] = Field(
        default="rtn",
        description="`rtn` rounds every weight to the nearest value; `gptq` makes up for each rounding error in the "
        "weights that are still to be rounded (Frantar et al. 2023), which needs calibration text",
    )
    group_size: int | None = Field(
        default=None, ge=1, le=65536, description="weights that share a scale; null: the scheme's own"
    )
    symmetric: bool | None = Field(default=None, description="whether zero is stored as 0; null: the scheme's own")
    ignore: tuple[str, ...] = Field(
        default=DEFAULT_IGNORE, description="modules kept as they are: names, or regular expressions after `re:`"
    )
    calibration_dataset: str | None = Field(
        default=None, description="dataset of the catalogue that the workflow generates, to take the text from"
    )
    calibration_hub: str | None = Field(
        default=None, pattern=r"^[\w.\-]+(/[\w.\-]+)?$", description="or one of the hub"
    )
    calibration_config: str | None = None
    calibration_revision: str | None = None
    calibration_split: str = Field(default="train", min_length=1)
    calibration_template: str = Field(
        default="{question}{answer}\n", description="text of one row, with the row's columns in braces"
    )
    calibration_samples: int = Field(default=256, ge=1, le=1_000_000, description="sequences")
    calibration_tokens: int = Field(default=512, ge=1, le=1_000_000, description="tokens of each")

    @field_validator("scheme")
    @classmethod
    def _known_scheme(cls, value: str) -> str:
        if value not in SCHEMES:
            raise ValueError(f"is no scheme whose stored bytes are known. {nearest(value, SCHEMES)}")
        return value

    @field_validator("ignore")
    @classmethod
    def _patterns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            try:
                re.compile(pattern.removeprefix("re:") if pattern.startswith("re:") else fnmatch.translate(pattern))
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return value or DEFAULT_IGNORE

    @field_validator("calibration_template")
    @classmethod
    def _template(cls, value: str) -> str:
        try:
            columns = [name for _, name, _, _ in string.Formatter().parse(value) if name is not None]
        except ValueError as error:
            raise ValueError(f"its braces do not match ({error})") from None
        if not columns or not all(re.fullmatch(r"\w[\w ]*", name) for name in columns):
            raise ValueError("names the columns of a row in braces, as in `{question}{answer}`")
        return value

    @model_validator(mode="after")
    def _text(self) -> Recipe:
        if self.algorithm == "gptq" and not (self.calibration_dataset or self.calibration_hub):
            raise ValueError(
                "`algorithm: gptq` needs text to calibrate on; `calibration_dataset` names a dataset that the workflow "
                "generates, `calibration_hub` one of the hub. `algorithm: rtn` needs none"
            )
        if self.calibration_dataset and self.calibration_hub:
            raise ValueError("give `calibration_dataset` or `calibration_hub`, not both")
        return self

    @classmethod
    def from_data(cls, data: Mapping[str, Any], place: Place | None = None) -> Recipe:
        """A checked recipe.

        Raises:
            Mistakes: unknown keys, or values that are not allowed.
        """
        where = place or Place("A precision's `recipe` in config/catalogue/precisions.yaml")
        given = {key: value for key, value in data.items() if value is not None}
        return check(cls, given, lambda _: where)

    def ignores(self, module: str) -> bool:
        """Whether the module of that name is kept as it is."""
        return any(
            re.match(pattern[3:], module) is not None if pattern.startswith("re:") else fnmatch.fnmatch(module, pattern)
            for pattern in self.ignore
        )
