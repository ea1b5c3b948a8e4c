"""Every cost that the paper prints, from one catalogue entry, through the code that costs measured runs."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from moecap.cap import classes as classify
from moecap.cap import paper
from moecap.cap.table import cap_table
from moecap.cost import table as tables
from moecap.errors import MoecapError
from moecap.hardware import catalogue as hardware

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"years": 3, "region": "us-average"}
CLASSES = {"reference": "t2-pa", "accuracy_ratio": 0.98, "performance_ratio": 1.0, "cost_ratio": 0.75}


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return paper.read_tables(ROOT / "config" / "paper")


@pytest.fixture(scope="module")
def costs(rows: list[dict]) -> pa.Table:
    catalogue = hardware.load(ROOT / "config" / "catalogue")
    return tables.cost_table(paper.metrics_table(rows), paper.deployments(rows), catalogue, SETTINGS)


def test_tables_are_complete(rows: list[dict]) -> None:
    assert {t: sum(r["table"] == t for r in rows) for t in (2, 3, 4)} == {2: 3, 3: 18, 4: 12}
    assert all(r["accuracy_percent"] and r["cost_kusd"] and r["tokens_per_s"] for r in rows)
    # Sums over the printed columns, added up from the paper's text: a mistyped cell shows here.
    for table, rate, accuracy in ((2, 700.65, 237.8), (3, 13_922.68, 769.40), (4, 2_795.52, 414.93)):
        own = [r for r in rows if r["table"] == table]
        assert sum(r["tokens_per_s"] for r in own) == pytest.approx(rate, abs=1e-6)
        assert sum(r["accuracy_percent"] for r in own) == pytest.approx(accuracy, abs=1e-6)


@pytest.mark.parametrize(("devices", "printed"), [(1, 29.91), (2, 50.64), (4, 92.10), (8, 175.03)])
def test_the_papers_server_costs_what_is_printed(devices: int, printed: float) -> None:
    bought = hardware.load(ROOT / "config" / "catalogue").find("paper-a100-80gb").purchase(devices)
    assert round(bought.total.value / 1e3, 2) == printed
    assert bought.status == "fitted" and bought.complete
    assert bought.components["cpu"] is None and bought.components["dram"] is None  # the split is unknown


def test_every_printed_cost_comes_out(rows: list[dict], costs: pa.Table) -> None:
    found = costs.to_pylist()
    assert len(found) == len(rows) == 33
    printed = {(r["deployment"], r["dataset"], r["batch_size"]): r for r in rows}
    for row in found:
        given = printed[row["deployment"], row["dataset"], row["batch_size"]]
        digits = 1 if given["table"] == 2 else 2
        assert round(row["hardware_usd"] / 1e3, digits) == given["cost_kusd"], row["deployment"]
        assert row["energy_source"] == "estimated" and row["price_status"] == "fitted"


def test_power_of_the_papers_rows_is_an_estimate_from_tdp(costs: pa.Table) -> None:
    by_name = {r["deployment"]: r for r in costs.to_pylist()}
    assert by_name["t2-pa"]["power_w"] == 1600 and by_name["t2-pa"]["power_covers"] == "gpu"
    assert by_name["t4-mixtral-8x7b-8gpu"]["power_w"] == 3200


def test_cost_per_throughput_as_the_errata_state_it(costs: pa.Table, rows: list[dict]) -> None:
    rate = {r["deployment"]: r["tokens_per_s"] for r in rows if r["table"] == 2}
    usd = {r["deployment"]: r["hardware_usd"] for r in costs.to_pylist()}
    ratio = {name: usd[name] / 1e3 / rate[name] for name in rate}
    assert ratio["t2-pa"] == pytest.approx(0.89, abs=0.005)
    assert ratio["t2-cp"] == pytest.approx(0.155, abs=0.0005)
    assert ratio["t2-ca"] == pytest.approx(15.6, abs=0.05)


def test_the_papers_classes(rows: list[dict], costs: pa.Table) -> None:
    table = cap_table(paper.deployments(rows), [paper.metrics_table(rows)], [paper.accuracy_table(rows)], [costs])
    assert table.num_rows == 33 and set(table.column("status").to_pylist()) == {"paper"}
    found = {r["deployment"]: r for r in classify.classify(table.to_pylist(), CLASSES) if r["dataset"] == "gsm8k"}
    # The paper's own labels mix two notions: its CP is cheap per token, its CA is cheap to buy.
    assert found["t2-pa"]["cap_class"] == found["t2-pa"]["cap_class_purchase"] == "PA"
    assert found["t2-cp"]["cap_class"] == "CP" and found["t2-cp"]["cap_class_purchase"] == "P"
    assert found["t2-ca"]["cap_class"] == "A" and found["t2-ca"]["cap_class_purchase"] == "CA"
    assert {r[0] for r in classify.differing(found.values())} >= {"t2-cp", "t2-ca"}
    assert found["t4-mixtral-8x7b-8gpu"]["engine"] is None  # Table 4 does not name one
    assert found["t2-pa"]["source"] == "MoE-CAP paper, Table 2"


def test_quantization_gain_and_scaling_of_section_7(rows: list[dict]) -> None:
    rate = {(r["deployment"], r["dataset"]): r["tokens_per_s"] for r in rows}
    gain = rate["t3-mixtral-8x22b-int4", "gsm8k"] / rate["t3-mixtral-8x22b-bf16", "gsm8k"]
    assert gain == pytest.approx(4.27, abs=0.005)
    arena = rate["t4-mixtral-8x7b-8gpu", "arena_hard"] / rate["t4-mixtral-8x7b-4gpu", "arena_hard"]
    assert arena == pytest.approx(1.164, abs=0.0005)


def test_a_broken_table_is_refused(tmp_path: Path) -> None:
    for number in (2, 3, 4):
        text = (ROOT / "config" / "paper" / f"table{number}.csv").read_text()
        (tmp_path / f"table{number}.csv").write_text(text.replace(",104.0,", ",fast,"))
    with pytest.raises(MoecapError, match=r"table2\.csv, line 3 \(t2-pa\): `tokens_per_s` is 'fast'"):
        paper.read_tables(tmp_path)
    with pytest.raises(MoecapError, match="does not exist"):
        paper.read_tables(tmp_path / "nowhere")
