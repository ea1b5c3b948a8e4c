"""The report and the charts in headless Chromium: drawn, silent, alone; questioned by mouse, by keyboard and by URL.

``MOECAP_PAGES``: further pages to open, separated by ``:`` (the report of a real run).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moecap.cap import table as cap
from moecap.charts import draw, parts
from moecap.charts.radar import CAP_AXES, radar, radial
from moecap.cost.equations import energy_kwh, usd_per_token
from moecap.report import answers
from moecap.report import page as report
from moecap.report.inputs import ExtraTable, Inputs

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import synthetic
from browser import Browser, find_chromium

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        find_chromium() is None,
        reason="no Chromium on this machine; install it (Debian: apt-get install chromium) to run these tests",
    ),
]
ROOT = Path(__file__).resolve().parents[2]
AXE = ROOT / "tests" / "vendor" / "axe.min.js"
DRAWN = "document.documentElement.dataset.charts === 'drawn'"
COUNT = "document.querySelector('#count').innerText"


def hostile(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A deployment whose name is a script and turns text around."""
    name = f"demo-int8\u202egpj {synthetic.HOSTILE}"
    return [{**r, "deployment": name} if r["deployment"] == "demo-int8" else r for r in rows]


@pytest.fixture(scope="module")
def table() -> Any:
    given = synthetic.tables()
    given["metrics"] = given["metrics"].slice(0, 23)  # the last point failed: the page must cope with nulls
    return cap.cap_table(**given, failures=synthetic.failures())


@pytest.fixture(scope="module")
def pages(table: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    checked = ExtraTable(
        "Bytes",
        [{"layer": "first", "batch_size": 1, "measured_bytes": 1001, "total_error": 0.001}],
        "Profiled.",
        {"total_error": {"label": "error", "form": "error", "goal": "0.01"}},
        chart="measured_bytes",
    )
    inputs = Inputs(
        table=cap.to_table(hostile(table.to_pylist())),
        reference="demo-bf16",
        provenance={"git_commit": "abc"},
        machines=[synthetic.machine()],
        routing={"demo-bf16": synthetic.routing()},
        samples=[({"model": "demo-moe", "precision": "bf16", "dataset": "arithmetic"}, synthetic.samples())],
        failures=synthetic.failures(),
        tables=[checked],
    )
    (folder / "report.html").write_text(report.render_report(inputs), encoding="utf-8")
    draw.save(radar(table, "demo-bf16"), folder / "cap-radar.html")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser(find_chromium()) as found:
        yield found


@pytest.fixture
def page(browser: Browser, pages: Path) -> Browser:
    """The report, as it opens."""
    browser.problems.clear()
    browser.requests.clear()
    browser.colour_scheme("light")
    if not (browser.evaluate("location.href") or "").startswith((pages / "report.html").as_uri()):
        browser.open(pages / "report.html")
    else:
        browser.evaluate("moecap.state.reset(), moecap.state.now.tab = '', moecap.update()")
    browser.wait_for(DRAWN)
    return browser


def alone(browser: Browser) -> None:
    """Silent, and nothing was asked of a network."""
    assert browser.problems == []
    assert [u for u in browser.requests if not u.startswith(("file:", "data:", "blob:"))] == []
    assert browser.evaluate("window.hacked === undefined")


def choose(browser: Browser, selector: str, value: str) -> None:
    """Type or pick ``value`` in a control, as a reader does."""
    browser.evaluate(
        f"""(() => {{ const i = document.querySelector({json.dumps(selector)}); i.value = {json.dumps(value)};
             for (const e of ['input', 'change']) i.dispatchEvent(new Event(e, {{bubbles: true}})); }})()"""
    )
    browser.wait_for(DRAWN)


def press(browser: Browser, key: str, code: int) -> None:
    for kind in ("rawKeyDown", "char", "keyUp") if key in ("Enter", " ") else ("rawKeyDown", "keyUp"):
        text = {"text": "\r" if key == "Enter" else key} if kind == "char" else {}
        browser.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)


