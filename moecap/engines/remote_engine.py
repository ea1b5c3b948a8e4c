"""An endpoint that somebody else runs: asked like a server of one's own, neither started nor ended.

What it draws is unknown and stays null; what it costs is its price per token. Who else it serves at the same time, and
on what hardware, nobody tells: its times are those of a shared service.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from moecap.engines.base import Arrivals, Engine, EngineSpec, Request, RunResult, Window, no_window
from moecap.engines.server import aiperf
from moecap.engines.server.client import complete
from moecap.engines.server.idle import idle_server
from moecap.engines.server.schedule import estimate_steps
from moecap.engines.server.settings import RemoteOptions
from moecap.errors import Mistakes, PermanentError, Place
from moecap.schema import check


class RemoteEngine(Engine):
    """A client of an endpoint; the key comes from the environment and is nowhere written down."""

    schedule = "estimated"
    version = "unknown"

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(spec)
        try:
            self._options = check(RemoteOptions, dict(spec.options), lambda _: Place(f"engine {spec.name}, `options`"))
        except Mistakes as error:
            raise PermanentError(" ".join(str(error).split())) from None
        self._headers: dict[str, str] = {}
        if (name := self._options.key_variable) is not None:
            if not os.environ.get(name):
                raise PermanentError(
                    f"Engine {spec.name}: the environment variable {name} holds no key (`options.key_variable` in "
                    "config/catalogue/engines.yaml). Export it where the job runs; no file of a campaign may hold it."
                )
            self._headers["Authorization"] = f"Bearer {os.environ[name]}"

    def run(self, requests: Sequence[Request], window: Window = no_window) -> RunResult:
        """As for every engine; ``window`` is not opened: the power of this machine is not the endpoint's."""
        self._check_requests(requests)
        options = self._options
        result = complete(
            options.url.rstrip("/"),
            options.api,
            options.model or self.spec.name,
            requests,
            seed=self.spec.seed,
            headers=self._headers,
            timeout_s=options.timeout_s,
            beat=self._beat,
        )
        result.steps = estimate_steps(result.requests)
        return result

    def run_online(
        self, requests: Sequence[Request], arrivals: Arrivals, warmup: Sequence[Request], window: Window = no_window
    ) -> RunResult:
        result = aiperf.drive(
            self._options.url.rstrip("/"),
            self._options.api,
            self._options.model or self.spec.name,
            requests,
            arrivals,
            tokenizer=self.spec.checkpoint,
            warmup=warmup,
            seed=self.spec.seed,
            headers=self._headers,
            stall_s=self._options.timeout_s,
            beat=self._beat,
        )
        result.steps = estimate_steps(result.requests)
        return result

    def client_tokens_per_s(self, requests: Sequence[Request], arrivals: Arrivals) -> float | None:
        with idle_server(self._options.api) as url:
            result = aiperf.drive(
                url, self._options.api, self.spec.name, requests, arrivals, tokenizer=self.spec.checkpoint
            )
        return sum(request.output_tokens for request in requests) / result.wall_s

    def _beat(self) -> None:
        self.beat = time.monotonic()

    def close(self) -> None:
        pass
