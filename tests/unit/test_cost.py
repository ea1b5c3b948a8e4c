"""Equations (5), (6), (7): recomputed by hand and by dimension, and against what the reference code gets wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moecap import cli
from moecap.cost import deployment, equations, figures, offers, power
from moecap.cost import settings as settings_of
from moecap.cost import table as tables
from moecap.errors import MoecapError
from moecap.hardware import catalogue as hardware
from moecap.hardware.catalogue import Hardware

ROOT = Path(__file__).resolve().parents[2]
GIVEN = {"years": 3, "usd_per_kwh": 0.1}
MACHINE = {"cores": 2, "memory_bytes": 24e9}


@pytest.fixture(scope="module")
def catalogue() -> Hardware:
    return hardware.load(ROOT / "config" / "catalogue")


def _cost(catalogue: Hardware, name: str, devices: int, tokens_per_s: float | None, **more: Any) -> dict[str, Any]:
    changed = {**GIVEN, **more.pop("given", {})}
    terms = replace(settings_of.settings(changed, catalogue), seed=more.pop("seed", 0))
    return deployment.deployment_cost(catalogue.find(name), devices, tokens_per_s, terms, **more)


positive = st.floats(1e-3, 1e6)


@given(positive, positive, st.floats(0.1, 20), positive, st.floats(0, 2))
def test_equation_7_is_cost_of_the_life_over_tokens_of_the_life(
    usd: float, watts: float, years: float, rate: float, price: float
) -> None:
    seconds = years * 8766 * 3600
    joules = watts * seconds
    expected = (usd + joules / 3.6e6 * price) / (rate * seconds)
    energy = equations.energy_kwh(watts, years)
    assert energy == pytest.approx(joules / 3.6e6)
    assert equations.usd_per_token(usd, energy, price, rate, years) == pytest.approx(expected)


@given(positive, positive, st.floats(1, 2))
def test_energy_per_token_and_tokens_per_energy_are_inverse(watts: float, rate: float, pue: float) -> None:
    joules = equations.joules_per_token(watts, rate, pue)
    assert joules * equations.tokens_per_kwh(watts, rate, pue) == pytest.approx(3.6e6)
    assert equations.tokens_per_s_per_kw(watts, rate) == pytest.approx(1000 / equations.joules_per_token(watts, rate))


def test_purchase_is_spread_over_the_life(catalogue: Hardware) -> None:
    # The reference implementation charges the whole purchase to a run, whatever its length.
    year, three = (_cost(catalogue, "paper-a100-80gb", 8, 100.0, given={"years": y}) for y in (1, 3))
    assert year["usd_per_million_tokens"] > 2.5 * three["usd_per_million_tokens"]
    assert three["capital_share"] + three["operating_share"] == pytest.approx(1)
    minute = equations.run_usd(three["hardware_usd"], three["energy_usd"], 3, 60.0)
    assert minute < 0.2  # not 175,030 USD
    assert three["usd_per_hour"] * 3 * 8766 == pytest.approx(three["hardware_usd"] + three["energy_usd"])
    assert three["usd_per_hour"] / 3600 / 100.0 * 1e6 == pytest.approx(three["usd_per_million_tokens"])


def test_pue_and_utilisation(catalogue: Hardware) -> None:
    base = _cost(catalogue, "paper-a100-80gb", 4, 100.0)
    site = _cost(catalogue, "paper-a100-80gb", 4, 100.0, given={"pue": 1.5})
    assert site["energy_kwh"] == pytest.approx(1.5 * base["energy_kwh"])
    assert site["tokens_per_kwh"] == pytest.approx(base["tokens_per_kwh"] / 1.5)
    half = _cost(catalogue, "paper-a100-80gb", 4, 100.0, given={"utilisation": 0.5})
    # idle power of this GPU is not known: full power is counted for the idle half, so twice per token
    assert half["usd_per_million_tokens"] == pytest.approx(2 * base["usd_per_million_tokens"])
    known = catalogue.find("GB10-DGX-Spark-128GB")
    assert known.power(1, idle=True).total_w is None
    assert equations.mean_power_w(400.0, 0.25, 80.0) == pytest.approx(160.0)


def test_power_measured_and_estimated_are_told_apart(catalogue: Hardware) -> None:
    bare = catalogue.find("H100-SXM5-80GB").power(8)
    host = bare.components["host"]
    assert host == pytest.approx(4600)
    nvml = power.deployment_power(bare, 3000.0, "nvml")
    assert (nvml.power_w, nvml.energy_source, nvml.gpu_w) == (pytest.approx(7600.0), "nvml + estimated host", 3000.0)
    only = power.deployment_power(catalogue.find("paper-a100-80gb").power(8), 3000.0, "nvml")
    assert (only.power_w, only.energy_source) == (3000.0, "nvml")
    rapl = power.deployment_power(catalogue.find("this-machine").power(1, MACHINE), 12.0, "rapl", "cpu")
    assert (rapl.power_w, rapl.energy_source) == (12.0, "rapl")
    guess = power.deployment_power(bare)
    assert (guess.power_w, guess.energy_source) == (8 * 700 + 4600, "estimated")


def test_gpu_only_costing_error_of_the_papers_offloading_server(catalogue: Hardware) -> None:
    # §5: the CPU's 280 W is as significant as another GPU of 300 W.
    row = _cost(catalogue, "paper-offload", 1, 3.25, given={"usd_per_kwh": 0.1})
    assert row["estimated_gpu_w"] == 300 and row["estimated_cpu_w"] == 280
    assert row["gpu_only_energy_error"] == pytest.approx(300 / (300 + 280 + 192) - 1)
    assert row["gpu_only_purchase_error"] == pytest.approx(7400 / (7400 + 8800 + 512 * 6.25) - 1)
    assert row["gpu_only_error"] < -0.5


def test_costing_gpus_alone_in_the_papers_two_use_cases(catalogue: Hardware) -> None:
    names = ["paper-8xa100-176k", "paper-8xa100-156k", "paper-offload"]
    table = tables.hosts_table(catalogue, names, GIVEN)
    assert table.schema == tables.HOSTS_SCHEMA
    whole, lean, offload = table.to_pylist()
    # eight A100 by their own list price, 15,000 to 20,000 USD each, in servers that are priced whole
    assert whole["purchase_error"] == pytest.approx(8 * 17_500 / 176_000 - 1)
    assert lean["purchase_error"] == pytest.approx(8 * 17_500 / 156_000 - 1)
    assert whole["power_error"] is None and whole["whole_w"] is None  # nobody says what those servers draw
    assert offload["power_error"] == pytest.approx(300 / (300 + 280 + 192) - 1)
    energy, gpus = ((7400 + 12_000, 772), (7400, 300))
    life = [usd + watts / 1000 * 3 * 8766 * 0.1 for usd, watts in (energy, gpus)]
    assert offload["lifetime_error"] == pytest.approx(life[1] / life[0] - 1)


def test_weights_that_are_offloaded_lie_on_something_that_costs(catalogue: Hardware) -> None:
    def notes(hardware: str, offload: str) -> tuple[str, bool]:
        metrics = [{"deployment": "d", "dataset": "x", "batch_size": 1, "output_tokens_per_s": 1.0}]
        deployment = {"deployment": "d", "hardware": hardware, "devices": 1, "offload": offload}
        row = tables.cost_table(metrics, [deployment], catalogue, GIVEN, MACHINE).to_pylist()[0]
        return row["price_notes"] or "", row["price_complete"]

    assert "DRAM" not in notes("paper-offload", "dram")[0] and notes("paper-offload", "dram")[1]
    text, complete = notes("paper-offload", "ssd")
    assert "SSD, which has no price" in text and "power of the SSD" in text and not complete
    text, complete = notes("paper-a100-80gb", "dram")
    assert "not told apart" in text and complete
    assert "offloaded" not in notes("paper-a100-80gb", "none")[0]


def test_saving_of_the_smaller_host(catalogue: Hardware) -> None:
    whole, lean = (_cost(catalogue, f"paper-8xa100-{k}", 8, 100.0) for k in ("176k", "156k"))
    assert whole["hardware_usd"] - lean["hardware_usd"] == 20_000
    assert whole["hardware_gpu_usd"] is None  # the split is not known, so it is not invented


def test_components_add_up(catalogue: Hardware) -> None:
    for name in catalogue.names:
        try:
            bought = catalogue.find(name).purchase(4, MACHINE)
        except MoecapError as error:
            assert "no price is known" in str(error)
            continue
        parts = [p.value for p in bought.components.values() if p is not None]
        assert sum(parts) == pytest.approx(bought.total.value)
        assert bought.total.low <= bought.total.value <= bought.total.high


def test_intervals_hold_the_figure_and_are_reproducible(catalogue: Hardware) -> None:
    def once(seed: int = 0) -> dict[str, Any]:
        return _cost(
            catalogue,
            "H100-SXM5-80GB",
            8,
            1000.0,
            seed=seed,
            tokens_per_s_low=900.0,
            tokens_per_s_high=1111.1,
            power_w=5000.0,
            power_w_low=4800.0,
            power_w_high=5200.0,
            energy_source="nvml",
        )

    row = once()
    assert row == once()
    for name in figures.UNCERTAIN:
        if row[f"{name}_low"] is not None:
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"], name
    assert (row["hardware_usd_low"], row["hardware_usd_high"]) == (8 * 30_000 + 32_010, 8 * 40_000 + 32_010)
    assert row["usd_per_million_tokens_high"] / row["usd_per_million_tokens_low"] > 1.2
    assert row["power_w_high"] - row["power_w_low"] == pytest.approx(400, rel=0.05)
    assert once(1)["usd_per_million_tokens_low"] == pytest.approx(row["usd_per_million_tokens_low"], rel=0.02)


def test_interval_of_throughput_alone_is_its_own_inverse(catalogue: Hardware) -> None:
    row = _cost(catalogue, "paper-a100-80gb", 1, 100.0, tokens_per_s_low=80.0, tokens_per_s_high=125.0)
    assert row["hardware_usd_low"] is None and row["energy_kwh_low"] is None
    assert row["usd_per_million_tokens_high"] == pytest.approx(row["usd_per_million_tokens"] * 1.25, rel=0.03)
    assert row["tokens_per_usd_low"] == pytest.approx(row["tokens_per_usd"] * 0.8, rel=0.03)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"years": -3}, r"`years`: .*greater than 0 \(got -3\)"),
        ({"years": 0}, r"`years`: .*greater than 0"),
        ({"years": "long"}, r"`years`: .*valid number.*'long'"),
        ({"usd_per_kwh": -0.1}, r"`usd_per_kwh`: .*greater than or equal to 0 \(got -0\.1\)"),
        ({"usd_per_kwh": None, "region": "atlantis"}, r"region 'atlantis'.*us-average"),
        ({"usd_per_kwh": None}, r"neither `usd_per_kwh` nor `region`"),
        ({"pue": 0.9}, r"`pue`: .*got 0\.9"),
        ({"utilisation": 1.2}, r"`utilisation`: .*got 1\.2"),
        ({"hardware_usd": -1}, r"`hardware_usd`"),
        ({"lifetime": 3}, r"unknown key `lifetime`"),
    ],
)
def test_wrong_settings_are_named(catalogue: Hardware, given: dict[str, Any], message: str) -> None:
    with pytest.raises(MoecapError, match=message):
        settings_of.settings({**GIVEN, **given}, catalogue)


def test_pue_is_a_figure_or_a_sites(catalogue: Hardware) -> None:
    assert settings_of.settings({**GIVEN, "pue": "google"}, catalogue).pue == catalogue.site("google").pue == 1.1
    with pytest.raises(MoecapError, match=r"'gogle'.*Did you mean 'google'"):
        catalogue.site("gogle")
    with pytest.raises(MoecapError, match=r"`pue`: .*'gogle'.*Did you mean 'google'"):
        settings_of.settings({**GIVEN, "pue": "gogle"}, catalogue)


def test_settings_per_deployment(catalogue: Hardware) -> None:
    given = {"years": 3, "region": "us-average", "deployments": {"mine": {"usd_per_kwh": 0.3, "years": 5}}}
    assert settings_of.settings(given, catalogue, "mine").usd_per_kwh.value == 0.3
    assert settings_of.settings(given, catalogue, "mine").years == 5
    other = settings_of.settings(given, catalogue, "other")
    assert other.usd_per_kwh.value == pytest.approx(0.1294) and other.electricity_status == "unverified"


@pytest.mark.parametrize("rate", [0.0, -5.0, float("nan")])
def test_a_rate_that_is_not_positive_is_refused(catalogue: Hardware, rate: float) -> None:
    with pytest.raises(MoecapError, match="tokens_per_s"):
        _cost(catalogue, "paper-a100-80gb", 1, rate)


def test_table_of_points(catalogue: Hardware) -> None:
    metrics = pa.Table.from_pylist(
        [
            {
                "deployment": "d",
                "dataset": "x",
                "batch_size": b,
                "output_tokens_per_s": 100.0 * b,
                "requests": 10,
                "prompt_tokens": 5000,
                "generated_tokens": 1000,
                "prefill_tokens_per_s": 5000.0,
                "decode_tokens_per_s": 330.0,
                "wall_s": 10.0 / b,
            }
            for b in (1, 4)
        ]
        + [{"deployment": "other", "dataset": "x", "batch_size": 1, "output_tokens_per_s": 1.0}]
    )
    table = tables.cost_table(
        metrics, [{"deployment": "d", "hardware": "this-machine", "devices": 1}], catalogue, GIVEN, MACHINE
    )
    assert table.schema == tables.COST_SCHEMA and table.num_rows == 2
    first, second = table.to_pylist()
    assert first["usd_per_million_tokens"] == pytest.approx(4 * second["usd_per_million_tokens"])
    assert (
        first["energy_source"] == "estimated" and first["price_status"] == "assumption" and first["figures_unverified"]
    )
    # prefill 1 s, decode 990 / 330 = 3 s: a quarter of the hour is the input's, and the parts make the whole
    assert figures.prefill_time_share(metrics.to_pylist()[0]) == pytest.approx(0.25)
    whole = first["usd_per_million_input_tokens"] * 500 + first["usd_per_million_output_tokens"] * 100
    assert whole * 3600 / 1e6 == pytest.approx(first["usd_per_hour"])
    assert first["run_usd"] == pytest.approx(first["usd_per_hour"] * 10 / 3600)
    for name in ("hardware_usd", "energy_kwh", "energy_usd", "tokens_per_usd", "tokens_per_kwh", "power_w"):
        assert first[name] is not None


MEASURED = {
    "deployment": "d",
    "dataset": "x",
    "batch_size": 8,
    "output_tokens_per_s": 100.0,
    "output_tokens_per_s_low": 90.0,
    "output_tokens_per_s_high": 110.0,
    "requests": 10,
    "prompt_tokens": 5000,
    "generated_tokens": 1000,
    "prefill_tokens_per_s": 5000.0,
    "decode_tokens_per_s": 330.0,
    "wall_s": 10.0,
}
RENTED = {
    "spot": {"interruptions_per_hour": 0.5, "restart_s": 720.0},
    "elastic": {"demand_tokens_per_s": [150.0] * 12 + [50.0] * 12, "scale_up_s": 360.0},
    "serverless": {"requests_per_hour": 60.0, "cold_start_s": 20.0},
}


def _row(catalogue: Hardware, given: dict[str, Any], **deployment: Any) -> dict[str, Any]:
    row = {"deployment": "d", "hardware": "H100-SXM5-80GB", "devices": 2, **deployment}
    return tables.cost_table([MEASURED], [row], catalogue, {**GIVEN, **given}).to_pylist()[0]


def test_every_figure_of_cost_has_an_interval(catalogue: Hardware) -> None:
    elastic = {"demand_tokens_per_s": [205.0, 50.0]}  # how many replicas that takes depends on their throughput
    row = _row(catalogue, {**RENTED, "elastic": elastic}, model="mixtral-8x7b")
    fixed = {"power_w", "energy_kwh", "energy_usd"}  # an estimate from TDP and a given price have no range
    for name in figures.UNCERTAIN:
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        if name in fixed:
            assert low is None and high is None, name
        else:
            assert low <= row[name] <= high and low < high, name
    assert (row["hardware_gpu_usd_low"], row["hardware_gpu_usd_high"]) == (60_000, 80_000)
    assert row["hardware_unsplit_usd_low"] is None  # the host's price has no range
    assert row["api_usd_per_million_output_tokens"] > 0 and "API" in row["api_source"]
    assert _row(catalogue, {}, model="demo-moe")["api_source"] is None


def test_rented_by_what_the_config_says(catalogue: Hardware) -> None:
    given = {
        "rental_usd_per_device_hour": 1.8,
        "spot": {**RENTED["spot"], "usd_per_device_hour": 0.9},
        "elastic": RENTED["elastic"],
        "serverless": {**RENTED["serverless"], "usd_per_device_second": 0.0005},
    }
    row = _row(catalogue, given)
    assert (
        row["rental_usd_per_million_tokens"] == pytest.approx(3.6 / 360_000 * 1e6) and row["rental_source"] == "given"
    )
    assert row["spot_usd_per_million_tokens"] == pytest.approx(1.8 / 360_000 * 1e6 * 1.1)
    # two replicas for twelve hours, one for twelve, one start of 0.1 h a day, for 2.4e6 tokens x 3.6
    assert row["elastic_replicas"] == pytest.approx(1.5)
    assert row["elastic_usd_per_million_tokens"] == pytest.approx(3.6 * 36.1 / (2400 * 3600) * 1e6)
    # 100 tokens per request, as timed: one second of work, twenty of cold start, at 0.001 USD/s
    assert row["serverless_usd_per_million_tokens"] == pytest.approx(0.001 * 21 / 100 * 1e6)
    plain = _row(catalogue, {})
    assert plain["spot_usd_per_million_tokens"] is None and plain["serverless_usd_per_million_tokens"] is None


def test_a_deployment_has_terms_of_its_own(catalogue: Hardware) -> None:
    own = {"d": {"years": 6, "hardware_usd": 1000.0, "rental_usd_per_device_hour": 0.5, "utilisation": None}}
    row, other = _row(catalogue, {"deployments": own}), _row(catalogue, {"deployments": {"e": own["d"]}})
    assert (row["lifetime_years"], row["hardware_usd"], row["rental_usd_per_hour"]) == (6, 1000.0, 1.0)
    assert row["price_status"] == "assumption" and row["utilisation"] == 1.0
    assert other["lifetime_years"] == 3 and other["hardware_usd"] > 60_000


def test_hardware_without_a_price_costs_null_not_the_campaign(catalogue: Hardware) -> None:
    row = _row(catalogue, {}, hardware="H100-NVL-94GB")
    assert row["hardware_usd"] is None and row["usd_per_million_tokens"] is None and row["price_complete"] is False
    assert "no price is known" in row["price_notes"]
    assert row["tokens_per_kwh"] > 0 and row["rental_usd_per_million_tokens"] > 0  # what is known stays
    assert _row(catalogue, {"hardware_usd": 5000.0}, hardware="H100-NVL-94GB")["usd_per_million_tokens"] > 0


def test_a_point_that_failed_costs_nothing_known(catalogue: Hardware) -> None:
    row = {"deployment": "d", "dataset": "x", "batch_size": 1, "output_tokens_per_s": None}
    deployment = {"deployment": "d", "hardware": "paper-a100-80gb", "devices": 2}
    found = tables.cost_table([row], [deployment], catalogue, GIVEN).to_pylist()[0]
    assert found["hardware_usd"] == pytest.approx(50_641.4)
    assert found["usd_per_million_tokens"] is None and found["tokens_per_kwh"] is None


def test_rental_and_its_kin() -> None:
    hourly = equations.rental_usd_per_million_tokens(3.6, 1000.0)
    assert hourly == pytest.approx(1.0)
    assert equations.rental_usd_per_million_tokens(3.6, 1000.0, 0.5) == pytest.approx(2.0)
    assert equations.spot_usd_per_million_tokens(3.6, 1000.0, 0.0, 600.0) == pytest.approx(hourly)
    assert equations.spot_usd_per_million_tokens(3.6, 1000.0, 0.5, 720.0) == pytest.approx(1.1)
    # steady demand of just one replica: elastic is rental
    assert equations.elastic_usd_per_million_tokens(3.6, 1000.0, [1000.0] * 24) == (
        pytest.approx(1.0),
        pytest.approx(1.0),
    )
    day = [1000.0] * 12 + [0.0] * 12
    assert equations.elastic_usd_per_million_tokens(3.6, 1000.0, day)[0] == pytest.approx(1.0)
    assert equations.elastic_usd_per_million_tokens(3.6, 1000.0, day, least_replicas=1)[0] == pytest.approx(2.0)
    slow = equations.elastic_usd_per_million_tokens(3.6, 1000.0, day, scale_up_s=3600.0)[0]
    assert slow == pytest.approx(13 / 12)


def test_serverless_cold_starts_and_idle() -> None:
    rare = equations.serverless_usd_per_million_tokens(0.001, 100.0, 1.0, 1000.0, cold_start_s=30.0)
    assert rare == pytest.approx(0.001 * (10.0 + 30.0) / 1000.0 * 1e6)
    warm = equations.serverless_usd_per_million_tokens(0.001, 100.0, 3600.0, 1000.0, 30.0, keep_warm_s=3600.0)
    assert warm == pytest.approx(0.001 * (10.0 + 1.0) / 1000.0 * 1e6, rel=1e-3)  # a second between two requests
    with pytest.raises(MoecapError, match="cold_start_s"):
        equations.serverless_usd_per_million_tokens(0.001, 100.0, 1.0, 10.0, -1.0)


def test_rental_price_is_the_median_of_sourced_offers(catalogue: Hardware) -> None:
    rent, source = offers.rental_usd_per_hour(catalogue.find("H100-SXM5-80GB"), 8)
    prices = [
        r.usd_per_device_hour.usd().value
        for r in catalogue.rentals
        if r.gpu == "H100-SXM5-80GB" and r.plan == "on_demand" and r.status in ("verified", "derived")
    ]
    assert rent is not None and rent.value == pytest.approx(8 * float(np.median(prices)))
    assert str(len(prices)) in str(source) and rent.low <= 8 * min(prices) < rent.high == 8 * max(prices)
    assert offers.rental_usd_per_hour(catalogue.find("this-machine"), 1) == (None, None)


def test_command_prints_one_object(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    arguments = (
        "cost --hardware paper-a100-80gb --devices 4 --tokens-per-s 139.08 --power-w 1600 --years 3 --usd-per-kwh 0.1"
    )
    assert cli.main([*arguments.split(), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["hardware_usd"] == pytest.approx(92_104.2)
    assert found["energy_kwh"] == pytest.approx(1.6 * 3 * 8766)
    assert found["energy_usd"] == pytest.approx(1.6 * 3 * 8766 * 0.1)
    assert found["usd_per_million_tokens"] == pytest.approx((92_104.2 + 4_207.68) / (139.08 * 3 * 8766 * 3600) * 1e6)
    assert found["tokens_per_usd"] == pytest.approx(1e6 / found["usd_per_million_tokens"])
    assert found["tokens_per_kwh"] == pytest.approx(139.08 * 3600 / 1.6)
    assert cli.main(arguments.split()) == 0
    assert "92,104.20 USD" in capsys.readouterr().out


def test_command_takes_the_entry_of_what_is_detected(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    found = [{"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 85_520_809_984}]
    monkeypatch.setattr("moecap.hardware.gpus.detect", lambda: ("575.57", found))
    arguments = ["cost", "--hardware", "detected", "--devices", "1", "--tokens-per-s", "100", "--json"]
    assert cli.main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["hardware"] == "H100-SXM5-80GB"
    found[0]["name"] = "NVIDIA H100 96GB HBM3"
    assert cli.main(arguments) == 1
    message = capsys.readouterr().err
    assert "'NVIDIA H100 96GB HBM3'" in message and "NVIDIA H100 80GB HBM3" in message and "`names`" in message
    found.clear()
    assert cli.main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["hardware"] == "this-machine"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--hardware", "paper-a100"], "Did you mean 'paper-a100-80gb'"),
        (["--years", "-3"], "`years`: Input should be greater than 0"),
        (["--devices", "0"], "at least 1"),
        (["--power-w", "-5"], "power_w"),
        (["--tokens-per-s", "0"], "tokens_per_s"),
        (["--region", "nowhere"], "region 'nowhere'"),
    ],
)
def test_command_explains_errors(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, change: list[str], message: str
) -> None:
    monkeypatch.chdir(ROOT)
    base = ["cost", "--hardware", "paper-a100-80gb", "--devices", "4", "--tokens-per-s", "100", *change]
    assert cli.main(base) == 1
    printed = capsys.readouterr()
    assert message in printed.err and not printed.out and "Traceback" not in printed.err
