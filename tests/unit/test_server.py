"""Engines behind HTTP: a server of one's own from start to end, each way to fail, and the estimated schedule."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecap.campaign.catalogue import Catalogue
from moecap.engines import base
from moecap.engines.base import Engine, Request, RequestRecord
from moecap.engines.server import process
from moecap.engines.server.client import events
from moecap.engines.server.engine import serve
from moecap.engines.server.schedule import estimate_steps
from moecap.errors import MoecapError, PermanentError

from ..standin_server import token

STANDIN = str(Path(__file__).parents[1] / "standin_server.py")
BODY = {"model": "{model}", "prompt": "{prompt_token_ids}", "max_tokens": "{output_tokens}", "stream": True}


def entry(fault: str = "", **more: Any) -> dict[str, Any]:
    command = [sys.executable, STANDIN, "{port}", *([fault] if fault else [])]
    options = {"command": command, "api": {"body": BODY}, "stop_s": 2, **more}
    return {"kind": "server", "device": "cpu", "options": options, "timeouts": {"load_s": 5}}


def spec(fault: str = "", load_s: float = 5, **more: Any) -> base.EngineSpec:
    given = entry(fault, **more)
    given["timeouts"] = {"load_s": load_s}
    return base.spec_of("stand-in", given, "/nowhere", max_num_seqs=8)


@contextmanager
def loaded(fault: str = "") -> Iterator[Engine]:
    with base.load(spec(fault)) as engine:
        yield engine


REQUESTS = [Request((1, 2, 3), 5), Request((7,), 5), Request((5, 5), 3)]


def test_a_server_is_started_asked_and_ended() -> None:
    with loaded() as engine:
        result = engine.run(REQUESTS)
        # What other tests left to be collected has no command line any more.
        living = [p for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE]
        (pid,) = [p.pid for p in living if "keeper.py" in " ".join(p.cmdline())]
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        assert engine.died() is None and engine.schedule == "estimated"
    for request, record in zip(REQUESTS, result.requests, strict=True):
        wanted = [token(list(request.prompt_token_ids), n) for n in range(request.output_tokens)]
        assert record.output_token_ids == wanted
        assert record.token_times_s == sorted(record.token_times_s) and record.finish_reason == "length"
    assert sum(map(sum, (step.tokens for step in result.steps))) == 6 + 4 + 4 + 2
    assert all(not p.is_running() or p.status() == psutil.STATUS_ZOMBIE for p in family)


def test_serve_gives_an_address_for_others() -> None:
    with serve(spec()) as url:
        assert url.startswith("http://127.0.0.1:")
        port = int(url.rsplit(":", 1)[1])
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) == 0
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        ("exits", MoecapError, r"did not start: stand-in \(exit status 2; it printed: no such model\)"),
        ("never-ready", MoecapError, r"not ready within 1 s .*timeouts.load_s"),
        ("stuck", MoecapError, r"not ready within 1 s"),
    ],
)
def test_a_server_that_does_not_start(fault: str, kind: type[Exception], message: str) -> None:
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    with pytest.raises(kind, match=message), base.load(spec(fault, load_s=60 if fault == "exits" else 1)):
        pass
    assert {p.pid for p in psutil.Process().children(recursive=True)} <= before


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        ("dies", MoecapError, r"The server died: stand-in \(exit status 3"),
        ("breaks", MoecapError, r"The request to .* failed|returned 2 tokens"),
        ("500", MoecapError, r"answered 500: told to fail"),
        ("429", MoecapError, r"answered 429"),
        ("400", PermanentError, r"answered 400"),
        ("short", MoecapError, r"returned 4 tokens for a request of 5 \(finish reason: length\)"),
        ("no-ids", PermanentError, r"gave no token ids .*replayed"),
        ("error-event", MoecapError, r"sent an error in its stream.*told to fail"),
    ],
)
def test_a_server_that_fails_under_way(fault: str, kind: type[Exception], message: str) -> None:
    with loaded(fault) as engine, pytest.raises(MoecapError, match=message) as caught:
        engine.run(REQUESTS)
    assert isinstance(caught.value, PermanentError) == (kind is PermanentError)


def test_a_server_that_hangs_stops_the_beat_and_can_be_ended() -> None:
    """What the watchdog of a timed run looks at; it then ends the process and the keeper the server."""
    with loaded("hang") as engine:
        failed = []

        def run() -> None:
            try:
                engine.run(REQUESTS)
            except MoecapError as error:
                failed.append(error)

        runner, loaded_at = threading.Thread(target=run, daemon=True), engine.beat
        runner.start()
        deadline = time.monotonic() + 20
        while engine.beat == loaded_at or time.monotonic() - engine.beat < 0.5:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert engine.died() is None
        engine.close()
        runner.join(10)
        assert not runner.is_alive() and failed


def test_a_port_that_was_taken_meanwhile_is_not_mistaken_for_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stranger answers the health address too; another port is tried."""
    with serve(spec()) as stranger:
        taken = int(stranger.rsplit(":", 1)[1])
        ports = iter([taken, process.free_port()])
        monkeypatch.setattr(process, "free_port", lambda: next(ports))
        with serve(spec()) as url:
            assert url != stranger


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_client_that_is_killed_leaves_nothing_behind(how: signal.Signals, tmp_path: Path) -> None:
    """Not the server, and not a worker of it in a session of its own."""
    program = textwrap.dedent(
        f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parents[2])!r})
        from moecap.engines.base import spec_of
        from moecap.engines.server.engine import start_server
        server = start_server(spec_of("stand-in", {entry("child")!r}, "/nowhere", log_path={str(tmp_path / "log")!r}))
        print(server.port, flush=True)
        time.sleep(3600)
        """
    )
    client = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None
    port = int(client.stdout.readline())
    worker = int((tmp_path / "log").read_text(encoding="utf-8").split()[1])
    assert psutil.pid_exists(worker)
    os.kill(client.pid, how)
    client.wait(10)
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            listening = probe.connect_ex(("127.0.0.1", port)) == 0
        alive = psutil.pid_exists(worker) and psutil.Process(worker).status() != psutil.STATUS_ZOMBIE
        if not listening and not alive:
            break
        time.sleep(0.1)
    assert not listening and not alive


def test_what_does_not_exist_is_said_before_anything_is_waited_for() -> None:
    with (
        pytest.raises(PermanentError, match=r"command no-such-engine does not exist"),
        base.load(
            base.spec_of("x", entry() | {"options": entry(command=["no-such-engine", "{port}"])["options"]}, "/nowhere")
        ),
    ):
        pass
    with pytest.raises(PermanentError, match=r"command.*\{prot\} is none of"), base.load(spec(command=["x", "{prot}"])):
        pass


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.data())
def test_events_do_not_depend_on_how_the_bytes_were_cut(numbers: list[int], data: st.DataObject) -> None:
    stream = b"".join(b'data: {"n": %d}\n\n' % n for n in numbers)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=6)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert [text for _, text in events([(float(i), p) for i, p in enumerate(pieces)])] == [
        f'{{"n": {n}}}' for n in numbers
    ]


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[RequestRecord], list[set[int]], list[float]]:
    """Requests of an engine with continuous batching: true members and ends of its steps, and what a client saw."""
    starts = sorted(draw(st.lists(st.integers(0, 12), min_size=1, max_size=6)))
    starts = [s - starts[0] for s in starts]
    lengths = [draw(st.integers(14, 30)) for _ in starts]  # everybody meets: no pause in between
    steps = max(s + n for s, n in zip(starts, lengths, strict=True))
    walls = [draw(st.floats(0.010, 0.030)) for _ in range(steps)]
    ends = [sum(walls[: i + 1]) for i in range(steps)]
    delay = st.floats(0.0, 0.001)
    records = []
    for first, count in zip(starts, lengths, strict=True):
        times = [ends[first + k] + draw(delay) for k in range(count)]
        arrival = 0.0 if first == 0 else ends[first - 1] - 0.0005
        records.append(RequestRecord([1, 2, 3], [5] * count, arrival, times))
    members = [
        {i for i, (s, n) in enumerate(zip(starts, lengths, strict=True)) if s <= k < s + n} for k in range(steps)
    ]
    return records, members, ends


@settings(max_examples=60, deadline=None)
@given(runs())
def test_the_estimated_schedule_is_the_true_one_where_the_client_is_faster_than_a_step(
    run: tuple[list[RequestRecord], list[set[int]], list[float]],
) -> None:
    records, members, ends = run
    steps = estimate_steps(records)
    assert [set(step.request) for step in steps] == members
    for step, end in zip(steps, ends, strict=True):
        assert 0 <= step.start_s + step.wall_s - end <= 0.001 + 1e-9
    for index, record in enumerate(records):
        entries = [e for s in steps for e in zip(s.request, s.first_position, s.tokens, strict=True)]
        own = [(position, tokens) for request, position, tokens in entries if request == index]
        assert own[0] == (0, 3) and [p for p, _ in own[1:]] == list(range(3, 2 + len(record.output_token_ids)))


def test_tokens_that_came_in_one_chunk_are_steps_of_their_own() -> None:
    alone = RequestRecord([1], [1, 2, 3, 4], 0.0, [0.1, 0.4, 0.4, 0.4])
    assert [round(step.wall_s, 6) for step in estimate_steps([alone])] == [0.1, 0.1, 0.1, 0.1]
    other = RequestRecord([1], [1, 2, 3, 4], 0.0, [0.1, 0.2, 0.3, 0.41])
    assert [round(step.wall_s, 6) for step in estimate_steps([alone, other])] == [0.1, 0.1, 0.1, 0.1]


def test_a_pause_is_no_step() -> None:
    early, late = RequestRecord([1], [1], 0.0, [0.1]), RequestRecord([1], [1], 5.0, [5.2])
    steps = estimate_steps([early, late])
    assert [(s.start_s, round(s.wall_s, 6)) for s in steps] == [(0.0, 0.1), (5.0, 0.2)]


CATALOGUE = Catalogue(Path(__file__).parents[2] / "config/catalogue").engines


@pytest.mark.parametrize("name", [name for name, entry in CATALOGUE.items() if entry.kind == "server"])
def test_every_command_of_the_catalogue_starts_a_stand_in(name: str, tmp_path: Path) -> None:
    """The entry's own command line, health address and request, with a stand-in where its program would be."""
    known = CATALOGUE[name]
    options = {**known.options, "command": [sys.executable, STANDIN, "{port}", "", "--", *known.options["command"]]}
    entry = known.model_dump() | {"options": options, "environment": None, "distribution": None}
    given = base.spec_of(name, entry | {"timeouts": {"load_s": 20}}, tmp_path, max_num_seqs=4, context_tokens=64)
    with base.load(given) as engine:
        if known.options["api"]["token_ids"] is None:
            with pytest.raises(PermanentError, match="gave no token ids"):
                engine.run(REQUESTS[:2])
            return
        result = engine.run(REQUESTS[:2])
    assert [len(record.output_token_ids) for record in result.requests] == [5, 5]


def test_an_endpoint_is_asked_with_the_key_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(spec("key")) as url:
        options = {"url": url, "key_variable": "SOME_KEY", "model": "m", "api": {"body": BODY}}
        remote = base.spec_of("far", {"kind": "remote", "device": "remote", "options": options}, "", max_num_seqs=8)
        monkeypatch.delenv("SOME_KEY", raising=False)
        with pytest.raises(PermanentError, match="SOME_KEY holds no key"), base.load(remote):
            pass
        monkeypatch.setenv("SOME_KEY", "right")
        with base.load(remote) as engine:
            result = engine.run(REQUESTS)
            assert engine.schedule == "estimated" and result.window is None
        assert [len(r.output_token_ids) for r in result.requests] == [5, 5, 3]
        monkeypatch.setenv("SOME_KEY", "wrong")
        with base.load(remote) as engine, pytest.raises(PermanentError, match="answered 401") as caught:
            engine.run(REQUESTS)
        assert "wrong" not in str(caught.value)
