"""`moecap show`, `moecap serve` and the console script itself."""

from __future__ import annotations

import json
import sys
import threading
import urllib.request
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moecap import cli
from moecap.cap.select import select
from moecap.commands.serve import make_server
from moecap.errors import MoecapError
from moecap.io import write_parquet

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import synthetic

ROWS = pd.DataFrame(
    {
        "deployment": ["a", "b", "c|d"],
        "model": ["Mixtral", "mixtral", "dbrx"],
        "accuracy": [0.9, None, 0.95],
        "tpot_s": [0.02, 0.01, 0.03],
    }
)


def test_the_answer_comes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from moecap.cap.table import cap_table
    from moecap.report import answers

    table = cap_table(**synthetic.tables())
    write_parquet(table, tmp_path / "cap.parquet")
    assert cli.main(["show", str(tmp_path / "cap.parquet"), "--answer", "--top", "1"]) == 0
    said = capsys.readouterr().out
    for dataset in synthetic.DATASETS:
        rows = [r for r in table.to_pylist() if r["dataset"] == dataset]
        assert f"{dataset}: {answers.advice(rows)}" in said
        for card in answers.cards(rows):
            assert f"{card.title}: {card.text} ({card.detail})" in said


@given(st.floats(0, 1), st.sampled_from([">=", "<=", ">", "<", "=", "!="]))
def test_a_condition_selects_what_a_reader_would(limit: float, sign: str) -> None:
    found = select(ROWS, where=[f"accuracy {sign} {limit!r}"])
    test = {">=": "__ge__", "<=": "__le__", ">": "__gt__", "<": "__lt__", "=": "__eq__", "!=": "__ne__"}[sign]
    expected = [name for name, value in (("a", 0.9), ("c|d", 0.95)) if getattr(value, test)(limit)]
    assert [n for n in found.deployment if n != "b"] == expected
    assert ("b" in set(found.deployment)) == (sign == "!="), "null meets no condition but !="


def test_text_order_and_top() -> None:
    assert select(ROWS, where=["model~MIX"], sort=["-tpot_s"]).deployment.tolist() == ["a", "b"]
    assert select(ROWS, sort=["accuracy"], top=2).deployment.tolist() == ["a", "c|d"], "nulls come last"
    assert select(ROWS, columns=["all"]).columns.tolist() == list(ROWS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"where": ["acuracy>1"]}, "Did you mean 'accuracy'"),
        ({"where": ["accuracy is good"]}, "COLUMN OP VALUE"),
        ({"where": ["accuracy>high"]}, "no number"),
        ({"sort": ["-tpot"]}, "tpot_s"),
        ({"columns": ["modle"]}, "model"),
    ],
)
def test_a_mistake_is_named(arguments: dict[str, list[str]], message: str) -> None:
    with pytest.raises(MoecapError, match=message):
        select(ROWS, **arguments)


@pytest.fixture
def table(tmp_path: Path) -> str:
    write_parquet(pa.Table.from_pandas(ROWS, preserve_index=False), tmp_path / "cap.parquet", {})
    return str(tmp_path / "cap.parquet")


def test_every_format_holds_the_same_rows(table: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = {}
    for form in ("table", "csv", "md", "json"):
        assert cli.main(["show", table, "--format", form, "--sort=-tpot_s"]) == 0
        shown[form] = capsys.readouterr().out
    assert [row["deployment"] for row in json.loads(shown["json"])] == ["c|d", "a", "b"]
    assert json.loads(shown["json"])[2]["accuracy"] is None
    assert shown["csv"].splitlines()[3] == "b,mixtral,,0.01"
    assert r"c\|d" in shown["md"]
    assert len(shown["table"].splitlines()) == 4 and "\x1b" not in shown["table"]


def test_a_missing_file_says_where_one_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", "no.parquet"]) == 1
    assert "no.parquet does not exist" in capsys.readouterr().err


def test_the_script_tells_its_version_and_near_misses(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out.startswith("moecap 0.")
    with pytest.raises(SystemExit) as ended:
        cli.main(["anatmy", "x"])
    assert ended.value.code == 2 and "Did you mean 'anatomy'" in capsys.readouterr().err


def test_a_report_is_served_on_loopback_only(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("<p>here</p>", encoding="utf-8")
    server, address = make_server(tmp_path / "report.html", 0)
    with server:
        assert server.server_address[0] == "127.0.0.1"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        assert urllib.request.urlopen(address).read() == b"<p>here</p>"
        with pytest.raises(MoecapError, match="--port 0"):
            make_server(tmp_path / "report.html", server.server_address[1])
        server.shutdown()
    with pytest.raises(MoecapError, match="does not exist"):
        make_server(tmp_path / "none", 0)
