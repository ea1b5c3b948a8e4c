"""What a job asks of a cluster: nodes, GPUs, cores, memory and time, from the model's size and the site's file.

Pure functions. The sizes come from what is stored (a checkpoint's manifest) or, before it is there, from what the
deployment's devices can hold; the names come from ``config/site.yaml``. Nothing here is a limit that one must hit: a
request is generous, and a job that was killed for memory or time asks for more when it is tried again.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field

from moecap.campaign.config import Config
from moecap.documents import read_document
from moecap.errors import MoecapError
from moecap.schema import Strict, check

GB = 10**9
# Slurm's own output of jobs: `slurm-logdir` of the profile.
SLURM_LOGS = "results/logs/slurm"

# Every resource that :func:`resources` may set. A rule lists them all; those that are None are not passed on.
RESOURCES = (
    "slurm_account",
    "slurm_partition",
    "qos",
    "constraint",
    "slurm_extra",
    "nodes",
    "gpu",
    "gpu_model",
    "gres",
    "tasks",
    "tasks_per_gpu",
    "mpi",
    "cpus_per_task",
    "mem_mb",
    "runtime",
)

# What Snakemake insists on knowing of a job that no cluster is asked for.
UNASKED = {"mem_mb": 4000, "runtime": 60}

Place = Literal["gpu", "cpu", "network", "local"]


@dataclass(frozen=True)
class Stage:
    """How a stage uses a machine. ``place`` "gpu" becomes "cpu" for a deployment without GPU.

    ``memory_factor``: host memory per byte of the checkpoint. ``timed``: nothing else may run beside it.
    ``point_min``: minutes per point (dataset × batch size, or dataset) when nobody knows better.
    """

    place: Place
    base_gb: float = 4.0
    memory_factor: float = 0.0
    startup_min: float = 5.0
    point_min: float = 0.0
    timed: bool = False


STAGES: dict[str, Stage] = {
    "download": Stage("network", memory_factor=0.0, startup_min=10),
    # llmcompressor holds the checkpoint and, while it writes, the quantized copy.
    "quantize": Stage("cpu", memory_factor=2.2, startup_min=20, point_min=30),
    # llama.cpp's converter and ggml's kernels: on CPUs, by way of a file in F32, twice the checkpoint.
    "convert_gguf": Stage("cpu", memory_factor=2.2, startup_min=20, point_min=30),
    "train_demo": Stage("cpu", base_gb=6, startup_min=60),
    "evaluate": Stage("gpu", base_gb=6, memory_factor=1.1, startup_min=15, point_min=60),
    "calibrate": Stage("gpu", startup_min=15, timed=True),
    "measure": Stage("gpu", base_gb=6, memory_factor=1.1, startup_min=15, point_min=5, timed=True),
    "replay": Stage("gpu", base_gb=6, memory_factor=1.1, startup_min=15, point_min=3),
    "trace_decode": Stage("gpu", base_gb=6, memory_factor=1.1, startup_min=15, point_min=3),
    # Decoded by Transformers on a CPU, one step per batch size.
    "measure_bytes": Stage("cpu", base_gb=6, memory_factor=1.1, startup_min=15, point_min=15),
    # A step table is as long as the run had steps; it is built on one core.
    "metrics": Stage("cpu", base_gb=8, startup_min=10, point_min=2),
    "cost": Stage("cpu"),
    **{
        rule: Stage("local")
        for rule in (
            *("demo_data", "published", "published_cost", "published_hosts", "anatomy"),
            # A judge is asked over the network, which the machine has that Snakemake runs on.
            *("judge", "check_replay", "cap", "charts", "report", "plan", "cross_check", "archive", "compare"),
        )
    },
}
# After these classes of failure a job asks for twice as much of what it lacked.
GROWS = {"memory": "mem_mb", "time": "runtime"}


class Gpus(Strict):
    """One kind of GPU, as the cluster knows it."""

    type: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.]+$", description="Slurm's name; null: any GPU")
    per_node: int = Field(default=8, ge=1)
    partition: str | None = None
    constraint: str | None = None


class Partitions(Strict):
    """Names of partitions; null: the cluster's default (of ``network``: where snakemake runs)."""

    gpu: str | None = None
    cpu: str | None = None
    network: str | None = None


