"""Others' work on the machine: counted, subtracted from, and null where nothing can be said."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moecap.hardware import load
from moecap.hardware.load import Load, Reading, between
from tests.unit.test_gpus import A100, nvml  # noqa: F401

seconds = st.floats(0, 1e5)


@given(seconds, seconds, seconds, seconds, st.integers(1, 512))
def test_shares_are_shares(capacity: float, busy: float, steal: float, own: float, cpus: int) -> None:
    found = between(Reading(0, 0, 0, 0), Reading(capacity, busy, steal, own), cpus)
    if capacity < load.SHORTEST_S * cpus:
        assert found == Load() and found.disturbed is None
        return
    assert 0 <= found.external_share <= 1 and 0 <= found.steal_share <= 1
    assert found.external_s == max(0, busy - own)
    assert found.disturbed == (max(found.external_share, found.steal_share) > load.DISTURBED_SHARE)


@given(st.tuples(*[seconds] * 4), st.tuples(*[st.floats(1, 1e4)] * 4))
def test_only_the_window_counts(start: tuple[float, ...], step: tuple[float, ...]) -> None:
    """The totals since boot do not matter."""
    last = Reading(*(a + b for a, b in zip(start, step, strict=True)))
    moved, still = between(Reading(*start), last, 1), between(Reading(0, 0, 0, 0), Reading(*step), 1)
    assert moved.external_s == pytest.approx(still.external_s, abs=1e-6)
    assert moved.steal_share == pytest.approx(still.steal_share, abs=1e-6)


def test_without_steal_in_the_kernel_it_is_null_and_not_zero() -> None:
    found = between(Reading(0, 0, None, 0), Reading(20, 10, None, 10), 2)
    assert (found.external_share, found.steal_share, found.disturbed) == (0.0, None, False)


# Ends by itself, should a test not come to its end.
BURN = "import time\nwhile time.process_time() < 10: pass"


@contextmanager
def burning(below: bool) -> Iterator[psutil.Process]:
    """A process that does nothing but work, below this one or not."""
    if below:
        process = psutil.Process(subprocess.Popen([sys.executable, "-c", BURN]).pid)
    else:
        code = (
            "import subprocess, sys\n"
            f"print(subprocess.Popen([sys.executable, '-c', {BURN!r}], stdout=subprocess.DEVNULL).pid)"
        )
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
        process = psutil.Process(int(done.stdout))
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def work(process: psutil.Process, cpu_s: float) -> float:
    """Wait until a process has used so much more CPU time; how much it was."""
    start = sum(process.cpu_times()[:2])
    while (used := sum(process.cpu_times()[:2]) - start) < cpu_s:
        time.sleep(0.01)
    return used


def test_a_stranger_is_seen_and_a_child_is_not() -> None:
    with burning(below=False) as stranger, load.window() as watch:
        used = work(stranger, 0.5)
    assert watch.load.external_s > 0.8 * used
    assert watch.load.disturbed
    first = load.read()
    with burning(below=True) as child:
        used = work(child, 0.5)
        assert load.read().own_s - first.own_s > 0.8 * used
        psutil.Process(child.pid).kill()
        child.wait()
        assert load.read().own_s - first.own_s > 0.8 * used, "what has ended is not forgotten"


def test_strangers_on_the_gpus(nvml) -> None:  # noqa: F811
    nvml({**A100, "pids": [os.getpid(), 2**22 + 1, 2**22 + 2]}, {**A100, "pids": [2**22 + 3]}, CUDA_VISIBLE_DEVICES="0")
    with load.window(gpu=True) as watch:
        pass
    assert watch.load.other_gpu_processes == 2 and watch.load.disturbed
    assert "2 other process(es) on its GPUs" in str(watch.load)


@pytest.mark.parametrize(("pids", "expected"), [([], 0), ([2**22 + 1], None)])
def test_a_driver_that_counts_by_the_hosts_numbers_says_nothing(nvml, pids, expected) -> None:  # noqa: F811
    nvml({**A100, "pids": pids})
    assert load._on_gpus() == expected


def test_the_calmer_of_two_is_kept() -> None:
    quiet, busy, gpu = Load(10, 0.1, 0.1), Load(10, 3, 0), Load(10, 0, 0, 1)
    assert min([busy, quiet, gpu], key=lambda found: found.weight) is quiet
    assert min([gpu, busy], key=lambda found: found.weight) is busy
    assert str(busy) == "30% of the CPU time went to other processes"
