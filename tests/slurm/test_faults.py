"""A real Slurm, the profile as it stands, and jobs that are killed, cancelled, requeued, or lose their node."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.slurm.cluster import Cluster, Nodes, Partition, tres, why_not

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(why_not()), reason=f"no Slurm here: {why_not()}"),
]

SITE = {
    "partitions": {"gpu": "gpu", "cpu": "cpu"},
    "gpus": {"A100": {"type": "a100", "per_node": 8}},
    "cpus_per_gpu": 1,
    "cpus": 1,
    "max_runtime_min": 60,
}


@pytest.fixture(scope="module")
def cluster():
    nodes = [Nodes(cpus=16, memory_mb=64_000)]
    partitions = [Partition("gpu", ("n",), default=True), Partition("cpu", ("n",))]
    with Cluster(nodes=nodes, partitions=partitions) as running:
        yield running


class Run:
    """A snakemake that runs beside the test, through the profile."""

    def __init__(self, folder: Path, jobs: dict, *more: str) -> None:
        self.folder, self.jobs = folder, jobs
        (folder / "site.yaml").write_text(yaml.safe_dump(SITE))
        (folder / "jobs.json").write_text(json.dumps(jobs))
        self.log = (folder / "snakemake.log").open("a+")
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "snakemake", "--profile", "slurm", "--snakefile", "tests/slurm/Snakefile"),
                *("--directory", str(folder), "--latency-wait", "5"),
                *("--slurm-init-seconds-before-status-checks", "2", *more),
                *("--config", f"root={ROOT}", f"site={folder}/site.yaml", f"jobs={folder}/jobs.json"),
            ],
            cwd=ROOT,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )

    def wait(self, seconds: float = 240) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.stop()
            pytest.fail(f"snakemake did not end within {seconds} s:\n{self.text()[-4000:]}")

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def text(self) -> str:
        return Path(self.log.name).read_text()

    def output(self, name: str) -> str:
        return (self.folder / f"results/out/{name}.txt").read_text()

    def slurm_logs(self, name: str) -> str:
        logs = sorted((self.folder / f"results/logs/slurm/rule_work/{name}").glob("*.log"))
        return "\n".join(p.read_text() for p in logs)


@pytest.fixture
def start(tmp_path, cluster):
    runs = []

    def starter(jobs: dict, *more: str) -> Run:
        runs.append(Run(tmp_path, jobs, *more))
        return runs[-1]

    yield starter
    for run in runs:
        run.stop()
    subprocess.run(["scancel", "--user=root"], check=False)
    cluster.wait(lambda: not cluster._started_steps(), "the queue to be empty", 30)


def jobs_of(cluster: Cluster, name: str) -> list[dict[str, str]]:
    return cluster.by_comment(rf"^rule_work_wildcards_{name}$")


def gpu(devices: int, **more) -> dict:
    return {"stage": "measure", "gpu": "A100", "devices": devices, "weight_bytes": 10**9, "points": 1, **more}


def test_resources_are_what_slurm_was_asked_for(start, cluster):
    ranks = f"PYTHONPATH={ROOT} {sys.executable} {ROOT}/tests/slurm/ranks.py"
    run = start(
        {
            "two": {"need": gpu(2), "command": "echo GPUs $CUDA_VISIBLE_DEVICES"},
            "nodes": {"need": gpu(16), "command": ranks},
            "cores": {"need": {"stage": "measure", "weight_bytes": 10**9, "cores": 3, "points": 4}, "command": "nproc"},
        }
    )
    assert run.wait() == 0, run.text()[-4000:]

    (two,) = jobs_of(cluster, "two")
    assert two["TresPerJob"] == "gres:gpu:a100:2" and two["Partition"] == "gpu" and two["NumNodes"] == "1"
    assert tres(two) | {"cpu": "2", "mem": "20000M", "node": "1"} == tres(two)
    assert two["TimeLimit"] == "00:35:00"
    assert len(run.output("two").split(",")) == 2

    (nodes,) = jobs_of(cluster, "nodes")
    assert nodes["TresPerNode"] == "gres:gpu:a100:8" and nodes["NumNodes"] == "2"
    assert run.output("nodes").splitlines() == [
        "batch host n1 of 2",
        "rank 0 on n1 with GPUs 0,1,2,3,4,5,6,7",
        "rank 1 on n2 with GPUs 0,1,2,3,4,5,6,7",
    ]

    (cores,) = jobs_of(cluster, "cores")
    assert cores["Partition"] == "cpu" and cores["OverSubscribe"] == "NO"  # --exclusive: it is timed
    assert "TresPerJob" not in cores and "TresPerNode" not in cores
    assert cores["MinCPUsNode"] == "3"


def test_killed_for_memory_is_tried_again_with_more(start, cluster):
    hungry = f"{sys.executable} -c 'import time; x = bytearray(900 << 20); time.sleep(4); print(len(x))'"
    run = start({"hungry": {"need": {"stage": "cost"}, "scale": 0.2, "command": hungry}})
    assert run.wait() == 0, run.text()[-4000:]
    first, second = jobs_of(cluster, "hungry")
    assert (tres(first)["mem"], tres(second)["mem"]) == ("800M", "1600M")
    assert first["JobState"] != "COMPLETED" and second["JobState"] == "COMPLETED"
    assert first["TimeLimit"] == second["TimeLimit"]
    assert "exceeded memory limit" in run.slurm_logs("hungry")


@pytest.mark.slow
def test_out_of_time_is_tried_again_with_more(start, cluster):
    run = start({"slow": {"need": {"stage": "cost"}, "runtime": 1, "command": "sleep 90; echo done"}})
    assert run.wait(420) == 0, run.text()[-4000:]
    first, second = jobs_of(cluster, "slow")
    assert (first["TimeLimit"], second["TimeLimit"]) == ("00:01:00", "00:02:00")
    assert first["JobState"] == "TIMEOUT" and second["JobState"] == "COMPLETED"
    assert tres(first)["mem"] == tres(second)["mem"]
    assert "DUE TO TIME LIMIT" in run.slurm_logs("slow")


@pytest.mark.slow
def test_failure_of_its_own_gets_nothing_more(start, cluster):
    run = start({"wrong": {"need": {"stage": "cost"}, "command": "echo it is broken; exit 3"}}, "--retries", "1")
    assert run.wait() != 0
    first, second = jobs_of(cluster, "wrong")
    assert tres(first) == tres(second) and first["TimeLimit"] == second["TimeLimit"]


@pytest.mark.slow
def test_cancelled_requeued_and_lost(start, cluster):
    """``scancel``, ``scontrol requeue`` and a node set to DOWN, while the jobs run; all of them finish."""
    wait = "echo $SLURM_JOB_ID >> {f}/started-{n}; while [ ! -e {f}/go ]; do sleep 0.2; done; echo {n} ended"
    names = ("cancelled", "requeued", "lost")
    # The lost one has a node of its own: nothing else is to be restarted with it.
    needs = {n: {"stage": "cost"} for n in names} | {"lost": gpu(8)}
    run = start({n: {"need": needs[n], "command": wait.format(f="$PWD", n=n)} for n in names})
    folder = run.folder

    def running():
        found = {n: jobs_of(cluster, n) for n in names}
        ready = all(
            f and f[0]["JobState"] == "RUNNING" and (folder / f"started-{n}").exists() for n, f in found.items()
        )
        return found if ready else None

    def restarted(name, node=None):
        job = jobs_of(cluster, name)[0]
        return job["JobState"] == "RUNNING" and int(job["Restarts"]) > 0 and job["NodeList"] != node

    first = cluster.wait(running, "the jobs to run", 120)
    node = first["lost"][0]["NodeList"]
    cluster.cancel(first["cancelled"][0]["JobId"])
    cluster.requeue(first["requeued"][0]["JobId"])
    cluster.wait(lambda: restarted("requeued"), "the requeued job to run again", 240)
    cluster.down(node)
    try:
        # The one that lost its node starts on another, under its own id; Slurm lets two minutes pass before that.
        cluster.wait(lambda: restarted("lost", node), "the lost job to run elsewhere", 300)
        (folder / "go").touch()
        assert run.wait(300) == 0, run.text()[-4000:]
    finally:
        cluster.resume(node)
    assert all(run.output(n) == f"{n} ended\n" for n in names)
    assert len(jobs_of(cluster, "lost")) == 1 and int(jobs_of(cluster, "lost")[0]["Restarts"]) >= 1
    assert len(jobs_of(cluster, "requeued")) == 1 and int(jobs_of(cluster, "requeued")[0]["Restarts"]) >= 1
    cancelled, again = jobs_of(cluster, "cancelled")
    assert (cancelled["JobState"], again["JobState"]) == ("CANCELLED", "COMPLETED")


def test_snakemake_killed_and_started_again(start, cluster):
    """Its Slurm job is found and cancelled before anything is submitted; the lock of the dead process is lifted."""
    wait = "while [ ! -e $PWD/go ]; do sleep 0.2; done; echo ended"
    jobs = {"orphan": {"need": {"stage": "cost"}, "command": wait}}
    run = start(jobs)
    cluster.wait(lambda: (j := jobs_of(cluster, "orphan")) and j[0]["JobState"] == "RUNNING", "the job to run", 120)
    second = start(jobs)  # while the first is alive
    assert second.wait() != 0 and f"process {run.process.pid} on" in second.text()
    run.stop()
    again = start(jobs)
    cluster.wait(lambda: len(jobs_of(cluster, "orphan")) == 2, "the job to be submitted again", 120)
    assert jobs_of(cluster, "orphan")[0]["JobState"] == "CANCELLED"
    (run.folder / "go").touch()
    assert again.wait() == 0, again.text()[-4000:]
    orphan, done = jobs_of(cluster, "orphan")
    assert (orphan["JobState"], done["JobState"]) == ("CANCELLED", "COMPLETED")
    assert "The lock of a run that was killed is lifted" in again.text()
    assert f"Cancelled 1 Slurm job(s) that an earlier run left behind: {orphan['JobId']}." in again.text()
    assert not (run.folder / "results/running.json").exists()


@pytest.mark.slow
def test_nothing_is_left_to_do(start, cluster):
    jobs = {"once": {"need": {"stage": "cost"}, "command": "echo once"}}
    assert start(jobs).wait() == 0
    before = len(cluster.jobs())
    again = start(jobs)
    assert again.wait() == 0 and "Nothing to be done" in again.text()
    assert len(cluster.jobs()) == before
