"""Points, repeats, spool and failures, with an engine that only pretends; the real ones are in test_engines.py."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pyarrow.compute as pc
import pytest

from moecap.engines.base import Engine, EngineSpec, RequestRecord, RunResult, Step, no_window
from moecap.engines.tokens import sequence_hash
from moecap.errors import MoecapError, PermanentError
from moecap.hardware.load import Load
from moecap.measure import performance
from moecap.measure.performance import Point, Settings, Watchdog, measure
from moecap.measure.spool import Spool
from moecap.measure.workload import Workload

WORKLOADS = {
    "a": Workload("a", tuple((i, i + 1, i + 2) for i in range(40)), 4),
    "b": Workload("b", tuple((i,) * 5 for i in range(40)), 3),
}
POINTS = [Point("a", 1), Point("a", 4), Point("b", 2)]
SPEC = EngineSpec("fake", "fake", "cpu", "/nowhere")
HARDWARE = {"cpu_model": "abacus", "cores": 2}


class FakeEngine(Engine):
    """Answers at once. ``fail`` may raise, given the requests of a timed run."""

    def __init__(self, spec, fail=None):
        super().__init__(spec)
        self.fail = fail
        self.runs = []

    version = "1.0"

    def run(self, requests, window=no_window):
        self._check_requests(requests)
        self.runs.append((len(requests), window is not no_window))
        if self.fail is not None and window is not no_window:
            self.fail(requests)
        with window() as measured:
            pass
        length = requests[0].output_tokens
        steps = [
            Step(
                start_s=0.1 * k,
                wall_s=0.1,
                request=list(range(len(requests))),
                first_position=[0 if k == 0 else len(r.prompt_token_ids) + k - 1 for r in requests],
                tokens=[len(r.prompt_token_ids) if k == 0 else 1 for r in requests],
                cached_tokens=[0] * len(requests),
            )
            for k in range(length)
        ]
        records = [
            RequestRecord(
                list(r.prompt_token_ids),
                [r.prompt_token_ids[0]] * length,
                0.0,
                [0.1 * (k + 1) for k in range(length)],
                "length",
            )
            for r in requests
        ]
        return RunResult(records, steps, 0.1 * length, time.time(), measured)

    def close(self):
        pass


class Loader:
    """Stands in for `load`; remembers the engines it made."""

    def __init__(self, fail=None):
        self.fail, self.engines = fail, []

    @contextmanager
    def __call__(self, spec):
        engine = FakeEngine(spec, self.fail)
        self.engines.append(engine)
        yield engine


@contextmanager
def energy(device):
    assert device == "cpu"
    yield SimpleNamespace(energy_j=2.0, power_w=4.0, elapsed_s=0.5, source="rapl")


def go(tmp_path, points=POINTS, spec=SPEC, **kwargs):
    kwargs.setdefault("load", Loader())
    kwargs.setdefault("energy", energy)
    kwargs.setdefault("manifest_sha256", "abc")
    kwargs.setdefault("hardware", HARDWARE)
    return measure(points, spec, WORKLOADS, Spool(tmp_path / "spool"), name="d", **kwargs)


def test_tables(tmp_path):
    loader = Loader()
    lines = []
    result = go(tmp_path, load=loader, progress=lines.append)
    assert (result.measured, result.reused, result.loads) == (9, 0, 1)
    assert len(loader.engines) == 1
    assert loader.engines[0].spec.max_num_seqs == 4
    assert loader.engines[0].spec.context_tokens >= 8
    # one warm-up before each point, outside of the energy window, then three timed runs
    assert loader.engines[0].runs == [(b, timed) for b in (1, 4, 2) for timed in (False, True, True, True)]
    for name, schema in performance.TABLES.items():
        assert getattr(result, name).schema.equals(schema)
    points = result.points.to_pylist()
    assert [(p["dataset"], p["batch_size"], p["repeat"]) for p in points] == [
        (p.dataset, p.batch_size, r) for p in POINTS for r in range(3)
    ]
    four = points[3]
    assert four["workload"] == "a: 4 prompts, 4 output tokens fixed"
    assert (four["requests"], four["prompt_tokens"], four["generated_tokens"]) == (4, 12, 16)
    assert four["wall_s"] == pytest.approx(0.4)
    assert (four["energy_j"], four["power_w"], four["energy_source"]) == (2.0, 4.0, "rapl")
    assert four["max_num_seqs"] == 4
    assert json.loads(four["hardware"]) == HARDWARE
    assert len(set(result.points["load_id"].to_pylist())) == 1
    requests = result.requests.to_pylist()
    assert len(requests) == 3 * (1 + 4 + 2)
    for row in requests:
        assert row["sequence_sha256"] == sequence_hash(row["prompt_token_ids"] + row["output_token_ids"])
        assert row["first_token_s"] == row["token_times_s"][0] < row["finished_s"] == row["token_times_s"][-1]
    # every position but the last token's is computed once
    for (dataset, batch), group in _groups(result.schedule.to_pylist()):
        computed = {}
        for row in group:
            for request, first, tokens in zip(row["request"], row["first_position"], row["tokens"], strict=True):
                computed.setdefault((row["repeat"], request), []).extend(range(first, first + tokens))
        assert len(computed) == 3 * batch
        length = len(WORKLOADS[dataset].prompts[0]) + WORKLOADS[dataset].output_tokens - 1
        assert all(positions == list(range(length)) for positions in computed.values())
    assert len(lines) == 1 + 9
    assert "a at batch size 4, repeat 2 of 3" in lines[5]
    assert "(9 of 9)" in lines[-1]


def _groups(rows):
    found = {}
    for row in rows:
        found.setdefault((row["dataset"], row["batch_size"]), []).append(row)
    return found.items()


def test_repeats_use_other_prompts(tmp_path):
    result = go(tmp_path, [Point("a", 4)])
    prompts = [tuple(row["prompt_token_ids"]) for row in result.requests.to_pylist()]
    assert len(set(prompts)) == 12


def test_second_run_loads_nothing(tmp_path):
    first = go(tmp_path)
    loader = Loader()

    def elsewhere():
        raise AssertionError("nothing to measure: the machine does not matter")

    again = go(tmp_path, load=loader, check_machine=elsewhere)
    assert (again.measured, again.reused, again.loads) == (0, 9, 0)
    assert not loader.engines
    for name in performance.TABLES:
        assert getattr(again, name).equals(getattr(first, name))


def test_only_what_lacks(tmp_path):
    go(tmp_path, [Point("a", 1), Point("b", 2)])
    result = go(tmp_path, [*POINTS, Point("b", 8)])
    assert (result.measured, result.reused) == (6, 9 - 3)
    assert len(set(result.points["load_id"].to_pylist())) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"manifest_sha256": "other"},
        {"hardware": {**HARDWARE, "cores": 4}},
        {"spec": EngineSpec("fake", "fake", "cpu", "/nowhere", options={"x": 1})},
        {"spec": EngineSpec("fake", "fake", "cpu", "/nowhere", threads=2)},
        {"settings": Settings(seed=2)},
        {"settings": Settings(warmup=2)},
    ],
)
def test_what_a_point_depends_on(tmp_path, change):
    go(tmp_path, [Point("a", 1)])
    assert go(tmp_path, [Point("a", 1)], **change).measured == 3


def test_engine_version_is_part_of_the_key(tmp_path, monkeypatch):
    go(tmp_path, [Point("a", 1)])
    monkeypatch.setattr(performance, "library_versions", lambda: {"vllm": "99"})
    assert go(tmp_path, [Point("a", 1)]).measured == 3


@pytest.mark.parametrize(
    "change",
    [
        {"spec": EngineSpec("fake", "fake", "cpu", "/elsewhere")},
        {"points": [Point("a", 1), Point("a", 8)]},  # a larger max_num_seqs
        {"settings": Settings(repeats=5)},
    ],
)
def test_what_a_point_does_not_depend_on(tmp_path, change):
    go(tmp_path, [Point("a", 1)])
    assert go(tmp_path, **{"points": [Point("a", 1)], **change}).reused == 3


def test_damaged_entry_is_measured_again(tmp_path):
    result = go(tmp_path)
    key = result.points["spool_key"][4].as_py()
    (Spool(tmp_path / "spool").path(key) / "requests.parquet").write_bytes(b"PAR1")
    assert go(tmp_path).measured == 1


def test_waves(tmp_path):
    result = go(tmp_path, [Point("a", 4)], settings=Settings(requests=8))
    row = result.points.to_pylist()[0]
    assert row["workload"] == "a: 8 prompts, 4 output tokens fixed, 2 waves of 4"
    assert (row["requests"], row["energy_j"], row["power_w"]) == (8, 4.0, 4.0)
    assert row["wall_s"] == pytest.approx(0.8)
    requests = [r for r in result.requests.to_pylist() if r["repeat"] == 0]
    assert [r["request"] for r in requests] == list(range(8))
    assert [r["arrival_s"] for r in requests] == pytest.approx([0.0] * 4 + [0.4] * 4)
    second = [s for s in result.schedule.to_pylist() if s["repeat"] == 0][4]
    assert second["request"] == [4, 5, 6, 7]
    assert second["start_s"] == pytest.approx(0.4)


def test_energy_that_cannot_be_measured_is_null(tmp_path):
    @contextmanager
    def nothing(device):
        yield SimpleNamespace(energy_j=None, power_w=None, elapsed_s=0.5, source=None)

    points = go(tmp_path, energy=nothing).points
    for column in ("energy_j", "power_w", "energy_source"):
        assert points[column].null_count == points.num_rows


def fail_at(batch, error):
    def fail(requests):
        if len(requests) == batch:
            raise error

    return fail


def test_transient_failure_keeps_what_was_measured(tmp_path):
    path = tmp_path / "failures" / "d.json"
    loader = Loader(fail_at(4, RuntimeError("Engine core died unexpectedly")))
    with pytest.raises(MoecapError, match=r"a at batch size 4.*starting again") as caught:
        go(tmp_path, load=loader, failure_path=path)
    assert not isinstance(caught.value, PermanentError)
    failure = json.loads(path.read_text())
    assert failure["class"] == "transient"
    assert failure["point"] == {"dataset": "a", "batch_size": 4, "repeat": 0}
    assert len(list(Spool(tmp_path / "spool"))) == 3
    result = go(tmp_path, failure_path=path)
    assert (result.measured, result.reused) == (6, 3)
    assert not path.exists()


def test_permanent_failure_does_not_keep_the_others_from_being_measured(tmp_path):
    path = tmp_path / "d.json"
    loader = Loader(fail_at(4, RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")))
    with pytest.raises(PermanentError, match="out of memory"):
        go(tmp_path, load=loader, failure_path=path)
    assert len(loader.engines) == 2
    assert len(list(Spool(tmp_path / "spool"))) == 6
    failure = json.loads(path.read_text())
    assert (
        failure["class"] == "permanent" and "a at batch size 4: RuntimeError: CUDA out of memory" in failure["message"]
    )


def test_wrong_machine_measures_nothing(tmp_path):
    loader = Loader()

    def elsewhere():
        raise MoecapError("landed on a machine other than x")

    with pytest.raises(MoecapError, match="other than x"):
        go(tmp_path, load=loader, check_machine=elsewhere)
    assert not loader.engines


def test_batch_larger_than_the_dataset(tmp_path):
    with pytest.raises(PermanentError, match="40 usable prompts"):
        go(tmp_path, [Point("a", 41)])


SLOW = """
import sys, time
sys.path.insert(0, {root!r})
from tests.unit.test_performance import *
def slow(requests):
    if len(requests) == 4:
        print("at four", flush=True)
        {hang}
