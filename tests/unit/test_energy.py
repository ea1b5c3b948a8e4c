"""Energy windows: counters as they are, null where there is none, and estimates that say so."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from moecap.errors import MoecapError
from moecap.hardware import energy


def zone(root, name, label, uj, range_uj=1_000_000):
    path = root / name
    path.mkdir(parents=True)
    (path / "name").write_text(label + "\n")
    (path / "energy_uj").write_text(f"{uj}\n")
    (path / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return path / "energy_uj"


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(energy, "_nvml_counters", dict)


def fake_nvml(monkeypatch, millijoules):
    """A pynvml with one list of readings per GPU, consumed reading by reading; None: not supported."""

    class NVMLError(Exception):
        pass

    def read(handle):
        value = millijoules[handle].pop(0)
        if value is None:
            raise NVMLError
        return value

    module = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: len(millijoules),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetUUID=lambda handle: f"GPU-{handle}{handle}",
        nvmlDeviceGetTotalEnergyConsumption=read,
    )
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_nothing_to_read_is_null_not_zero(tmp_path, no_gpu):
    with energy.window(powercap=tmp_path) as w:
        pass
    assert (w.energy_j, w.power_w, w.source, w.by_domain) == (None, None, None, {})
    assert w.elapsed_s > 0


def test_nvml_without_driver_is_null(tmp_path, monkeypatch):
    def fail():
        raise RuntimeError("no driver")

    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(nvmlInit=fail))
    with energy.window(powercap=tmp_path) as w:
        pass
    assert w.source is None


def test_rapl_sums_packages_and_dram_only(tmp_path, no_gpu):
    package = zone(tmp_path, "intel-rapl:0", "package-0", 100_000)
    core = zone(tmp_path, "intel-rapl:0:0", "core", 50_000)
    dram = zone(tmp_path, "intel-rapl:0:1", "dram", 10_000)
    psys = zone(tmp_path, "intel-rapl:1", "psys", 10_000)
    with energy.window(powercap=tmp_path) as w:
        package.write_text("400000")
        dram.write_text("110000")
        core.write_text("900000")
        psys.write_text("900000")
    assert w.source == "rapl"
    assert w.energy_j == pytest.approx(0.4)
    assert w.by_domain == pytest.approx({"package-0": 0.3, "dram-0": 0.1})
    assert w.power_w == pytest.approx(w.energy_j / w.elapsed_s)


def test_rapl_counter_wraps(tmp_path, no_gpu):
    package = zone(tmp_path, "intel-rapl:0", "package-0", 900_000)
    with energy.window(powercap=tmp_path) as w:
        package.write_text("100000")
    assert w.energy_j == pytest.approx(0.2)


def test_rapl_that_stops_being_readable_is_null(tmp_path, no_gpu):
    package = zone(tmp_path, "intel-rapl:0", "package-0", 900_000)
    with energy.window(powercap=tmp_path) as w:
        package.unlink()
    assert w.source is None and w.energy_j is None


def test_gpu_counters_are_summed_and_the_host_is_kept_apart(tmp_path, monkeypatch):
    fake_nvml(monkeypatch, [[1000, 4000], [0, 2000], [None, None]])
    package = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    with energy.window(powercap=tmp_path) as w:
        package.write_text("500000")
    assert w.source == "nvml"
    assert w.energy_j == pytest.approx(5.0)
    assert w.by_domain == pytest.approx({"gpu0": 3.0, "gpu1": 2.0, "package-0": 0.5})


def test_cpu_work_does_not_count_idle_gpus(tmp_path, monkeypatch):
    fake_nvml(monkeypatch, [[1000, 4000]])
    package = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    with energy.window("cpu", powercap=tmp_path) as w:
        package.write_text("500000")
    assert (w.source, w.energy_j) == ("rapl", pytest.approx(0.5))


def test_gpu_work_is_never_given_the_cpus_energy(tmp_path, monkeypatch):
    fake_nvml(monkeypatch, [[None, None]])
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    with energy.window("gpu", powercap=tmp_path) as w:
        pass
    assert w.source is None and w.energy_j is None


@pytest.mark.parametrize("visible, expected", [("1", {"gpu1"}), ("GPU-00", {"gpu0"}), ("", set())])
def test_only_visible_gpus(tmp_path, monkeypatch, visible, expected):
    fake_nvml(monkeypatch, [[0, 1000], [0, 1000]])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with energy.window(powercap=tmp_path) as w:
        pass
    assert set(w.by_domain) == expected


def test_window_is_filled_in_when_the_block_fails(tmp_path, no_gpu):
    package = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    with pytest.raises(KeyError), energy.window(powercap=tmp_path) as w:
        package.write_text("500000")
        raise KeyError
    assert w.energy_j == pytest.approx(0.5)


def test_estimate_is_labelled_and_bounded():
    estimate = energy.estimate_power_w(tdp_w=700, load=0.25, idle_w=100, devices=2)
    assert estimate.power_w == 500 and estimate.source == "estimate"
    assert energy.estimate_power_w(700, 1).power_w == 700
    for bad in ({"load": 1.2}, {"load": -0.1}, {"idle_w": 800}, {"devices": 0}):
        with pytest.raises(MoecapError, match="Cannot estimate power"):
            energy.estimate_power_w(**{"tdp_w": 700, "load": 0.5, **bad})
