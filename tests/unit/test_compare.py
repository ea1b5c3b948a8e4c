"""Two archives side by side."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moecap import cli
from moecap.errors import MoecapError
from moecap.report.compare import compare, compare_tables, verdict

sys.path.insert(0, str(Path(__file__).parent))
from test_archive import ROWS, make, make_results


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    found = []
    for name, speed, version in (("a", 1.0, "1.0"), ("b", 1.5, "1.1"), ("c", 1.01, "1.0")):
        folder = tmp_path_factory.mktemp(name)
        accuracy = make_results(folder / "results", speed=speed, version=version)
        config = {"seed": 1, "performance": {"repeats": 3 if name != "b" else 5}}
        found.append(make(folder, folder / "results", accuracy, config=config)[0])
    return found


def test_better_beyond_the_intervals(archives):
    found = compare(archives[0], archives[1])
    verdicts = {(r["column"], r["verdict"]) for r in found.rows()}
    assert verdicts == {
        ("accuracy", "same"),
        ("output_tokens_per_s", "better"),
        ("tpot_s", "better"),
        ("usd_per_million_tokens", "no interval"),
        ("hardware_usd", "same"),
    }
    assert len(found.rows("better")) == 2 * 2 * 2
    row = found.rows("better")[0]
    assert row["ratio"] == pytest.approx(1.5 if row["column"] != "tpot_s" else 1 / 1.5)


def test_other_way_round_is_worse(archives):
    found = compare(archives[1], archives[0])
    assert "better" not in found.counts() and found.counts()["worse"] == 8


def test_small_change_is_within_the_intervals(archives):
    found = compare(archives[0], archives[2])
    assert {r["column"] for r in found.rows("within intervals")} == {"output_tokens_per_s", "tpot_s"}
    assert "better" not in found.counts()


def test_provenance_is_compared(archives):
    found = {(d.where, d.key): (d.a, d.b) for d in compare(archives[0], archives[1]).differences}
    assert found[("config", "performance.repeats")] == (3, 5)
    assert found[("measured with", "libraries.engine")] == ("1.0", "1.1")
    assert not compare(archives[0], archives[2]).differences


def test_identical(archives):
    found = compare(archives[0], archives[0])
    assert set(found.counts()) == {"same"} and not found.differences


def test_rows_in_one_only(tmp_path, archives):
    accuracy = make_results(tmp_path / "results")
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    cap = tmp_path / "results/cap.parquet"
    table = pq.read_table(cap)
    pq.write_table(table.filter(pc.equal(table["deployment"], "one")), cap)
    smaller, _ = make(tmp_path, tmp_path / "results", accuracy)
    found = compare(archives[0], smaller)
    assert found.only_a == (("two", "d", 1), ("two", "d", 4)) and not found.only_b
    pq.write_table(table.slice(0, 0), cap)
    empty, _ = make(tmp_path, tmp_path / "results", accuracy)
    with pytest.raises(MoecapError, match="nothing to compare"):
        compare(archives[0], empty)


def test_renderings(archives):
    found = compare(archives[0], archives[1])
    text = found.markdown()
    assert "8 better" in text and "performance.repeats" in text and "output_tokens_per_s" in text
    page = found.html()
    assert page.startswith("<!doctype html>") and "http" not in page and page.count("<tr") > 10
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["counts"]["better"] == 8


def test_html_escapes(archives):
    found = compare(archives[0], archives[1])
    hostile = type(found)("<script>", "b", found.table)
    assert "<script>" not in hostile.html()


def test_command(archives, capsys, tmp_path):
    page = tmp_path / "c.html"
    assert cli.main(["compare", str(archives[0]), str(archives[1]), "--json", "--html", str(page)]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["better"] == 8
    assert page.read_text().startswith("<!doctype")
    assert cli.main(["compare", str(archives[0]), str(tmp_path / "none")]) == 1
    assert "does not exist" in capsys.readouterr().err


finite = st.floats(1e-3, 1e6)
interval = st.tuples(finite, finite, finite).map(sorted).map(lambda x: (x[1], x[0], x[2]))


@given(interval, interval)
def test_verdict_is_antisymmetric(a, b):
    opposite = {"better": "worse", "worse": "better"}
    forward, back = verdict(a, b, True), verdict(b, a, True)
    assert back == opposite.get(forward, forward)
    assert verdict(a, b, False) == opposite.get(forward, forward)


@given(interval, interval)
def test_overlapping_intervals_are_never_called(a, b):
    if a[1] <= b[2] and b[1] <= a[2]:
        assert verdict(a, b, True) in ("within intervals", "same")


def test_value_without_interval_is_never_called():
    assert verdict((1.0, None, None), (100.0, 99.0, 101.0), True) == "no interval"
    assert verdict((None, None, None), (1.0, 0.9, 1.1), True) == "only in one"


def test_tables_alone():
    import pyarrow as pa

    table = pa.table({"deployment": ["x"], "dataset": ["d"], "batch_size": [1], "accuracy": [0.5]})
    assert compare_tables(table, table).counts() == {"same": 1}
    assert ROWS


def test_the_verdict_comes_first(archives):
    better = compare(archives[0], archives[1])
    said = better.verdict()
    assert said.startswith("B is better; better: output_tokens_per_s 1.5× in 4 of 4 points, tpot_s 0.667× in 4 of 4 ")
    assert "4 figures differ and have no interval" in said
    assert "The two differ in: " in said and "config" in said
    assert better.markdown().split("\n\n")[1] == said == better.to_json()["verdict"]
    assert compare(archives[1], archives[0]).verdict().startswith("B is worse; worse: output_tokens_per_s 0.667×")
    same = compare(archives[0], archives[2]).verdict()
    assert same.startswith("Nothing got better or worse beyond the intervals, in 4 points that both have.")
    assert '<img alt="B over A' in better.html() and "data:image/svg+xml" in better.html()
