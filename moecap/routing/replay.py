"""Routing by replay: one teacher-forced pass over recorded sequences that reads the router of every MoE layer.

The timed engine is never touched. Afterwards the same checkpoint sees each sequence (prompt and output) once, as a
prompt, and the ids of the experts that each token was sent to are read where the model itself applies them:

``vllm``
    vLLM in eager mode. Every MoE layer has a router with a capture callback that gets the logical top-k ids. Monolithic
    kernels (int4 on CPU) route inside the kernel and never call it: there the logits that the layer is called with go
    through the layer's own router once more. Many sequences are packed into one step; which row is which token is
    known from the input ids and positions of that very forward pass.
``vllm-routed-experts``
    vLLM's own ``enable_return_routed_experts``; it needs model runner V2, hence Triton, hence a GPU. Never run here.
``transformers``
    Forward hooks. The module to read is found by what it is called with: token ids of experts beside weights of the
    same shape. Padding, on either side, is masked out.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from moecap.checkpoints.dequantize import load_causal_lm
from moecap.engines.multinode import over_nodes
from moecap.errors import MoecapError, nearest
from moecap.io import read_parquet
from moecap.measure.sequences import sequence_hash
from moecap.routing.store import RoutingStore, RoutingWriter, anatomy_shape, id_dtype

log = logging.getLogger(__name__)

BATCH_TOKENS = 8192
# One file of the cache holds about this many tokens, so that a replay that is stopped loses no more than that.
PART_TOKENS = 2**21


class Backend(Protocol):
    """A loaded model whose routers can be read. ``routing`` yields (index of a sequence, expert ids), in any order."""

    name: str
    version: str
    layers: tuple[int, ...]
    top_k: int
    n_experts: int

    def routing(self, sequences: Sequence[Sequence[int]]) -> Iterator[tuple[int, np.ndarray]]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class ReplayReport:
    """What a replay did. ``load_s`` and ``replay_s`` are wall time; null if nothing was left to replay."""

    sequences: int
    replayed: int
    tokens: int
    load_s: float | None = None
    replay_s: float | None = None
    backend: str | None = None
    version: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def replay(
    checkpoint: str | os.PathLike[str],
    sequences: Iterable[Sequence[int]],
    backend: str,
    writer: Callable[..., RoutingWriter],
    already: RoutingStore | None = None,
    *,
    part_tokens: int = PART_TOKENS,
    **options: Any,
) -> ReplayReport:
    """Replay the sequences that ``already`` lacks, each once, and write their routing.

    Args:
        checkpoint: the model's folder (or hub id).
        sequences: token ids, prompt and output, of each sequence.
        backend: "vllm", "vllm-routed-experts" or "transformers".
        writer: called as ``writer(layers=…, top_k=…, n_experts=…)`` for each part of about ``part_tokens`` tokens; a
            part is written atomically, so that a replay which is stopped goes on from there.
        already: routing that need not be made again.
        options: for the backend (:class:`VllmBackend`, :class:`TransformersBackend`).

    Raises:
        MoecapError: unknown backend, no router found, or a sequence whose routing could not be read.
    """
    if backend not in BACKENDS:
        raise MoecapError(f"Unknown replay backend {backend!r}. {nearest(backend, BACKENDS)}")
    unique = {sequence_hash(tokens): tokens for tokens in sequences}
    todo = {name: tokens for name, tokens in unique.items() if len(tokens) and (already is None or name not in already)}
    total = sum(map(len, todo.values()))
    log.info("%d sequences, %d to replay (%d tokens) with %s", len(unique), len(todo), total, backend)
    if not todo:
        return ReplayReport(len(unique), 0, 0)
    started = time.perf_counter()
    longest = max(map(len, todo.values()))
    with closing(BACKENDS[backend](checkpoint, max_tokens=longest, **options)) as model:
        load_s = time.perf_counter() - started
        started, done = time.perf_counter(), 0
        shape = {"layers": model.layers, "top_k": model.top_k, "n_experts": model.n_experts}
        if already is not None and not already.empty:
            already.check(model.layers, model.n_experts, model.top_k)
        for names in _parts(todo, part_tokens):
            with writer(**shape) as out:
                missing = set(names)
                for index, ids in model.routing([todo[name] for name in names]):
                    if len(ids) != len(todo[names[index]]):
                        raise MoecapError(
                            f"Replaying {checkpoint} with {model.name} gave {len(ids)} rows for a sequence of "
                            f"{len(todo[names[index]])} tokens."
                        )
                    out.add(names[index], ids)
                    missing.discard(names[index])
                    done += len(ids)
                if missing:
                    raise MoecapError(
                        f"Replaying {checkpoint} with {model.name}: {len(missing)} of {len(names)} sequences were not "
                        "seen whole by the model. Replay with the `transformers` backend instead."
                    )
            log.info("%d of %d tokens replayed, %.0f s", done, total, time.perf_counter() - started)
        replay_s = time.perf_counter() - started
        return ReplayReport(len(unique), len(todo), total, load_s, replay_s, model.name, model.version)


def _parts(todo: Mapping[str, Sequence[int]], part_tokens: int) -> Iterator[list[str]]:
    """Names in parts of about ``part_tokens`` tokens, longest sequences first: padding then costs least."""
    part: list[str] = []
    tokens = 0
    for name in sorted(todo, key=lambda name: -len(todo[name])):
        part.append(name)
        tokens += len(todo[name])
        if tokens >= part_tokens:
            yield part
            part, tokens = [], 0
    if part:
        yield part


# --- vLLM ------------------------------------------------------------------------------------------------------------


@dataclass
class Step:
    """What one forward pass computed: token ids and positions (tokens,), and expert ids per layer (tokens, top-k)."""

    token_ids: np.ndarray
    positions: np.ndarray
    experts: dict[int, np.ndarray] = field(default_factory=dict)


class VllmCapture:
    """Reads the routers of a vLLM model from inside the process that holds it; see :func:`attach`."""

    def __init__(self, n_experts: int) -> None:
        self.steps: list[Step] = []
        self._dtype = id_dtype(n_experts)

    def begin(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the whole model."""
        token_ids = kwargs.get("input_ids", args[0] if args else None)
        positions = kwargs.get("positions", args[1] if len(args) > 1 else None)
        if token_ids is None or positions is None:
            raise MoecapError("The replay saw a step without token ids: inputs as embeddings cannot be replayed.")
        positions = positions if positions.ndim == 1 else positions[0]  # M-RoPE has three; text has the same in each
        self.steps.append(Step(token_ids.cpu().numpy().copy(), positions.cpu().numpy().copy()))

    def add(self, layer: int, expert_ids: Any) -> None:
        """Capture callback of a layer's router: logical ids of (tokens, top-k)."""
        if self.steps:
            step = self.steps[-1]
            step.experts[layer] = expert_ids[: len(step.token_ids)].cpu().numpy().astype(self._dtype)

    def take(self) -> list[Step]:
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


