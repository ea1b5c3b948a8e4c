"""Load a checkpoint with Transformers, whatever it is quantized with.

Transformers reads most quantized checkpoints by itself. Of compressed-tensors it reads packed int4 experts, but not
int8 ones (5.19: the weights of the fused experts come out empty), and packed layers stay packed until the whole model
is called once. So checkpoints of that kind are dequantized here, tensor by tensor, by compressed-tensors' own code, and
loaded as what they then are: weights that are exactly those stored, activations that are not quantized.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moecap.checkpoints import gguf_variant
from moecap.errors import MoecapError


def load_causal_lm(checkpoint: str | os.PathLike[str], **options: Any) -> Any:
    """A causal language model of Transformers in evaluation mode; ``options`` go to ``from_pretrained``.

    Raises:
        MoecapError: Transformers cannot load it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = Path(checkpoint)
    options = {"dtype": "auto", **options}
    trust = options.get("trust_remote_code", False)
    try:
        config = AutoConfig.from_pretrained(str(checkpoint), trust_remote_code=trust)
        quantization = getattr(config, "quantization_config", None)
        if folder.is_dir() and quantization and quantization.get("quant_method") == "compressed-tensors":
            del config.quantization_config
            weights = dict(dequantized(folder, quantization))
            with torch.device("meta"):
                kind = type(AutoModelForCausalLM.from_config(config, trust_remote_code=trust))
            return kind.from_pretrained(None, config=config, state_dict=weights, **options).eval()
        if folder.is_dir() and (ggufs := sorted(folder.glob("*.gguf"))):
            with torch.device("meta"):
                skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=trust)
            found = gguf_variant.weights(ggufs[0], skeleton)
            return type(skeleton).from_pretrained(None, config=config, state_dict=found, **options).eval()
        return AutoModelForCausalLM.from_pretrained(str(checkpoint), **options).eval()
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        raise MoecapError(
            f"Transformers cannot load {checkpoint}: {' '.join(str(error).split())[:400]}. Check that the checkpoint "
            "is complete, and that this version of transformers knows the model."
        ) from error


def dequantized(folder: Path, quantization: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(name, tensor) of a compressed-tensors checkpoint as if it had never been quantized, one module at a time."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.format import infer_module_format
    from compressed_tensors.quantization import QuantizationConfig
    from safetensors import safe_open
    from torch import nn

    known = QuantizationConfig.model_fields
    groups = QuantizationConfig.model_validate({k: v for k, v in quantization.items() if k in known}).config_groups
    modules: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  not a dict
                module, _, parameter = name.rpartition(".")
                modules[module][parameter] = path
    for module, parameters in modules.items():
        tensors = {}
        for parameter, path in parameters.items():
            with safe_open(path, framework="pt") as file:
                tensors[parameter] = file.get_tensor(f"{module}.{parameter}" if module else parameter)
        if "weight_scale" in tensors:
            scheme = _scheme(module, groups)
            form = scheme.format or infer_module_format(nn.Linear, scheme)
            bias = {name: tensors.pop(name) for name in list(tensors) if name == "bias"}
            tensors = {
                "weight": BaseCompressor.get_value_from_registry(_value(form)).decompress(tensors, scheme)["weight"],
                **bias,
            }
        for parameter, tensor in tensors.items():
            yield f"{module}.{parameter}" if module else parameter, tensor


def _scheme(module: str, groups: Mapping[str, Any]) -> Any:
    """The group whose targets name the module: by path or pattern first, else by class, which a linear layer is."""
    for group in groups.values():
        for target in group.targets:
            if target == module or (target.startswith("re:") and re.match(target[3:], module)):
                return group
    for group in groups.values():
        if not all(target.startswith("re:") for target in group.targets):
            return group
    return next(iter(groups.values()))


def _value(form: Any) -> str:
    return getattr(form, "value", form)
