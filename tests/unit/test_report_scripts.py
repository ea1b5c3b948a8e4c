"""The scripts of the last stages, run as Snakemake runs them."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from moecap.io import read_metadata, read_parquet, write_json, write_parquet
from moecap.metrics.routing_analysis import ANALYSIS_SCHEMA

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
import synthetic  # noqa: E402


class Named(dict):
    """Like Snakemake's input and params: by key and by attribute."""

    __getattr__ = dict.__getitem__


def run(script: str, **parts) -> None:
    job = SimpleNamespace(log=[], rule=script, threads=1, **{k: Named(v) for k, v in parts.items()})
    runpy.run_path(str(ROOT / "scripts" / f"{script}.py"), {"snakemake": job})


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    given = synthetic.tables()
    for name in ("metrics", "accuracy", "cost"):
        write_parquet(given[name], tmp_path / f"{name}.parquet")
    write_parquet(
        pa.Table.from_pylist(synthetic.routing(), schema=ANALYSIS_SCHEMA),
        tmp_path / "metrics" / "demo-bf16" / "routing.parquet",
    )
    write_json(synthetic.machine(), tmp_path / "this-machine.json")
    write_json(synthetic.failures()[0], tmp_path / "failures" / "performance" / "demo-int4.json")
    return tmp_path


def test_cap_charts_and_report(tree: Path) -> None:
    run(
        "cap",
        input={name: [str(tree / f"{name}.parquet")] for name in ("metrics", "accuracy", "cost")},
        output={"cap": str(tree / "cap.parquet")},
        params={"cap": {"deployments": synthetic.deployments(), "provenance": {"config_hash": "c0ffee"}}},
    )
    assert read_parquet(tree / "cap.parquet").num_rows == 24
    assert read_metadata(tree / "cap.parquet")["config_hash"] == "c0ffee"
    routing = [str(tree / "metrics" / "demo-bf16" / "routing.parquet")]
    run(
        "charts",
        input={"cap": str(tree / "cap.parquet"), "routing_analysis": routing},
        output={"charts": str(tree / "charts")},
        params={"charts": {"reference": "demo-bf16", "formats": ["svg"]}},
    )
    assert len(list((tree / "charts").glob("*.svg"))) == 8
    run(
        "report",
        input={
            "cap": str(tree / "cap.parquet"),
            "routing_analysis": routing,
            "machines": [str(tree / "this-machine.json")],
        },
        output={"report": str(tree / "report.html")},
        params={"report": {"reference": "demo-bf16", "failures": str(tree / "failures")}},
    )
    html = (tree / "report.html").read_text()
    assert "c0ffee" in html
    assert "The engine was killed (signal 9)." in html


def test_an_error_is_one_paragraph(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(
            "cap",
            input={"metrics": [str(tree / "metrics.parquet")] * 2},
            output={"cap": str(tree / "cap.parquet")},
            params={"cap": {"deployments": synthetic.deployments()}},
        )
    assert end.value.code == 1
    assert "two rows for deployment demo-bf16" in capsys.readouterr().err
    assert not (tree / "cap.parquet").exists()
