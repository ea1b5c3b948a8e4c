"""Other work on the machine while something was timed: what others took of its CPUs, and who else was on its GPUs.

The kernel counts the time that its CPUs were busy, and that a hypervisor took from them (steal); what the timed job and
the processes below it used is subtracted. The reader is thin, the arithmetic (:func:`between`) pure.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from moecap.hardware.gpus import Nvml

# Beyond this share of the machine's CPU time in others' hands, or taken by a hypervisor, a run counts as disturbed.
DISTURBED_SHARE = 0.05
# The kernel counts in ticks of 10 ms, per process and CPU: of a shorter window nothing can be said.
SHORTEST_S = 0.2


@dataclass(frozen=True)
class Reading:
    """Running totals, in seconds of CPU time of the whole machine.

    Attributes:
        capacity_s: what there was: busy or not, on all CPUs.
        busy_s: what processes used. Interrupts are not counted: whose they are is not known.
        steal_s: what a hypervisor gave to somebody else; None: the kernel does not say.
        own_s: what this process, and those below it (also those that have ended), used.
    """

    capacity_s: float
    busy_s: float
    steal_s: float | None
    own_s: float


@dataclass(frozen=True)
class Load:
    """Others' work in a window. None: not measurable here.

    Attributes:
        capacity_s: CPU time of the machine in the window.
        external_s: what processes other than the timed job's used of it.
        steal_s: what a hypervisor took of it.
        other_gpu_processes: how many processes that are not the job's computed on the GPUs that it sees.
    """

    capacity_s: float | None = None
    external_s: float | None = None
    steal_s: float | None = None
    other_gpu_processes: int | None = None

    @property
    def external_share(self) -> float | None:
        """0 to 1, of the whole machine's CPU time."""
        return _share(self.external_s, self.capacity_s)

    @property
    def steal_share(self) -> float | None:
        """0 to 1, of the whole machine's CPU time."""
        return _share(self.steal_s, self.capacity_s)

    @property
    def weight(self) -> tuple[int, float]:
        """How much others did: of two windows, the one where it is less is the calmer."""
        return self.other_gpu_processes or 0, (self.external_share or 0.0) + (self.steal_share or 0.0)

    @property
    def disturbed(self) -> bool | None:
        """Whether somebody else worked enough to be felt in the times; None: not measurable."""
        if self.external_share is None and not self.other_gpu_processes:
            return None
        shares = (self.external_share or 0.0, self.steal_share or 0.0)
        return max(shares) > DISTURBED_SHARE or bool(self.other_gpu_processes)

    def __str__(self) -> str:
        parts = [
            f"{share:.0%} of the CPU time {what}"
            for share, what in (
                (self.external_share, "went to other processes"),
                (self.steal_share, "was taken by the hypervisor"),
            )
            if share and share > DISTURBED_SHARE
        ]
        if self.other_gpu_processes:
            parts.append(f"{self.other_gpu_processes} other process(es) on its GPUs")
        return "; ".join(parts) or "nobody else at work"


def _share(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else min(1.0, max(0.0, part / whole))


def between(first: Reading, last: Reading, cpus: int) -> Load:
    """Others' work between two readings, of a machine with ``cpus`` logical CPUs.

    >>> between(Reading(0, 0, 0, 0), Reading(20, 12, 1, 9), cpus=2).external_share
    0.15
    """
    capacity = last.capacity_s - first.capacity_s
    if capacity < SHORTEST_S * cpus:
        return Load()
    external = (last.busy_s - first.busy_s) - (last.own_s - first.own_s)
    steal = None if first.steal_s is None or last.steal_s is None else max(0.0, last.steal_s - first.steal_s)
    return Load(capacity, max(0.0, external), steal)


def read() -> Reading:
    """The totals now."""
    times = psutil.cpu_times()._asdict()
    # Time of a guest is part of "user" and "nice" already.
    capacity = sum(value for name, value in times.items() if not name.startswith("guest"))
    busy = times["user"] + times.get("nice", 0.0) + times["system"]
    own = 0.0
    this = psutil.Process()
    for process in [this, *this.children(recursive=True)]:
        try:
            used = process.cpu_times()
        except psutil.Error:
            continue  # it has ended: its parent has its time now
        own += used.user + used.system + used.children_user + used.children_system
    return Reading(capacity, busy, times.get("steal"), own)


class Watch:
    """What :func:`window` yields; ``load`` says nothing before its end."""

    def __init__(self) -> None:
        self.load = Load()


@contextmanager
def window(gpu: bool = False) -> Iterator[Watch]:
    """Look at the machine before and after the block, which costs what is timed inside nothing.

    Args:
        gpu: whether to look at who is on the GPUs that this process sees, too.
    """
    watch = Watch()
    before = _on_gpus() if gpu else None
    first = read()
    try:
        yield watch
    finally:
        load = between(first, read(), psutil.cpu_count() or 1)
        after = _on_gpus() if gpu else None
        known = [count for count in (before, after) if count is not None]
        watch.load = Load(load.capacity_s, load.external_s, load.steal_s, max(known) if known else None)


def _on_gpus() -> int | None:
    """Processes on the visible GPUs that are not this one or below it; None where the driver does not say whose.

    Inside a container the driver may count processes by the host's numbers: if none of them is ours while we compute,
    nobody can be told from us.
    """
    try:
        nvml = Nvml()
    except OSError:
        return None
    found: set[int] = set()
    for device in nvml.visible():
        pids = nvml.processes(device)
        if pids is None:
            return None
        found |= pids
    own = {os.getpid(), *(p.pid for p in psutil.Process().children(recursive=True))}
    return None if found and not found & own else len(found - own)
