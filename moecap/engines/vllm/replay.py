"""Routers of a vLLM model: read in the process that holds it, for the replay and inside the decode.

Eager mode. Every MoE layer has a router with a capture callback that gets the logical top-k ids. Monolithic kernels
(int4 on CPU) route inside the kernel and never call it: there the logits that the layer is called with go through the
layer's own router once more. Many sequences are packed into one step; which row is which token is known from the input
ids and positions of that very forward pass.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from moecap.engines.tokens import BATCH_TOKENS, expert_id_dtype, groups, sequence_hash
from moecap.engines.vllm.multinode import over_nodes
from moecap.errors import MoecapError

# Of a timed engine's arguments, those that a replay sets by itself.
OWN_ARGUMENTS = {
    "kv_cache_memory_bytes",
    "enforce_eager",
    "enable_prefix_caching",
    "enable_chunked_prefill",
    "max_model_len",
    "max_num_batched_tokens",
    "max_num_seqs",
    "seed",
}


@dataclass
class Captured:
    """What one forward pass computed: token ids and positions (tokens,), and expert ids per layer (tokens, top-k)."""

    token_ids: np.ndarray
    positions: np.ndarray
    experts: dict[int, np.ndarray] = field(default_factory=dict)


class VllmCapture:
    """Reads the routers of a vLLM model from inside the process that holds it; see :func:`attach`."""

    def __init__(self, n_experts: int) -> None:
        self.steps: list[Captured] = []
        self._dtype = expert_id_dtype(n_experts)

    def begin(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the whole model."""
        token_ids = kwargs.get("input_ids", args[0] if args else None)
        positions = kwargs.get("positions", args[1] if len(args) > 1 else None)
        if token_ids is None or positions is None:
            raise MoecapError("The replay saw a step without token ids: inputs as embeddings cannot be replayed.")
        positions = positions if positions.ndim == 1 else positions[0]  # M-RoPE has three; text has the same in each
        self.steps.append(Captured(token_ids.cpu().numpy().copy(), positions.cpu().numpy().copy()))

    def add(self, layer: int, expert_ids: Any) -> None:
        """Capture callback of a layer's router: logical ids of (tokens, top-k)."""
        if self.steps:
            step = self.steps[-1]
            step.experts[layer] = expert_ids[: len(step.token_ids)].cpu().numpy().astype(self._dtype)

    def take(self) -> list[Captured]:
        steps, self.steps = self.steps, []
        return steps


def attach(model: Any) -> dict[str, Any]:
    """Put a :class:`VllmCapture` on a loaded vLLM model (give it to ``LLM.apply_model``).

    Returns:
        ``layers``, ``top_k``, ``n_experts``, and ``kernels``: layer → how it is read ("router" or "logits").
    """
    from vllm.model_executor.layers.fused_moe.layer import MoERunner

    runners = [module for module in model.modules() if isinstance(module, MoERunner)]
    routers = [runner.router for runner in runners]
    shapes = {(router.top_k, router.global_num_experts) for router in routers}
    layers = [int(runner.layer_id) for runner in runners]
    if not runners:
        return {"layers": [], "top_k": 0, "n_experts": 0, "kernels": {}}
    if len(shapes) > 1 or len(set(layers)) < len(layers):
        raise MoecapError(
            f"The model's MoE layers {sorted(layers)} have several shapes or share an index: (top-k, experts) "
            f"{sorted(shapes)}. Such a model cannot be replayed."
        )
    top_k, n_experts = shapes.pop()
    capture = VllmCapture(n_experts)
    model.register_forward_pre_hook(capture.begin, with_kwargs=True)
    kernels = {}
    for layer, runner in zip(layers, runners, strict=True):
        runner.router.set_capture_fn(partial(capture.add, layer))
        kernels[layer] = "logits" if runner.is_monolithic else "router"
        if not runner.is_monolithic:
            continue
        # The kernel routes by itself; select_experts runs the layer's own router, which calls the capture callback.
        if runner.gate is None:
            runner.register_forward_pre_hook(partial(_route_arguments, runner.router), with_kwargs=True)
        else:
            runner.gate.register_forward_hook(partial(_route_gate_output, runner.router))
    model.moecap_capture = capture
    return {"layers": sorted(layers), "top_k": int(top_k), "n_experts": int(n_experts), "kernels": kernels}


