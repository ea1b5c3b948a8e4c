"""The leaderboard: archives verified and merged, the newer of one point shown, an archive read once."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moecap import cli
from moecap.archive.pack import make_archive
from moecap.cap import table as cap
from moecap.errors import MoecapError
from moecap.io import write_parquet
from moecap.report import columns, leaderboard

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import synthetic


def archive(folder: Path, name: str, when: float, **changes: Any) -> Path:
    """An archive of one dataset's synthetic rows, measured at ``when``."""
    rows = cap.cap_table(**synthetic.tables()).to_pylist()
    rows = [{**r, "start_unix_s": when, **changes} for r in rows if r["dataset"] == "arithmetic"]
    results = folder / name / "results"
    write_parquet(cap.to_table(rows), results / "cap.parquet", {"git_commit": "c" * 40})
    output = folder / f"{name}.tar.zst"
    make_archive(
        results,
        output,
        name,
        files=[results / "cap.parquet"],
        config={},
        deployments=synthetic.deployments(),
        catalogue={},
    )
    return output


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("archives")
    return {
        "old": archive(folder, "old", 1e9),
        "new": archive(folder, "new", 2e9),
        "other": archive(folder, "other", 1.5e9, hardware="another-machine"),
    }


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page itself has its own tests."""
    monkeypatch.setattr(leaderboard, "render_report", lambda inputs: f"<title>{inputs.title}</title>")


def test_the_newer_of_one_point_is_shown_and_both_are_kept(archives: dict[str, Path], tmp_path: Path) -> None:
    found = leaderboard.build([archives["old"], archives["new"]], tmp_path / "site")
    assert (found["archives"], found["read"], found["points"], found["shown"]) == (2, 2, 24, 12)
    rows = pq.read_table(tmp_path / "site/data.parquet").to_pylist()
    assert {(r["archive"], r["superseded"]) for r in rows} == {("old", True), ("new", False)}
    assert {r["origin"] for r in rows} == {"measured"}
    assert all((r["pareto_frequency"] is None) == r["superseded"] for r in rows)
    # The order in which they are given decides nothing.
    again = leaderboard.build([archives["new"], archives["old"]], tmp_path / "again")
    assert again["shown"] == 12
    others = pq.read_table(tmp_path / "again/data.parquet").to_pylist()
    assert {(r["archive"], r["superseded"]) for r in others} == {("old", True), ("new", False)}


def test_one_name_for_two_deployments_is_told_apart(archives: dict[str, Path], tmp_path: Path) -> None:
    found = leaderboard.build([archives["old"], archives["other"]], tmp_path / "site")
    assert found["shown"] == 24
    assert found["deployments"] == 6
    rows = pq.read_table(tmp_path / "site/data.parquet").to_pylist()
    assert {r["deployment"] for r in rows if r["hardware"] == "another-machine"} == {
        f"{d['deployment']} (other)" for d in synthetic.deployments()
    }


def test_an_archive_is_read_once(archives: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    leaderboard.build([archives["old"], archives["other"]], site)
    opened = []
    real = leaderboard.open_archive
    monkeypatch.setattr(leaderboard, "open_archive", lambda path: opened.append(path) or real(path))
    found = leaderboard.build([archives["old"], archives["other"], archives["new"]], site)
    assert (found["read"], found["archives"], found["shown"]) == (1, 3, 24)
    assert opened == [archives["new"]]
    moved = tmp_path / "renamed.tar.zst"
    moved.write_bytes(archives["new"].read_bytes())
    assert leaderboard.build([moved], site)["read"] == 0


def test_what_is_damaged_is_refused_and_the_site_stays(archives: dict[str, Path], tmp_path: Path) -> None:
    site = tmp_path / "site"
    leaderboard.build([archives["old"]], site)
    before = {p: p.read_bytes() for p in site.rglob("*") if p.is_file()}
    damaged = tmp_path / "damaged.tar.zst"
    damaged.write_bytes(archives["new"].read_bytes()[:-100])
    with pytest.raises(MoecapError, match=r"damaged\.tar\.zst"):
        leaderboard.build([damaged], site)
    assert {p: p.read_bytes() for p in site.rglob("*") if p.is_file()} == before
    with pytest.raises(MoecapError, match="does not exist"):
        leaderboard.build([tmp_path / "none.tar.zst"], site)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(MoecapError, match="is no leaderboard"):
        leaderboard.build([archives["old"]], tmp_path / "full")


def test_the_site_is_whole(archives: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site = tmp_path / "site"
    call = [
        "leaderboard",
        str(archives["old"]),
        str(archives["new"]),
        "--output",
        str(site),
        "--title",
        "Mine",
        "--json",
    ]
    assert cli.main(call) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["index"] == str(site / "index.html")
    assert "Mine" in (site / "index.html").read_text()
    sums = dict(line.split("  ")[::-1] for line in (site / "checksums.sha256").read_text().splitlines())
    assert set(sums) == {"old.tar.zst", "new.tar.zst"}
    data = json.loads((site / "data.json").read_text())
    rows = pq.read_table(site / "data.parquet").to_pylist()
    assert data["count"] == len(rows) == 24
    assert set(data["archives"]) == set(sums.values())
    for row, again in zip(rows, columns.unpacked(data), strict=True):
        assert {k: v for k, v in row.items() if v is not None} == {k: v for k, v in again.items() if v is not None}
        assert (site / row["page"]).is_file()
    assert data["columns"]["tpot_s"]["unit"] == "s"
    page = (site / "deployments/demo-bf16.html").read_text()
    assert "superseded by a newer one" in page and "../index.html" in page and "<script" not in page
    assert (site / "README.md").read_text().startswith('---\ntitle: "Mine"\nsdk: static')
    assert not [p for p in site.rglob("*") if os.access(p, os.X_OK) and p.is_file()]


def test_columns_that_only_some_archives_have_are_kept() -> None:
    rows = cap.cap_table(**synthetic.tables()).slice(0, 2)
    rows = rows.append_column("measured_unix_s", pa.array([1.0, 1.0]))
    new = rows.append_column(pa.field("queue_s", pa.float64(), metadata={"unit": "s"}), pa.array([0.5, 0.6]))
    fields = [f for f in leaderboard.ADDED if f.name not in rows.column_names]
    for field in fields:
        rows, new = (t.append_column(field, pa.nulls(2, field.type)) for t in (rows, new))
    merged = leaderboard.merge([rows, new])
    assert merged["queue_s"].to_pylist() == [None, None, 0.5, 0.6]
    assert merged.schema.field("queue_s").metadata == {b"unit": b"s"}


def test_names_of_pages_differ_where_deployments_do() -> None:
    names = ["a b", "a-b", "a/b", "../a", "a", "A", "ä", "x" * 200, "x" * 201, ""]
    slugs = [leaderboard._slug(n) for n in names]
    assert len({s.lower() for s in slugs}) == len(names)
    assert all(s and "/" not in s and not s.startswith(".") for s in slugs)
