"""Killing the demo in the middle of its timed runs: what was measured is kept, and the next start measures the rest."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psutil
import pytest

from tests.conftest import ROOT
from tests.dag.conftest import copy_workflow

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.slow]

DEPLOYMENT = "demo-bf16"
# Little of 24 timed runs is enough: what is missing is measured in this order.
MISSING = [("arithmetic", 64, repeat) for repeat in range(3)] + [("arithmetic-mc", 64, repeat) for repeat in range(3)]

SCORED = ["accuracy", "accuracy_stderr", "accuracy_n", "workload"]
MEASURED = [
    *SCORED,
    "ttft_s",
    "tpot_s",
    "output_tokens_per_s",
    "decode_s_mbu",
    "decode_s_mfu",
    "usd_per_million_tokens",
]


@pytest.fixture
def workflow(demo: Path, tmp_path: Path) -> Path:
    """A copy of the finished demo that lacks a few timed runs and the tables put together from them."""
    folder = copy_workflow(tmp_path)
    shutil.copytree(demo, folder / "results", symlinks=True)
    # What Snakemake knows of the finished files; not its locks and logs.
    shutil.copytree(
        ROOT / ".snakemake", folder / ".snakemake", ignore=shutil.ignore_patterns("lo*", "conda*", "shadow")
    )
    (folder / ".venv-quantize").symlink_to(ROOT / ".venv-quantize")
    for path in (f"performance/{DEPLOYMENT}", f"metrics/{DEPLOYMENT}"):
        shutil.rmtree(folder / "results" / path)
    # Its scores too: of their answers nothing is lost.
    shutil.rmtree(folder / "results/accuracy/demo-moe/bf16")
    for path in (f"metrics/{DEPLOYMENT}.parquet", f"cost/{DEPLOYMENT}.parquet", "cap.parquet"):
        (folder / "results" / path).unlink()
    for run, entry in spool(folder).items():
        if run in MISSING:
            shutil.rmtree(entry)
    return folder


def spool(workflow: Path) -> dict[tuple[str, int, int], Path]:
    """(dataset, batch size, repeat) -> its entry, of the deployment's timed runs that are kept."""
    manifest = json.loads((workflow / "results/models/demo-moe/bf16/manifest.json").read_text())
    from moecap.checkpoints.files import checkpoint_sha256

    found = {}
    for path in (workflow / "results/spool/points").glob("??/*/entry.json"):
        facts = json.loads(path.read_text())["facts"]
        if facts["checkpoint"] == checkpoint_sha256(manifest):
            found[facts["dataset"], facts["batch_size"], facts["repeat"]] = path.parent
    return found


def start(workflow: Path, log: Path) -> subprocess.Popen[bytes]:
    """Snakemake in a process group of its own, as a shell starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "snakemake", "--cores", "2", "--", "results/cap.parquet"],
        cwd=workflow,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""},
        stdout=log.open("wb"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def when(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until ``condition`` holds; the process has to be still at work then."""
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)


def engine_process(snakemake: subprocess.Popen[bytes]) -> psutil.Process:
    children = psutil.Process(snakemake.pid).children(recursive=True)
    (found,) = [p for p in children if p.cmdline()[-1].endswith("performance.py") and "python" in p.name()]
    return found


def test_a_killed_demo_goes_on_where_it_was(workflow: Path, demo: Path, tmp_path: Path) -> None:
    whole = len(spool(demo.parent))
    assert len(spool(workflow)) == whole - len(MISSING)
    logs = [tmp_path / f"{name}.log" for name in ("interrupted", "killed", "finished")]

    # Ctrl-C goes to the whole process group.
    process = start(workflow, logs[0])
    when(lambda: len(spool(workflow)) > whole - len(MISSING), process, logs[0])
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(120) != 0
    assert "Traceback" not in logs[0].read_text()
    interrupted = spool(workflow)
    assert whole - len(MISSING) < len(interrupted) < whole
    assert not (workflow / f"results/performance/{DEPLOYMENT}/points.parquet").exists()

    process = start(workflow, logs[1])
    when(lambda: len(spool(workflow)) > len(interrupted), process, logs[1])
    engine_process(process).kill()
    assert process.wait(300) == 1, "the job failed"
    killed = spool(workflow)
    assert len(interrupted) < len(killed) < whole
    assert "Traceback" not in logs[1].read_text(), logs[1].read_text()

    process = start(workflow, logs[2])
    assert process.wait(600) == 0, logs[2].read_text()
    said = logs[2].read_text()
    left = whole - len(killed)
    assert f"{DEPLOYMENT}: {len(killed)} of {whole} timed runs are in the spool, {left} to measure" in said
    assert f"({left} of {left})" in said
    scored = [path.read_text() for path in (workflow / "results/logs/accuracy/demo-moe/bf16").rglob("*.log")]
    assert scored and all("answers were in the spool, 0 questions asked" in text for text in scored)
    after = spool(workflow)
    assert {run: path.name for run, path in after.items()} == {
        run: path.name for run, path in spool(demo.parent).items()
    }

    # The same table, and to the last bit the same figures where nothing was measured again. (Classes and the frontier
    # hang on the others, too.)
    before, now = (pd.read_parquet(results / "cap.parquet") for results in (demo, workflow / "results"))
    key = ["deployment", "dataset", "batch_size"]
    pd.testing.assert_frame_equal(before[key], now[key])
    assert list(before) == list(now) and (now.status == "measured").all()
    again = (before.deployment == DEPLOYMENT) & (before.batch_size == 64)
    pd.testing.assert_frame_equal(before.loc[~again, MEASURED], now.loc[~again, MEASURED])
    pd.testing.assert_frame_equal(before.loc[again, SCORED], now.loc[again, SCORED])
    assert now.loc[again, MEASURED].notna().all(axis=None)