class Site(Strict):
    """``config/site.yaml``. Each key is explained there."""

    account: str | None = None
    qos: str | None = None
    reservation: str | None = None
    partitions: Partitions = Partitions()
    gpus: dict[str, Gpus] = Field(default={})
    other_gpus: Gpus = Gpus()
    cpus_per_gpu: int = Field(default=8, ge=1)
    cpus: int = Field(default=8, ge=1)
    exclusive: bool = False
    node_memory_gb: float | None = Field(default=None, gt=0)
    max_runtime_min: int = Field(default=1440, ge=1)
    read_gb_per_s: float = Field(default=0.5, gt=0)
    model_cache: str | None = None
    node_scratch: str | None = None
    modules: tuple[str, ...] = ()
    container: str | None = None


def load_site(path: str | Path = "config/site.yaml") -> Site:
    """Read and check a site's file. A project that has none where the config's default looks asks for nothing.

    Raises:
        MoecapError: it does not exist, or a key or value is wrong; the message names it.
    """
    default = Config.model_fields["site"].default
    if str(path) == default and not Path(path).exists() and not Path(path).is_symlink():
        return Site()
    document = read_document(path)
    return check(Site, document.data or {}, document.place)


@dataclass(frozen=True)
class Need:
    """What is known about a job before it is submitted. Unknown is None or 0.

    ``gpu`` is the entry of the hardware catalogue, None for a deployment on CPUs. ``points`` counts what the stage
    repeats: dataset × batch size for timed runs, datasets for accuracy. ``busy_s`` is an estimate of the time that the
    work itself takes, where there is one.
    """

    stage: str
    gpu: str | None = None
    devices: int = 1
    device_memory_bytes: int | None = None
    weight_bytes: int | None = None
    offload: str = "none"
    points: int = 0
    busy_s: float | None = None
    cores: int | None = None


def shared_cache(config: Mapping[str, object]) -> str | None:
    """``model_cache`` of the site that a workflow's config names; None where there is none."""
    path = config.get("site", Config.model_fields["site"].default)
    return load_site(str(path)).model_cache if path is not None else None


def local_rules(site: Site) -> list[str]:
    """Rules that run where snakemake does: tables and charts, and downloads where no partition has a network."""
    return sorted(rule for rule, stage in STAGES.items() if _place(site, stage, None) == "local")


def devices_for(weight_bytes: int, device_memory_bytes: int, usable: float = 0.8) -> int:
    """How many devices hold a model, as a power of two: tensor parallelism divides heads evenly.

    ``usable`` is the share of a device's memory that weights may fill; the rest is KV cache and workspace.

    >>> devices_for(281_280_000_000, 80_000_000_000)
    8
    """
    return 2 ** math.ceil(math.log2(max(1.0, weight_bytes / (device_memory_bytes * usable))))


def resources(site: Site, need: Need, failures: Sequence[str] = ()) -> dict[str, int | str]:
    """The resources of one job, by the names that Snakemake and its Slurm plugin know.

    Args:
        failures: classes of this job's earlier failures (:func:`failure_class`); memory and time double for each that
            lacked them.

    Raises:
        MoecapError: the devices do not divide over nodes, or a node's memory is too small.
    """
    stage = STAGES[need.stage]
    place = _place(site, stage, need.gpu)
    if place == "local":
        return {}
    found: dict[str, int | str | None] = {"slurm_account": site.account, "qos": site.qos}
    extra = [f"--reservation={shlex.quote(site.reservation)}"] if site.reservation else []
    nodes = 1
    if place == "gpu":
        gpus = site.gpus.get(need.gpu or "", site.other_gpus)
        nodes = math.ceil(need.devices / gpus.per_node)
        per_node, rest = divmod(need.devices, nodes)
        if rest:
            raise MoecapError(
                f"{need.stage}: {need.devices} × {need.gpu} do not divide over {nodes} nodes of {gpus.per_node}. "
                f"Choose a multiple of the nodes, or correct `per_node` of {need.gpu} in the site's file."
            )
        cores = site.cpus_per_gpu * per_node
        found |= _gpu_request(gpus, nodes, per_node)
        found["slurm_partition"] = gpus.partition or site.partitions.gpu
        found["constraint"] = gpus.constraint
        if stage.timed and (site.exclusive or nodes > 1):
            extra.append("--exclusive")
    else:
        per_node = 1
        cores = need.cores or site.cpus
        found["slurm_partition"] = site.partitions.network if place == "network" else site.partitions.cpu
        if place == "network":
            cores = min(cores, 4)
        if stage.timed:
            extra.append("--exclusive")
    found["nodes"] = nodes
    found["cpus_per_task"] = cores
    found["slurm_extra"] = " ".join(extra) or None
    found["mem_mb"] = _memory_mb(site, stage, need, nodes, per_node, _lacked(failures, "memory"))
    found["runtime"] = min(site.max_runtime_min, runtime_min(site, need) * 2 ** _lacked(failures, "time"))
    return {key: value for key, value in found.items() if value is not None}


