"""Faults, caused for real in the workflow's own jobs: what is lost (nothing), what is reported, what the user reads."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from tests.dag.conftest import copy_workflow
from tests.hub.server import Hub, checkpoint, cut_after, garbage, stall_after, status

POINTS = "results/performance/demo-bf16/points.parquet"
RUNS = 3 * 3  # batch sizes × repeats of what is measured here


class Workspace:
    """A copy of the workflow in which one wants to break things."""

    def __init__(self, folder: Path) -> None:
        self.folder = copy_workflow(folder)

    def results(self, path: str = "") -> Path:
        return self.folder / "results" / path

    def take(self, demo: Path, *patterns: str) -> None:
        """Copy results of the demo, with their times, so that Snakemake takes them for made here."""
        for pattern in patterns:
            for source in sorted(demo.glob(pattern)):
                target = self.results(str(source.relative_to(demo)))
                target.parent.mkdir(parents=True, exist_ok=True)
                if source.is_dir():
                    shutil.copytree(source, target, symlinks=True)
                else:
                    shutil.copy2(source, target)

    def edit(self, path: str, change: Callable[[dict], None]) -> None:
        content = yaml.safe_load((self.folder / path).read_text())
        change(content)
        (self.folder / path).write_text(yaml.safe_dump(content))

    def rows(self, *names: str, **more: str) -> None:
        """Keep these rows of the demo's table; ``more``: columns to set in the first of them."""
        path = self.folder / "config/demo.csv"
        table = {row["deployment"]: row for row in csv.DictReader(path.read_text().splitlines())}
        chosen = [table[name] for name in names]
        chosen[0] |= more
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, chosen[0])
            writer.writeheader()
            writer.writerows(chosen)

    def start(self, *arguments: str, prefix: tuple[str, ...] = (), **env: str) -> subprocess.Popen[str]:
        # A path of its own for the log: a pipe that nobody reads would stop the run.
        log = (self.folder / "snakemake.log").open("w")
        environment = {k: v for k, v in os.environ.items() if k != "MOECAP_RUN"}
        return subprocess.Popen(
            [*prefix, sys.executable, "-m", "snakemake", "--cores", "1", *arguments],
            cwd=self.folder,
            env={**environment, "PYTHONDONTWRITEBYTECODE": "", **env},
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, **options)
        return subprocess.CompletedProcess(process.args, process.wait(900), self.said())

    def said(self) -> str:
        return (self.folder / "snakemake.log").read_text()

    def lines(self, start: str) -> list[str]:
        return [line for line in self.said().splitlines() if line.startswith(start)]

    def measured(self) -> list[Path]:
        """Entries of the spool."""
        return sorted(self.results("spool/points").glob("??/*/entry.json"))


def until(condition: Callable[[], object], what: str, process: subprocess.Popen[str], seconds: float = 300) -> object:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        assert process.poll() is None, f"snakemake ended before {what}"
        time.sleep(0.01)
    return found


