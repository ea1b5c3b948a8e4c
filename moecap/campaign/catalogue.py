"""The catalogues of models, engines, datasets and precisions: what each entry may say, and how it is looked up.

Hardware has a module of its own (:mod:`moecap.hardware.catalogue`). The pydantic models below are the schema.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from moecap.accuracy.arena.settings import Judging
from moecap.checkpoints.gguf_variant import GgufRecipe
from moecap.checkpoints.recipe import Recipe
from moecap.documents import Document, KeyPath, read_document
from moecap.engines.catalogue import EngineEntry
from moecap.errors import Collector, MoecapError, Place, nearest
from moecap.hardware import catalogue as hardware
from moecap.io import read_json
from moecap.model.recipes import PLAIN_BITS, SCHEMES
from moecap.paths import PROJECT_CATALOGUE, catalogue_layers
from moecap.schema import Name, Strict, explain

Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$|^[A-Za-z0-9_.\-/]+$")]


class Source(Strict):
    """Where a checkpoint comes from: the hub, a local folder, or training (the demo)."""

    hub: str | None = Field(default=None, pattern=r"^[\w.\-]+/[\w.\-]+$")
    revision: Commit | None = Field(default=None, description="commit, tag or branch; null is a warning")
    path: str | None = None
    train: Literal["demo"] | None = None
    seed: int = Field(default=1, ge=0, le=2**32 - 1)
    steps: int | None = Field(default=None, ge=1, le=1_000_000_000, description="training steps; null: the demo's own")

    @model_validator(mode="after")
    def _one(self) -> Source:
        if sum(v is not None for v in (self.hub, self.path, self.train)) > 1:
            raise ValueError("give one of `hub`, `path` and `train`")
        return self


class Checkpoint(Strict):
    """A checkpoint on the hub that is quantized already."""

    hub: str | None = Field(default=None, pattern=r"^[\w.\-]+/[\w.\-]+$")
    revision: Commit | None = None
    path: str | None = None
    licence: str | None = None
    note: str | None = None

    @model_validator(mode="after")
    def _one(self) -> Checkpoint:
        if (self.hub is None) == (self.path is None):
            raise ValueError("give `hub` or `path`")
        return self


class Facts(Strict):
    """Where a stored config's shapes come from, and how far they were checked."""

    status: str
    source: str


class ModelEntry(Strict):
    """A model: where its checkpoint comes from, and what is known of it without one."""

    source: Source = Source()
    licence: str | None = None
    checkpoints: dict[Name, Checkpoint] = Field(
        default={}, description="ready-made quantized checkpoints, by precision"
    )
    config: str | None = Field(default=None, description="a stored config.json, for what needs no weights")
    also: tuple[str, ...] = Field(default=(), description="hub ids of other checkpoints of the same shapes")
    facts: Facts | None = Field(default=None, description="where the stored config comes from")
    total_params: int | None = Field(
        default=None,
        gt=0,
        le=10**16,
        description="parameters, as counted from the stored config: what a cluster is asked for",
    )
    trust_remote_code: bool = Field(
        default=False, description="the model needs its own code; the user's config decides"
    )
    note: str | None = None


class PlannedRecipe(Strict):
    """How a precision stores weights that nobody makes here: keys of :mod:`moecap.model.recipes`."""

    weight_bits: int = Field(ge=1, le=32)
    group_size: int | None = Field(default=None, ge=0, le=65536)
    block: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    symmetric: bool | None = None
    scale_bits: int | None = Field(default=None, ge=1, le=64)
    word_bits: int | None = Field(default=None, ge=1, le=64)
    index_bytes: int | None = Field(default=None, ge=0)
    compute_dtype: str | None = None
    rest_bits: int | None = Field(default=None, ge=1, le=64)
    components: tuple[str, ...] | None = None
    ignore: tuple[str, ...] | None = None
    kv_bits: float | None = Field(default=None, gt=0, le=64)


