"""Transformers, a batch at a time: the engine for what no serving engine has a kernel for.

Static batching by a loop of our own: prompts are padded on the left to the longest, one forward computes all of them,
then each forward computes one token per request, with a KV cache. The schedule has real positions only. The padding of
a mixed batch is computed too, which costs time and is part of this engine's figures; no row of the schedule claims it.

A quantized checkpoint is dequantized when it is loaded: its answers are those of the quantized weights, the bytes that
it reads and the arithmetic are those of ``dtype``. ``weights_as`` says so, in every point.

Catalogue options: ``dtype`` (default bfloat16), ``experts_implementation``, ``attn_implementation``, ``device_map``.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moecap.engines.base import (
    Engine,
    EngineSpec,
    Request,
    RequestRecord,
    RunResult,
    Step,
    Window,
    library_versions,
    no_window,
)
from moecap.engines.catalogue import TransformersOptions
from moecap.errors import PermanentError


class TransformersEngine(Engine):
    """A causal language model of Transformers with greedy decoding in static batches."""

    #: Keys of the entry's `options`.
    options: tuple[str, ...] = tuple(TransformersOptions.model_fields)

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(spec)
        unknown = set(spec.options) - set(self.options)
        if unknown:
            raise PermanentError(f"Engine {spec.name}: unknown option {sorted(unknown)[0]!r} in the catalogue.")
        for key in ("tensor_parallel", "pipeline_parallel", "data_parallel", "expert_parallel"):
            if getattr(spec, key) > 1:
                raise PermanentError(f"Engine {spec.name} serves on one device; `{key}` is {getattr(spec, key)}.")
        import torch

        self._torch = torch
        if spec.threads and spec.device == "cpu":
            torch.set_num_threads(spec.threads)
        options = {key: value for key, value in spec.options.items() if key != "dtype" and value is not None}
        dtype = spec.options.get("dtype", "bfloat16")
        self._model: Any = self._load_model(getattr(torch, dtype), options)
        config = json.loads((Path(spec.checkpoint) / "config.json").read_text(encoding="utf-8"))
        if config.get("quantization_config") or (config.get("text_config") or {}).get("quantization_config"):
            self.weights_as = dtype
        # Where inputs go; ROCm's devices are called cuda, too.
        self._device = "cpu" if spec.device == "cpu" else "cuda"
        if not getattr(self._model, "hf_device_map", None) and spec.device != "cpu":
            self._model.to(self._device)
        self._pad = self._model.config.get_text_config().pad_token_id or 0

    def _load_model(self, dtype: Any, options: dict[str, Any]) -> Any:
        from moecap.checkpoints.dequantize import load_causal_lm

        spec = self.spec
        return load_causal_lm(spec.checkpoint, dtype=dtype, trust_remote_code=spec.trust_remote_code, **options)

    @property
    def version(self) -> str:
        return library_versions(["transformers"])["transformers"]

    def run(self, requests: Sequence[Request], window: Window = no_window) -> RunResult:
        self._check_requests(requests)
        torch, model = self._torch, self._model
        longest = max(len(request.prompt_token_ids) for request in requests)
        ids = torch.tensor(
            [[self._pad] * (longest - len(r.prompt_token_ids)) + list(r.prompt_token_ids) for r in requests]
        )
        mask = torch.tensor(
            [[0] * (longest - len(r.prompt_token_ids)) + [1] * len(r.prompt_token_ids) for r in requests]
        )
        records = [RequestRecord(list(request.prompt_token_ids)) for request in requests]
        steps: list[Step] = []
        with window() as measured, torch.inference_mode():
            start_unix, start = time.time(), time.monotonic()
            ids, mask = ids.to(self._device), mask.to(self._device)
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            cache = None
            while True:
                began = time.monotonic()
                output = model(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
                tokens = output.logits[:, -1].argmax(-1)
                values = tokens.tolist()  # waits for the device
                self.beat = now = time.monotonic()
                steps.append(_step(requests, records, began - start, now - began))
                left = 0
                for request, record, token in zip(requests, records, values, strict=True):
                    if len(record.output_token_ids) < request.output_tokens:
                        record.output_token_ids.append(token)
                        record.token_times_s.append(now - start)
                        left += len(record.output_token_ids) < request.output_tokens
                if not left:
                    break
                cache = output.past_key_values
                ids = tokens[:, None]
                mask = torch.cat([mask, mask.new_ones(len(requests), 1)], dim=-1)
                positions = positions[:, -1:] + 1
            wall = time.monotonic() - start
        for record in records:
            record.finish_reason = "length"
        return RunResult(records, steps, wall, start_unix, measured)

    def close(self) -> None:
        self._model = None
        gc.collect()
        if getattr(self, "_torch", None) is not None and self._torch.cuda.is_available():
            self._torch.cuda.empty_cache()


def _step(requests: Sequence[Request], records: Sequence[RequestRecord], start_s: float, wall_s: float) -> Step:
    """The forward that is about to give every unfinished request its next token: prompts first, then token by token."""
    open_ = [i for i, r in enumerate(requests) if len(records[i].output_token_ids) < r.output_tokens]
    first = not records[0].output_token_ids
    lengths = [len(requests[i].prompt_token_ids) for i in open_]
    return Step(
        start_s=start_s,
        wall_s=wall_s,
        request=open_,
        first_position=[
            0 if first else n + len(records[i].output_token_ids) - 1 for i, n in zip(open_, lengths, strict=True)
        ],
        tokens=lengths if first else [1] * len(open_),
        cached_tokens=[0] * len(open_),
    )