def column(browser: Browser, field: str) -> list[Any]:
    """The values of a column of the leaderboard, in the order of its rows."""
    return browser.evaluate(
        f"""Tabulator.findTable('#board')[0].getRows('active').map(r => r.getData()[{json.dumps(field)}] ?? null)"""
    )


# --- the page -------------------------------------------------------------------------------------------------------


def test_it_opens_drawn_silent_and_alone(page: Browser, table: Any) -> None:
    alone(page)
    for figure in ("main-chart", "compare-radar", "figure-throughput-and-latency"):
        svg = f"document.querySelector('#{figure} .live svg')"
        assert page.evaluate(f"{svg}.querySelectorAll('path').length") > 3, figure
        assert page.evaluate(f"!/NaN|undefined|Infinity/.test({svg}.innerHTML)"), figure
    assert page.evaluate("document.querySelector('.banner.bad').innerText").startswith("Incomplete: of 24 points 1")
    assert page.evaluate(COUNT) == "12 of 24 points"  # it opens with one dataset: scores of two are not compared
    assert "\u202e" not in page.evaluate("document.body.innerText")
    assert "⟨U+202E⟩gpj" in page.evaluate("document.body.innerText")
    for width in (1440, 390):
        page.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        page.evaluate("new Promise(r => setTimeout(r, 400))")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.call("Emulation.clearDeviceMetricsOverride")


OVERLAPPING = """(() => {
  const parts = 'h1, h2, .banner, .card, .card *, #axes label, .tools > *, #tabs button,'
    + '#bar label, #bar summary, #bar output, #bar button';
  const bar = document.querySelector('#bar').getBoundingClientRect();
  const seen = Array.from(document.querySelectorAll(parts)).filter(e => !e.closest('details:not([open]) fieldset'))
    .map(e => {
      const r = e.getBoundingClientRect(); // what the bar has scrolled out of sight lies over nothing
      return [e, r.left, r.right, r.top, e.closest('#bar') ? Math.min(r.bottom, bar.bottom) : r.bottom];
    });
  const found = [];
  seen.forEach(([a, l, r, t, b], i) => seen.slice(i + 1).forEach(([c, l2, r2, t2, b2]) => {
    if (a.contains(c) || c.contains(a)) return;
    if (Math.min(r, r2) - Math.max(l, l2) > 1 && Math.min(b, b2) - Math.max(t, t2) > 1)
      found.push(a.outerHTML.slice(0, 80) + ' | ' + c.outerHTML.slice(0, 80));
  }));
  return found;
})()"""