class PrecisionEntry(Strict):
    """A precision: how experts are stored and multiplied, and the recipe that makes it from bf16."""

    scheme: str
    compute_dtype: Literal["fp32", "bf16", "fp16", "fp8", "int8", "int4", "fp4"] | None = Field(
        default=None, description="what the matrix units multiply in; by default what the scheme says"
    )
    stored: str | None = Field(
        default=None, description="how a ready-made checkpoint stores it, where that is more than `scheme` says"
    )
    recipe: dict[str, Any] | None = None
    format: Literal["safetensors", "gguf"] = Field(default="safetensors", description="what engines of it read")
    note: str | None = None

    @model_validator(mode="after")
    def _known_compute_dtype(self) -> PrecisionEntry:
        if self.compute_dtype is None and self.scheme not in {*SCHEMES, *PLAIN_BITS}:
            raise ValueError(f"`compute_dtype` is missing, and the scheme {self.scheme!r} does not say.")
        return self

    @property
    def computes_in(self) -> str:
        """The dtype that the matrix units multiply in, where they can."""
        if self.compute_dtype is not None:
            return self.compute_dtype
        if self.scheme in PLAIN_BITS:
            return self.scheme
        return SCHEMES[self.scheme].layout().compute_dtype or "bf16"

    @field_validator("stored")
    @classmethod
    def _known_stored(cls, value: str | None) -> str | None:
        if value is not None and value not in SCHEMES:
            raise ValueError(f"is no scheme whose stored bytes are known. {nearest(value, SCHEMES)}")
        return value

    def nested(self) -> Iterator[tuple[str, type[BaseModel], dict[str, Any]]]:
        """Parts that are kept as they are written, and the model that checks them."""
        if self.recipe is not None and self.recipe_model is not None:
            yield "recipe", self.recipe_model, {key: value for key, value in self.recipe.items() if value is not None}

    @property
    def recipe_model(self) -> type[BaseModel] | None:
        """Whose recipe it has: llmcompressor's, or that of the format's converter.

        A precision that is only planned with may say how its bits are stored, in place of a way to make them.
        """
        if self.recipe is None:
            return None
        if self.format == "gguf":
            return GgufRecipe
        return PlannedRecipe if "scheme" not in self.recipe and "weight_bits" in self.recipe else Recipe

    @property
    def made_by(self) -> str:
        """The rule that makes it from bf16."""
        return "quantize" if self.format == "safetensors" else f"convert_{self.format}"

    def for_serving(self) -> dict[str, Any]:
        """What decides which kernels serve it."""
        return {"scheme": self.scheme}


class DatasetEntry(Strict):
    """A dataset: an lm-eval task, how it is scored, and what a timed run takes from it."""

    task: str = Field(min_length=1)
    kind: Literal["generate", "multiple_choice", "perplexity", "judged"]
    metric: str = Field(min_length=1)
    num_fewshot: int | None = Field(default=None, ge=0, le=1000)
    chat_template: bool = False
    output_tokens: int = Field(ge=2, le=10_000_000, description="fixed output length of the timed run")
    demo: bool = Field(default=False, description="generated by the workflow itself")
    judging: Judging | None = Field(default=None, description="how answers are compared with a baseline's; kind judged")
    licence: str | None = None
    source: str | None = None
    note: str | None = None

    def for_accuracy(self) -> dict[str, Any]:
        """What an accuracy result depends on."""
        return self.model_dump(mode="json", include={"task", "kind", "metric", "num_fewshot", "chat_template"})

    @model_validator(mode="after")
    def _judged(self) -> DatasetEntry:
        if (self.kind == "judged") != (self.judging is not None):
            raise ValueError("`judging` belongs to datasets of kind judged, and they need it")
        return self

    def for_workload(self) -> dict[str, Any]:
        """What a timed run depends on."""
        keys = {"task", "kind", "num_fewshot", "chat_template", "output_tokens"}
        return self.model_dump(mode="json", include=keys)


Entry = TypeVar("Entry", bound=BaseModel)


