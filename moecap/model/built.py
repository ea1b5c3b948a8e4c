"""From a config to a model on PyTorch's meta device: shapes without memory, in well under a second."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moecap.errors import MoecapError, nearest
from moecap.model.keys import config_keys
from moecap.model.skeleton import Refused

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def read_json(source: str | Path | Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """A config as a dict, from a dict, a ``config.json`` or a folder that has one; and what to call it in errors.

    Raises:
        MoecapError: no such file, not JSON, not an object.
    """
    if isinstance(source, Mapping):
        return dict(source), "the given config"
    path = Path(source)
    path = path / "config.json" if path.is_dir() else path
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MoecapError(f"{path} does not exist; a checkpoint folder has a config.json.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MoecapError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(data, dict):
        raise MoecapError(f"{path} is not a JSON object, so it is no model config.")
    return data, str(path)


def load_config(source: str | Path | Mapping[str, Any]) -> PretrainedConfig:
    """The transformers config of a dict, a ``config.json`` or a folder that has one.

    A ``model_type`` that transformers does not know is read by the architecture that the config names, if transformers
    ships that (so Kimi-K2's is DeepSeek-V3's), or by another type whose config it is (``same_as`` in
    ``config/catalogue/config_keys.yaml``). A text model's keys that stand at the top of a multimodal model's config are
    read as its text config.

    Raises:
        MoecapError: no such file, not JSON, or a model that transformers does not know.
    """
    from transformers import AutoConfig

    data, where = read_json(source)
    model_type = known_type(data, where)
    data.pop("model_type", None)
    try:
        with quiet():
            return AutoConfig.for_model(model_type, **_nested(model_type, _by_its_own_names(model_type, data)))
    except MoecapError:
        raise
    except Exception as error:  # transformers raises what it likes for a value that it cannot use
        raise MoecapError(
            f"{where}: transformers cannot read this {model_type} config ({type(error).__name__}: "
            f"{first_line(error)}). Correct the key that it names."
        ) from error


def known_type(data: Mapping[str, Any], where: str = "the given config") -> str:
    """The ``model_type`` by which transformers reads a config.

    Raises:
        MoecapError: none does.
    """
    from transformers import CONFIG_MAPPING

    model_type = str(data.get("model_type"))
    if model_type in CONFIG_MAPPING:
        return model_type
    found = config_keys().same_as.get(model_type) or _type_of(data.get("architectures") or ())
    if found is None:
        raise MoecapError(
            f"{where}: model_type {model_type!r} (architectures {data.get('architectures')}) is not a model that the "
            f"installed transformers ships. {nearest(model_type, CONFIG_MAPPING.keys())} State its shapes as data in "
            "config/catalogue/architectures/, or install a transformers that has it."
        )
    return found


def _type_of(architectures: Iterable[str]) -> str | None:
    from transformers.models.auto import modeling_auto

    for mapping in (
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    ):
        for model_type, classes in mapping.items():
            for architecture in architectures:
                if architecture == classes or (isinstance(classes, tuple) and architecture in classes):
                    return str(model_type)
    return None


def text_key(config: PretrainedConfig) -> str | None:
    """The key under which a multimodal config has its text model's; None if the config is a text model's."""
    text = config.get_text_config(decoder=True)
    return next((name for name in config.sub_configs if vars(config).get(name) is text), None)


def _nested(model_type: str, data: dict[str, Any]) -> dict[str, Any]:
    """A text model's keys at the top of a multimodal model's config, moved to where its class has them."""
    from transformers import CONFIG_MAPPING

    cls = CONFIG_MAPPING[model_type]
    if not cls.sub_configs or any(isinstance(data.get(name), Mapping) for name in cls.sub_configs):
        return data
    empty = cls()
    key = text_key(empty)
    if key is None:
        return data
    text = vars(empty)[key]
    mine = declared(cls) - declared(type(text)) | {"architectures", "quantization_config", "tie_word_embeddings"}
    inner = {name: value for name, value in data.items() if name not in mine}
    outer = {name: value for name, value in data.items() if name in mine}
    return outer | {key: {"model_type": text.model_type} | _by_its_own_names(text.model_type, inner)}


def _by_its_own_names(model_type: str, data: dict[str, Any]) -> dict[str, Any]:
    """Facts that the config states by a word that its class does not take, also by the one that it does take."""
    from transformers import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        return data
    known = declared(CONFIG_MAPPING[model_type])
    found = dict(data)
    for words in config_keys().facts.values():
        stated = [word for word in words if isinstance(data.get(word), int)]
        taken = [word for word in words if word in known]
        if stated and taken and not any(word in known for word in stated):
            found[taken[0]] = data[stated[0]]
    return found


def declared(cls: type[PretrainedConfig]) -> set[str]:
    """The keys that a config class says it takes."""
    from dataclasses import fields

    return {field.name for field in fields(cls)} | set(cls.attribute_map) | set(cls.sub_configs)


def build(config: PretrainedConfig, device: str = "meta") -> PreTrainedModel:
    """The model on the meta device: shapes without memory.

    Raises:
        MoecapError: transformers has no class that generates text for this config, or cannot build it.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM
    from transformers import AutoModelForMultimodalLM as AutoMultimodal

    text = config.get_text_config(decoder=True)
    choices: list[tuple[Any, Any]] = [(AutoModelForSeq2SeqLM, config)] if config.is_encoder_decoder else []
    choices += [(AutoModelForCausalLM, text), (AutoModelForImageTextToText, config), (AutoMultimodal, config)]
    for auto, candidate in choices:
        if type(candidate) in auto._model_mapping:
            break
    else:
        raise Refused(f"transformers has no class that generates text for {type(config).__name__}.")
    candidate = without_quantization(candidate)
    try:
        with torch.device(device), quiet():
            model: PreTrainedModel = auto.from_config(candidate)
            return model
    except Exception as error:
        raise MoecapError(
            f"transformers cannot build a model from this {candidate.model_type} config ({type(error).__name__}: "
            f"{first_line(error)}). Check the sizes that it names; a config must state every size that differs from "
            "the family's defaults."
        ) from error