@pytest.mark.parametrize("width", [1440, 720, 640, 320])
def test_zoomed_in_nothing_lies_over_another(page: Browser, width: int) -> None:
    """1440 and 1280 pixels at 200 % have 720 and 640 of the page's; 1280 at 400 % 320 (WCAG 1.4.10)."""
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=500, deviceScaleFactor=2, mobile=False)
    try:
        page.evaluate("new Promise(r => setTimeout(r, 350))")
        page.wait_for(DRAWN)
        page.evaluate("scrollTo(0, 0)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(OVERLAPPING) == []
        page.evaluate("document.querySelector('#leaderboard-section').scrollIntoView()")
        # What sticks to the top leaves room for what it is about.
        box = "document.querySelector('#bar').getBoundingClientRect()"
        covered = page.evaluate(
            f"getComputedStyle(document.querySelector('#bar')).position === 'sticky' ? {box}.height : 0"
        )
        assert covered < 250
    finally:
        page.call("Emulation.clearDeviceMetricsOverride")


@pytest.mark.parametrize("name", ["cap-radar.html", *(p for p in os.environ.get("MOECAP_PAGES", "").split(":") if p)])
def test_other_pages(browser: Browser, pages: Path, name: str) -> None:
    browser.problems.clear()
    browser.open(pages / name if (pages / name).exists() else ROOT / name)
    alone(browser)
    assert browser.evaluate("document.querySelectorAll('.live svg path').length") > 3


def test_the_cards_are_those_of_the_library(page: Browser, table: Any) -> None:
    """The script's rules and Python's, over the same points: one dataset, then with limits."""
    rows = [r for r in hostile(table.to_pylist()) if r["dataset"] == "arithmetic"]

    def shown() -> list[list[str]]:
        return page.evaluate(
            """Array.from(document.querySelectorAll('.card'),
                 c => ['h3', '.name', '.detail-line'].map(s => c.querySelector(s).textContent))"""
        )

    def of(cards: list[answers.Card]) -> list[list[str]]:
        return [[c.title, parts.visible(c.text), c.detail] for c in cards]

    assert shown() == of(answers.cards(rows))
    assert page.evaluate("document.querySelector('#advice').textContent") == parts.visible(answers.advice(rows) or "")
    choose(page, "#range-tpot", "0.5")
    choose(page, "#range-accuracy", "85")
    left = [r for r in rows if r["tpot_s"] <= 0.0005 and r["accuracy"] >= 0.85]
    assert 0 < len(left) < len(rows)
    assert page.evaluate(COUNT) == f"{len(left)} of 24 points"
    assert shown() == of(answers.cards(left, tpot_limit_s=0.0005))


def test_facets_ranges_and_reset(page: Browser) -> None:
    page.evaluate("document.querySelector('[data-facet=precision] input[value=int4]').click()")
    page.wait_for(DRAWN)
    assert page.evaluate(COUNT) == "4 of 24 points"
    assert set(column(page, "precision")) == {"int4"}
    assert (
        page.evaluate("new Set(document.querySelectorAll('#main-chart .live .mark-symbol.role-mark path')).size") == 4
    )
    choose(page, "#dataset", "")
    assert page.evaluate(COUNT) == "8 of 24 points"
    choose(page, "#range-usd", "0.0000001")
    assert page.evaluate(COUNT) == "0 of 24 points"
    assert "widen a filter" in page.evaluate("document.querySelector('#advice').textContent")
    assert "No point to draw" in page.evaluate("document.querySelector('#main-chart').innerText")
    assert "No row" in page.evaluate("document.querySelector('#board').innerText")
    page.evaluate("document.querySelector('#reset').click()")
    page.wait_for(DRAWN)
    assert page.evaluate(COUNT) == "12 of 24 points"
    assert page.evaluate("location.hash") == ""
    alone(page)


def test_sorting_and_filters_of_columns(page: Browser) -> None:
    choose(page, "#dataset", "")
    choose(page, "#batch", "all")
    head = "document.querySelector('#board [tabulator-field=tpot_s] button.head')"
    for direction in (1, -1):
        page.evaluate(f"{head}.click()")
        values = column(page, "tpot_s")
        assert len(values) == 24 and values[-1] is None  # what was not measured comes last, whichever way
        numbers = [direction * v for v in values[:-1]]
        assert numbers == sorted(numbers)
    page.evaluate("Tabulator.findTable('#board')[0].setHeaderFilterValue('precision', 'int4')")
    page.evaluate("Tabulator.findTable('#board')[0].setHeaderFilterValue('accuracy', '>= 85%')")
    assert set(column(page, "precision")) == {"int4"}
    assert set(column(page, "dataset")) == {"arithmetic-mc"}
    page.evaluate("Tabulator.findTable('#board')[0].clearHeaderFilter()")
    alone(page)


def test_columns_unfolding_and_exact_values(page: Browser, table: Any) -> None:
    page.evaluate("document.querySelector('#choose').open = true")
    page.wait_for("document.querySelector('#chooser input[value=unique_experts]') !== null")
    page.evaluate("document.querySelector('#chooser input[value=unique_experts]').click()")
    assert page.evaluate("Tabulator.findTable('#board')[0].getColumn('unique_experts') !== false")
    assert "columns=" in page.evaluate("location.hash")
    page.evaluate("document.querySelector('#board button.more').click()")
    text = page.evaluate("document.querySelector('#board .detail').innerText")
    shown = page.evaluate("Tabulator.findTable('#board')[0].getRows('active')[0].getData()")
    assert str(shown["output_tokens_per_s"]) in text and "config/catalogue/hardware.yaml: this-machine" in text
    assert page.evaluate("document.querySelector('#board button.more').getAttribute('aria-expanded')") == "true"
    page.evaluate("document.querySelector('#board button.more').click()")
    assert page.evaluate("document.querySelector('#board .detail') === null")


def test_rows_and_points_are_linked_and_the_url_keeps_them(page: Browser, pages: Path) -> None:
    page.evaluate("document.querySelectorAll('#board input[type=checkbox]')[1].click()")
    page.wait_for(DRAWN)
    assert page.evaluate("moecap.state.now.picked.length") == 1
    ring = "document.querySelectorAll('#main-chart .live .mark-symbol.role-mark')[0].querySelectorAll('path').length"
    assert page.evaluate(ring) == 1
    picked = page.evaluate("moecap.state.now.picked[0]")
    box = page.evaluate(
        """(() => { const marks = document.querySelectorAll('#main-chart .live .mark-symbol.role-mark');
             const points = Array.from(marks[marks.length - 1].querySelectorAll('path'));
             const other = points.find(p => p.__data__.datum.id !== moecap.state.now.picked[0]);
             other.scrollIntoView({block: 'center'}); const r = other.getBoundingClientRect();
             return [r.x + r.width / 2, r.y + r.height / 2]; })()"""
    )
    for kind in ("mousePressed", "mouseReleased"):
        page.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)
    page.wait_for("moecap.state.now.picked.length === 2")
    page.wait_for(DRAWN)
    assert page.evaluate("document.querySelectorAll('#compare-table thead th').length") == 3
    choose(page, "#axis-x", "usd_per_million_tokens")
    choose(page, "#range-accuracy", "80")
    page.evaluate("document.querySelector('#tab-cost').click()")
    page.wait_for(DRAWN)
    hash_ = page.evaluate("location.hash")
    state = page.evaluate("JSON.stringify(moecap.state.now)")
    page.call("Page.navigate", url="about:blank")
    page.call("Page.navigate", url=(pages / "report.html").as_uri() + hash_)
    page.wait_for(f"window.moecap && {DRAWN}")
    assert page.evaluate("JSON.stringify(moecap.state.now)") == state
    assert picked in page.evaluate("moecap.state.now.picked")
    assert page.evaluate("document.querySelector('#cost').hidden") is False
    alone(page)