class Catalogue:
    """All catalogues: those that come with the package, and over them those of a project's folder.

    Entries are checked when they are read. A folder needs only the files, and these only the entries, that differ.

    Args:
        found: takes down what is wrong; a wrong entry is left out, and its name is in ``wrong``. None: it is raised.

    Raises:
        Mistakes: without ``found``: a file is broken, or an entry is not as its schema says.
        MoecapError: the folder is missing.
    """

    def __init__(self, folder: str | Path = PROJECT_CATALOGUE, found: Collector | None = None) -> None:
        self.folder = Path(folder)
        if self.folder != PROJECT_CATALOGUE and not self.folder.is_dir():
            raise MoecapError(f"`catalogue` is {str(folder)!r}, which is no folder.")
        self.layers = catalogue_layers(self.folder)
        self.wrong: dict[str, set[str]] = {kind: set() for kind in KINDS}
        self.unread: set[str] = set()  # kinds of which a file cannot be read: nobody knows its names
        self._documents: dict[tuple[str, str], Document] = {}
        mistakes = found if found is not None else Collector()
        self.models: dict[str, ModelEntry] = self._load("models", ModelEntry, mistakes)
        self.precisions: dict[str, PrecisionEntry] = self._load("precisions", PrecisionEntry, mistakes)
        self.engines: dict[str, EngineEntry] = self._load("engines", EngineEntry, mistakes)
        self.datasets: dict[str, DatasetEntry] = self._load("datasets", DatasetEntry, mistakes)
        self.hardware, self.wrong_hardware = _hardware(self.layers, mistakes)
        if found is None:
            mistakes.finish()

    def file(self, kind: str) -> str:
        return f"{self.folder}/{kind}.yaml"

    def place(self, kind: str, name: str, *path: str) -> Place:
        """Where an entry, or a key of it, stands."""
        document = self._documents.get((kind, name))
        return document.place((name, *path), name) if document else Place(self.file(kind), None, name)

    def model_config(self, name: str) -> Mapping[str, Any] | None:
        """The config.json that a model's entry keeps in the catalogue; None: it names none, or none that is there."""
        stored_config = self.models[name].config
        for layer in reversed(self.layers) if stored_config else ():
            path = layer / str(stored_config)
            if path.is_file():
                try:
                    found = read_json(path)
                except MoecapError:
                    return None
                return found if isinstance(found, Mapping) else None
        return None

    def _load(self, kind: str, model: type[Entry], found: Collector) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        for path in (layer / f"{kind}.yaml" for layer in self.layers):
            if not (path.exists() or path.is_symlink()):
                continue
            try:
                self._add(kind, model, read_document(path), entries, found)
            except MoecapError as error:
                found.take(error, Place(str(path)))
                self.unread.add(kind)
        return entries

    def _add(
        self, kind: str, model: type[Entry], document: Document, entries: dict[str, Entry], found: Collector
    ) -> None:
        if not isinstance(document.data, Mapping):
            raise MoecapError(f"{document.path}: a mapping from names to entries is expected.")
        folded: dict[str, str] = {}
        for name, entry in document.data.items():
            place = document.place((name,), str(name))
            self._documents[kind, name] = document
            entries.pop(name, None)  # of a layer below
            self.wrong[kind].discard(name)
            other = folded.setdefault(str(name).lower(), name)
            problem = None
            if other != name:
                problem = f"the name differs only in case from `{other}`; folders would not. Choose another."
            elif not _NAME.fullmatch(str(name)):
                problem = (
                    f"the name `{name}` cannot be part of a file's: letters, digits, `.`, `_` and `-` only, at most "
                    "100, a letter or digit first."
                )
            elif entry is None:
                problem = "the entry is empty; a mapping of keys is expected."
            if problem is not None:
                found.add(place, problem, str(name))
                self.wrong[kind].add(name)
                continue
            if (checked := _checked(model, entry, document, name, found)) is None:
                self.wrong[kind].add(name)
            else:
                entries[name] = checked

    def of(self, kind: str) -> Mapping[str, Any]:
        """All entries of a kind: model, precision, engine or dataset."""
        entries: Mapping[str, Any] = getattr(self, f"{kind}s")
        return entries

    def find(
        self, kind: Literal["model", "precision", "engine", "dataset"], name: str, where: str, key: str = ""
    ) -> Any:
        """The entry ``name`` of a catalogue.

        Raises:
            MoecapError: no such entry; names the row that asked, and near misses.
        """
        known = self.of(kind)
        if name not in known:
            raise MoecapError(
                f"{where}: `{key or kind}` is {name!r}, which is not in {self.file(kind + 's')}. {nearest(name, known)}"
            )
        return known[name]


def _checked(model: type[Entry], data: Any, document: Document, name: str, found: Collector) -> Entry | None:
    """An entry with the parts of it that have models of their own; None: something is wrong with it."""

    def place(path: KeyPath) -> Place:
        return document.place((name, *path), name)

    try:
        entry = model.model_validate(data)
    except ValidationError as error:
        explain(error, model, data, place, found)
        return None
    sound = True
    for key, part, value in entry.nested() if hasattr(entry, "nested") else ():
        try:
            part.model_validate(value)
        except ValidationError as error:
            explain(error, part, value, place, found, (key,))
            sound = False
    return entry if sound else None


KINDS = ("models", "precisions", "engines", "datasets")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,99}")


def _hardware(layers: Sequence[Path], found: Collector) -> tuple[hardware.Hardware, bool]:
    """The hardware catalogue, and whether something is wrong with it: then it is as packaged."""
    try:
        return hardware.load(layers), False
    except MoecapError as error:
        found.take(error, Place(str(layers[-1] / "hardware.yaml")))
    try:
        return hardware.load(layers[:1]), True
    except MoecapError:
        return hardware.Hardware(), True


__all__ = ["Catalogue", "DatasetEntry", "EngineEntry", "ModelEntry", "Name", "PrecisionEntry", "Source"]
