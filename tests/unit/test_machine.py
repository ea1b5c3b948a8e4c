"""Detection and calibration: complete, null where unreadable, and a check that can refuse."""

from __future__ import annotations

import copy
import getpass
import json
import platform

import pytest

from moecap.errors import MoecapError
from moecap.hardware import machine

DETECTED = {
    "cpu_model": "AMD EPYC 9654 96-Core Processor",
    "cores": 192,
    "memory_bytes": 1511 * 2**30,
    "gpus": [{"name": "NVIDIA H100 80GB HBM3"}] * 4,
}


def test_detect_reads_this_machine():
    found = machine.detect()
    assert json.loads(json.dumps(found)) == found
    assert found["cpu_model"] and found["cores"] >= 1 and found["memory_bytes"] > 2**28
    assert 1 <= found["available_cores"] <= found["threads"]
    assert isinstance(found["gpus"], list)
    text = json.dumps([found, machine.fingerprint(found)])
    assert platform.node() not in text or len(platform.node()) < 4
    assert f'"{getpass.getuser()}"' not in text


def test_detect_without_proc_and_sys(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "SYS", tmp_path)
    monkeypatch.setattr(machine, "PROC", tmp_path)
    found = machine.detect()
    assert found["last_level_cache_bytes"] is None and found["numa"] == [] and found["power_cap_w"] is None
    assert found["clocks"] == {"base_hz": None, "max_hz": None, "current_hz": None, "governor": None}
    machine.fingerprint(found)


