"""An engine over several nodes of one Slurm job: vLLM's own launcher, without Ray.

The job runs once, on its first node, and is rank 0: it loads vLLM with :func:`engine_arguments` and times it as on one
node. :func:`worker_ranks` starts ``vllm serve --headless`` on every other node, with the same arguments, and ends
them afterwards. The address is the first node's, the port follows from the job's id, so that two jobs on the same
nodes do not meet.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moecap.errors import MoecapError

log = logging.getLogger(__name__)

FIRST_PORT, PORTS = 29500, 20000
# What the ranks on other nodes print: LOGS/JOBID/rank-N.log, beside Slurm's own output of jobs.
LOGS = "results/logs/ranks"


@dataclass(frozen=True)
class Allocation:
    """The nodes of a Slurm job, the one that this process runs on first."""

    job_id: str
    nodes: tuple[str, ...]

    @property
    def port(self) -> int:
        """For torch.distributed, on the first node."""
        return FIRST_PORT + int(self.job_id.split("_")[0]) % PORTS


def allocation(environment: Mapping[str, str] | None = None) -> Allocation | None:
    """The nodes of the Slurm job around this process; None outside of one.

    Asked of Slurm, not read from the environment: Snakemake's job step keeps the job's id only.
    """
    job_id = (os.environ if environment is None else environment).get("SLURM_JOB_ID")
    if not job_id:
        return None
    shown = _slurm("scontrol", "show", "job", "-o", job_id)
    names = next((word.partition("=")[2] for word in shown.split() if word.startswith("NodeList=")), "")
    return Allocation(job_id, tuple(_slurm("scontrol", "show", "hostnames", names).split()))


def engine_arguments(where: Allocation) -> dict[str, Any]:
    """What vLLM's ``EngineArgs`` need on rank 0, beside those for one node; nothing for a job on one node."""
    if len(where.nodes) == 1:
        return {}
    return {
        "distributed_executor_backend": "mp",
        "nnodes": len(where.nodes),
        "node_rank": 0,
        "master_addr": where.nodes[0],
        "master_port": where.port,
    }


def rank_command(where: Allocation, rank: int, arguments: Mapping[str, Any], python: str = sys.executable) -> list[str]:
    """The command of one node's ranks (``rank`` ≥ 1), with rank 0's ``arguments`` to ``EngineArgs``.

    >>> where = Allocation("7", ("n1", "n2"))
    >>> " ".join(rank_command(where, 1, {"model": "m", "tensor_parallel_size": 16, "seed": 1}, "python"))
    'python -m vllm.entrypoints.cli.main serve m --headless --tensor-parallel-size 16 --seed 1 --distributed-executor-backend mp --nnodes 2 --node-rank 1 --master-addr n1 --master-port 29507'
    """  # noqa: E501
    given = {**arguments, **engine_arguments(where), "node_rank": rank}
    model = given.pop("model")
    command = [python, "-m", "vllm.entrypoints.cli.main", "serve", str(model), "--headless"]
    for key, value in given.items():
        flag = "--" + key.replace("_", "-")
        if value is True:
            command.append(flag)
        elif value is False:
            command.append("--no-" + flag[2:])
        elif value is not None:
            command += [flag, json.dumps(value) if isinstance(value, (dict, list)) else str(value)]
    return command


def step_command(where: Allocation, rank: int, command: Sequence[str]) -> list[str]:
    """``srun`` that runs ``command`` on the node of ``rank``, beside whatever the job already runs, with its GPUs."""
    return [
        *("srun", f"--jobid={where.job_id}", "--overlap", "--nodes=1", "--ntasks=1", "--exact", "--mem=0"),
        *(f"--nodelist={where.nodes[rank]}", "--cpu-bind=none", "--kill-on-bad-exit=1"),
        *command,
    ]


@contextmanager
def worker_ranks(
    where: Allocation, arguments: Mapping[str, Any], logs: str | Path, python: str = sys.executable
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run the other nodes' ranks while the block runs; their output goes to ``logs``/rank-N.log.

    Raises:
        MoecapError: when the block fails and a rank had ended before: the message names its log.
    """
    Path(logs).mkdir(parents=True, exist_ok=True)
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(1, len(where.nodes)):
            command = step_command(where, rank, rank_command(where, rank, arguments, python))
            log.info("rank %d on %s: %s", rank, where.nodes[rank], shlex.join(command))
            with (Path(logs) / f"rank-{rank}.log").open("wb") as output:
                ranks.append(subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True))
        try:
            yield ranks
        except Exception as error:
            for number, process in enumerate(ranks, 1):
                if process.poll() is not None:
                    raise MoecapError(
                        f"The engine's rank on {where.nodes[number]} ended with status {process.returncode}; see "
                        f"{Path(logs) / f'rank-{number}.log'}. Rank 0 says: {str(error).splitlines()[0]}"
                    ) from error
            raise
    finally:
        for how in (signal.SIGTERM, signal.SIGKILL):
            for process in ranks:
                if process.poll() is None:
                    process.send_signal(how)
            for process in ranks:
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    log.warning("a rank did not end within 20 s of %s", how.name)


@contextmanager
def over_nodes(arguments: Mapping[str, Any], logs: str | Path = LOGS) -> Iterator[dict[str, Any]]:
    """What a vLLM that has ``arguments`` needs beside them on this node, while the other nodes' ranks run.

    Nothing, and no rank elsewhere, unless this is a Slurm job over several nodes and the engine's devices (tensor ×
    pipeline parallel) are more than this node has.
    """
    devices = int(arguments.get("tensor_parallel_size", 1)) * int(arguments.get("pipeline_parallel_size", 1))
    where = allocation() if devices > 1 else None
    if where is None or len(where.nodes) == 1 or devices <= _local_devices():
        yield {}
        return
    with worker_ranks(where, arguments, Path(logs) / where.job_id):
        yield engine_arguments(where)


def _local_devices() -> int:
    import torch

    return torch.cuda.device_count()


def _slurm(*command: str) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise MoecapError(
            f"`{shlex.join(command)}` failed: {error}. It tells the nodes that this job runs on."
        ) from error