def below(process: subprocess.Popen[str], pattern: str) -> list[psutil.Process]:
    """The processes that a run has started and whose name or command line matches."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if re.search(pattern, " ".join([child.name(), *child.cmdline()])):
                found.append(child)
        except psutil.Error:
            continue
    return found


def loads(workspace: Workspace) -> list[str]:
    """Which load of the engine measured each run, in the order of the table."""
    return pq.read_table(workspace.folder / POINTS, columns=["load_id"])["load_id"].to_pylist()


@pytest.fixture
def two(demo: Path, tmp_path: Path) -> Workspace:
    """Two deployments: demo-int8, finished, and demo-bf16, of which everything but the timed runs is there."""
    found = Workspace(tmp_path / "workflow")
    found.rows("demo-bf16", "demo-int8", datasets="arithmetic", batch_sizes="1 4 16")
    found.edit("config/config.yaml", lambda config: config.update(measured_bytes="none", replay_check="none"))
    found.take(demo, "data", "models/demo-moe/bf16", "models/demo-moe/int8", "machine", "anatomy", "accuracy")
    found.take(demo, *(f"{stage}/demo-int8*" for stage in ("performance", "metrics", "cost")))
    found.take(demo, "routing/demo-moe/int8.parquet")
    return found


@pytest.mark.e2e
@pytest.mark.engine
def test_kill_9_in_the_middle_of_the_timed_runs(two: Workspace) -> None:
    """The other deployment is reported, this one as failed with reason and log; the next start measures the rest."""
    run = two.start()
    until(lambda: len(two.measured()) >= 2, "two measured runs", run)
    (job,) = below(run, r"\.performance\.py")
    job.kill()
    assert run.wait(600) == 1
    kept = len(two.measured())
    assert 2 <= kept < RUNS
    (line,) = two.lines("failed: ")
    assert line.startswith("failed: measure: demo-bf16: measure began at ")
    assert "never ended: it was killed" in line and line.endswith("Log: results/logs/performance/demo-bf16.log")
    assert two.lines("Incomplete: a report over what there is lies in results/partial/report.html.")

    table = pd.read_parquet(two.results("partial/cap.parquet")).set_index("deployment")
    assert set(table.loc["demo-int8"].status) == {"measured"}
    assert set(table.loc["demo-bf16"].status) == {"failed"}
    assert set(table.loc["demo-bf16"].failure_stage) == {"measure"}
    assert table.loc["demo-bf16"].output_tokens_per_s.isna().all()
    page = two.results("partial/report.html").read_text()
    assert "Incomplete: of 11 points 3 failed" in page and "never ended: it was killed" in page
    assert "results/logs/performance/demo-bf16.log" in page
    assert not two.results("cap.parquet").exists(), "nothing calls itself complete"

    assert two.run(POINTS).returncode == 0, two.said()
    assert f"demo-bf16: {kept} of {RUNS} timed runs are in the spool, {RUNS - kept} to measure" in two.said()
    first, *_, last = found = loads(two)
    assert (found.count(first), found.count(last)) == (kept, RUNS - kept)
    assert not list(two.results("failures").rglob("*.json"))


@pytest.mark.e2e
@pytest.mark.engine
@pytest.mark.slow
def test_an_engine_of_its_own_process_is_killed_and_hangs_and_is_tried_again(two: Workspace) -> None:
    def own_process(engines: dict) -> None:
        engines["vllm-cpu"]["options"]["multiprocessing"] = True
        engines["vllm-cpu"]["timeouts"] = {"load_s": 600, "stall_s": 15}

    two.edit("config/catalogue/engines.yaml", own_process)
    run = two.start("--retries", "2", POINTS)
    until(lambda: len(two.measured()) >= 2, "two measured runs", run)
    (core,) = below(run, "EngineCore")
    core.kill()
    kept = len(two.measured())
    until(lambda: len(two.measured()) >= kept + 2, "two more", run, 600)
    (core,) = below(run, "EngineCore")
    core.suspend()
    assert run.wait(900) == 0, two.said()
    assert [line.split(": ", 1)[1].split(".")[0] for line in two.lines("demo-bf16, arithmetic at batch size")] == [
        "the engine died: EngineCore (exit status -9)",
        "no progress for 15 s; the engine hangs and was ended",
    ]
    assert len(set(loads(two))) == 3 and len(loads(two)) == RUNS


@pytest.mark.e2e
@pytest.mark.engine
def test_out_of_host_memory_under_a_limit(two: Workspace) -> None:
    """A real limit on the job's address space, and an engine that asks for more."""

    def greedy(engines: dict) -> None:
        engines["vllm-cpu"]["options"]["engine_args"]["kv_cache_memory_bytes"] = 8 * 2**30

    two.edit("config/catalogue/engines.yaml", greedy)
    run = two.run(POINTS, prefix=("prlimit", f"--as={8 * 2**30}"))
    assert run.returncode == 1
    (line,) = two.lines("failed: ")
    assert line.startswith("failed: measure: demo-bf16: Out of host memory ("), line
    assert json.loads(two.results("failures/measure/demo-bf16.json").read_text())["class"] == "memory"


@contextmanager
def small_memory(size_bytes: int) -> Iterator[tuple[str, ...]]:
    """Words before a command that put it into a control group with so much memory; beyond it the kernel kills."""
    root = Path("/sys/fs/cgroup")
    # Version 1 has a folder per controller; version 2 one tree, whose groups hold either processes or groups.
    parent, limit = (root / "memory", "memory.limit_in_bytes") if (root / "memory").is_dir() else (root, "memory.max")
    group = parent / f"moecap-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / limit).write_text(str(size_bytes))
    except OSError as error:
        with suppress(OSError):
            group.rmdir()
        pytest.skip(f"no control group for memory can be made here (root of a machine of its own can): {error}")
    try:
        yield "sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"
    finally:
        group.rmdir()