def test_downloads(page: Browser) -> None:
    page.call("Page.setDownloadBehavior", behavior="deny")
    page.evaluate(
        "window.url = URL.createObjectURL, URL.createObjectURL = b => { window.saved = b; return url.call(URL, b); }, 0"
    )
    found = {}
    for kind in ("csv", "json", "md"):
        page.evaluate(f"document.querySelector('[data-download={kind}]').click()")
        found[kind] = page.evaluate("window.saved.text()")
    rows = json.loads(found["json"])
    assert [r["deployment"] for r in rows] == column(page, "deployment")
    assert found["csv"].splitlines()[0].startswith("deployment,precision,dataset,batch_size,accuracy,accuracy_low")
    assert found["md"].count("\n") == len(rows) + 2
    assert rows[0]["tpot_s_low"] < rows[0]["tpot_s"] < rows[0]["tpot_s_high"]


def test_cost_with_other_terms(page: Browser, table: Any) -> None:
    page.evaluate("document.querySelector('#tab-cost').click()")
    page.wait_for(DRAWN)
    for key, value in (("usd_per_kwh", "0.3"), ("years", "5"), ("pue", "1.4"), ("utilisation", "0.5")):
        choose(page, f"#term-{key}", value)
    shown = page.evaluate(
        """Tabulator.findTable('#cost .points')[0].getRows('active').map(r => r.getData())
             .map(r => [r._id, r.usd_per_million_tokens, r.energy_kwh, r.usd_per_million_tokens_low ?? null])"""
    )
    rows = table.to_pylist()
    assert len(shown) == 12
    for index, usd, kwh, low in shown:
        energy = energy_kwh(synthetic.POWER_W, 5, 1.4)
        rate = rows[index]["output_tokens_per_s"]
        assert kwh == pytest.approx(energy, rel=1e-8)
        assert usd == pytest.approx(1e6 * usd_per_token(synthetic.HARDWARE_USD, energy, 0.3, rate, 5, 0.5), rel=1e-8)
        assert low is None  # an interval of other terms is not this one's
    assert "computed anew" in page.evaluate("document.querySelector('#recost-note').innerText")