def put(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_caches_are_counted_once_however_many_cores_share_them(monkeypatch, tmp_path):
    files = {}
    for cpu in range(4):
        for index, (level, kind, size, shared) in enumerate(
            [(1, "Data", "32K", f"{cpu}"), (1, "Instruction", "64K", f"{cpu}"), (3, "Unified", "32M", f"{cpu // 2}-x")]
        ):
            base = f"devices/system/cpu/cpu{cpu}/cache/index{index}"
            files |= {
                f"{base}/level": f"{level}\n",
                f"{base}/type": kind,
                f"{base}/size": size,
                f"{base}/shared_cpu_list": shared,
            }
    put(tmp_path, files)
    monkeypatch.setattr(machine, "SYS", tmp_path)
    caches = machine._caches()
    assert [(c["level"], c["type"], c["size_bytes"], c["instances"]) for c in caches] == [
        (1, "Data", 32768, 4),
        (1, "Instruction", 65536, 4),
        (3, "Unified", 32 * 2**20, 2),
    ]
    assert machine._last_level_cache(caches) == 64 * 2**20


def test_numa_clocks_and_power_cap(monkeypatch, tmp_path):
    node, freq = "devices/system/node", "devices/system/cpu/cpu0/cpufreq"
    put(
        tmp_path,
        {
            f"{node}/node10/cpulist": "4-7",
            f"{node}/node2/cpulist": "0-3",
            f"{node}/node2/meminfo": "Node 2 MemTotal:       1024 kB\n",
            f"{freq}/cpuinfo_max_freq": "3700000\n",
            f"{freq}/scaling_governor": "performance\n",
            "class/powercap/intel-rapl:0/name": "package-0\n",
            "class/powercap/intel-rapl:0/constraint_0_power_limit_uw": "225000000\n",
            "class/powercap/intel-rapl:0:0/name": "core\n",
            "class/powercap/intel-rapl:0:0/constraint_0_power_limit_uw": "5000000\n",
        },
    )
    monkeypatch.setattr(machine, "SYS", tmp_path)
    monkeypatch.setattr(machine, "PROC", tmp_path)
    assert machine._numa() == [
        {"node": 2, "cpus": "0-3", "memory_bytes": 2**20},
        {"node": 10, "cpus": "4-7", "memory_bytes": None},
    ]
    assert machine._clocks() == {"base_hz": None, "max_hz": 3.7e9, "current_hz": None, "governor": "performance"}
    assert machine._power_cap() == 225.0


def test_fingerprint_ignores_what_changes_between_boots():
    other = copy.deepcopy(DETECTED) | {"memory_bytes": DETECTED["memory_bytes"] - 10 * 2**20, "clocks": {"x": 1}}
    assert machine.fingerprint(DETECTED) == machine.fingerprint(other)
    # A job that got one of the node's four GPUs is on the same kind of machine.
    one = DETECTED | {"gpus": DETECTED["gpus"][:1]}
    assert machine.fingerprint(one) == machine.fingerprint(DETECTED)
    assert machine.fingerprint(DETECTED)["gpus"] == ["NVIDIA H100 80GB HBM3"]


@pytest.mark.parametrize(
    "expected",
    [
        {},
        {"fingerprint": machine.fingerprint(DETECTED)},
        {"fingerprint": machine.fingerprint(DETECTED) | {"memory_gib": 1500}},
        {"gpu_names": ["NVIDIA H100 SXM", "h100-80gb hbm3"], "gpus": 4},
        {"cpu_names": ["EPYC 9654"]},
    ],
)
def test_the_right_machine_is_accepted(expected):
    machine.check_is(expected, DETECTED)


@pytest.mark.parametrize(
    "expected, message",
    [
        ({"fingerprint": machine.fingerprint(DETECTED) | {"cpu_model": "Xeon"}}, "not 'Xeon'"),
        ({"fingerprint": machine.fingerprint(DETECTED) | {"cores": 2}}, "cores is 192, not 2"),
        ({"fingerprint": machine.fingerprint(DETECTED) | {"memory_gib": 755}}, "memory is 1511 GiB, not 755"),
        ({"fingerprint": machine.fingerprint(DETECTED) | {"gpus": []}}, "gpus is"),
        ({"gpu_names": ["NVIDIA H100 80GB HBM3"], "gpus": 8}, "4 GPU.*not 8"),
        ({"gpu_names": ["NVIDIA H100 PCIe"]}, "GPU 0.* called NVIDIA H100 80GB HBM3, not 'NVIDIA H100 PCIe'"),
        ({"cpu_names": ["EPYC 9754"]}, "the CPU is"),
    ],
)
def test_another_machine_is_refused(expected, message):
    with pytest.raises(MoecapError, match=message):
        machine.check_is(expected, DETECTED, "big-node")


def test_buffer_is_several_times_the_cache():
    gib = 2**30
    assert machine.buffer_size(64 * 2**20, 100 * gib) == 512 * 2**20
    assert machine.buffer_size(None, 100 * gib) == 512 * 2**20
    assert machine.buffer_size(8 * 2**20, 100 * gib) == 256 * 2**20
    assert machine.buffer_size(gib, 24 * gib) == 3 * gib
    with pytest.raises(MoecapError, match="at least 2048 MiB"):
        machine.buffer_size(gib, 8 * gib)


def test_trials_report_best_and_spread(monkeypatch):
    clock = iter([0, 0, 1, 1, 3, 3, 4, 4, 8, 99, 99])
    monkeypatch.setattr(machine.time, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(machine, "MIN_TRIALS", 4)
    trial = machine._trials(lambda: None, 8.0, -1, lambda: None)
    assert (trial["best"], trial["worst"], trial["median"], trial["trials"]) == (8.0, 2.0, 6.0, 4)
    assert trial["spread"] == 0.75


@pytest.mark.slow
def test_calibrate():
    measured = machine.calibrate(2)
    assert measured["measured"] is True
    assert measured["read_bandwidth_bytes_per_s"] > 1e8 and measured["copy_bandwidth_bytes_per_s"] > 1e8
    assert measured["peak_flops"]["fp32"] > 1e8
    assert measured["trials"]["read_bandwidth"]["buffer_bytes"] >= 2 * (machine.detect()["last_level_cache_bytes"] or 0)
    json.dumps(measured, allow_nan=False)
