"""The launch command of each rank of an engine over several nodes."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moecap.engines.vllm.multinode import (
    Allocation,
    allocation,
    engine_arguments,
    rank_command,
    step_command,
    worker_ranks,
)
from moecap.errors import MoecapError

TWO = Allocation("1234", ("h1", "h2"))
DEEPSEEK = {
    "model": "results/models/deepseek-v3/bf16",
    "tensor_parallel_size": 16,
    "enable_expert_parallel": True,
    "enable_prefix_caching": False,
    "trust_remote_code": False,
    "seed": 1,
    "max_num_seqs": 64,
    "compilation_config": {"level": 3},
    "quantization": None,
}


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_rank_0_and_the_others_agree_on_everything_but_the_rank():
    first = DEEPSEEK | engine_arguments(TWO)
    assert (first["nnodes"], first["node_rank"], first["master_addr"]) == (2, 0, "h1")
    command = rank_command(TWO, 1, DEEPSEEK, "python")
    text = " ".join(command)
    assert text.startswith("python -m vllm.entrypoints.cli.main serve results/models/deepseek-v3/bf16 --headless ")
    assert f"--nnodes 2 --node-rank 1 --master-addr h1 --master-port {first['master_port']}" in text
    assert "--tensor-parallel-size 16 --enable-expert-parallel --no-enable-prefix-caching" in text
    assert "quantization" not in text
    assert command[command.index("--compilation-config") + 1] == '{"level": 3}'


def test_one_node_needs_nothing():
    assert engine_arguments(Allocation("1", ("h1",))) == {}


def test_jobs_do_not_share_a_port_and_arrays_have_one():
    assert Allocation("7", ("a",)).port != Allocation("8", ("a",)).port
    assert 1024 < Allocation("123456789_4", ("a",)).port < 65536


def test_steps_share_the_jobs_resources_and_are_put_on_their_node():
    command = step_command(TWO, 1, ["true"])
    assert {"--jobid=1234", "--overlap", "--nodelist=h2", "--nodes=1", "--ntasks=1"} <= set(command)


def test_allocation_is_asked_of_slurm(tmp_path, monkeypatch):
    assert allocation({}) is None
    script(
        tmp_path / "scontrol",
        '[ "$2" = job ] && echo "JobId=5 ReqNodeList=(null) NodeList=h[1-2] NumNodes=2" || printf "h1\\nh2\\n"',
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert allocation({"SLURM_JOB_ID": "5"}) == Allocation("5", ("h1", "h2"))
    script(tmp_path / "scontrol", "exit 1")
    with pytest.raises(MoecapError, match="scontrol show job"):
        allocation({"SLURM_JOB_ID": "5"})


@pytest.fixture
def srun(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return lambda text: script(folder / "srun", text)


def test_ranks_live_as_long_as_the_block(tmp_path, srun):
    srun('echo "$@"; exec sleep 600')
    three = Allocation("9", ("h1", "h2", "h3"))
    with worker_ranks(three, DEEPSEEK, tmp_path / "logs", "python") as ranks:
        deadline = time.monotonic() + 30
        while not all((tmp_path / f"logs/rank-{i}.log").stat().st_size for i in (1, 2)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(ranks) == 2 and all(r.poll() is None for r in ranks)
    assert all(r.poll() is not None for r in ranks)
    assert "--node-rank 2" in (tmp_path / "logs/rank-2.log").read_text()


def test_rank_that_died_is_named(tmp_path, srun):
    srun("echo no NCCL; exit 7")
    with (
        pytest.raises(MoecapError, match=r"rank on h2 ended with status 7; see .*rank-1\.log.*timed out"),
        worker_ranks(TWO, DEEPSEEK, tmp_path, "python") as ranks,
    ):
        ranks[0].wait()
        raise RuntimeError("timed out")


@pytest.mark.engine
def test_vllm_understands_the_command():
    """The flags exist in the vLLM that is pinned, and mean what rank 0's arguments mean."""
    code = (
        "import json, sys\n"
        "from vllm.entrypoints.launchers.cli_args import make_arg_parser\n"
        "from vllm.utils.argparse_utils import FlexibleArgumentParser\n"
        "found = make_arg_parser(FlexibleArgumentParser()).parse_args(sys.argv[1:])\n"
        "keys = ['nnodes', 'node_rank', 'master_addr', 'headless', 'tensor_parallel_size', 'enable_expert_parallel',"
        " 'enable_prefix_caching', 'trust_remote_code', 'distributed_executor_backend', 'model_tag']\n"
        "print('RESULT' + json.dumps({k: getattr(found, k) for k in keys}))\n"
    )
    arguments = {k: v for k, v in DEEPSEEK.items() if k != "compilation_config"}
    command = rank_command(TWO, 1, arguments)
    shown = subprocess.run(
        [sys.executable, "-c", code, *command[command.index("serve") + 1 :]],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "RESULT" in shown.stdout, shown.stderr[-2000:]
    found = json.loads(shown.stdout.split("RESULT")[1].splitlines()[0])
    assert found == {
        "nnodes": 2,
        "node_rank": 1,
        "master_addr": "h1",
        "headless": True,
        "tensor_parallel_size": 16,
        "enable_expert_parallel": True,
        "enable_prefix_caching": False,
        "trust_remote_code": False,
        "distributed_executor_backend": "mp",
        "model_tag": DEEPSEEK["model"],
    }
