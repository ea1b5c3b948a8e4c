"""A folder of results that was copied, or put under another clone: what made each result stale has moved with it."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from moecap.jobs import records
from tests.dag.conftest import planned_jobs

TABLES = {"cap": 1, "charts": 1, "report": 1}


def clone(finished: Path, target: Path) -> Path:
    """The repository anew, every file of it younger than any result; nothing that Snakemake noted."""
    shutil.copytree(finished, target, ignore=lambda folder, names: {"results", ".snakemake", ".cache"} & {*names})
    for file in target.rglob("*"):
        if file.is_file():
            file.touch()
    return target


def copied(finished: Path, target: Path, how: str) -> Path:
    subprocess.run(["cp", how, finished / "results", clone(finished, target) / "results"], check=True)
    return target


def moved(finished: Path, target: Path) -> Path:
    shutil.move(finished / "results", clone(finished, target) / "results")
    return target


WAYS: dict[str, Callable[[Path, Path], Path]] = {
    "cp -a": lambda finished, target: copied(finished, target, "-a"),
    "cp -r": lambda finished, target: copied(finished, target, "-r"),
    "moved under a fresh clone": moved,
}


@pytest.mark.parametrize("way", WAYS)
def test_results_that_were_moved_rerun_what_a_change_touches(way: str, finished: Path, tmp_path: Path) -> None:
    time.sleep(1.1)  # a copy is younger than what it was made from
    here = WAYS[way](finished, tmp_path / "elsewhere")
    assert planned_jobs(cwd=here) == {}
    for file, old, new in (
        ("config/config.yaml", "region: us-average", "region: us-residential"),
        ("config/demo.csv", ",1 4 16 64", ",1 4 16 32 64"),
    ):
        path = here / file
        path.write_text(path.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    timed = {"measure": 1, "replay": 1, "trace_decode": 1, "check_replay": 1, "metrics": 1, "cross_check": 1}
    assert planned_jobs(cwd=here) == {**timed, "cost": 3, **TABLES}


def test_results_under_another_name_are_the_same_results(finished: Path) -> None:
    (finished / "results").rename(finished / "mine")
    shutil.rmtree(finished / ".snakemake")
    jobs = planned_jobs("--config", "results=mine", cwd=finished)
    assert jobs.keys() <= {"cap"} | TABLES.keys(), "params of some hold the folder's name"


def test_a_result_that_was_edited_reruns_what_is_made_from_it(finished: Path, tmp_path: Path) -> None:
    time.sleep(1.1)
    here = copied(finished, tmp_path / "elsewhere", "-r")
    (here / "results/metrics/demo-int4.parquet").write_text("edited", encoding="utf-8")
    jobs = planned_jobs(cwd=here)
    assert jobs["cost"] == 1
    assert "measure" not in jobs


def test_a_record_says_what_was_made_from_what(finished: Path) -> None:
    file = records.record_file(finished / "results", finished / "results/cost/demo-int4.parquet")
    assert file is not None
    made_from = records.read_json(file)["made_from"]
    assert made_from["rule"] == "cost"
    assert "{results}/metrics/demo-int4.parquet" in made_from["input"]
    assert any("us-average" in param for param in made_from["params"])


def test_a_folder_that_stays_is_looked_through_once(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = finished / "results"
    records.restore_times(results)  # the fixture copies the folder
    monkeypatch.setattr(records, "content", None)
    assert records.restore_times(results) == 0


def test_old_notes_of_snakemake_are_read_where_there_is_no_record(tmp_path: Path) -> None:
    """Results of an earlier version, in their place: their notes lie in `.snakemake`."""
    from snakemake.io import _IOFile
    from snakemake.persistence import MetadataRecord
    from snakemake.persistence.file import FilePersistence

    FilePersistence(path=tmp_path / ".snakemake")._write_record("results/cost/a.parquet", MetadataRecord(rule="cost"))
    kept = records.records_in(tmp_path / "results")(path=tmp_path / ".snakemake")
    assert kept.rule(_IOFile("results/cost/a.parquet", None)) == "cost"
