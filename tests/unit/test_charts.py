"""Charts: geometry that others rely on, complete data, and files that work offline."""

from __future__ import annotations

import json
import math
import sys
import unicodedata
from pathlib import Path

import altair as alt
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moecap.cap import table as cap
from moecap.charts import draw, parts, standard
from moecap.charts import radar as radars
from moecap.charts.batch import by_batch
from moecap.charts.paper import paper_figure
from moecap.charts.radar import radar
from moecap.charts.step_bytes import BYTE_COUNTS, bytes_per_layer
from moecap.charts.tradeoff import FIGURES, figure_of, tradeoff
from moecap.charts.utilization import utilization
from moecap.errors import MoecapError
from moecap.io import write_parquet
from moecap.metrics.routing_analysis import expected_unique

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import synthetic

positive = st.floats(1e-6, 1e9)


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return cap.cap_table(**synthetic.tables())


def marks(chart) -> list[dict]:
    """Every row of a chart."""
    return [row for rows in chart["datasets"].values() for row in rows]


# --- radar ---------------------------------------------------------------------------------------------------------


@given(positive, positive)
def test_radial_is_bounded_and_symmetric(value, reference):
    for axis in radars.CAP_AXES:
        r = radars.radial(value, reference, axis)
        assert 0 <= r <= 1
        assert radars.radial(reference, value, axis) == pytest.approx(1 - r, abs=1e-9)
        assert radars.radial(reference, reference, axis) == 0.5


def test_marks_of_an_axis_lie_where_their_ratio_does():
    for axis in radars.CAP_AXES:  # the web is drawn at a quarter, a half and three quarters
        better = axis.span if axis.higher_is_better else 1 / axis.span
        assert radars.radial(better, 1, axis) == pytest.approx(0.75)
        assert radars.radial(1 / better, 1, axis) == pytest.approx(0.25)


@given(st.floats(0.1, 10), st.floats(1.001, 5))
def test_better_lies_further_out(value, factor):
    better_is_higher = radars.radial(value * factor, 1, radars.PERFORMANCE) > radars.radial(
        value, 1, radars.PERFORMANCE
    )
    cheaper_is_higher = radars.radial(value / factor, 1, radars.COST_PER_TOKEN) > radars.radial(
        value, 1, radars.COST_PER_TOKEN
    )
    assert better_is_higher
    assert cheaper_is_higher


def corners(chart) -> dict[tuple, tuple]:
    return {
        (m["dataset"], m["deployment"], m["batch_size"], m["axis"]): (m["x"], m["y"])
        for m in marks(chart)
        if "deployment" in m and "axis" in m
    }


def test_adding_a_row_moves_no_other(table):
    before = corners(radar(table, "demo-bf16"))
    rows = table.to_pylist()
    new = {
        **rows[0],
        "deployment": "giant",
        "accuracy": 0.999,
        "output_tokens_per_s": 1e9,
        "usd_per_million_tokens": 1e-9,
    }
    after = corners(radar(cap.to_table([*rows, new]), "demo-bf16"))
    assert before.items() <= after.items()
    assert len(after) == len(before) + 3


def test_reference_is_the_triangle_at_half(table):
    for (_, deployment, _, _), (x, y) in corners(radar(table, "demo-bf16")).items():
        if deployment == "demo-bf16":
            assert math.hypot(x, y) == pytest.approx(0.5)


def test_unknown_reference_says_so(table):
    with pytest.raises(MoecapError, match=r"demo-bf61.*Did you mean 'demo-bf16'"):
        radar(table, "demo-bf61")


# --- what is drawn -------------------------------------------------------------------------------------------------


