"""vLLM, stepped by hand: in this process (CPU) or with its core in a process of its own (GPUs).

``LLMEngine.step()`` is called in a loop, so that a token's time is when it reaches the caller. What each step computed
comes from the scheduler (:mod:`moecap.engines.vllm.scheduler`), in both modes by the same code. Nothing is traced and
no hook is on the model while the clock runs. Tokens are not turned into text: a server does that outside of the
engine's core, beside the next step.

A step's wall time is what it adds to the requests' waiting: in this process the whole of ``LLMEngine.step()``; in a
process of its own the time from the later of its start and the end of the step before it to its end (steps that
overlap, as with asynchronous scheduling, are so counted once).

Catalogue options: ``engine_args`` (to vLLM's ``EngineArgs`` as they are), ``env`` (environment variables that vLLM
reads), ``multiprocessing`` (default false), ``prefix_caching`` (default false).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
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
from moecap.engines.catalogue import VllmOptions
from moecap.engines.vllm.multinode import over_nodes
from moecap.errors import MoecapError, PermanentError
from moecap.model.offload import read_arguments

log = logging.getLogger(__name__)


class VllmEngine(Engine):
    """A vLLM ``LLMEngine`` with a scheduler that takes notes."""

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(spec)
        self._engine: Any = None
        self._ranks = ExitStack()  # this engine's processes on other nodes
        self._serial = 0
        options = dict(spec.options)
        unknown = set(options) - set(VllmOptions.model_fields)
        if unknown:
            raise PermanentError(f"Engine {spec.name}: unknown option {sorted(unknown)[0]!r} in the catalogue.")
        self._folder: Path | None = Path(tempfile.mkdtemp(prefix="moecap-schedule-"))
        self.in_process = not options.get("multiprocessing", False)
        # vLLM reads these when it is imported or when it builds its config.
        environment = {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0" if self.in_process else "1",
            "MOECAP_SCHEDULE_DIR": str(self._folder),
            "VLLM_NO_USAGE_STATS": "1",
            **{key: str(value) for key, value in options.get("env", {}).items()},
        }
        if spec.threads and self.in_process:
            environment["OMP_NUM_THREADS"] = str(spec.threads)
        os.environ.update(environment)
        try:
            self._load(options)
        except BaseException:
            self.close()
            raise

    def _load(self, options: dict[str, Any]) -> None:
        import vllm
        from vllm import EngineArgs, SamplingParams
        from vllm.sampling_params import RequestOutputKind
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.llm_engine import LLMEngine

        self._vllm, self._sampling, self._output_kind = vllm, SamplingParams, RequestOutputKind
        spec = self.spec
        if self.in_process and spec.threads:
            import torch

            torch.set_num_threads(spec.threads)
        arguments = self.arguments(options)
        arguments |= self._ranks.enter_context(over_nodes(arguments))
        config = EngineArgs(**arguments).create_engine_config(UsageContext.LLM_CLASS)
        kind = "RecordingAsyncScheduler" if config.scheduler_config.async_scheduling else "RecordingScheduler"
        config.scheduler_config.scheduler_cls = f"moecap.engines.vllm.scheduler.{kind}"
        self._config = config
        self._engine = LLMEngine.from_vllm_config(config, usage_context=UsageContext.LLM_CLASS, disable_log_stats=True)

    def arguments(self, options: dict[str, Any]) -> dict[str, Any]:
        """Keyword arguments for vLLM's ``EngineArgs``."""
        spec = self.spec
        arguments: dict[str, Any] = {
            "model": spec.checkpoint,
            "seed": spec.seed,
            "max_num_seqs": spec.max_num_seqs,
            "tensor_parallel_size": spec.tensor_parallel,
            "pipeline_parallel_size": spec.pipeline_parallel,
            "enable_prefix_caching": bool(options.get("prefix_caching", False)),
            "disable_log_stats": True,
            "trust_remote_code": spec.trust_remote_code,
        }
        if spec.context_tokens is not None:
            arguments["max_model_len"] = spec.context_tokens
        if spec.data_parallel > 1:
            raise PermanentError(f"Engine {spec.name}: data_parallel {spec.data_parallel} needs one engine per rank.")
        if spec.expert_parallel > 1:
            ranks = spec.tensor_parallel * spec.data_parallel
            if spec.expert_parallel != ranks:
                raise PermanentError(
                    f"Engine {spec.name}: vLLM spreads experts over all tensor × data parallel ranks ({ranks}); "
                    f"`expert_parallel` must be 1 or {ranks}, not {spec.expert_parallel}."
                )
            arguments["enable_expert_parallel"] = True
        arguments |= dict(options.get("engine_args", {}))
        # A batch is submitted together and must be able to run together: one token each at the very least.
        batched = arguments.get("max_num_batched_tokens")
        if batched is not None:
            arguments["max_num_batched_tokens"] = max(int(batched), spec.max_num_seqs)
        if spec.offload != "none":
            try:
                read_arguments(arguments)
            except MoecapError as error:
                raise PermanentError(f"Engine {spec.name}: `offload` is {spec.offload!r}. {error}") from None
        return arguments

    @property
    def version(self) -> str:
        return library_versions(["vllm"]).get("vllm", self._vllm.__version__)

    @property
    def max_num_batched_tokens(self) -> int:
        """Tokens that a step computes at most; a longer prompt is prefilled in chunks."""
        return self._config.scheduler_config.max_num_batched_tokens

    def run(self, requests: Sequence[Request], window: Window = no_window) -> RunResult:
        self._check_requests(requests)
        engine = self._engine
        limit = self._config.model_config.max_model_len
        for request in requests:
            need = len(request.prompt_token_ids) + request.output_tokens
            if need > limit:
                raise PermanentError(
                    f"Engine {self.spec.name}: a request needs {need} tokens of context and the model was loaded for "
                    f"{limit}."
                )
        self.reset()
        self._collect()  # whatever was noted before, loading included
        prompts = [{"prompt_token_ids": list(request.prompt_token_ids)} for request in requests]
        parameters = [
            self._sampling(
                temperature=0.0,
                max_tokens=request.output_tokens,
                min_tokens=request.output_tokens,
                ignore_eos=True,
                detokenize=False,
                output_kind=self._output_kind.DELTA,
            )
            for request in requests
        ]
        names = [f"{self._serial + i}" for i in range(len(requests))]
        self._serial += len(requests)
        records = {
            name: RequestRecord(list(request.prompt_token_ids)) for name, request in zip(names, requests, strict=True)
        }
        index: dict[str, int] = {}
        calls: list[tuple[float, float]] = []
        with window() as measured:
            start_unix = time.time()
            start = time.monotonic()
            for i, name in enumerate(names):
                records[name].arrival_s = time.monotonic() - start
                index[engine.add_request(name, prompts[i], parameters[i])] = i
            while engine.has_unfinished_requests():
                began = time.monotonic()
                outputs = engine.step()
                self.beat = now = time.monotonic()
                calls.append((began, now))
                for output in outputs:
                    record = records[output.request_id]
                    new = output.outputs[0].token_ids
                    record.output_token_ids.extend(new)
                    record.token_times_s.extend([now - start] * len(new))
                    if output.finished:
                        record.finish_reason = output.outputs[0].finish_reason
            wall = time.monotonic() - start
        self.reset()
        steps = make_steps(self._collect(), index, start, calls if self.in_process else None)
        for name, request in zip(names, requests, strict=True):
            got = len(records[name].output_token_ids)
            if got != request.output_tokens:
                raise MoecapError(
                    f"Engine {self.spec.name} returned {got} tokens for a request of {request.output_tokens} "
                    f"(finish reason: {records[name].finish_reason})."
                )
        return RunResult([records[name] for name in names], steps, wall, start_unix, measured)

    def apply_model(self, function: Callable[[Any], Any]) -> list[Any]:
        """What ``function`` returns, given the loaded model, from each process that holds a part of it."""
        return self._engine.collective_rpc("apply_model", args=(function,))

    def reset(self) -> None:
        """Empty the prefix cache; the scheduler writes its notes down on the way."""
        if not self._engine.reset_prefix_cache():
            log.warning("vLLM did not empty its prefix cache")

    def _collect(self) -> list[dict[str, Any]]:
        notes: list[dict[str, Any]] = []
        for path in sorted(self._folder.glob("*.json")) if self._folder else []:
            notes += json.loads(path.read_text())
            path.unlink()
        return sorted(notes, key=lambda note: note["start_s"])

    def died(self) -> str | None:
        """vLLM notices that its core is gone, but a synchronous ``step()`` goes on waiting for it."""
        resources = getattr(getattr(self._engine, "engine_core", None), "resources", None)
        if resources is None or not resources.engine_dead:
            return None
        codes = {p.name: p.exitcode for p in getattr(resources.engine_manager, "processes", ())}
        ended = [f"{name} (exit status {code})" for name, code in codes.items() if code is not None]
        return ", ".join(ended) or "its core"

    def close(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            try:
                engine.engine_core.shutdown()
            except Exception:
                log.exception("vLLM did not shut down in good order")
            del engine
            from vllm.distributed import cleanup_dist_env_and_memory

            cleanup_dist_env_and_memory()
        self._ranks.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def make_steps(
    notes: Sequence[dict[str, Any]],
    index: dict[str, int],
    start: float,
    calls: Sequence[tuple[float, float]] | None = None,
) -> list[Step]:
    """Steps from a scheduler's notes.

    Args:
        notes: of one run, in order of their start (see :class:`moecap.engines.vllm.scheduler.Recording`).
        index: vLLM's request id -> place in the list of requests.
        start: monotonic time at which the run began.
        calls: begin and end of every ``LLMEngine.step()``, where the engine runs in this process; a note's step is the
            call that contains it.

    Raises:
        MoecapError: a note belongs to a request that is none of the run's, or to no call.
    """
    steps: list[Step] = []
    remaining = iter(calls or [])
    end_before = start
    for note in notes:
        if note["end_s"] is None:  # scheduled ahead for requests that had ended: its tokens went nowhere
            continue
        begin, end = note["start_s"], note["end_s"]
        if calls is not None:
            for call in remaining:
                if call[0] <= begin and end <= call[1]:
                    begin, end = call
                    break
            else:
                raise MoecapError("vLLM's scheduler noted a step that no call to the engine accounts for.")
        begin = max(begin, end_before)
        end_before = end
        strangers = [name for name in (*note["requests"], *note["preempted"]) if name not in index]
        if strangers:
            raise MoecapError(f"vLLM scheduled request {strangers[0]!r}, which is none of this run's.")
        steps.append(
            Step(
                start_s=begin - start,
                wall_s=end - begin,
                request=[index[name] for name in note["requests"]],
                first_position=list(note["first_position"]),
                tokens=list(note["tokens"]),
                cached_tokens=list(note["cached_tokens"]),
                preempted=[index[name] for name in note["preempted"]],
            )
        )
    return steps
