"""The report and the charts in headless Chromium: drawn, no console error, no network, sortable, dark, printable.

``MOECAP_PAGES``: further pages to open, separated by ``:`` (the report of a real run).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from moecap.cap import table as cap
from moecap.charts import standard as charts
from moecap.report import page as report

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


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    given = synthetic.tables()
    given["metrics"] = given["metrics"].slice(0, 23)  # the last point failed: the page must cope with nulls
    table = cap.cap_table(**given, failures=synthetic.failures())
    routing = {"demo-bf16": synthetic.routing()}
    inputs = report.Inputs(
        table=table,
        reference="demo-bf16",
        provenance={"git_commit": "abc"},
        machines=[synthetic.machine()],
        routing=routing,
        samples=[({"model": "demo-moe", "precision": "bf16", "dataset": "arithmetic"}, synthetic.samples())],
        failures=synthetic.failures(),
        tables=[report.ExtraTable("Bytes", [{"layer": "first", "batch_size": 1, "measured_bytes": 1001}], "Profiled.")],
    )
    (folder / "report.html").write_text(report.render_report(inputs))
    charts.save(charts.radar(table, "demo-bf16"), folder / "cap-radar.html")
    return folder


@pytest.fixture
def browser() -> Iterator[Browser]:
    with Browser(find_chromium()) as found:
        yield found


def check(browser: Browser, path: Path) -> None:
    """What every page must be: complete, silent, and alone."""
    browser.open(path)
    assert browser.problems == []
    assert [u for u in browser.requests if not u.startswith(("file:", "data:", "blob:"))] == []
    state = browser.evaluate(
        """Array.from(document.querySelectorAll('figure[data-spec]'), f => [
             f.id, f.classList.contains('drawn'), f.querySelectorAll('.live svg path').length,
             /NaN|undefined|Infinity/.test(f.querySelector('.live').innerHTML)])"""
    )
    assert state
    for figure, drawn, shapes, broken in state:
        assert drawn, figure
        assert shapes > 3, figure
        assert not broken, figure
    assert browser.evaluate("window.hacked === undefined")


def test_report(browser: Browser, pages: Path) -> None:
    check(browser, pages / "report.html")
    assert browser.evaluate("document.querySelectorAll('figure.drawn').length") == 7
    assert browser.evaluate("document.querySelector('.banner.bad').innerText").startswith("Incomplete: of 24 points 1")
    # No table and no chart makes the page itself scroll sideways, on a narrow window neither.
    for width in (1400, 420):
        browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("page", ["cap-radar.html", *(p for p in os.environ.get("MOECAP_PAGES", "").split(":") if p)])
def test_other_pages(browser: Browser, pages: Path, page: str) -> None:
    check(browser, pages / page if (pages / page).exists() else ROOT / page)


def test_a_script_that_a_model_wrote_would_not_run(browser: Browser, pages: Path, tmp_path: Path) -> None:
    """Even unescaped: the policy knows the page's own scripts only. (The test of the lock, not of the door.)"""
    text = (pages / "report.html").read_text()
    (tmp_path / "hacked.html").write_text(text.replace("<h1>", f"<p>{synthetic.HOSTILE}</p><h1>", 1))
    browser.open(tmp_path / "hacked.html")
    assert browser.evaluate("window.hacked === undefined")
    assert any("Content Security Policy" in p for p in browser.problems)


def test_sorting_and_filtering(browser: Browser, pages: Path) -> None:
    browser.open(pages / "report.html")
    head = (
        "Array.from(document.querySelectorAll('#performance-table th')).findIndex(h => h.innerText.startsWith('TPOT'))"
    )
    browser.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    column = browser.evaluate(head)

    def values() -> list[str]:
        cells = f"#performance-table tbody td:nth-child({column + 1})"
        return browser.evaluate(f"Array.from(document.querySelectorAll('{cells}'), c => c.dataset.sort)")

    for direction, sign in (("ascending", 1), ("descending", -1)):
        browser.evaluate(
            f"document.querySelectorAll('#performance-table th')[{column}].querySelector('button').click()"
        )
        shown = values()
        assert len(shown) == 24
        assert shown[-1] == ""  # what was not measured comes last, whichever way
        numbers = [sign * float(v) for v in shown[:-1]]
        assert numbers == sorted(numbers), direction
        sorts = "document.querySelectorAll('#performance-table th[aria-sort]')"
        assert browser.evaluate(f"Array.from({sorts}, h => h.getAttribute('aria-sort'))") == [direction]
    browser.evaluate(
        """(() => { const i = document.querySelector('input[data-filters=performance-table]');
                    i.value = 'int4 arithmetic-mc'; i.dispatchEvent(new Event('input')); })()"""
    )
    rows = "Array.from(document.querySelectorAll('#performance-table tbody tr')).filter(r => !r.hidden)"
    shown = browser.evaluate(f"{rows}.map(r => r.cells[0].innerText + ' ' + r.cells[1].innerText)")
    assert shown == ["demo-int4 arithmetic-mc"] * 4


def test_dark_and_light(browser: Browser, pages: Path) -> None:
    browser.colour_scheme("light")
    browser.open(pages / "report.html")
    fills = "Array.from(document.querySelectorAll('.live text'), t => t.getAttribute('fill'))"
    assert set(browser.evaluate(fills)) & set(charts.INK["dark"]) == set()
    browser.colour_scheme("dark")
    browser.wait_for(f"{fills}.includes('{charts.INK['dark'][0]}')")
    browser.wait_for(f"!{fills}.includes('{charts.INK['light'][0]}')")
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == "rgb(15, 20, 25)"
    assert browser.problems == []


def test_printing_shows_the_still_charts_on_white(browser: Browser, pages: Path) -> None:
    browser.colour_scheme("dark")
    browser.open(pages / "report.html")
    browser.colour_scheme("dark", media="print")
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.evaluate("getComputedStyle(document.querySelector('figure .live')).display") == "none"
    images = "Array.from(document.querySelectorAll('figure img'))"
    assert browser.evaluate(f"{images}.every(i => getComputedStyle(i).display !== 'none' && i.naturalWidth > 100)")
    assert browser.pdf()[:5] == b"%PDF-"


def test_batch_size_of_the_radar_can_be_chosen(browser: Browser, pages: Path) -> None:
    browser.open(pages / "report.html")
    shapes = "document.querySelector('#figure-cap-radar .live svg').innerHTML"
    before = browser.evaluate(shapes)
    options = browser.evaluate("Array.from(document.querySelectorAll('#figure-cap-radar select option'), o => o.value)")
    assert [int(o) for o in options] == list(synthetic.BATCH_SIZES)
    browser.evaluate(
        """(() => { const s = document.querySelector('#figure-cap-radar select');
                    s.selectedIndex = 0;
                    s.dispatchEvent(new Event('input'));
                    s.dispatchEvent(new Event('change')); })()"""
    )
    browser.evaluate("new Promise(r => setTimeout(r, 500))")
    assert browser.evaluate(shapes) != before
    assert browser.problems == []
