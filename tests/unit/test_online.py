"""Online load: the steady window, the end of a sweep, goodput, and AIPerf itself against a stand-in over HTTP."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moecap.campaign.deployments import Deployment
from moecap.engines.base import Arrivals, Engine, EngineSpec, Request, RequestRecord, RunResult, no_window
from moecap.engines.environments import interpreter
from moecap.engines.server import aiperf
from moecap.engines.server.client import complete, look_up
from moecap.engines.server.engine import MODEL, start_server
from moecap.engines.server.idle import _chunk, idle_server
from moecap.engines.server.schedule import estimate_steps
from moecap.engines.server.settings import Api
from moecap.errors import MoecapError, PermanentError
from moecap.measure import performance
from moecap.measure.online import Online, point_columns, saturated_at, steady_window
from moecap.measure.spool import Spool
from moecap.measure.workload import Workload, build
from moecap.metrics import online

from ..standin_server import token

API = Api(body={"prompt": "{prompt_token_ids}", "max_tokens": "{output_tokens}", "stream": True})


def row(number: int, **more: Any) -> dict[str, Any]:
    """A row of AIPerf's raw export: two tokens in two packets."""
    packets = [{"name": "data", "value": f'{{"id": "r{number}", "choices": [{{"token_ids": [{t}]}}]}}'} for t in (5, 6)]
    return {
        "metadata": {"conversation_id": str(number), "benchmark_phase": "profiling", "request_start_ns": 10**18},
        "start_perf_ns": number * 10**9,
        "error": None,
        "responses": [
            {"perf_ns": number * 10**9 + (n + 1) * 10**8, "packets": [packet]} for n, packet in enumerate(packets)
        ],
        **more,
    }


def read(rows: list[dict[str, Any]], count: int = 2) -> RunResult:
    return aiperf._result(rows, [Request((1, 2), 2)] * count, 0, API, "http://there", None)


def test_an_export_is_read_in_the_order_of_the_requests() -> None:
    result = read([row(1), row(0)])
    assert [r.arrival_s for r in result.requests] == [0, 1]
    assert result.requests[1].token_times_s == pytest.approx([1.1, 1.2])
    assert [r.served_as for r in result.requests] == ["r0", "r1"]
    assert result.wall_s == pytest.approx(1.2)


@pytest.mark.parametrize(
    ("rows", "message", "permanent"),
    [
        ([row(0)], "1 of 2 requests", False),
        ([row(0), row(0)], "twice", False),
        ([row(0), row(1, error={"type": "ClientError", "message": "gone", "code": None})], "gone", False),
        ([row(0), row(1, error={"type": "HTTP", "message": "bad", "code": 400})], "bad", True),
        ([row(0), row(1, error={"type": "HTTP", "message": "busy", "code": 429})], "busy", False),
        ([row(0), row(1, responses=row(1)["responses"][:1])], "returned 1 tokens for a request of 2", False),
    ],
)
def test_what_failed_counts_whatever_the_clients_status_was(
    rows: list[dict[str, Any]], message: str, permanent: bool
) -> None:
    with pytest.raises(MoecapError, match=message) as error:
        read(rows)
    assert isinstance(error.value, PermanentError) == permanent


@given(st.lists(st.tuples(st.floats(0, 10), st.lists(st.floats(0.01, 1), min_size=1, max_size=4)), min_size=2))
def test_a_steady_window_has_no_ramp_and_no_drain(shape: list[tuple[float, list[float]]]) -> None:
    records = [
        RequestRecord([1], [0] * len(gaps), arrival, [arrival + sum(gaps[: i + 1]) for i in range(len(gaps))])
        for arrival, gaps in shape
    ]
    try:
        start, end = steady_window(records)
    except MoecapError:
        assert max(r.arrival_s for r in records) <= min(r.token_times_s[-1] for r in records)
        return
    assert any(r.token_times_s[-1] <= start for r in records)
    assert any(r.arrival_s >= end for r in records)
    columns = point_columns(RunResult(records, [], 0, 0), Arrivals(concurrency=2), None)
    assert columns["generated_tokens"] == sum(start <= t < end for r in records for t in r.token_times_s)
    assert columns["wall_s"] == end - start


@given(st.lists(st.floats(1, 1000), min_size=1, max_size=6), st.integers(0, 6), st.floats(0, 0.5))
def test_a_sweep_ends_where_more_in_flight_adds_too_little(rates: list[float], known: int, gain: float) -> None:
    sizes = [2**i for i in range(len(rates))]
    rate = dict(list(zip(sizes, rates, strict=True))[:known])
    end = saturated_at({"d": sizes}, lambda _, size: rate.get(size), gain).get("d")
    small = [b for a, b in pairwise(sizes) if b in rate and rate[b] < rate[a] * (1 + gain)]
    assert end == (small[0] if small else None)


def test_goodput_counts_requests_that_hold_every_limit() -> None:
    table = pa.table(
        {
            "arrival_s": [0.0, 1.0, 2.0],
            "first_token_s": [0.1, 1.5, 2.1],
            "finished_s": [0.5, 2.0, 4.1],
            "output_token_ids": [[1] * 5] * 3,
        }
    )
    assert online.served_well(table, {"ttft_s": 0.2}) == 2
    assert online.served_well(table, {"ttft_s": 0.2, "tpot_s": 0.2}) == 1
    assert online.served_well(table, {"e2e_s": 0.5}) == 1
    assert len(online.requests_within(table, (0.5, 1.5))) == 1