def quantization(config: PretrainedConfig) -> Mapping[str, Any] | None:
    """What the config says of how its weights are quantized, at the top or in its text config, by either name.

    With ``expert_dtype`` where the config states one beside it (DeepSeek-V4).
    """
    text = config.get_text_config(decoder=True)
    for holder, key in ((h, k) for h in (config, text) for k in ("quantization_config", "compression_config")):
        found = getattr(holder, key, None)
        if found:
            stated = dict(found if isinstance(found, Mapping) else found.to_dict())
            experts = getattr(text, "expert_dtype", None)
            return stated | ({"expert_dtype": experts} if experts else {})
    return None


def without_quantization(config: PretrainedConfig) -> PretrainedConfig:
    """A copy of a config as if its weights were not quantized."""
    config = deepcopy(config)
    for holder in (config, config.get_text_config(decoder=True)):
        if hasattr(holder, "quantization_config"):
            del holder.quantization_config
    return config


def conversions(model: PreTrainedModel) -> Any:
    """transformers' own table from a checkpoint's tensor names to the model's, for :mod:`moecap.model.stored`."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    with quiet():
        return get_model_conversion_mapping(model)


def first_line(error: BaseException) -> str:
    """The first line of an error, at most 300 characters of it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


class quiet:
    """Silence transformers' warnings on configs: ours say what matters."""

    def __enter__(self) -> None:
        self.logger = logging.getLogger("transformers")
        self.level = self.logger.level
        self.logger.setLevel(logging.ERROR)
        self.caught = warnings.catch_warnings()
        self.caught.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, *error: object) -> None:
        self.caught.__exit__(*error)  # type: ignore[arg-type]
        self.logger.setLevel(self.level)
