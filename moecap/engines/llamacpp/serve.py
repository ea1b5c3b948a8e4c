"""llama.cpp's own server, started from Python: what serves GGUF files where no ``llama-server`` is installed.

    python serve.py GGUF HOST PORT CONTEXT_TOKENS SLOTS THREADS

Runs in the environment that has ``xllamacpp`` (llama.cpp as a wheel), outside of the package. ``CONTEXT_TOKENS`` are
those of one of ``SLOTS`` requests at a time. SIGTERM ends it.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    gguf, host, (port, context, slots, threads) = arguments[0], arguments[1], map(int, arguments[2:6])
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = gguf
    params.hostnames, params.port = [host], port
    params.n_ctx, params.n_parallel = context * slots, slots
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.warmup = True
    params.kv_unified = False  # every slot has its own part: no request waits for another's
    params.cache_prompt, params.cache_ram_mib = False, 0
    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    server = xllamacpp.Server(params)
    print(f"listening at {server.listening_address}", flush=True)
    stop.wait()
    del server
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
