"""Load over time: requests that arrive while others are served, sent by AIPerf and read from its own raw export.

AIPerf is a kept load generator with an environment of its own (`envs/setup.sh aiperf`). Every request's body is ours
(:func:`~moecap.engines.server.settings.fill_body`), sent as it is, and every packet comes back with the time at which
it arrived, so that an answer is read as the other client reads it. AIPerf's summary is not asked: its status is 0 after
failures, and its inter-token latency is a mean per request.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from moecap.engines.base import Arrivals, Request, RequestRecord, RunResult, Window, no_window
from moecap.engines.environments import interpreter
from moecap.engines.server.client import TRANSIENT, check_count, read_chunks
from moecap.engines.server.settings import Api, fill_body
from moecap.errors import MoecapError, PermanentError

ENVIRONMENT = "engine-aiperf"
DISTRIBUTION = "aiperf"
#: AIPerf loads, sends and exports within this many seconds beside the answers' own.
OVERHEAD_S = 120
#: How often its end is looked for.
POLL_S = 0.1
LOG_LINES = 12


def arguments(arrivals: Arrivals) -> list[str]:
    """What AIPerf is told of how requests arrive."""
    if arrivals.concurrency is not None:
        return ["--concurrency", str(arrivals.concurrency)]
    return ["--request-rate", str(arrivals.request_rate), "--request-rate-mode", "poisson"]


def drive(
    url: str,
    api: Api,
    model: str,
    requests: Sequence[Request],
    arrivals: Arrivals,
    *,
    tokenizer: str | os.PathLike[str],
    warmup: Sequence[Request] = (),
    seed: int = 1,
    headers: Mapping[str, str] | None = None,
    stall_s: float = 900,
    beat: Callable[[], None] = lambda: None,
    window: Window = no_window,
    python: Path | None = None,
) -> RunResult:
    """Send ``requests`` in order as ``arrivals`` says, after ``warmup``, and read all answers. The result has no steps.

    Args:
        url: the server's address, without a path.
        model: what requests call the model by.
        tokenizer: the checkpoint's folder; AIPerf wants one to start, no figure of ours depends on it.
        warmup: served before, under the same load, and not in the result.
        stall_s: the whole may take this long and :data:`OVERHEAD_S`; then the client is ended.
        beat: called while the client works.
        window: opened around the client's whole run.
        python: of AIPerf's environment; None: looked for.

    Raises:
        PermanentError: AIPerf is not installed; a request that the server refuses.
        MoecapError: the client ended or hung, or not every request came back whole.
    """
    python = python or interpreter(ENVIRONMENT, DISTRIBUTION)
    with tempfile.TemporaryDirectory(prefix="moecap-aiperf-") as scratch:
        folder = Path(scratch)
        _write_inputs(folder / "inputs.json", api, model, [*warmup, *requests], seed)
        command = [
            *(str(python.parent / "aiperf"), "profile", "--model", model, "--url", url, "--endpoint", api.path),
            *("--endpoint-type", "raw", "--custom-dataset-type", "inputs_json", "--streaming"),
            *("--input-file", str(folder / "inputs.json"), "--dataset-sampling-strategy", "sequential"),
            *("--request-count", str(len(requests)), *arguments(arrivals), "--random-seed", str(seed)),
            *(("--warmup-request-count", str(len(warmup))) if warmup else ()),
            *("--tokenizer", str(Path(tokenizer).resolve()), "--use-server-token-count"),
            *("--export-level", "raw", "--ui", "none", "--no-gpu-telemetry", "--no-server-metrics"),
            *("--workers-max", "1", "--record-processors", "1", "--output-artifact-dir", str(folder / "out")),
            *(word for name, value in (headers or {}).items() for word in ("--header", f"{name}:{value}")),
        ]
        with window() as measured:
            _run(command, folder, stall_s + OVERHEAD_S, beat)
        rows = _rows(folder)
    return _result(rows, requests, len(warmup), api, url + api.path, measured)


def _write_inputs(path: Path, api: Api, model: str, requests: Sequence[Request], seed: int) -> None:
    """AIPerf's file of bodies, one session per request, named by its number."""
    sessions = []
    for number, request in enumerate(requests):
        values = {
            "model": model,
            "prompt_token_ids": list(request.prompt_token_ids),
            "output_tokens": request.output_tokens,
            "seed": seed,
        }
        sessions.append({"session_id": str(number), "payloads": [fill_body(api.body, values)]})
    path.write_text(json.dumps({"data": sessions}), encoding="utf-8")


