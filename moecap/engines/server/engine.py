"""Any engine behind HTTP that the workflow starts itself; which one, and how, is in its catalogue entry.

The server runs for one deployment: it is started when the engine is loaded and ended, with all its children, when it is
closed. Its schedule is estimated from arrival times (:mod:`moecap.engines.server.schedule`); the bytes and the experts
are the model's own, as for every engine.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moecap.engines.base import Arrivals, Engine, EngineSpec, Request, RunResult, Window, no_window
from moecap.engines.environments import interpreter, versions
from moecap.engines.server import aiperf
from moecap.engines.server.client import complete
from moecap.engines.server.idle import idle_server
from moecap.engines.server.process import ManagedServer, running, start
from moecap.engines.server.schedule import estimate_steps
from moecap.engines.server.settings import ServerOptions
from moecap.errors import Mistakes, MoecapError, PermanentError, Place
from moecap.schema import check

#: What requests call the model by.
MODEL = "moecap"
#: Room for a context that nobody asked for, in tokens.
CONTEXT_TOKENS = 4096


class ServerEngine(Engine):
    """A client of a server of its own."""

    schedule = "estimated"

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(spec)
        self._options = server_options(spec)
        self._server: ManagedServer | None = start_server(spec)

    @property
    def url(self) -> str:
        """Where the server listens."""
        assert self._server is not None
        return self._server.url

    @property
    def version(self) -> str:
        return installed_version(self.spec)

    @property
    def libraries(self) -> dict[str, str]:
        return {**super().libraries, self.spec.distribution or self.spec.name: self.version}

    def run(self, requests: Sequence[Request], window: Window = no_window) -> RunResult:
        self._check_requests(requests)
        self.reset()
        try:
            result = complete(
                self.url, self._options.api, MODEL, requests, seed=self.spec.seed, beat=self._beat, window=window
            )
        except MoecapError as error:
            if self._server is not None and (ended := self._server.died(wait_s=1)) is not None:
                raise MoecapError(f"The server died: {ended}. {error}") from error
            raise
        result.steps = estimate_steps(result.requests)
        return result

    def run_online(
        self, requests: Sequence[Request], arrivals: Arrivals, warmup: Sequence[Request], window: Window = no_window
    ) -> RunResult:
        self.reset()
        try:
            result = self._drive(self.url, requests, arrivals, warmup, window)
        except MoecapError as error:
            if self._server is not None and (ended := self._server.died(wait_s=1)) is not None:
                raise MoecapError(f"The server died: {ended}. {error}") from error
            raise
        result.steps = estimate_steps(result.requests)
        return result

    def client_tokens_per_s(self, requests: Sequence[Request], arrivals: Arrivals) -> float | None:
        with idle_server(self._options.api) as url:
            result = self._drive(url, requests, arrivals)
        return sum(request.output_tokens for request in requests) / result.wall_s

    def _drive(
        self,
        url: str,
        requests: Sequence[Request],
        arrivals: Arrivals,
        warmup: Sequence[Request] = (),
        window: Window = no_window,
    ) -> RunResult:
        return aiperf.drive(
            url,
            self._options.api,
            MODEL,
            requests,
            arrivals,
            tokenizer=self.spec.checkpoint,
            warmup=warmup,
            seed=self.spec.seed,
            beat=self._beat,
            window=window,
        )

    def _beat(self) -> None:
        self.beat = time.monotonic()

    def reset(self) -> None:
        if self._options.reset is not None and self._server is not None:
            self._server.post(self._options.reset)

    def died(self) -> str | None:
        return self._server.died() if self._server is not None else None

    def close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.stop()


def server_options(spec: EngineSpec) -> ServerOptions:
    """The checked options of an entry of kind ``server``.

    Raises:
        PermanentError: they are not as their schema says.
    """
    try:
        return check(ServerOptions, dict(spec.options), lambda _: Place(f"engine {spec.name}, `options`"))
    except Mistakes as error:
        raise PermanentError(" ".join(str(error).split())) from None


def start_server(spec: EngineSpec) -> ManagedServer:
    """Start the server of an engine's entry and wait until it is ready."""
    python = interpreter(spec.environment, spec.distribution) if spec.environment and spec.distribution else None
    return start(
        spec.name,
        server_options(spec),
        command_values(spec),
        python=python or Path("python"),
        load_s=spec.load_s,
        log_path=spec.log_path,
    )


def command_values(spec: EngineSpec) -> dict[str, Any]:
    """What the braces of an entry's command stand for, but for the port and what else is known only at the start."""
    context = spec.context_tokens or CONTEXT_TOKENS
    ggufs = sorted(Path(spec.checkpoint).glob("*.gguf"))
    parallelism = ("tensor_parallel", "pipeline_parallel", "expert_parallel", "data_parallel")
    return {
        "checkpoint": spec.checkpoint,
        "gguf": ggufs[0] if ggufs else Path(spec.checkpoint) / "no-such-file.gguf",
        "model": MODEL,
        "context_tokens": context,
        "max_num_seqs": spec.max_num_seqs,
        "all_context_tokens": context * spec.max_num_seqs,
        "threads": spec.threads or 1,
        **{name: getattr(spec, name) for name in parallelism},
        "devices": spec.tensor_parallel * spec.pipeline_parallel,
        "seed": spec.seed,
    }


def installed_version(spec: EngineSpec) -> str:
    """The version of the engine's distribution in its environment; "unknown" where no distribution has it."""
    if not spec.environment or not spec.distribution:
        return "unknown"
    found = versions([spec.distribution], interpreter(spec.environment, spec.distribution))
    return found.get(spec.distribution, "unknown")


@contextmanager
def serve(spec: EngineSpec) -> Iterator[str]:
    """Start the engine's server for the block and end it with all its children.

    Yields:
        Its address; completions lie below ``/v1``, the model is called :data:`MODEL`.
    """
    with running(start_server(spec)) as url:
        yield url