def say(line):
    print(line, file=sys.stderr)
go(__import__("pathlib").Path({tmp!r}), load=Loader(slow), progress=say, failure_path={tmp!r} + "/f.json", {more})
"""


def _child(tmp_path, more="", hang="time.sleep(600)"):
    root = os.fspath(performance.Path(__file__).parents[2])
    code = textwrap.dedent(SLOW).format(root=root, tmp=os.fspath(tmp_path), more=more, hang=hang)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_kill_9_then_start_again(tmp_path):
    process = _child(tmp_path)
    assert process.stdout.readline().strip() == "at four"
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    process.communicate()
    result = go(tmp_path)
    assert (result.measured, result.reused) == (6, 3)
    assert pc.count_distinct(result.points["load_id"]).as_py() == 2


def test_a_hang_ends_the_process(tmp_path):
    process = _child(tmp_path, more="stall_s=6.0, watchdog_s=0.2")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 75, stderr
    assert "a at batch size 4" in stderr
    assert "no progress for 6 s" in stderr
    failure = json.loads((tmp_path / "f.json").read_text())
    assert failure["class"] == "transient"
    assert go(tmp_path).reused == 3


def test_a_hang_that_holds_pythons_lock_ends_the_process_too(tmp_path):
    hang = "__import__('ctypes').PyDLL(None).sleep(600)"  # PyDLL keeps the lock: no other thread of Python runs
    # The watchdog's thread has not had a turn when it hangs: the first one would come after a second.
    process = _child(tmp_path, more="stall_s=3.0, watchdog_s=1.0", hang=hang)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1, stderr
    assert "Timeout" in stderr and "in slow" in stderr  # where it hangs
    assert go(tmp_path).reused == 3


def test_watchdog_leaves_slow_progress_alone():
    engine = FakeEngine(SPEC)
    with Watchdog("d", interval_s=0.02) as dog:
        dog.watch(0.5, "run", engine)
        for _ in range(8):
            time.sleep(0.1)
            engine.beat = time.monotonic()
        assert dog.idle_s() < 0.5
        dog.watch(None)


class Others:
    """Stands in for the window that looks at others' work: one after the other of ``loads``."""

    def __init__(self, *loads):
        self.loads = list(loads)

    @contextmanager
    def __call__(self, gpu=False):
        yield SimpleNamespace(load=self.loads.pop(0))


