"""A real Slurm on one machine: controller, nodes and munge on loopback, no systemd, up in a second or two.

>>> with Cluster(folder) as cluster:                      # doctest: +SKIP
...     subprocess.run(["sbatch", "--wrap", "hostname"])
...     cluster.jobs()

It needs root, Debian's ``slurm-wlm`` and ``munge``, and ``/etc/slurm`` for itself: neither the executor plugin nor the
jobs keep ``SLURM_CONF``. ``python -m tests.slurm.cluster`` starts one by hand and says how to use it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

ETC = Path("/etc/slurm")
FILES = ("slurm.conf", "gres.conf", "slurmdbd.conf")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel", "srun")
LOCK = Path("/run/lock/moecap-slurm.lock")


def why_not() -> str | None:
    """Why a Slurm cannot be started here, with the remedy; None when it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a real Slurm is started as root on Linux only"
    missing = [p for p in PROGRAMS if not _program(p)]
    if missing:
        return f"{', '.join(missing)} not found; `apt-get install slurm-wlm munge` installs it"
    if any((ETC / f).exists() and not (ETC / f).is_symlink() for f in FILES):
        return f"{ETC} configures another Slurm, which is left alone"
    return None


@dataclass(frozen=True)
class Nodes:
    """A set of equal nodes, ``{prefix}1`` to ``{prefix}{count}``, with the resources that Slurm is to believe in.

    ``gpus`` maps a type to how many of it each node has. ``running=False`` defines them without starting them: jobs
    are accepted and wait.
    """

    prefix: str = "n"
    count: int = 2
    cpus: int = 2
    memory_mb: int = 8000
    gpus: Mapping[str, int] = field(default_factory=lambda: {"a100": 8})
    running: bool = True

    @property
    def names(self) -> list[str]:
        return [f"{self.prefix}{i + 1}" for i in range(self.count)]

    @property
    def range(self) -> str:
        return f"{self.prefix}[1-{self.count}]"


@dataclass(frozen=True)
class Partition:
    """``state="DOWN"`` takes jobs into the queue and starts none of them: they are held."""

    name: str
    nodes: tuple[str, ...]
    default: bool = False
    state: str = "UP"
    max_time: str = "INFINITE"


DEFAULT_NODES = (Nodes(),)
DEFAULT_PARTITIONS = (Partition("gpu", ("n",), default=True), Partition("cpu", ("n",)))