def test_prompts_of_a_length_are_the_datasets_text() -> None:
    texts = ["abc", "defg", "hi", "jklmnop"]
    work = build("d", texts, lambda t: [ord(c) for c in t], output_tokens=2, needed=9, seed=1, input_tokens=5)
    assert {len(p) for p in work.prompts} == {5} and len(work.prompts) == 3
    assert len(work.stream(7, 0, 3)) == 7
    with pytest.raises(PermanentError, match="fewer than batch size 4"):
        work.stream(7, 0, 4)


@pytest.mark.parametrize(
    "api",
    [API, Api(body=API.body, token_ids="tokens", counted="tokens_predicted"), Api(body=API.body, token_ids="a.b.c")],
)
def test_the_idle_server_answers_where_an_api_looks(api: Api) -> None:
    assert look_up(_chunk(api, 0), api.token_ids) == [1]
    with idle_server(api) as url:
        result = complete(url, api, "m", [Request((1, 2), 3), Request((4,), 5)])
    assert [len(r.output_token_ids) for r in result.requests] == [3, 5]


def test_a_request_rate_needs_online_load_and_one_batch_size() -> None:
    cells = {
        **{"deployment": "d", "model": "m", "precision": "bf16", "engine": "e", "hardware": "h", "devices": 1},
        **{"datasets": "x", "batch_sizes": "1 2"},
    }
    assert Deployment.model_validate({**cells, "load": "online"}).load == "online"
    with pytest.raises(ValueError, match="one entry"):
        Deployment.model_validate({**cells, "load": "online", "request_rate": "5"})
    with pytest.raises(ValueError, match="load is offline"):
        Deployment.model_validate({**cells, "request_rate": "5"})


class Served(Engine):
    """Pretends: tokens every 10 ms, twice as long where more than four are served, so that throughput saturates."""

    version, schedule = "1", "estimated"

    def run(self, requests, window=no_window):  # type: ignore[no-untyped-def]
        raise AssertionError("offline")

    def run_online(self, requests, arrivals, warmup, window=no_window):  # type: ignore[no-untyped-def]
        size = arrivals.concurrency
        step_s = 0.01 * max(1, size / 4)
        records = []
        for number, request in enumerate(requests):
            begin = (number // size) * request.output_tokens * step_s + number % size * 1e-4
            times = [begin + (k + 1) * step_s for k in range(request.output_tokens)]
            ids = [number % 251] * request.output_tokens
            records.append(RequestRecord(list(request.prompt_token_ids), ids, begin, times, "length"))
        return RunResult(records, estimate_steps(records), max(r.token_times_s[-1] for r in records), 0.0)

    def client_tokens_per_s(self, requests, arrivals):  # type: ignore[no-untyped-def]
        return 1e5

    def close(self) -> None:
        pass


def test_a_sweep_is_timed_until_it_saturates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(performance, "client_version", lambda: "0")
    work = {"a": Workload("a", tuple((i, i + 1, i + 2) for i in range(200)), 6)}
    spec = EngineSpec("served", "server", "cpu", "/nowhere")
    points = [performance.Point("a", size) for size in (1, 2, 4, 8, 16)]
    said: list[str] = []
    for again in (False, True):
        result = performance.measure(
            points,
            spec,
            work,
            Spool(tmp_path),
            manifest_sha256="x",
            hardware={},
            settings=performance.Settings(online=Online()),
            load=lambda spec: nullcontext(Served(spec)),
            progress=said.append,
        )
        if again:
            assert result.measured == 0 and result.loads <= 1
    rows = result.points.to_pylist()
    assert [(r["batch_size"], r["saturates"]) for r in rows if r["repeat"] == 0] == [
        *((size, False) for size in (1, 2, 4)),
        (8, True),
    ]
    assert said[-1] == "deployment: a: throughput saturates at 8 requests in flight; the sweep ends there"
    for r in rows:
        assert (r["load"], r["concurrency"], r["request_rate"]) == ("online", r["batch_size"], None)
        assert r["workload"].endswith(f"{r['batch_size']} in flight") and r["client_tokens_per_s"] == 1e5
        assert r["energy_j"] is None and r["schedule_kind"] == "estimated"
        rate = r["generated_tokens"] / r["wall_s"]
        assert rate == pytest.approx(100 * min(r["batch_size"], 4), rel=0.1)
    windows = online.windows_of(result.points)
    assert len(windows) == len(rows)
    inside = online.steps_within(result.schedule, windows)
    assert 0 < len(inside) < len(result.schedule)
    assert online.columns(rows[:3])["window_s"] == pytest.approx(sum(r["wall_s"] for r in rows[:3]))


@pytest.mark.slow
def test_aiperf_itself_against_a_stand_in(tmp_path: Path) -> None:
    from .test_server import spec

    try:
        interpreter(aiperf.ENVIRONMENT, aiperf.DISTRIBUTION)
    except PermanentError as error:
        pytest.skip(str(error))
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(tmp_path)
    requests = [Request((number, 1, 2), 6) for number in range(12)]
    with start_server(spec(load_s=60)) as server:
        for arrivals in (Arrivals(concurrency=3), Arrivals(request_rate=20)):
            result = aiperf.drive(server.url, API, MODEL, requests, arrivals, tokenizer=tmp_path, warmup=requests[:2])
            expected = [[token(list(r.prompt_token_ids), n) for n in range(6)] for r in requests]
            assert [r.output_token_ids for r in result.requests] == expected