@pytest.mark.e2e
@pytest.mark.engine
def test_killed_by_the_kernel_for_its_memory(two: Workspace) -> None:
    with small_memory(700 * 2**20) as prefix:
        run = two.run(POINTS, prefix=prefix)
        assert run.returncode == 1
    (line,) = two.lines("failed: ")
    assert line.startswith("failed: measure: demo-bf16: Out of host memory: measure was killed"), line
    assert json.loads(two.results("failures/measure/demo-bf16.json").read_text())["class"] == "memory"
    assert two.lines("Incomplete: a report over what there is lies in results/partial/report.html.")


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here (root can): {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.e2e
@pytest.mark.engine
def test_the_disk_is_full(two: Workspace) -> None:
    """A real disk with room for a few measured runs."""
    with small_disk(two.results("spool/points"), "150k"):
        assert two.run(POINTS).returncode == 1
        (line,) = two.lines("failed: ")
        assert "No space left on the disk that holds results/spool/points" in line
        assert "what was finished is kept" in line
        kept = two.measured()
        assert 0 < len(kept) < RUNS and not list(two.results("spool/points").rglob("*.part"))
        subprocess.run(["mount", "-o", "remount,size=20m", str(two.results("spool/points"))], check=True)
        assert two.run(POINTS).returncode == 0, two.said()
        assert f"{len(kept)} of {RUNS} timed runs are in the spool" in two.said()


@pytest.mark.e2e
@pytest.mark.engine
def test_a_schedule_of_steps_that_is_cut_off(two: Workspace, demo: Path) -> None:
    """It is named, nothing is made from it, and it is put together again without an engine."""
    two.take(demo, "spool")
    schedule = two.results("performance/demo-int8/schedule.parquet")
    whole = pq.read_table(schedule)
    schedule.write_bytes(schedule.read_bytes()[: schedule.stat().st_size // 2])
    metrics = "results/metrics/demo-int8.parquet"
    assert two.run(metrics).returncode == 1
    (line,) = two.lines("error in metrics: ")
    assert "results/performance/demo-int8/schedule.parquet is not a complete Parquet file" in line
    assert "delete it to have it made again" in line
    assert not (two.folder / metrics).exists()
    schedule.unlink()
    # As many threads as the demo had: another number would be another measurement.
    again = two.run("--cores", str(os.cpu_count()), metrics)
    assert again.returncode == 0, two.said()
    assert "to measure" not in two.said() and pq.read_table(schedule).equals(whole)


REPOSITORY = "org/model"
MANIFEST = "results/models/hub-moe/bf16/manifest.json"


@pytest.fixture
def from_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Workspace, Hub]]:
    """A deployment whose model lies on a hub that misbehaves."""
    found = Workspace(tmp_path / "workflow")
    with Hub({REPOSITORY: checkpoint()}) as hub:
        entry = {"source": {"hub": REPOSITORY, "revision": hub.commits[REPOSITORY]}, "licence": "apache-2.0"}
        found.edit("config/catalogue/models.yaml", lambda models: models.update({"hub-moe": entry}))
        found.rows("demo-bf16", model="hub-moe")
        for name, value in {"HF_ENDPOINT": hub.url, "HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HOME": str(tmp_path)}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield found, hub


def test_a_download_survives_what_passes(from_hub: tuple[Workspace, Hub]) -> None:
    workspace, hub = from_hub
    first, second = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    hub.fault("api", status(500), status(429))
    hub.fault(first, cut_after(5000), status(503))
    hub.fault(second, garbage(), stall_after(3000, 5))
    assert workspace.run(MANIFEST).returncode == 0, workspace.said()
    assert len(hub.gets(first)) == len(hub.gets(second)) == 3
    log = workspace.results("logs/download/hub-moe/bf16.log").read_text()
    assert "SHA-256 is" in log and "HTTP 429" in log and "HTTP 503" in log


@pytest.mark.parametrize("code", [401, 403])
def test_a_gated_model_fails_at_once_on_the_retry(from_hub: tuple[Workspace, Hub], code: int) -> None:
    workspace, hub = from_hub
    hub.fault("api", *[status(code, X_Error_Code="GatedRepo")] * 9)
    assert workspace.run("--retries", "2", MANIFEST).returncode == 1
    assert len([r for r in hub.requests if r.path.startswith("/api/models")]) == 1, "the retries did not ask again"
    lines = workspace.lines("error in download: ")
    assert len(lines) == 3 and len(set(lines)) == 1
    assert f"access refused ({code})" in lines[0] and "HF_TOKEN is not set" in lines[0]
    (line,) = workspace.lines("failed: download: hub-moe: ")
    assert line.endswith("Log: results/logs/download/hub-moe/bf16.log")
    # Another start tries again: the licence may have been accepted meanwhile.
    hub.faults.clear()
    assert workspace.run(MANIFEST).returncode == 0, workspace.said()