def test_frontier_of_the_trade_off_against_the_definition(table):
    rows = table.to_pylist()
    drawn = [m for m in marks(tradeoff(table)) if "frontier" in m]
    ringed = {(m["deployment"], m["dataset"], m["batch_size"]) for m in drawn if m["frontier"]}
    three = ("usd_per_million_tokens", "accuracy", "output_tokens_per_s")
    for r in rows:
        others = [o for o in rows if o["dataset"] == r["dataset"] and o is not r]
        beaten = any(
            o[three[0]] <= r[three[0]] and o[three[1]] >= r[three[1]] and o[three[2]] >= r[three[2]]
            for o in others
        )  # fmt: skip
        assert ((r["deployment"], r["dataset"], r["batch_size"]) in ringed) == (not beaten)
    assert 0 < len(ringed) < len(rows)


def test_bytes_per_layer_are_bytes_over_layers(table):
    chart = bytes_per_layer(table)
    assert "datum.value / datum.layers" in json.dumps(chart)
    found = {(m["deployment"], m["batch_size"]): m for m in chart["datasets"]["rows"]}
    for r in table.to_pylist():
        if r["dataset"] == "arithmetic":
            assert {c: r[c] for c in BYTE_COUNTS}.items() <= found[r["deployment"], r["batch_size"]].items()
            assert r["layers"] == synthetic.LAYERS


def test_utilization_above_one_is_not_cut_off(table):
    rows = [{**r, "decode_s_mbu": 1.7} for r in table.to_pylist()]
    spec = json.dumps(utilization(cap.to_table(rows)))
    assert '"decode_s_mbu": 1.7' in spec
    assert '"one": 1' in spec


def test_failed_rows_do_not_spoil_the_others(table):
    rows = table.to_pylist()
    gone = dict.fromkeys(("accuracy", "output_tokens_per_s", "tpot_s", "usd_per_million_tokens", "decode_s_mbu_bytes"))
    rows[0] = {**rows[0], **gone, "status": "failed"}
    drawn, left_out = standard.draw_all(cap.to_table(rows), "demo-bf16")
    assert set(drawn) == set(standard.STANDARD) - {"throughput-against-purchase"}
    assert "Every point has the same purchase" in left_out["throughput-against-purchase"]


def test_nothing_to_draw_is_said_with_the_reason():
    bare = {"deployment": "a", "model": "m", "dataset": "d", "batch_size": 1, "status": "missing"}
    drawn, left_out = standard.draw_all(cap.to_table([bare]), "a", {"a": []})
    assert drawn == {}
    assert set(left_out) == {*standard.STANDARD, "experts-a", "unique-experts-a"}
    assert "USD per million generated tokens" in left_out["throughput-against-cost"]
    assert standard.draw_all(cap.to_table([]))[0] == {}


def test_closed_form_of_unique_experts():
    drawn, _ = standard.draw_all(cap.to_table([]), None, {"x": synthetic.routing()})
    curve = [m for m in marks(drawn["unique-experts-x"]) if "uniform" in m]
    for m in (curve[0], curve[30], curve[-1]):
        assert m["uniform"] == pytest.approx(float(expected_unique(m["tokens"], synthetic.EXPERTS, synthetic.TOP_K)))


def test_routing_charts_have_a_panel_per_dataset():
    rows = [{**r, "dataset": d} for d in ("one", "two") for r in synthetic.routing()]
    drawn, _ = standard.draw_all(cap.to_table([]), None, {"x": rows})
    assert set(drawn) == {"experts-x", "unique-experts-x"}
    for chart in drawn.values():
        assert list(dict.fromkeys(m["dataset"] for m in marks(chart))) == ["one", "two"]
        assert chart["facet"]["field"] == "dataset"


def test_many_deployments_still_draw(table):
    rows = [{**r, "deployment": f"{r['deployment']}-{i}"} for i in range(4) for r in table.to_pylist()]
    drawn, _ = standard.draw_all(cap.to_table(rows), "demo-bf16-0")
    assert set(drawn) == set(standard.STANDARD) - {"throughput-against-purchase"}
    draw.to_svg(drawn["cap-radar"])


