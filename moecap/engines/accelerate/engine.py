"""Accelerate: Transformers with weights that lie in host memory or on disk until a module needs them.

Which weights: ``engine_args`` of the catalogue entry, in the words of vLLM's options (:mod:`moecap.model.offload`), so
that one place says where bytes lie: ``offload_group_size`` and ``offload_num_in_group`` choose layers,
``offload_params`` parts of them (``experts``, ``self_attn``, …; without it, whole layers). Where they lie: the
deployment's ``offload``, ``dram`` or ``ssd``; with ``none`` nothing is offloaded.

Before a module runs Accelerate reads all of its weights, also those of experts that no token of the step asked for. On
disk they come from two places: what Transformers fused when it loaded the checkpoint from the offload folder, all else
from the checkpoint itself. Both are counted in one pass, after loading and before anything is timed.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moecap.engines.base import EngineSpec, library_versions
from moecap.engines.catalogue import AccelerateOptions
from moecap.engines.transformers.engine import TransformersEngine
from moecap.engines.transformers.routers import layer_of
from moecap.errors import MoecapError, PermanentError
from moecap.model.offload import read_arguments

#: Value of `offload` -> Accelerate's name of the place.
PLACES = {"dram": "cpu", "ssd": "disk"}


class AccelerateEngine(TransformersEngine):
    """A causal language model in static batches, parts of it fetched when they are needed."""

    options = tuple(AccelerateOptions.model_fields)

    def __init__(self, spec: EngineSpec) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        super().__init__(spec)
        resident = sum(p.nbytes for p in self._model.parameters() if p.device.type != "meta")
        offloaded = sum(p.nbytes for p in self._model.parameters() if p.device.type == "meta")
        if bool(offloaded) != (spec.offload != "none"):
            raise MoecapError(
                f"Engine {spec.name}: `offload` is {spec.offload!r}, and {offloaded} bytes of weights were offloaded."
            )
        self.weights_by_tier = {"device": resident}
        if offloaded:
            self.weights_by_tier[spec.offload] = offloaded
            counted = self._count_one_pass()
            # Experts that are modules of their own are fetched only if they are asked for: then it depends on the step.
            self.moved_per_step = dict(counted) if sum(counted.values()) == offloaded else None

    @property
    def version(self) -> str:
        return library_versions(["accelerate"])["accelerate"]

    def _load_model(self, dtype: Any, options: dict[str, Any]) -> Any:
        spec = self.spec
        arguments = options.pop("engine_args", None) or {}
        device = "cpu" if spec.device == "cpu" else 0
        if spec.offload == "none":
            return super()._load_model(dtype, options)
        away = offloaded_modules(self._skeleton(), arguments, spec.name)
        if spec.offload == "dram" and device == "cpu":
            # Host and device are one memory: Accelerate's map would leave all where it is.
            from accelerate import cpu_offload

            model = super()._load_model(dtype, options)
            for name in away:
                cpu_offload(model.get_submodule(name), execution_device=device)
            return model
        scratch = Path(spec.log_path).parent if spec.log_path else None
        self._folder = tempfile.TemporaryDirectory(prefix="offload-", dir=scratch)
        placed = device_map(self._skeleton(), away, PLACES[spec.offload], device)
        return super()._load_model(dtype, {**options, "device_map": placed, "offload_folder": self._folder.name})

    def _skeleton(self) -> Any:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        trust = self.spec.trust_remote_code
        config = AutoConfig.from_pretrained(self.spec.checkpoint, trust_remote_code=trust)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust)

    def _count_one_pass(self) -> Counter[str]:
        """Bytes that Accelerate reads of offloaded weights in one pass of the model, by where it reads them."""
        counts: Counter[str] = Counter()
        hooks = [hook for module in self._model.modules() for hook in _offloading(module)]
        maps = [hook.weights_map for hook in hooks]
        folder = self._folder.name if self._folder else None
        for hook in hooks:
            hook.weights_map = Counted(hook.weights_map, counts, folder)
        try:
            with self._torch.inference_mode():
                self._model(input_ids=self._torch.tensor([[self._pad]]).to(self._device), use_cache=False)
        finally:
            for hook, weights in zip(hooks, maps, strict=True):
                hook.weights_map = weights
        return counts

    def close(self) -> None:
        super().close()
        folder, self._folder = self._folder, None
        if folder is not None:
            folder.cleanup()


class Counted(Mapping[str, Any]):
    """Accelerate's map of offloaded weights; what is read of it is added to ``counts``, in bytes by source."""

    def __init__(self, weights: Mapping[str, Any], counts: Counter[str], folder: str | None) -> None:
        self._weights, self._counts, self._folder = weights, counts, folder

    def __getitem__(self, key: str) -> Any:
        value = self._weights[key]
        self._counts[source_of(self._weights, key, self._folder)] += value.nbytes
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def source_of(weights: Any, key: str, folder: str | None) -> str:
    """Where Accelerate reads a weight: ``memory``, ``checkpoint`` or ``offload folder`` (``folder``)."""
    key = getattr(weights, "prefix", "") + key
    loader = getattr(weights, "dataset", weights)
    if key in getattr(loader, "state_dict", {}) or not hasattr(loader, "index"):
        return "memory"
    file = loader.index[key].get("safetensors_file")
    if file is None or folder is None:
        return "offload folder" if file is None else "checkpoint"
    return "offload folder" if Path(file).is_relative_to(folder) else "checkpoint"


def _offloading(module: Any) -> Iterator[Any]:
    hook = getattr(module, "_hf_hook", None)
    for one in getattr(hook, "hooks", [hook]):
        if getattr(one, "offload", False) and getattr(one, "weights_map", None) is not None:
            yield one


def offloaded_modules(model: Any, arguments: Mapping[str, Any], engine: str) -> list[str]:
    """Names of the modules that are offloaded: whole layers, or parts of them.

    Args:
        model: of any device; ``meta`` will do.
        arguments: ``offload_group_size``, ``offload_num_in_group``, ``offload_params``.

    Raises:
        PermanentError: the arguments do not say which in a way that Accelerate follows, or no module has that name.
    """
    try:
        budget, group, last, _ = read_arguments(arguments)
    except MoecapError as error:
        raise PermanentError(f"Engine {engine}: {error}") from None
    if budget or not group:
        raise PermanentError(f"Engine {engine} offloads by layers (`offload_group_size`), not by `cpu_offload_gb`.")
    words = set(arguments.get("offload_params") or ())
    found = []
    for name, _ in model.named_modules():
        layer, part = layer_of(name), name.rpartition(".")[2]
        if layer is None or layer % group < group - last:
            continue
        if part in words if words else part == str(layer):
            found.append(name)
    found = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
    if not found:
        raise PermanentError(
            f"Engine {engine}: no module of the model is called {', '.join(sorted(words)) or 'a layer'}."
        )
    return found


def device_map(model: Any, away: list[str], place: str, device: Any) -> dict[str, Any]:
    """Accelerate's map of a model: ``away`` at ``place``, all else on ``device``, in as few entries as there are."""
    found: dict[str, Any] = {}

    def visit(name: str, module: Any) -> None:
        prefix = f"{name}." if name else ""
        if name in away:
            found[name] = place
        elif name and not any(other.startswith(prefix) for other in away):
            found[name] = device
        else:
            for parameter, _ in module.named_parameters(recurse=False):
                found[prefix + parameter] = device
            for child, inside in module.named_children():
                visit(prefix + child, inside)

    visit("", model)
    return found