def collect(model: Any) -> list[Step]:
    """The steps since the last call (give it to ``LLM.apply_model`` after :func:`attach`)."""
    return model.moecap_capture.take()


def whole_sequences(step: Step, layers: Sequence[int]) -> Iterator[tuple[str, np.ndarray]]:
    """(sequence hash, expert ids (tokens, MoE layers, top-k)) of each run of positions 0, 1, 2, … in a step."""
    ids = np.stack([step.experts[layer] for layer in layers], axis=1)
    starts = np.flatnonzero(step.positions == 0)
    for start, end in zip(starts, [*starts[1:], len(step.positions)], strict=True):
        yield sequence_hash(step.token_ids[start:end]), ids[start:end]


def label_rows(
    step: Step,
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

    def routing(self, sequences: Sequence[Sequence[int]]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (index, expert ids) for each sequence; many share a step."""
        # A few steps at a time: what was captured is handed on before memory fills with it.
        for indices in _groups([len(tokens) for tokens in sequences], 8 * self._batch_tokens):
            by_hash = {sequence_hash(sequences[i]): i for i in indices}
            _generate(self._llm, [sequences[i] for i in indices])
            for steps in zip(*self._llm.apply_model(collect), strict=True):
                step = Step(steps[0].token_ids, steps[0].positions)
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

    def routing(self, sequences: Sequence[Sequence[int]]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (index, expert ids) for each sequence."""
        for indices in _groups([len(tokens) for tokens in sequences], 8 * self._batch_tokens):
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


def _generate(llm: Any, sequences: Sequence[Sequence[int]]) -> list[Any]:
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


def _groups(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Indices in groups of at most ``tokens`` tokens (one index at least)."""
    group: list[int] = []
    used = 0
    for index, length in enumerate(lengths):
        if group and used + length > tokens:
            yield group
            group, used = [], 0
        group.append(index)
        used += length
    if group:
        yield group


# --- Transformers ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RouterSite:
    """Where a layer's expert ids can be read.

    ``how``: "arguments" (a module is called with ids and weights), "output" (a router returns ids), or "scores" (a
    router returns one score per expert and has a ``top_k``).
    """

    layer: int
    module: str
    how: str
    top_k: int
    n_experts: int


class TransformersBackend:
    """Transformers with forward hooks; padded batches of sequences of like length.

    Args:
        max_tokens: length of the longest sequence.
        batch_tokens: tokens of a padded batch; at least one sequence.
        padding: "right" or "left"; padded tokens are routed too, and their rows are left out.
        options: more arguments for ``from_pretrained``.
    """

    name = "transformers"

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        max_tokens: int,
        *,
        batch_tokens: int = BATCH_TOKENS,
        padding: str = "right",
        device: str | None = None,
        **options: Any,
    ) -> None:
        import torch
        import transformers

        self.version = transformers.__version__
        self._batch_tokens, self._padding = max(batch_tokens, max_tokens), padding
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        placement = {"device_map": "auto"} if device == "cuda" else {}
        self._attach(load_causal_lm(checkpoint, **{**placement, **options}), str(checkpoint))

    @classmethod
    def of(cls, model: Any, checkpoint: str = "the model", **options: Any) -> TransformersBackend:
        """A backend around a model that is loaded already."""
        import transformers

        backend = cls.__new__(cls)
        backend.version = transformers.__version__
        backend._batch_tokens = options.get("batch_tokens", BATCH_TOKENS)
        backend._padding = options.get("padding", "right")
        backend._attach(model, checkpoint)
        return backend

    def _attach(self, model: Any, checkpoint: str) -> None:
        # Without the head: logits of every position and the whole vocabulary would be the largest tensor by far.
        self._model = getattr(model, "base_model", model)
        self.sites = find_routers(self._model, checkpoint)
        self.layers = tuple(site.layer for site in self.sites)
        self.top_k, self.n_experts = self.sites[0].top_k, self.sites[0].n_experts
        self._captured: dict[int, Any] = {}
        modules = dict(self._model.named_modules())
        self._handles = [_hook(modules[site.module], site, self._captured) for site in self.sites]

    def routing(self, sequences: Sequence[Sequence[int]]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (index, expert ids) for each sequence."""
        order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
        while order:
            longest = len(sequences[order[0]])
            batch, order = _split(order, max(1, self._batch_tokens // max(longest, 1)))
            token_ids, mask = pad([sequences[index] for index in batch], self._padding)
            self._captured.clear()
            self._forward(token_ids, mask)
            ids = np.stack([self._captured[layer] for layer in self.layers], axis=1)
            ids = ids.reshape(*mask.shape, len(self.layers), self.top_k)
            for row, index in enumerate(batch):
                yield index, ids[row][mask[row]].astype(id_dtype(self.n_experts))

    def latest(self) -> dict[int, np.ndarray]:
        """Layer → expert ids, shape (tokens, top-k), of the model's latest forward pass, whoever ran it."""
        return dict(self._captured)

    def _forward(self, token_ids: np.ndarray, mask: np.ndarray) -> None:
        import torch

        device = self._model.device
        positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
        with torch.inference_mode():
            self._model(
                input_ids=torch.from_numpy(token_ids).to(device),
                attention_mask=torch.from_numpy(mask.astype(np.int64)).to(device),
                position_ids=torch.from_numpy(positions).to(device),
                use_cache=False,
            )

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._model = None


def pad(sequences: Sequence[Sequence[int]], side: str) -> tuple[np.ndarray, np.ndarray]:
    """(token ids int64, mask bool), both (sequences, longest); padding repeats each sequence's first token.

    >>> pad([[5, 6], [7]], "left")[0].tolist()
    [[5, 6], [7, 7]]
    """
    longest = max(map(len, sequences))
    token_ids = np.empty((len(sequences), longest), dtype=np.int64)
    mask = np.zeros((len(sequences), longest), dtype=bool)
    for row, tokens in enumerate(sequences):
        where = slice(longest - len(tokens), None) if side == "left" else slice(len(tokens))
        token_ids[row] = tokens[0]
        token_ids[row, where] = tokens
        mask[row, where] = True
    return token_ids, mask


def find_routers(model: Any, checkpoint: str = "the model") -> list[RouterSite]:
    """Find, by one short forward pass, where each MoE layer's expert ids can be read; ascending by layer.

    Nothing is known of model types. A module that is called with an integer tensor (tokens, k) beside a float tensor of
    the same shape executes experts. Where no such call is seen in a layer (a model that multiplies by dense scores), a
    router that returns ids, or one score per expert and has a ``top_k``, is read.

    Raises:
        MoecapError: no router found, several in one layer, or layers of different shape.
    """
    import torch

    tokens = 11  # no power of two, so that no other dimension is mistaken for it
    found: list[RouterSite] = []

    def before(name: str, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = _ids_and_weights([*args, *kwargs.values()], tokens)
        if ids is not None:
            found.append(RouterSite(_layer(name), name, "arguments", ids.shape[-1], _expert_count(module)))

    def after(name: str, module: Any, _args: Any, output: Any) -> None:
        values = [value for value in output if torch.is_tensor(value)] if isinstance(output, tuple) else []
        scores = [v for v in values if v.is_floating_point() and v.ndim == 2 and len(v) == tokens and v.shape[1] > 1]
        top_k = getattr(module, "top_k", None)
        width = max((score.shape[1] for score in scores), default=0)
        ids = _ids_and_weights(values, tokens)
        if ids is not None and width > ids.shape[-1]:
            found.append(RouterSite(_layer(name), name, "output", ids.shape[-1], width))
        elif isinstance(top_k, int) and 0 < top_k < width:
            found.append(RouterSite(_layer(name), name, "scores", top_k, width))

    handles = []
    for name, module in model.named_modules():
        if name and _layer(name) is not None:
            handles.append(module.register_forward_pre_hook(partial(before, name), with_kwargs=True))
            handles.append(module.register_forward_hook(partial(after, name)))
    try:
        with torch.inference_mode():
            model(
                input_ids=torch.arange(1, tokens + 1, device=model.device)[None] % _vocabulary(model), use_cache=False
            )
    finally:
        for handle in handles:
            handle.remove()
    sites = []
    for layer in sorted({site.layer for site in found}):
        here = [site for site in found if site.layer == layer]
        for how in ("arguments", "output", "scores"):
            best = [site for site in here if site.how == how]
            if best:
                break
        # A wrapper hands expert ids on to the module inside it: the outermost call counts. A block may return what its
        # router returned: the innermost router counts.
        names = {site.module for site in best}
        if how == "arguments":
            names = {name for name in names if not any(name.startswith(f"{other}.") for other in names)}
        else:
            names = {name for name in names if not any(other.startswith(f"{name}.") for other in names)}
        if len(names) > 1:
            raise MoecapError(
                f"{checkpoint}: layer {layer} has several routers ({', '.join(sorted(names))}); it cannot be replayed."
            )
        site = next(site for site in best if site.module in names)
        if not site.n_experts:
            widths = {other.n_experts for other in here if other.n_experts}
            site = RouterSite(site.layer, site.module, site.how, site.top_k, max(widths, default=0))
        sites.append(site)
    shapes = {(site.top_k, site.n_experts) for site in sites}
    if len(shapes) != 1 or not all(k <= e for k, e in shapes):
        raise MoecapError(
            f"{checkpoint}: "
            + (
                f"MoE layers of different shape, (top-k, experts) {sorted(shapes)}: such a model cannot be replayed."
                if shapes
                else "no module is called with expert ids, and no router returns any: a dense model has no routing."
            )
        )
    return sites


def _ids_and_weights(values: Sequence[Any], tokens: int) -> Any:
    """The integer tensor (tokens, k) among ``values`` if a float tensor of the same shape is there too, else None."""
    import torch

    tensors = [value for value in values if torch.is_tensor(value) and value.ndim == 2 and len(value) == tokens]
    weights = {tuple(value.shape) for value in tensors if value.is_floating_point()}
    for value in tensors:
        if value.dtype in (torch.int32, torch.int64) and tuple(value.shape) in weights:
            return value
    return None


def _expert_count(module: Any) -> int:
    """Experts of a module: the leading dimension of its stacked parameters, or its list of experts; 0: unknown."""
    leading = {parameter.shape[0] for parameter in module.parameters(recurse=False) if parameter.ndim >= 3}
    if len(leading) == 1:
        return int(leading.pop())
    count = getattr(module, "num_experts", None)
    if isinstance(count, int):
        return count
    children = [name for name, _ in module.named_children() if name.isdigit()]
    return len(children)


def _hook(module: Any, site: RouterSite, captured: dict[int, Any]) -> Any:
    """Hook ``module`` so that each forward pass leaves (tokens, top-k) ids in ``captured[layer]``."""
    import torch

    def keep(ids: Any) -> None:
        captured[site.layer] = ids.reshape(-1, site.top_k).cpu().numpy()

    def arguments(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        values = [value for value in (*args, *kwargs.values()) if torch.is_tensor(value)]
        keep(next(v for v in values if not v.is_floating_point() and v.shape[-1] == site.top_k))

    def output(_module: Any, _args: Any, output: tuple[Any, ...]) -> None:
        keep(next(v for v in output if not v.is_floating_point() and v.shape[-1] == site.top_k))

    def scores(_module: Any, _args: Any, output: tuple[Any, ...]) -> None:
        # The last tensor of that width is the logits where scores come first; both rank experts alike.
        values = [v for v in output if torch.is_tensor(v) and v.shape[-1] == site.n_experts]
        keep(values[-1].reshape(-1, site.n_experts).topk(site.top_k, dim=-1).indices)

    if site.how == "arguments":
        return module.register_forward_pre_hook(arguments, with_kwargs=True)
    return module.register_forward_hook(output if site.how == "output" else scores)


def _layer(name: str) -> int | None:
    """The first number in a module's path: the index of its layer."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _vocabulary(model: Any) -> int:
    return int(model.get_input_embeddings().num_embeddings)


def _split(items: list[int], count: int) -> tuple[list[int], list[int]]:
    return items[:count], items[count:]


BACKENDS: dict[str, Callable[..., Backend]] = {
    "vllm": VllmBackend,
    "vllm-routed-experts": VllmRoutedExpertsBackend,
    "transformers": TransformersBackend,
}


# --- what the workflow asks for --------------------------------------------------------------------------------------

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


def backend_of(kind: str, device: str) -> str:
    """The backend that replays what an engine of this kind served; what is no vLLM is replayed with Transformers."""
    if kind == "vllm":
        return "vllm" if device == "cpu" else "vllm-routed-experts"
    return "transformers"


def run_job(
    replay_params: Mapping[str, Any],
    *,
    checkpoint: str | os.PathLike[str],
    requests: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    cache: str | os.PathLike[str],
    threads: int | None = None,
    anatomy: Any = None,
) -> ReplayReport:
    """Replay all sequences of some timed runs, keep what was replayed in ``cache``, and write those asked for.

    Args:
        replay_params: ``engine`` (catalogue entry: ``kind``, ``device``, ``options``), ``engine_version``, and
            optionally ``backend``, ``tensor_parallel``, ``pipeline_parallel``, ``trust_remote_code``.
        checkpoint: the folder.
        requests: ``requests.parquet`` of every deployment with this model and precision.
        output: the routing file.
        cache: folder that outlives the job; its parts hold what earlier replays of this very checkpoint found.
        anatomy: if given, what the routing must fit; without an MoE layer nothing is replayed.
    """
    engine = replay_params["engine"]
    options = dict(engine.get("options") or {})
    os.environ.update({key: str(value) for key, value in (options.get("env") or {}).items()})
    if threads and engine.get("device") == "cpu":
        os.environ["OMP_NUM_THREADS"] = str(threads)
    backend = replay_params.get("backend") or backend_of(engine["kind"], engine.get("device", "cpu"))
    sequences = read_sequences(requests)
    if anatomy is not None and not anatomy.moe_layers:
        with RoutingWriter(output, layers=[0], top_k=1, n_experts=1, metadata={"replay": None, "dense": True}):
            return ReplayReport(len(sequences), 0, 0)
    arguments: dict[str, Any] = {"trust_remote_code": bool(replay_params.get("trust_remote_code", False))}
    if backend == "transformers":
        arguments |= {k: v for k, v in options.items() if k not in ("env", "engine_args") and v is not None}
    else:
        arguments |= {k: v for k, v in (options.get("engine_args") or {}).items() if k not in OWN_ARGUMENTS}
        for key in ("tensor_parallel", "pipeline_parallel"):
            arguments[f"{key}_size"] = int(replay_params.get(key, 1))
    folder = Path(cache) / checkpoint_key(checkpoint, backend, replay_params.get("engine_version"))
    metadata = {"backend": backend, "engine_version": replay_params.get("engine_version")}

    def part(**shape: Any) -> RoutingWriter:
        return RoutingWriter(next_part(folder), metadata=metadata, **shape)

    report = replay(checkpoint, sequences.values(), backend, part, cached(folder), **arguments)
    store = cached(folder)
    if store is None:
        raise MoecapError(f"{', '.join(map(str, requests))}: no sequence to replay.")
    if anatomy is not None:
        store.check(*anatomy_shape(anatomy))
    gather(store, sequences, output, {**metadata, "replay": report.to_dict()})
    return report


def read_sequences(requests: Sequence[str | os.PathLike[str]]) -> dict[str, np.ndarray]:
    """The distinct sequences (hash → token ids, prompt and output) of some ``requests.parquet``.

    Raises:
        MoecapError: a file is broken, or a sequence is not the one that its hash names.
    """
    found: dict[str, np.ndarray] = {}
    for path in requests:
        table = read_parquet(path, ["sequence_sha256", "prompt_token_ids", "output_token_ids"])
        for batch in table.to_batches(max_chunksize=1024):
            names, prompts, outputs = (batch.column(i) for i in range(3))
            for row, name in enumerate(names.to_pylist()):
                if name in found:
                    continue
                tokens = np.concatenate([_row(prompts, row), _row(outputs, row)]).astype(np.int32)
                if sequence_hash(tokens) != name:
                    raise MoecapError(
                        f"{path}, row {row}: sequence_sha256 is {name}, but its token ids hash to "
                        f"{sequence_hash(tokens)}. The file was changed after the run; delete it to have the run "
                        "assembled again."
                    )
                found[name] = tokens
    return found


def _row(lists: Any, row: int) -> np.ndarray:
    return lists[row].values.to_numpy(zero_copy_only=False)


# --- the cache -------------------------------------------------------------------------------------------------------


def checkpoint_key(checkpoint: str | os.PathLike[str], *more: object) -> str:
    """What routing depends on, as a short hash: the checkpoint's files, and ``more`` (backend and its version).

    The manifest's checksums are taken where there is one (``manifest.json``: files → sha256); else names, sizes and
    modification times.
    """
    import hashlib
    import json

    folder = Path(checkpoint)
    manifest = folder / "manifest.json"
    if manifest.is_file():
        known: Any = json.loads(manifest.read_text()).get("files", manifest.read_text())
    elif folder.is_dir():
        files = sorted(path for path in folder.rglob("*") if path.suffix in (".safetensors", ".json", ".bin"))
        known = [(str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    else:
        known = str(checkpoint)
    text = json.dumps([known, [str(item) for item in more]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cached(folder: str | os.PathLike[str]) -> RoutingStore | None:
    """Routing that earlier replays left in a folder, or None. A part that cannot be read is left out and named."""
    parts = []
    for path in sorted(Path(folder).glob("part-*.parquet")):
        try:
            for _ in RoutingStore([path]).items():  # reads every row group: damage shows now, not when it is too late
                pass
            parts.append(path)
        except MoecapError as error:
            log.warning("%s Its sequences are replayed again.", error)
    return RoutingStore(parts) if parts else None


def next_part(folder: str | os.PathLike[str]) -> Path:
    """The path of the next part of a cache."""
    numbers = [int(path.stem.split("-")[1]) for path in Path(folder).glob("part-*.parquet")]
    return Path(folder) / f"part-{max(numbers, default=-1) + 1:05d}.parquet"


def gather(store: RoutingStore, names: Iterable[str], path: str | os.PathLike[str], metadata: Any) -> None:
    """Write the routing of ``names`` from ``store`` into one file, in a stream, in the order of their storage."""
    with RoutingWriter(
        path, layers=store.layers, top_k=store.top_k, n_experts=store.n_experts, metadata=metadata
    ) as out:
        for name, ids in store.items(names):
            out.add(name, ids)
