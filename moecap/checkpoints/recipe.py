"""How a checkpoint is quantized, as data: `recipe` of an entry in ``config/catalogue/precisions.yaml``."""

from __future__ import annotations

import fnmatch
import re
import string
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from moecap.errors import Place, nearest
from moecap.model.recipes import QUANTIZED, SCHEMES
from moecap.schema import Strict, check

DEFAULT_IGNORE = ("lm_head", r"re:.*gate$", r"re:.*router.*")
#: Schemes whose activations have one scale for good, which is read off calibration text.
STATIC_ACTIVATIONS = ("FP8", "NVFP4")


def check_template(value: str) -> str:
    """A text with the columns of a row in braces.

    Raises:
        ValueError: it has none, or braces that do not match.
    """
    try:
        columns = [name for _, name, _, _ in string.Formatter().parse(value) if name is not None]
    except ValueError as error:
        raise ValueError(f"its braces do not match ({error})") from None
    if not columns or not all(re.fullmatch(r"\w[\w ]*", name) for name in columns):
        raise ValueError("names the columns of a row in braces, as in `{question}{answer}`")
    return value


class HeldOut(Strict):
    """Text that no recipe calibrates on: perplexity and reconstruction errors are measured on it."""

    dataset: str | None = Field(default=None, description="dataset of the catalogue that the workflow generates")
    hub: str | None = Field(default=None, pattern=r"^[\w.\-]+(/[\w.\-]+)?$", description="or one of the hub")
    config: str | None = None
    revision: str | None = None
    split: str = Field(default="test", min_length=1)
    file: str | None = Field(default=None, description="or a local JSONL file, a document a line")
    template: str = Field(default="{question}{answer}\n", description="a document: a row's columns in braces")
    documents: int = Field(default=128, ge=1, le=1_000_000, description="the first so many are read")

    _template = field_validator("template")(check_template)

    @model_validator(mode="after")
    def _one(self) -> HeldOut:
        if sum(source is not None for source in (self.dataset, self.hub, self.file)) != 1:
            raise ValueError("give one of `dataset`, `hub` and `file`")
        return self


class Recipe(Strict):
    """How a checkpoint is quantized."""

    scheme: str = Field(description="llmcompressor's name of what is stored and multiplied: W8A8, W4A16, …")
    algorithm: Literal["rtn", "gptq"] = Field(
        default="rtn",
        description="`rtn` rounds every weight to the nearest value; `gptq` makes up for each rounding error in the "
        "weights that are still to be rounded (Frantar et al. 2023), which needs calibration text",
    )
    transform: Literal["awq", "smoothquant"] | None = Field(
        default=None,
        description="what is moved between activations and weights before rounding: `awq` looks for the scales with "
        "the smallest error of the block's output (Lin et al. 2023), `smoothquant` evens out the activations that an "
        "attention block reads (Xiao et al. 2022); both need calibration text",
    )
    smoothing_strength: float = Field(default=0.5, ge=0, le=1, description="SmoothQuant's alpha")
    awq_grid: int = Field(default=20, ge=4, le=1000, description="scales that AWQ tries at each place")
    components: tuple[str, ...] = Field(
        default=QUANTIZED, min_length=1, description=f"what is quantized at all, of {', '.join(QUANTIZED)}"
    )
    component_schemes: dict[str, str] = Field(
        default={}, description="another scheme for some of the components, such as `attention: FP8_DYNAMIC`"
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

    _template = field_validator("calibration_template")(check_template)

    @field_validator("components")
    @classmethod
    def _known_components(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in QUANTIZED:
                raise ValueError(f"{name!r} is no component that can be quantized. {nearest(name, QUANTIZED)}")
        return value

    @field_validator("component_schemes")
    @classmethod
    def _known_component_schemes(cls, value: dict[str, str]) -> dict[str, str]:
        for name, scheme in value.items():
            if name not in QUANTIZED:
                raise ValueError(f"{name!r} is no component that can be quantized. {nearest(name, QUANTIZED)}")
            cls._known_scheme(scheme)
        return value

    @model_validator(mode="after")
    def _text(self) -> Recipe:
        if self.needs_text and not (self.calibration_dataset or self.calibration_hub):
            raise ValueError(
                f"{self.needs_text} needs text to calibrate on; `calibration_dataset` names a dataset that the "
                "workflow generates, `calibration_hub` one of the hub. `algorithm: rtn` with scales of activations "
                "per token needs none"
            )
        for name in self.component_schemes:
            if name not in self.components:
                raise ValueError(f"`component_schemes` names {name!r}, which `components` leaves as it is")
        if self.calibration_dataset and self.calibration_hub:
            raise ValueError("give `calibration_dataset` or `calibration_hub`, not both")
        return self

    @property
    def schemes(self) -> tuple[str, ...]:
        """Every scheme that the recipe uses."""
        return tuple(dict.fromkeys([self.scheme, *self.component_schemes.values()]))

    @property
    def needs_text(self) -> str | None:
        """What asks for calibration text; None: nothing does."""
        if self.algorithm != "rtn":
            return f"`algorithm: {self.algorithm}`"
        if self.transform:
            return f"`transform: {self.transform}`"
        static = next((scheme for scheme in self.schemes if scheme in STATIC_ACTIVATIONS), None)
        return f"the scheme {static}" if static else None

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
