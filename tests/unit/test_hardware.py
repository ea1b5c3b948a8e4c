"""The hardware catalogue: sourced, dense, matched to what drivers say, and refused with a readable error."""

from __future__ import annotations

import copy
import json
import re
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moecap.documents import read_yaml
from moecap.errors import MoecapError
from moecap.hardware import catalogue as hardware
from moecap.hardware import entries
from moecap.hardware.catalogue import Hardware
from moecap.hardware.entries import DTYPES, STATUSES, Price, Sourced, weakest
from moecap.schema import Strict

ROOT = Path(__file__).resolve().parents[2]
CATALOGUE = ROOT / "config" / "catalogue"


@pytest.fixture(scope="module")
def catalogue() -> Hardware:
    return hardware.load(CATALOGUE)


def _sourced(value: object, where: str = "") -> list[tuple[str, Sourced]]:
    """Every model below ``value`` that must have a source, with its place."""
    found: list[tuple[str, Sourced]] = []
    if isinstance(value, Sourced):
        found.append((where, value))
    if isinstance(value, Strict):
        for name in type(value).model_fields:
            found += _sourced(getattr(value, name), f"{where}.{name}")
    elif isinstance(value, dict):
        for name, entry in value.items():
            found += _sourced(entry, f"{where}.{name}")
    elif isinstance(value, tuple):
        for index, entry in enumerate(value):
            found += _sourced(entry, f"{where}[{index}]")
    return found


def test_every_entry_has_source_and_status(catalogue: Hardware) -> None:
    entries = _sourced(catalogue)
    assert len(entries) > 400
    for where, entry in entries:
        assert entry.source.strip() and len(entry.source) > 5, where
        assert entry.status in STATUSES, where


def test_nothing_of_this_machine_in_the_files() -> None:
    for path in hardware.hardware_files(CATALOGUE):
        assert not re.search(r"/(home|work|root|tmp)/|\.\./", path.read_text()), path


# The devices that the catalogue set out with; the second list's figures are sourced in part only, or not at all.
SOURCED_DEVICES = [
    "A100-PCIe-80GB",
    "A100-SXM4-80GB",
    "H100-PCIe-80GB",
    "H100-SXM5-80GB",
    "H200-SXM-141GB",
    "B200-SXM-180GB",
    "GB200-NVL72-per-GPU",
    "B300-SXM-288GB",
    "GB300-NVL72-per-GPU",
    "L40S-48GB",
    "RTX-A6000-48GB",
    "RTX-4090-24GB",
    "RTX-5090-32GB",
    "RTX-PRO-6000-Blackwell-Server-96GB",
    "GB10-DGX-Spark-128GB",
    "MI250X-128GB",
    "MI300X-192GB",
    "MI325X-256GB",
    "MI355X-288GB",
]
OTHER_DEVICES = [
    "A100-PCIe-40GB",
    "A100-SXM4-40GB",
    "H100-NVL-94GB",
    "H200-NVL-141GB",
    "GH200-96GB",
    "RTX-6000-Ada-48GB",
    "RTX-PRO-6000-Blackwell-WS-96GB",
]
#: Nobody publishes the rates of their matrix products (or, of what does not ship yet, only fp4's).
NO_PUBLISHED_RATES = {"Rubin-288GB", "Apple-M3-Ultra-512GB", "Apple-M4-Max-128GB", "Apple-M5-Max-128GB"}


def test_status_of_every_device(catalogue: Hardware) -> None:
    assert {catalogue.gpus[name].status for name in SOURCED_DEVICES} == {"verified", "derived"}
    assert {catalogue.gpus[name].status for name in OTHER_DEVICES} == {"unverified"}
    # sources that disagree are no source: the figure is marked, whatever the entry's status
    assert catalogue.gpus["B300-SXM-288GB"].status_of("memory_bytes_per_s") == "unverified"
    assert catalogue.find("RTX-PRO-6000-Blackwell-Server-96GB").speed_status("bf16") == "unverified"
    assert catalogue.find("H100-SXM5-80GB").speed_status("fp8") == "verified"
    assert catalogue.find("this-machine").speed_status("bf16") is None  # measured