def test_distances_of_the_comparison_are_the_radars(page: Browser) -> None:
    axes = page.evaluate("moecap.page.axes")
    for axis, of in zip(axes, CAP_AXES, strict=True):
        for value, reference in ((1.0, 1.0), (2.0, 1.0), (0.3, 4.0)):
            found = page.evaluate(f"moecap.compare.radial({value}, {reference}, {json.dumps(axis)})")
            assert found == pytest.approx(radial(value, reference, of), abs=1e-9)


def test_by_keyboard_alone(page: Browser) -> None:
    page.evaluate("document.querySelector('#board [tabulator-field=accuracy] button.head').focus()")
    press(page, "Enter", 13)
    values = column(page, "accuracy")
    assert values == sorted(values)
    page.evaluate("document.querySelector('#board input[type=checkbox]').focus()")
    press(page, " ", 32)
    page.wait_for("moecap.state.now.picked.length === 1")
    page.evaluate("document.querySelector('[data-facet=precision] summary').focus()")
    press(page, "Enter", 13)
    assert page.evaluate("document.querySelector('[data-facet=precision]').open")
    press(page, "Escape", 27)
    assert not page.evaluate("document.querySelector('[data-facet=precision]').open")
    page.evaluate("document.querySelector('#tabs [aria-selected=true]').focus()")
    press(page, "ArrowRight", 39)
    page.wait_for(DRAWN)
    assert page.evaluate("document.activeElement.id") == "tab-accuracy"
    assert page.evaluate("document.querySelector('#accuracy').hidden") is False
    # Nothing that can be reached is without an outline, and the tabs are one stop of the Tab key.
    assert page.evaluate("document.querySelectorAll('#tabs [tabindex=\"0\"]').length") == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(page: Browser, scheme: str) -> None:
    page.colour_scheme(scheme)
    page.wait_for(DRAWN)
    if not page.evaluate("window.axe !== undefined"):
        page.call("Runtime.evaluate", expression=AXE.read_text(encoding="utf-8"))
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    for tab in page.evaluate("Array.from(document.querySelectorAll('#tabs [role=tab]'), t => t.id)"):
        page.evaluate(f"document.querySelector('#{tab}').click()")
        page.wait_for(DRAWN)
        scope = "document" if tab == "tab-performance" else f"'#{tab.removeprefix('tab-')}'"
        found = page.evaluate(
            f"""axe.run({scope}).then(r => r.violations.map(v =>
                 v.id + ': ' + v.nodes.slice(0, 4).map(n => n.target.join(' ') + ' ' + n.failureSummary).join('; ')))"""
        )
        assert found == [], tab
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = false; })")


def test_dark_and_light(page: Browser) -> None:
    fills = "Array.from(document.querySelectorAll('.live text'), t => t.getAttribute('fill'))"

    def wait_for_scheme(scheme: str, other: str) -> None:
        page.wait_for(f"{fills}.includes('{parts.INK[scheme][0]}') && !{fills}.includes('{parts.INK[other][0]}')")
        page.wait_for(DRAWN)
        assert set(page.evaluate(fills)) & set(parts.INK[other]) == set()

    page.colour_scheme("dark")
    for tab in page.evaluate("Array.from(document.querySelectorAll('#tabs [role=tab]'), t => t.id)"):
        page.evaluate(f"document.querySelector('#{tab}').click()")
        page.wait_for(DRAWN)
    wait_for_scheme("dark", "light")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 20, 25)"
    page.colour_scheme("light")  # what was drawn in tabs that are out of sight must not keep the dark ink
    wait_for_scheme("light", "dark")
    page.evaluate("document.querySelector('#tab-utilization').click()")
    wait_for_scheme("light", "dark")
    for scheme in ("dark", "light", "dark"):  # nobody waits: the drawings overtake one another
        page.colour_scheme(scheme)
        page.evaluate("new Promise(requestAnimationFrame)")
    wait_for_scheme("dark", "light")
    assert page.problems == []