class Cluster:
    """Start on entering, stop on leaving; every process that it started is ended, every file of /etc restored."""

    def __init__(
        self,
        folder: str | Path | None = None,
        nodes: Sequence[Nodes] = DEFAULT_NODES,
        partitions: Sequence[Partition] = DEFAULT_PARTITIONS,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.nodes, self.partitions, self.settings = tuple(nodes), tuple(partitions), dict(settings or {})
        self.environment: dict[str, str] = {}  # of the daemons, beside this process's
        self._given = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lock: IO[str] | None = None

    # -- life -----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Cluster:
        reason = why_not()
        if reason:
            raise RuntimeError(reason)
        self._lock = LOCK.open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # /etc/slurm is one for all
        # Unix sockets have short paths, pytest's folders long ones.
        self.folder = Path(self._given or tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.run_folder = Path(tempfile.mkdtemp(prefix="munge-", dir="/tmp"))
        self.run_folder.chmod(0o755)
        try:
            self._configure()
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the daemons and the jobs, and take the links out of /etc/slurm."""
        if "slurmctld" in self._processes and self._processes["slurmctld"].poll() is None:
            subprocess.run(["scancel", "--quiet", "--full", "--user=root"], capture_output=True, timeout=20)
            with contextlib.suppress(TimeoutError):
                self.wait(lambda: not self._started_steps(), "job steps to end", 10)
        for sent in (signal.SIGTERM, signal.SIGKILL):
            for process in self._processes.values():
                if process.poll() is None:
                    process.send_signal(sent)
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline and any(p.poll() is None for p in self._processes.values()):
                time.sleep(0.05)
        self._processes.clear()
        for name in FILES:
            link = ETC / name
            if link.is_symlink() and link.readlink().is_relative_to(self.folder):
                link.unlink()
        shutil.rmtree(self.run_folder, ignore_errors=True)
        if self._lock:
            self._lock.close()
        if self._given is None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _configure(self) -> None:
        host = socket.gethostname().split(".")[0]
        folder, munge = self.folder, self.run_folder
        lines = {
            "ClusterName": "test",
            "SlurmctldHost": f"{host}(127.0.0.1)",
            "SlurmctldPort": str(_free_port()),
            "SlurmUser": "root",
            "SlurmdUser": "root",
            "AuthType": "auth/munge",
            # A requeued job waits until its old credentials have expired: two minutes by default.
            "AuthInfo": f"socket={munge}/munge.socket,cred_expire=6",
            "StateSaveLocation": f"{folder}/state",
            "SlurmctldPidFile": f"{folder}/slurmctld.pid",
            "SlurmctldLogFile": f"{folder}/slurmctld.log",
            "SlurmdSpoolDir": f"{folder}/spool.%n",
            "SlurmdPidFile": f"{folder}/slurmd.%n.pid",
            "SlurmdLogFile": f"{folder}/slurmd.%n.log",
            "SlurmdParameters": "config_overrides",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "MpiDefault": "none",
            "SwitchType": "switch/none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core_Memory",
            "SchedulerParameters": "bf_interval=2,sched_interval=2",
            "GresTypes": "gpu",
            "MailProg": "/bin/true",
            "KillWait": "2",
            "MinJobAge": "300",
            "ReturnToService": "1",
            "SlurmdTimeout": "30",
            "InactiveLimit": "0",
            "PropagateResourceLimits": "NONE",
            "AccountingStorageType": "accounting_storage/none",
            # A job that takes more memory than it asked for is really killed.
            "JobAcctGatherType": "jobacct_gather/linux",
            "JobAcctGatherFrequency": "task=1",
            "JobAcctGatherParams": "OverMemoryKill",
            **self.settings,
        }
        text = [f"{key}={value}" for key, value in lines.items()]
        gres = []
        for group in self.nodes:
            kinds = ",".join(f"gpu:{kind}:{count}" for kind, count in group.gpus.items())
            ports = [_free_port() for _ in group.names]
            for name, port in zip(group.names, ports, strict=True):
                text.append(
                    f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} Sockets=1 "
                    f"CoresPerSocket={group.cpus} ThreadsPerCore=1 RealMemory={group.memory_mb}"
                    + (f" Gres={kinds}" if kinds else "")
                )
            for kind, count in group.gpus.items():
                # A count without files leaves the node INVAL. Empty files would do, but only for devices does Slurm
                # set CUDA_VISIBLE_DEVICES.
                for i in range(count):
                    _device(folder / f"gpu.{group.prefix}.{kind}.{i}", i)
                file = f"{folder}/gpu.{group.prefix}.{kind}.[0-{count - 1}]"
                gres.append(f"NodeName={group.range} Name=gpu Type={kind} File={file}")
        ranges = {group.prefix: group.range for group in self.nodes}
        for p in self.partitions:
            nodes = ",".join(ranges[n] for n in p.nodes)
            text.append(
                f"PartitionName={p.name} Nodes={nodes} State={p.state} MaxTime={p.max_time} "
                f"Default={'YES' if p.default else 'NO'}"
            )
        (folder / "state").mkdir(exist_ok=True)
        for group in self.nodes:
            for name in group.names:
                (folder / f"spool.{name}").mkdir(exist_ok=True)
        ETC.mkdir(exist_ok=True)
        for name, body in (("slurm.conf", text), ("gres.conf", gres)):
            (folder / name).write_text("\n".join(body) + "\n")
            (ETC / name).unlink(missing_ok=True)
            (ETC / name).symlink_to(folder / name)

    def _start(self) -> None:
        munge = self.run_folder
        key = munge / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        self._run(
            "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={munge}/munge.socket",
            f"--pid-file={munge}/munged.pid", f"--log-file={munge}/munged.log", f"--seed-file={munge}/seed",
        )  # fmt: skip
        self.wait(lambda: (munge / "munge.socket").exists(), "munged", 10)
        self._after_munge()
        self._run("slurmctld", "-D", "-i")
        for group in self.nodes:
            for name in group.names if group.running else ():
                self._run("slurmd", "-D", "-N", name, name=f"slurmd {name}")
        running = [n for g in self.nodes if g.running for n in g.names]
        self.wait(lambda: all(s.startswith("idle") for s in self.node_states(running).values()), "nodes to be idle", 60)

    def _after_munge(self) -> None:
        """What else has to run before the controller: nothing, on a cluster without accounts."""

    def _run(self, program: str, *arguments: str, name: str | None = None) -> None:
        with (self.folder / f"{(name or program).replace(' ', '.')}.out").open("wb") as out:
            self._processes[name or program] = subprocess.Popen(
                [_program(program), *arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
                env={**os.environ, **self.environment},
            )

    def _started_steps(self) -> list[str]:
        return _output("squeue", "-h", "-o", "%i", "-t", "running,completing").split()

    # -- what it knows ----------------------------------------------------------------------------------------------

    def node_states(self, names: Sequence[str]) -> dict[str, str]:
        """Node -> state, such as ``idle``, ``mixed``, ``down``."""
        out = _output("sinfo", "-h", "-N", "-n", ",".join(names), "-o", "%N %T")
        return dict.fromkeys(names, "unknown") | dict(line.split() for line in out.splitlines())

    def jobs(self) -> dict[str, dict[str, str]]:
        """Job id -> fields of ``scontrol show job``, of every job that the controller remembers (MinJobAge)."""
        found = {}
        for line in _output("scontrol", "show", "job", "-o", "-d").splitlines():
            fields = parse_job(line)
            if "JobId" in fields:
                found[fields["JobId"]] = fields
        return found

    def by_comment(self, pattern: str) -> list[dict[str, str]]:
        """Jobs whose comment (``rule_NAME_wildcards_…``) matches, in order of submission."""
        chosen = [j for j in self.jobs().values() if re.search(pattern, j.get("Comment", ""))]
        return sorted(chosen, key=lambda job: int(job["JobId"]))

    def wait(self, ready: Callable[[], Any], what: str, seconds: float = 60) -> Any:
        """Wait until ``ready()`` is true, and return what it returned.

        Raises:
            TimeoutError: with the ends of the daemons' logs.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                found = ready()
                if found:
                    return found
            except subprocess.SubprocessError:
                pass
            dead = [name for name, p in self._processes.items() if p.poll() is not None]
            if dead:
                what += f" ({', '.join(dead)} ended)"
                break
            time.sleep(0.1)
        logs = [p for p in [*self.folder.glob("*.out"), *self.folder.glob("slurm*.log")] if p.stat().st_size]
        tails = "\n".join(f"--- {p.name}\n{p.read_text(errors='replace')[-1500:]}" for p in logs)
        raise TimeoutError(f"waited {seconds} s for {what}\n{tails}")

    # -- what can happen to it ----------------------------------------------------------------------------------------

    def down(self, node: str, reason: str = "test") -> None:
        """Set a node to DOWN; its jobs fail with NODE_FAIL."""
        _output("scontrol", "update", f"nodename={node}", "state=down", f"reason={reason}")

    def resume(self, node: str) -> None:
        """Bring a node back."""
        _output("scontrol", "update", f"nodename={node}", "state=resume")

    def cancel(self, job: str) -> None:
        """``scancel``, as somebody at a terminal does."""
        _output("scancel", job)

    def requeue(self, job: str) -> None:
        """``scontrol requeue``, as preemption does."""
        _output("scontrol", "requeue", job)


def parse_job(line: str) -> dict[str, str]:
    """Fields of one line of ``scontrol show job -o``; values may hold spaces and equals signs.

    >>> parse_job("JobId=7 JobName=x y Comment=rule_a_b=c TRES=cpu=2,mem=1G")["TRES"]
    'cpu=2,mem=1G'
    """
    parts = re.split(r"(?:^|\s)([A-Z][A-Za-z:/_]*)=", line)
    return {key: value.strip() for key, value in zip(parts[1::2], parts[2::2], strict=True)}


def tres(job: Mapping[str, str]) -> dict[str, str]:
    """What a job asked for in all: ``cpu``, ``mem``, ``node``. (GPUs are in ``TresPerJob`` or ``TresPerNode``.)

    >>> tres({"TRES": "cpu=2,mem=1G,node=1,billing=2"})["mem"]
    '1G'
    """
    text = job.get("ReqTRES") or job.get("TRES") or ""
    return dict(part.split("=", 1) for part in text.split(",") if "=" in part)


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def _device(path: Path, minor: int) -> None:
    """A character device that nobody opens; where that is not allowed (some containers), an empty file."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(195, minor))
    except OSError:
        path.touch()


def _die_with_parent() -> None:
    """Linux: the daemon ends when the test that started it is killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


_handed_out: set[int] = set()


def _free_port() -> int:
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if port not in _handed_out:
            _handed_out.add(port)
            return port


if __name__ == "__main__":
    with Cluster() as running:
        names = ", ".join(n for group in running.nodes for n in group.names)
        print(f"Slurm is up: {names}. Configuration and logs: {running.folder}.")
        print("Try `sinfo`, then `snakemake --profile slurm`. Ctrl-C ends it.")
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