def test_all_devices_are_there_with_every_dtype(catalogue: Hardware) -> None:
    assert set(catalogue.gpus) >= {*SOURCED_DEVICES, *OTHER_DEVICES} and len(catalogue.gpus) >= 26
    for name, gpu in catalogue.gpus.items():
        assert set(gpu.peak_flops) == set(DTYPES), name
        assert gpu.peak_flops["bf16"] or name in NO_PUBLISHED_RATES, name
        assert not any(gpu.peak_flops[d] for d in gpu.lacks), name


@pytest.mark.parametrize(
    ("name", "dtype", "tflops"),
    [
        # dense figures; the 2:4-sparse ones that data sheets print are twice these
        ("A100-SXM4-80GB", "bf16", 312),
        ("A100-SXM4-80GB", "int8", 624),
        ("A100-SXM4-80GB", "int4", 1248),
        ("A100-SXM4-80GB", "tf32", 156),
        ("H100-SXM5-80GB", "bf16", 989),
        ("H100-SXM5-80GB", "fp8", 1979),
        ("B200-SXM-180GB", "bf16", 2250),
        ("MI300X-192GB", "bf16", 1307),
        ("MI355X-288GB", "bf16", 2516),
        ("MI250X-128GB", "bf16", 383),
        ("RTX-A6000-48GB", "bf16", 154.8),
        # no such units: null, never zero and never another dtype's
        ("A100-SXM4-80GB", "fp8", None),
        ("A100-SXM4-80GB", "fp4", None),
        ("H100-SXM5-80GB", "fp4", None),
        ("H100-SXM5-80GB", "int4", None),
        ("H200-SXM-141GB", "int4", None),
        ("GH200-96GB", "fp4", None),
    ],
)
def test_dense_peaks(catalogue: Hardware, name: str, dtype: str, tflops: float | None) -> None:
    peak = catalogue.gpus[name].peak_flops[dtype]  # type: ignore[index]
    assert peak == (None if tflops is None else pytest.approx(tflops * 1e12))


def test_tdp_of_h200_is_not_halved(catalogue: Hardware) -> None:
    assert catalogue.gpus["H200-SXM-141GB"].tdp_w == 700


@pytest.mark.parametrize(
    ("detected", "memory_gib", "entry"),
    [
        ("NVIDIA A100-SXM4-80GB", 80, "A100-SXM4-80GB"),
        ("NVIDIA A100-SXM4-40GB", 40, "A100-SXM4-40GB"),
        ("NVIDIA A100 80GB PCIe", 80, "A100-PCIe-80GB"),
        ("NVIDIA H100 80GB HBM3", 79.6, "H100-SXM5-80GB"),
        ("NVIDIA H100 PCIe", 79.6, "H100-PCIe-80GB"),
        ("NVIDIA H200", 140.4, "H200-SXM-141GB"),
        ("NVIDIA B200", 178.4, "B200-SXM-180GB"),
        ("NVIDIA GeForce RTX 4090", 24, "RTX-4090-24GB"),
        ("AMD Instinct MI300X", 192, "MI300X-192GB"),
        ("AMD Instinct MI250X", 64, "MI250X-128GB"),  # one of its two dies
    ],
)
def test_detected_names_map_to_entries(catalogue: Hardware, detected: str, memory_gib: float, entry: str) -> None:
    assert catalogue.match_gpu(detected, round(memory_gib * 2**30)) == entry


def test_names_of_devices_are_unambiguous(catalogue: Hardware) -> None:
    plain = [entries.plain_name(alias) for gpu in catalogue.gpus.values() for alias in gpu.names]
    assert len(plain) == len(set(plain))


def test_near_misses_are_explained(catalogue: Hardware) -> None:
    with pytest.raises(MoecapError, match=r"NVIDIA A100-SXM4-80GB.*`names`|`names`.*A100-SXM4-80GB"):
        catalogue.match_gpu("NVIDIA A100-SXM4-96GB")
    with pytest.raises(MoecapError, match=r"85\.9"):
        catalogue.match_gpu("NVIDIA A100-SXM4-80GB", 40 * 2**30)
    with pytest.raises(MoecapError, match="Did you mean 'H100-SXM5-80GB'"):
        catalogue.find("H100-SXM-80GB")
    with pytest.raises(MoecapError, match="us-average"):
        catalogue.region("us-averag")
    assert catalogue.match_cpu("AMD EPYC 9654 96-Core Processor") == "AMD-EPYC-9654"