def test_of_drawings_that_overlap_the_last_one_stands(page: Browser) -> None:
    """A drawing that began before the rows were filtered away must not come back, nor call the page drawn."""
    text = "document.querySelector('#main-chart .live').innerText"
    page.evaluate("moecap.update(), moecap.state.now.ranges.usd = '1e-9', moecap.update(), 0")
    page.wait_for(DRAWN)
    assert "No point to draw" in page.evaluate(text)
    page.evaluate("moecap.update(), moecap.state.reset(), moecap.update(), moecap.state.now.by = 'deployment', 0")
    early = page.evaluate("moecap.update().then(() => [document.documentElement.dataset.charts])")
    assert early == ["drawn"]
    assert page.evaluate("document.querySelectorAll('#main-chart .live > .chart').length") == 1
    page.evaluate("new Promise(r => setTimeout(r, 300))")
    assert "No point to draw" not in page.evaluate(text)


def test_in_print_the_best_rows_and_the_default_charts_stand_on_white(page: Browser) -> None:
    page.colour_scheme("dark", media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("Array.from(document.querySelectorAll('.live'), l => l.getClientRects().length)").count(0) > 3
    images = "Array.from(document.querySelectorAll('figure.still img'))"
    assert page.evaluate(f"{images}.length") >= 6
    assert page.evaluate(f"{images}.every(i => i.getClientRects().length > 0 && i.naturalWidth > 100)")
    assert page.evaluate("document.querySelector('table#leaderboard').getClientRects().length") > 0
    assert page.pdf()[:5] == b"%PDF-"


def test_without_a_script_the_still_page_is_whole(browser: Browser, pages: Path) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.call("Page.navigate", url=(pages / "cap-radar.html").as_uri())
        browser.call("Page.navigate", url=(pages / "report.html").as_uri())
        browser.wait_for("document.readyState === 'complete' && document.querySelector('#leaderboard') !== null")
        shown = "document.querySelector('table#leaderboard').getClientRects().length"
        assert browser.evaluate(shown) > 0
        assert browser.evaluate("getComputedStyle(document.querySelector('#bar')).display") == "none"
        assert browser.evaluate("document.querySelectorAll('.card').length") == 4
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
        browser.call("Page.navigate", url="about:blank")


def test_a_script_that_a_model_wrote_would_not_run(browser: Browser, pages: Path, tmp_path: Path) -> None:
    """Even unescaped: the policy knows the page's own scripts only. (The test of the lock, not of the door.)"""
    text = (pages / "cap-radar.html").read_text(encoding="utf-8")
    (tmp_path / "hacked.html").write_text(text.replace("<main>", f"<p>{synthetic.HOSTILE}</p><main>", 1), "utf-8")
    browser.problems.clear()
    browser.open(tmp_path / "hacked.html")
    assert browser.evaluate("window.hacked === undefined")
    assert any("Content Security Policy" in p for p in browser.problems)


def test_batch_size_of_the_radar_can_be_chosen(browser: Browser, pages: Path) -> None:
    browser.problems.clear()
    browser.open(pages / "cap-radar.html")
    shapes = "document.querySelector('.live svg').innerHTML"
    before = browser.evaluate(shapes)
    options = browser.evaluate("Array.from(document.querySelectorAll('select option'), o => o.value)")
    assert [int(o) for o in options] == list(synthetic.BATCH_SIZES)
    choose(browser, "select", options[0])
    browser.wait_for(f"{shapes} !== {json.dumps(before)}")
    assert browser.problems == []