def test_figures_of_the_paper_use_each_models_own_reference(table):
    rows = []
    for model in ("Mixtral-8x22B", "DBRX"):
        for precision, rate in (("bf16", 100.0), ("int4", 400.0)):
            row = {"deployment": f"{model}-{precision}", "model": model, "dataset": "GSM8K", "status": "paper"}
            row["source"] = "MoE-CAP paper, Table 3"
            rows.append(row | {"accuracy": 0.8, "hardware_usd": 92_100.0, "output_tokens_per_s": rate})
    references = {"Mixtral-8x22B": "Mixtral-8x22B-bf16", "DBRX": "DBRX-bf16"}
    chart = paper_figure(cap.to_table(rows), references, "GSM8K", "Figure 4, redrawn")
    found = {(m["deployment"], m["axis"]): math.hypot(m["x"], m["y"]) for m in marks(chart) if "against" in m}
    assert found["DBRX-int4", "Performance"] == pytest.approx(radars.radial(4, 1, radars.PERFORMANCE))
    assert found["Mixtral-8x22B-bf16", "Performance"] == pytest.approx(0.5)
    assert len(found) == 12
    assert [p["title"]["text"] for p in chart["concat"]] == ["Mixtral-8x22B, GSM8K", "DBRX, GSM8K"][:2]
    with pytest.raises(MoecapError, match="MMLU"):
        paper_figure(cap.to_table(rows), references, "MMLU", "none")
    with pytest.raises(MoecapError, match="No row"):
        paper_figure(cap.to_table(rows), references, "GSM8K", "none", "Table 4")


def test_each_row_is_measured_against_its_own_reference(table):
    rows = [{**r, "cap_reference": "demo-int8"} for r in table.to_pylist()]
    found = corners(radar(cap.to_table(rows), "demo-bf16"))
    for (_, deployment, _, _), (x, y) in found.items():
        if deployment == "demo-int8":
            assert math.hypot(x, y) == pytest.approx(0.5)


def test_without_a_batch_size_everywhere_the_largest_one_is_drawn(table):
    rows = table.to_pylist()
    rows.append({**rows[3], "deployment": "printed", "batch_size": None, "cap_reference": "printed"})
    found = corners(radar(cap.to_table(rows), "demo-bf16"))
    assert {(deployment, batch) for _, deployment, batch, _ in found} == {
        ("printed", None),
        *((f"demo-{p}", 64) for p in synthetic.PRECISIONS),
    }


def test_specifications_are_valid_vega_lite(table):
    drawn, _ = standard.draw_all(table, "demo-bf16", {"x": synthetic.routing()})
    for chart in drawn.values():
        alt.Chart.from_dict(chart)  # raises where the schema is violated


# --- legibility ----------------------------------------------------------------------------------------------------


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a: str, b: str) -> float:
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(("mode", "page"), [("light", "#ffffff"), ("dark", "#0f1419")])
def test_text_can_be_read_on_both_pages(mode, page):
    ink, muted, _ = parts.INK[mode]
    assert contrast(ink, page) > 10
    assert contrast(muted, page) > 4.5  # WCAG AA
    assert all(contrast(colour, page) > 2 for colour in parts.COLOURS)


def test_axes_have_titles_with_units(table):
    def titles(part):
        if isinstance(part, dict):
            for channel in ("x", "y"):
                encoding = part.get("encoding", {}).get(channel)
                if encoding and encoding.get("axis", 1) is not None and "title" in encoding:
                    yield encoding["title"]
            for value in part.values():
                yield from titles(value)
        elif isinstance(part, list):
            for value in part:
                yield from titles(value)

    for name, chart in standard.draw_all(table, "demo-bf16")[0].items():
        if name != "cap-radar":
            found = set(titles(chart))
            assert len(found) >= 2, name
            assert all(found), name


# --- files ---------------------------------------------------------------------------------------------------------