def _write(folder: Path, change: object) -> Path:
    data = copy.deepcopy(_raw())
    change(data)  # type: ignore[operator]
    (folder / "hardware.yaml").write_text(json.dumps(data))  # JSON is YAML
    return folder


@cache
def _raw() -> dict:  # type: ignore[type-arg]
    return read_yaml(CATALOGUE / "hardware.yaml")


def _set(*path: str, value: object) -> object:
    def change(data: dict) -> None:  # type: ignore[type-arg]
        for key in path[:-1]:
            data = data[key]
        if value is None:
            del data[path[-1]]
        else:
            data[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("gpus", "L40S-48GB", "source", value=None), r"hardware\.yaml.*gpus\.L40S-48GB\.source.*missing.*source"),
        (_set("gpus", "L40S-48GB", "status", value=None), r"gpus\.L40S-48GB\.status.*missing"),
        (_set("gpus", "L40S-48GB", "source", value=""), r"gpus\.L40S-48GB\.source"),
        (_set("gpus", "L40S-48GB", "price", "source", value=None), r"L40S-48GB\.price\.source.*missing"),
        (_set("gpus", "L40S-48GB", "price", "currency", value="EUR"), r"in EUR, but costs are in USD.*usd_per_unit"),
        (_set("gpus", "L40S-48GB", "price", "currency", value="dollars"), r"unknown currency"),
        (_set("gpus", "L40S-48GB", "price", "low", value=-5), r"L40S-48GB\.price\.low.*-5"),
        (_set("gpus", "L40S-48GB", "price", "low", value=1e9), r"low ≤ value ≤ high"),
        (_set("gpus", "L40S-48GB", "tdp", value=3), r"unknown key.*tdp"),
        (_set("gpus", "L40S-48GB", "peak_flops", "fp8", value=0), r"peak_flops\.fp8.*greater than 0"),
        (_set("gpus", "L40S-48GB", "peak_flops", "fp8", value=None), r"does not say fp8"),
        (_set("gpus", "L40S-48GB", "peak_flops", "fp4", value=1e12), r"fp4.*lacks"),
        (_set("servers", "dgx-h100", "gpu", value="H100-SXM"), r"'H100-SXM', which is no entry.*Did you mean"),
        (_set("gpu", value={}), r"unknown section `gpu`.*gpus"),
    ],
)
def test_a_wrong_catalogue_is_refused(tmp_path: Path, change: object, message: str) -> None:
    with pytest.raises(MoecapError, match=message):
        hardware.load(_write(tmp_path, change))


def test_an_entry_added_in_one_file_is_known(tmp_path: Path) -> None:
    def change(data: dict) -> None:  # type: ignore[type-arg]
        data["gpus"]["my-card"] = {
            **copy.deepcopy(data["gpus"]["L40S-48GB"]),
            "names": ["My Card"],
            "source": "invoice",
        }

    found = hardware.load(_write(tmp_path, change))
    assert found.match_gpu("NVIDIA My Card") == "my-card"
    assert found.find("my-card").purchase(2).components["gpu"].value > 0  # type: ignore[union-attr]


def test_an_entry_is_defined_once(tmp_path: Path) -> None:
    _write(tmp_path, lambda data: None)
    (tmp_path / "hardware").mkdir()
    entry = _raw()["gpus"]["L40S-48GB"]
    (tmp_path / "hardware" / "more.yaml").write_text(json.dumps({"gpus": {"L40S-48GB": entry}}))
    with pytest.raises(
        MoecapError, match=r"more\.yaml, line 1: gpus\.L40S-48GB is already defined in .*hardware\.yaml"
    ):
        hardware.load(tmp_path)