def _run(command: list[str], folder: Path, limit_s: float, beat: Callable[[], None]) -> None:
    """Run the client to its end, however it ends: what counts is what it exported."""
    # Its check of a tokenizer's name rejects a folder where the hub is off.
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "PYTHONPATH")}
    with (folder / "log").open("wb") as output:
        client = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        deadline = time.monotonic() + limit_s
        try:
            while client.poll() is None:
                if time.monotonic() > deadline:
                    raise MoecapError(f"AIPerf did not end within {limit_s:.0f} s: {_last_lines(folder)}")
                beat()
                time.sleep(POLL_S)
        finally:
            _end(client)
    if client.returncode < 0:
        raise MoecapError(f"AIPerf was killed (signal {-client.returncode}): {_last_lines(folder)}")


def _end(client: subprocess.Popen[bytes]) -> None:
    """End what is left of the client: its services are processes of their own, in its session."""
    import psutil

    left = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == client.pid:
                process.kill()
                left.append(process)
        except (OSError, psutil.Error):
            continue
    psutil.wait_procs(left, timeout=5)


def _last_lines(folder: Path) -> str:
    text = (folder / "log").read_text(encoding="utf-8", errors="replace")
    return " | ".join(line.strip() for line in text.splitlines()[-LOG_LINES:] if line.strip()) or "it printed nothing"


def _rows(folder: Path) -> list[dict[str, Any]]:
    """AIPerf's raw export, a row per request; of a run that failed as a whole its parts are there, unmerged."""
    whole = folder / "out" / "profile_export_raw.jsonl"
    files = [whole] if whole.is_file() else sorted((folder / "out" / "raw_records").glob("*.jsonl"))
    rows = []
    for path in files:
        with path.open(encoding="utf-8") as lines:
            rows += [json.loads(line) for line in lines if line.strip()]
    if not rows:
        raise MoecapError(f"AIPerf sent no request: {_last_lines(folder)}")
    return rows


def _result(
    rows: Sequence[Mapping[str, Any]],
    requests: Sequence[Request],
    skipped: int,
    api: Api,
    address: str,
    measured: Any,
) -> RunResult:
    """Records in the order of ``requests``, each exactly once and whole."""
    found: dict[int, Mapping[str, Any]] = {}
    for row in rows:
        number = int(row["metadata"]["conversation_id"]) - skipped
        if row["metadata"]["benchmark_phase"] != "profiling":
            continue
        if number in found:
            raise MoecapError(f"AIPerf sent request {number} twice; each was to be sent once.")
        found[number] = row
    missing = [number for number in range(len(requests)) if number not in found]
    if missing or len(found) > len(requests):
        raise MoecapError(f"AIPerf returned {len(found)} of {len(requests)} requests; missing: {missing[:5]}.")
    start = min(row["start_perf_ns"] for row in found.values())
    records = [_record(request, found[number], api, start, address) for number, request in enumerate(requests)]
    for request, record in zip(requests, records, strict=True):
        check_count(record, request, api, address)
    end = max(record.token_times_s[-1] for record in records)
    start_unix = min(row["metadata"]["request_start_ns"] for row in found.values()) / 1e9
    return RunResult(records, [], end, start_unix, measured)


def _record(request: Request, row: Mapping[str, Any], api: Api, start_ns: int, address: str) -> RequestRecord:
    """A request's record from AIPerf's row; its error, if it has one, as ours."""
    if (error := row.get("error")) is not None:
        code = error.get("code")
        refused = isinstance(code, int) and 400 <= code < 500 and code not in TRANSIENT
        raise (PermanentError if refused else MoecapError)(
            f"{address} failed a request: {error.get('type')} {code or ''}: {str(error.get('message'))[:300]}"
        )
    record = RequestRecord(list(request.prompt_token_ids), arrival_s=(row["start_perf_ns"] - start_ns) / 1e9)
    events = [
        ((response["perf_ns"] - start_ns) / 1e9, packet["value"])
        for response in row["responses"]
        for packet in response["packets"]
        if packet.get("name") == "data"
    ]
    read_chunks(record, events, api, address)
    return record