def test_files_are_self_contained(tmp_path, table):
    left_out = standard.write_all(table, tmp_path, "demo-bf16", {"demo-bf16": synthetic.routing()}, ["html"])
    assert set(left_out) == {"throughput-against-purchase"}
    names = {p.stem for p in tmp_path.glob("*.html")}
    assert names == {*standard.STANDARD, "experts-demo-bf16", "unique-experts-demo-bf16"} - {
        "throughput-against-purchase"
    }
    html = (tmp_path / "cap-radar.html").read_text()
    assert "default-src 'none'" in html
    assert "<script src" not in html
    assert "<link" not in html


def test_png_and_svg(tmp_path, table):
    chart = radar(table, "demo-bf16")
    draw.save(chart, tmp_path / "a.svg")
    svg = (tmp_path / "a.svg").read_text()
    assert svg.startswith("<svg")
    assert "demo-int4" in svg
    draw.save(chart, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_unknown_format_is_refused(tmp_path, table):
    with pytest.raises(MoecapError, match=r"\.pgn.*Did you mean '\.png'"):
        draw.save(radar(table, "demo-bf16"), tmp_path / "a.pgn")


def test_same_table_same_bytes(table):
    first, second = (draw.to_html(tradeoff(table), "x") for _ in range(2))
    assert first == second


def test_command_draws_what_it_is_asked_for(tmp_path, table, capsys):
    write_parquet(table, tmp_path / "cap.parquet")
    call = [str(tmp_path / "cap.parquet"), str(tmp_path / "img"), "--format", "svg", "--only"]
    assert standard.main([*call, "throughput-against-cost"]) == 0
    assert [p.name for p in (tmp_path / "img").iterdir()] == ["throughput-against-cost.svg"]
    assert standard.main([*call, "cap-rader"]) == 1
    assert "Did you mean 'cap-radar'" in capsys.readouterr().err


# --- names that somebody else chose ----------------------------------------------------------------------------------


@given(st.text())
def test_no_character_of_a_name_hides_or_reorders_others(text):
    shown = parts.visible(text)
    assert {unicodedata.category(c) for c in shown} & {"Cc", "Cf", "Zl", "Zp"} <= {"Cc"}
    assert {c for c in shown if unicodedata.category(c) == "Cc"} <= {"\n", "\t"}
    assert parts.visible(shown) == shown
    if text.isprintable():
        assert shown == text


def test_charts_write_out_what_reorders_text(table):
    rows = [{**r, "deployment": r["deployment"].replace("demo", "de\u202emo")} for r in table.to_pylist()]
    drawn, _ = standard.draw_all(cap.to_table(rows))
    for name, chart in drawn.items():
        text = json.dumps(chart, ensure_ascii=False)
        assert "\u202e" not in text, name
        assert "de⟨U+202E⟩mo" in text, name


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_every_shade_stands_out_from_its_page(mode):
    assert all(contrast(shade, parts.PAGE[mode]) >= 3 for shade in parts.RAMP[mode])


def test_figures_of_an_axis():
    row = {"tpot_s": 0.02, "output_tokens_per_s": 100.0, "devices": 4}
    assert figure_of(row, FIGURES["tokens_per_s_per_gpu"])[0] == 25
    assert figure_of({**row, "devices": None}, FIGURES["tokens_per_s_per_gpu"])[0] is None
    assert figure_of({}, FIGURES["tokens_per_s_per_user"]) == (None, None, None)


def test_of_many_deployments_the_best_are_drawn(table):
    rows = [{**r, "deployment": f"slow-{i}", "output_tokens_per_s": 1.0, "pareto_frequency": 0.0}
            for i in range(20) for r in table.to_pylist()[:4]]  # fmt: skip
    chart = by_batch(cap.to_table([*rows, *table.to_pylist()]))
    drawn = {m["deployment"] for m in chart["datasets"]["rows"]}
    assert len(drawn) == parts.MAX_SERIES
    assert {f"demo-{p}" for p in synthetic.PRECISIONS} <= drawn