def test_a_device_without_a_price_has_no_cost(catalogue: Hardware) -> None:
    # its host alone would pass for a bargain
    with pytest.raises(MoecapError, match="no price is known for MI355X-288GB"):
        catalogue.find("MI355X-288GB").purchase(8)


def test_a_server_is_bought_whole_and_a_host_pro_rata(catalogue: Hardware) -> None:
    assert catalogue.find("dgx-h100").purchase(3).total.value == catalogue.find("dgx-h100").purchase(8).total.value
    assert catalogue.find("dgx-h100").purchase(9).total.value == 2 * catalogue.find("dgx-h100").purchase(8).total.value
    bare = catalogue.find("H100-SXM5-80GB")
    assert bare.purchase(2).total.value == pytest.approx(2 * 35_000 + 32_010 / 4)


def test_this_machine_is_priced_by_what_is_detected(catalogue: Hardware) -> None:
    system = catalogue.find("this-machine")
    small = system.purchase(1, {"cores": 2, "memory_bytes": 24e9})
    assert small.status == "assumption" and system.detect and system.kind == "cpu"
    assert small.components["cpu"].value == pytest.approx(11_805 * 2 / 96)  # type: ignore[union-attr]
    large = system.purchase(1, {"cores": 96, "memory_bytes": 24e9})
    assert large.components["cpu"].value == pytest.approx(11_805)  # type: ignore[union-attr]
    assert system.power(1, {"cores": 2, "memory_bytes": 24e9}).total_w == pytest.approx(7.5 + 9.0)


def test_a_slice_holds_what_it_names_and_nothing_else(catalogue: Hardware) -> None:
    data = catalogue.slice(["H100-SXM5-80GB", "this-machine"], ["us-average"])
    json.dumps(data)
    assert set(data["gpus"]) == {"H100-SXM5-80GB"} and set(data["electricity"]) == {"us-average"}
    assert set(data["servers"]) == {"gpu-host-8", "this-machine"}
    again = hardware.from_slice(data)
    for name in ("H100-SXM5-80GB", "this-machine"):
        facts = {"cores": 4, "memory_bytes": 16e9}
        assert again.find(name).purchase(2, facts).total == catalogue.find(name).purchase(2, facts).total
        assert again.find(name).power(2, facts) == catalogue.find(name).power(2, facts)
    for name in catalogue.names:
        hardware.from_slice(catalogue.slice([name]))


def test_a_price_that_nobody_uses_changes_no_slice(tmp_path: Path, catalogue: Hardware) -> None:
    changed = hardware.load(_write(tmp_path, _set("gpus", "L40S-48GB", "price", "low", value=1.0)))
    assert changed.slice(["H100-SXM5-80GB"]) == hardware.load(_write(tmp_path, lambda d: None)).slice(
        ["H100-SXM5-80GB"]
    )
    assert changed.slice(["L40S-48GB"]) != catalogue.slice(["L40S-48GB"])


def test_exported_schema_is_current() -> None:
    assert json.loads((ROOT / "config" / "schemas" / "hardware.json").read_text()) == hardware.schema()


def test_why_a_peak_is_null(catalogue: Hardware) -> None:
    assert "has no fp8 units" in catalogue.find("A100-SXM4-80GB").why_no_peak("fp8")
    assert "No source" in catalogue.find("RTX-4090-24GB").why_no_peak("tf32")


@given(st.lists(st.sampled_from(STATUSES), min_size=1))
def test_the_weakest_status_decides(statuses: list[str]) -> None:
    assert STATUSES.index(weakest(statuses)) == max(STATUSES.index(s) for s in statuses)


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0.01, 10))
def test_prices_convert_end_by_end(a: float, b: float, rate: float) -> None:
    low, high = sorted((a, b))
    price = Price.model_validate(
        {
            "low": low,
            "high": high,
            "currency": "EUR",
            "usd_per_unit": {"usd": rate, "source": "test", "status": "assumption"},
            "source": "test",
            "status": "assumption",
        }
    ).usd()
    assert price.low <= price.value * (1 + 1e-12) and price.value <= price.high * (1 + 1e-12)
    assert price.high == pytest.approx(high * rate)