def weight_bytes(need: Need) -> int:
    """Bytes of the checkpoint; before anybody knows, as much as the devices hold (a deployment fits its devices)."""
    if need.weight_bytes is not None:
        return need.weight_bytes
    return need.devices * (need.device_memory_bytes or 0)


def runtime_min(site: Site, need: Need) -> int:
    """Minutes that a job asks for: start-up, reading (or fetching) the checkpoint, the work; half as much again."""
    stage = STAGES[need.stage]
    moving_s = weight_bytes(need) / GB / site.read_gb_per_s if stage.memory_factor or need.stage == "download" else 0.0
    work_s = need.busy_s if need.busy_s is not None else 60 * stage.point_min * need.points
    minutes = 1.5 * (stage.startup_min + (moving_s + work_s) / 60)
    return min(site.max_runtime_min, 5 * math.ceil(minutes / 5))


def shell_prefix(site: Site) -> str:
    """What a job's shell runs first: modules, and where engines put what they compile."""
    parts = []
    if site.modules:
        parts.append(f"module load {' '.join(map(shlex.quote, site.modules))}")
    if site.node_scratch:
        # Double quotes: variables are expanded on the node.
        parts.append(f'export MOECAP_SCRATCH="{site.node_scratch}" && mkdir -p "$MOECAP_SCRATCH"')
        for variable in ("VLLM_CACHE_ROOT", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
            parts.append(f'export {variable}="$MOECAP_SCRATCH/{variable.lower()}"')
    return "".join(f"{part}; " for part in parts)


# -- what went wrong before -----------------------------------------------------------------------------------------

_CLASSES = (
    ("memory", re.compile(r"oom[-_ ]?kill|out[- ]of[- ]memory|exceeded (?:job |step )?memory limit", re.IGNORECASE)),
    ("time", re.compile(r"DUE TO TIME LIMIT")),
    ("node", re.compile(r"DUE TO NODE FAILURE|NODE_FAIL")),
    ("preempted", re.compile(r"DUE TO PREEMPTION")),
    ("cancelled", re.compile(r"CANCELLED AT")),
)


def failure_class(log: str) -> str:
    """Why Slurm ended a job, from the job's own output: memory, time, node, preempted, cancelled; else ``error``.

    >>> failure_class("slurmstepd: error: *** STEP 7.0 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT ***")
    'time'
    """
    return next((name for name, pattern in _CLASSES if pattern.search(log)), "error")


def slurm_logs(folder: str | Path, rule: str, wildcards: Iterable[str], group: str | None = None) -> list[Path]:
    """Slurm's output files of a job's attempts that failed, oldest first. (Those of successful ones are removed.)

    The layout is the executor plugin's: ``rule_NAME/WILDCARDS/JOBID.log`` below the profile's ``slurm-logdir``, for
    jobs that run as a group ``group_GROUP_RULES/JOBID.log``.
    """
    if group:
        found = Path(folder).glob(f"group_{group}_*/*.log")
    else:
        found = (Path(folder) / f"rule_{rule}" / "_".join(map(str, wildcards)).replace("/", "_")).glob("*.log")
    return sorted((p for p in found if p.stem.isdigit()), key=lambda p: int(p.stem))


def earlier_failures(
    folder: str | Path, rule: str, wildcards: Iterable[str], attempt: int, group: str | None = None
) -> list[str]:
    """Classes of the failures before ``attempt`` (1 is the first, which has none), oldest first."""
    if attempt == 1:
        return []
    logs = slurm_logs(folder, rule, wildcards, group)
    return [failure_class(p.read_text(errors="replace")) for p in logs[-(attempt - 1) :]]


# -- before anything is spent -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """What a campaign would take. Rough: the time is what the jobs ask for, not what they will use."""

    jobs: Mapping[str, int]
    gpu_hours: float
    usd: float | None
    disk_bytes: int

    def __str__(self) -> str:
        stages = ", ".join(f"{count} {stage}" for stage, count in self.jobs.items())
        dollars = f", {self.usd:,.0f} USD to rent" if self.usd is not None else ""
        hours = f"; {self.gpu_hours:,.0f} GPU-hours{dollars}" if self.gpu_hours else ""
        disk = f"; {self.disk_bytes / GB:,.0f} GB of checkpoints to store" if self.disk_bytes else ""
        return f"Estimate (rough, an upper bound: the time that jobs ask for): {stages}{hours}{disk}."


def estimate(
    site: Site,
    needs: Iterable[Need],
    usd_per_device_hour: Mapping[str, float] | None = None,
    disk_bytes: int = 0,
) -> Estimate:
    """Add up what ``needs`` (one per job) would ask for.

    Args:
        usd_per_device_hour: by GPU entry; where a GPU in use has none, the sum in dollars is None.
        disk_bytes: checkpoints that are not there yet.
    """
    jobs: dict[str, int] = {}
    hours: dict[str, float] = {}
    for need in needs:
        jobs[need.stage] = jobs.get(need.stage, 0) + 1
        if _place(site, STAGES[need.stage], need.gpu) == "gpu":
            hours[need.gpu or ""] = hours.get(need.gpu or "", 0.0) + need.devices * runtime_min(site, need) / 60
    prices = usd_per_device_hour or {}
    usd = sum(h * prices[g] for g, h in hours.items()) if all(g in prices for g in hours) else None
    return Estimate(jobs, sum(hours.values()), usd if hours else None, disk_bytes)


# -- small things -------------------------------------------------------------------------------------------------


def _place(site: Site, stage: Stage, gpu: str | None) -> Place:
    if stage.place == "network" and site.partitions.network is None:
        return "local"
    if stage.place == "gpu" and gpu is None:
        return "cpu"
    if stage.place == "cpu" and gpu is not None and stage is STAGES["quantize"]:
        return "gpu"
    return stage.place


def _gpu_request(gpus: Gpus, nodes: int, per_node: int) -> dict[str, int | str | None]:
    if nodes == 1:
        return {"gpu": per_node, "gpu_model": gpus.type}
    # As many on each node (`--gpus` would let Slurm split them unevenly), and one task per node: the job starts its
    # ranks itself. `mpi` keeps the plugin from wrapping the job in a step of one task, 0 from counting tasks per GPU.
    gres = f"gpu:{gpus.type}:{per_node}" if gpus.type else f"gpu:{per_node}"
    return {"gres": gres, "mpi": "srun", "tasks": nodes, "tasks_per_gpu": 0}


def _memory_mb(site: Site, stage: Stage, need: Need, nodes: int, ranks: int, doublings: int) -> int:
    """Host memory per node: the engine itself, each rank's processes, and the checkpoint's share.

    On GPUs the checkpoint passes through the page cache; offloaded to DRAM, or served by the CPU, it stays.
    """
    factor = stage.memory_factor
    if factor and need.gpu is None:
        factor += 0.4
    elif factor and need.offload == "dram":
        factor += 1.0
    needed = stage.base_gb + (6 * ranks if need.gpu else 0) + factor * weight_bytes(need) / nodes / GB
    limit = site.node_memory_gb if need.gpu else None
    if limit and needed > limit:
        raise MoecapError(
            f"{need.stage}: {need.devices} × {need.gpu} with a checkpoint of {weight_bytes(need) / GB:.0f} GB take "
            f"{needed:.0f} GB of host memory per node; `node_memory_gb` of the site's file says that it has {limit:g}."
        )
    return int(1000 * min(math.ceil(round(needed, 3)) * 2**doublings, limit or math.inf))


def _lacked(failures: Sequence[str], what: str) -> int:
    return min(4, sum(failure == what for failure in failures))


@cache
def cached_site(path: str) -> Site:
    """:func:`load_site`, once."""
    return load_site(path)