def _route_arguments(router: Any, _runner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Pre-hook of an MoE layer that is called with hidden states and router logits."""
    hidden_states = kwargs.get("hidden_states", args[0] if args else None)
    router_logits = kwargs.get("router_logits", args[1] if len(args) > 1 else None)
    router.select_experts(hidden_states, router_logits, input_ids=kwargs.get("input_ids"))


def _route_gate_output(router: Any, _gate: Any, args: tuple[Any, ...], output: Any) -> None:
    """Hook of a gate that the MoE layer calls itself."""
    router.select_experts(args[0], output[0] if isinstance(output, tuple) else output)


def collect(model: Any) -> list[Captured]:
    """The steps since the last call (give it to ``LLM.apply_model`` after :func:`attach`)."""
    return model.moecap_capture.take()


def whole_sequences(step: Captured, layers: Sequence[int]) -> Iterator[tuple[str, np.ndarray]]:
    """(sequence hash, expert ids (tokens, MoE layers, top-k)) of each run of positions 0, 1, 2, … in a step."""
    ids = np.stack([step.experts[layer] for layer in layers], axis=1)
    starts = np.flatnonzero(step.positions == 0)
    for start, end in zip(starts, [*starts[1:], len(step.positions)], strict=True):
        yield sequence_hash(step.token_ids[start:end]), ids[start:end]


def label_rows(
    step: Captured,
    request: Sequence[int],
    first_position: Sequence[int],
    tokens: Sequence[int],
    sequences: Sequence[Sequence[int]],
) -> np.ndarray:
    """Which request each row of a forward pass belongs to, from the schedule of that step.

    The engine may order requests otherwise than its scheduler lists them: a block of rows belongs to the first request
    in the schedule that computes those positions, and whose token ids those are.

    Args:
        step: what was captured.
        request, first_position, tokens: the step's row of the schedule.
        sequences: token ids of each request, prompt and output.

    Raises:
        MoecapError: rows and schedule do not fit: they are not of the same step.
    """
    labels = np.empty(len(step.positions), dtype=np.int64)
    left = list(zip(request, first_position, tokens, strict=True))
    row = 0
    while row < len(labels):
        for entry in left:
            name, first, count = entry
            block = slice(row, row + count)
            positions, ids = step.positions[block], step.token_ids[block]
            expected = np.asarray(sequences[name][first : first + count])
            if len(ids) == count and positions[0] == first and np.array_equal(ids, expected):
                labels[block] = name
                row += count
                left.remove(entry)
                break
        else:
            raise MoecapError(f"Row {row} of a forward pass (position {step.positions[row]}) is not in its schedule.")
    if left:
        raise MoecapError(f"The schedule computes requests {[name for name, _, _ in left]}, the forward pass does not.")
    return labels


class VllmBackend:
    """vLLM in this process, eager, each sequence a prompt of its own; hooks read the routers.

    Args:
        max_tokens: length of the longest sequence.
        batch_tokens: tokens of a step; at least the longest sequence, so that none is split.
        kv_cache_memory_bytes: memory for the KV cache; it bounds how many sequences share a step.
        options: more arguments for ``vllm.LLM`` (tensor_parallel_size, dtype, …).
    """

    name = "vllm"

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        max_tokens: int,
        *,
        batch_tokens: int = BATCH_TOKENS,
        max_sequences: int = 256,
        kv_cache_memory_bytes: int = 2 * 2**30,
        **options: Any,
    ) -> None:
        self._checkpoint, self._batch_tokens = str(checkpoint), max(batch_tokens, max_tokens + 1)
        self._llm = _vllm(
            checkpoint,
            max_model_len=max_tokens + 1,
            max_num_batched_tokens=self._batch_tokens,
            max_num_seqs=max_sequences,
            kv_cache_memory_bytes=kv_cache_memory_bytes,
            **options,
        )
        import vllm

        self.version = vllm.__version__
        try:
            self._attach()
        except BaseException:
            self.close()
            raise

    def _attach(self) -> None:
        # One answer per worker: tensor-parallel ranks see the same routing, pipeline stages have layers of their own.
        shapes = [shape for shape in self._llm.apply_model(attach) if shape["layers"]]
        if not shapes:
            raise MoecapError(f"{self._checkpoint}: vLLM finds no MoE layer in this model, so there is no routing.")
        self.layers = tuple(sorted({layer for shape in shapes for layer in shape["layers"]}))
        self.top_k, self.n_experts = shapes[0]["top_k"], shapes[0]["n_experts"]
        self.kernels = {layer: how for shape in shapes for layer, how in shape["kernels"].items()}

    def routing(self, sequences: Sequence[Sequence[int] | np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (index, expert ids) for each sequence; many share a step."""
        # A few steps at a time: what was captured is handed on before memory fills with it.
        for indices in groups([len(tokens) for tokens in sequences], 8 * self._batch_tokens):
            by_hash = {sequence_hash(sequences[i]): i for i in indices}
            _generate(self._llm, [sequences[i] for i in indices])
            for steps in zip(*self._llm.apply_model(collect), strict=True):
                step = Captured(steps[0].token_ids, steps[0].positions)
                for rank in steps:
                    step.experts.update(rank.experts)
                lacking = [layer for layer in self.layers if layer not in step.experts]
                if lacking:
                    raise MoecapError(
                        f"{self._checkpoint}: no routing came from MoE layers {lacking} in vLLM {self.version}: their "
                        "kernel neither calls the router nor has logits to read. Replay with the `transformers` "
                        "backend instead."
                    )
                for name, ids in whole_sequences(step, self.layers):
                    if name in by_hash:
                        yield by_hash.pop(name), ids

    def close(self) -> None:
        _shut_down(self._llm)


class VllmRoutedExpertsBackend:
    """vLLM on a GPU, through its own ``enable_return_routed_experts`` (a load of its own: it slows generation).

    Written against vLLM 0.32's sources and not run: it needs a GPU (model runner V2, Triton).
    """

    name = "vllm-routed-experts"

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        max_tokens: int,
        *,
        batch_tokens: int = BATCH_TOKENS,
        max_sequences: int = 256,
        **options: Any,
    ) -> None:
        import torch

        if not torch.cuda.is_available():
            raise MoecapError(
                "The replay backend `vllm-routed-experts` needs a GPU (vLLM's model runner V2 uses Triton). On a CPU "
                "use `vllm` or `transformers`."
            )
        self._checkpoint, self._batch_tokens = str(checkpoint), max(batch_tokens, max_tokens + 1)
        self._llm = _vllm(
            checkpoint,
            max_model_len=max_tokens + 1,
            max_num_batched_tokens=self._batch_tokens,
            max_num_seqs=max_sequences,
            enable_return_routed_experts=True,
            **options,
        )
        import vllm

        self.version = vllm.__version__
        shapes = [shape for shape in self._llm.apply_model(moe_shape) if shape["layers"]]
        if not shapes:
            raise MoecapError(f"{self._checkpoint}: vLLM finds no MoE layer in this model, so there is no routing.")
        self.layers = tuple(sorted({layer for shape in shapes for layer in shape["layers"]}))
        self.top_k, self.n_experts = shapes[0]["top_k"], shapes[0]["n_experts"]

    def routing(self, sequences: Sequence[Sequence[int] | np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (index, expert ids) for each sequence."""
        for indices in groups([len(tokens) for tokens in sequences], 8 * self._batch_tokens):
            outputs = _generate(self._llm, [sequences[i] for i in indices])
            for index, output in zip(indices, outputs, strict=True):
                ids = output.outputs[0].routed_experts  # (tokens, all layers, top-k); rows of dense layers mean nothing
                if ids is None:
                    raise MoecapError(f"{self._checkpoint}: vLLM {self.version} returned no routed experts.")
                yield index, np.asarray(ids)[: len(sequences[index]), list(self.layers)]

    def close(self) -> None:
        _shut_down(self._llm)


def moe_shape(model: Any) -> dict[str, Any]:
    """MoE layers, top-k and experts of a vLLM model (for ``LLM.apply_model``); attaches nothing."""
    from vllm.model_executor.layers.fused_moe.layer import MoERunner

    runners = [module for module in model.modules() if isinstance(module, MoERunner)]
    return {
        "layers": sorted(int(runner.layer_id) for runner in runners),
        "top_k": int(runners[0].router.top_k) if runners else 0,
        "n_experts": int(runners[0].router.global_num_experts) if runners else 0,
    }


def _vllm(checkpoint: str | os.PathLike[str], **options: Any) -> Any:
    """An eager vLLM without prefix cache and chunked prefill: every sequence is computed, whole, in one step."""
    # Hooks are put on from this process: the engine has to live in it.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")  # functions to the workers of tensor parallelism
    # A sequence may fill the model's whole context; the one token generated after it is thrown away.
    os.environ.setdefault("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
    from vllm import LLM

    settings = {
        "model": str(checkpoint),
        "skip_tokenizer_init": True,
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "enable_chunked_prefill": False,
        **options,
    }
    forget_packed_weights()  # of an engine that this process held before, and whoever freed it
    with ExitStack() as ranks:  # this engine's processes on other nodes
        more = ranks.enter_context(over_nodes(settings))
        try:
            llm = LLM(**settings, **more)
        except (ValueError, NotImplementedError, RuntimeError) as error:
            raise MoecapError(
                f"vLLM cannot load {checkpoint} for the replay: {' '.join(str(error).split())[:400]}. Where it has no "
                "kernel for this precision, replay with the `transformers` backend."
            ) from error
        llm.moecap_ranks = ranks.pop_all()
    return llm


def _generate(llm: Any, sequences: Sequence[Sequence[int] | np.ndarray]) -> list[Any]:
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    parameters = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, ignore_eos=True)
    prompts = [TokensPrompt(prompt_token_ids=[int(token) for token in tokens]) for tokens in sequences]
    return llm.generate(prompts, parameters, use_tqdm=False)


def _shut_down(llm: Any) -> None:
    """Free the engine, so that another can be loaded in this process."""
    import gc

    core = getattr(getattr(llm, "llm_engine", None), "engine_core", None)
    if core is not None:
        core.shutdown()
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()
    llm.moecap_ranks.close()
    gc.collect()
    forget_packed_weights()


def forget_packed_weights() -> None:
    """Empty zentorch's cache of packed weights; call it whenever a vLLM engine on an AMD CPU is freed.

    ZenDNN keeps what it packed by the weight's address and is not told when a model is freed. The next model in this
    process may lie at the same addresses and then silently computes with the old weights (seen with zentorch 2.13.0.1
    and W8A8: of the second load's tokens, 4 to 18% kept their experts).
    """
    import sys

    native = getattr(sys.modules.get("zentorch"), "_C", None)
    clear = getattr(native, "clear_weight_cache", None)
    if clear is not None:
        clear()