def test_a_disturbed_run_is_timed_once_more_and_says_what_it_was(tmp_path, monkeypatch):
    quiet, busy, worse = Load(10, 0.1, 0.0), Load(10, 3, 0.0), Load(10, 4, 0.5)
    monkeypatch.setattr(performance.machine_load, "window", Others(busy, quiet, quiet, quiet, busy, worse))
    said = []
    result = go(tmp_path, [Point("a", 1)], settings=Settings(repeats=4, warmup=1), progress=said.append)
    points = result.points.to_pylist()
    assert [p["external_cpu_share"] for p in points] == [0.01, 0.01, 0.01, 0.3]
    assert [p["disturbed"] for p in points] == [False, False, False, True]
    assert [p["cpu_steal_share"] for p in points] == [0, 0, 0, 0]
    assert [line for line in said if "disturbed, 30% of the CPU time went to other processes" in line]


def test_load_on_this_machine_says_nothing_of_an_endpoint_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(performance.machine_load, "window", Others())  # asked once, it would fail
    elsewhere = replace(SPEC, device="remote")
    result = go(tmp_path, [Point("a", 1)], elsewhere, energy=lambda device: no_window())
    assert all(p["disturbed"] is None and p["external_cpu_share"] is None for p in result.points.to_pylist())


def test_points_of_before_others_were_looked_at_are_kept_and_say_nothing_of_them(tmp_path):
    result = go(tmp_path)
    new = ["external_cpu_share", "cpu_steal_share", "other_gpu_processes", "disturbed"]
    entry = {name: getattr(result, name) for name in performance.TABLES}
    old = {**entry, "points": entry["points"].drop_columns(new)}
    points = performance.assemble(iter([old]))["points"]
    assert points.schema == performance.POINTS
    assert all(points[name].null_count == len(points) for name in new)
