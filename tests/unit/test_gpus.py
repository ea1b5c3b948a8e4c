"""Which GPUs a job sees, and that they are whole, of the kind and of the size that was asked for."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moecap.errors import MoecapError
from moecap.hardware import energy, gpus, machine
from moecap.hardware.gpus import Card, Slice, chosen, order_is_known

GB = 10**9
H100 = {"name": "NVIDIA H100 80GB HBM3", "memory": 81559 * 2**20}
A100 = {"name": "NVIDIA A100-SXM4-80GB", "memory": 81920 * 2**20}


class NVMLError(Exception):
    pass


class FakeNvml:
    """The functions of nvidia-ml-py that are used here, over cards given as dicts: name, memory, mig (sizes)."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2
    NVMLError = NVMLError

    def __init__(self, *cards: dict[str, Any]) -> None:
        self.cards = [{"uuid": f"GPU-{i}{i}{i}{i}-{i}", **card} for i, card in enumerate(cards)]
        self.readings = {i: iter(range(0, 10**9, 1000)) for i in range(len(cards))}

    def nvmlInit(self) -> None: ...
    def nvmlShutdown(self) -> None: ...

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"580.65"

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> tuple[int]:
        return (index,)

    def nvmlDeviceGetUUID(self, handle: tuple[int, ...]) -> str:
        if len(handle) == 2:
            return f"MIG-{handle[0]}{handle[1]}aa-bb"
        return self.cards[handle[0]]["uuid"]

    def nvmlDeviceGetName(self, handle: tuple[int, ...]) -> str:
        return self.cards[handle[0]]["name"]

    def nvmlDeviceGetMigMode(self, handle: tuple[int, ...]) -> list[int]:
        if self.cards[handle[0]].get("no_mig"):
            raise NVMLError
        return [int("mig" in self.cards[handle[0]])] * 2

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: tuple[int, ...]) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: tuple[int, ...], index: int) -> tuple[int, int]:
        if index >= len(self.cards[handle[0]]["mig"]):
            raise NVMLError
        return (*handle, index)

    def nvmlDeviceGetMemoryInfo(self, handle: tuple[int, ...]) -> SimpleNamespace:
        card = self.cards[handle[0]]
        return SimpleNamespace(total=card["memory"] if len(handle) == 1 else card["mig"][handle[1]])

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: tuple[int, ...]) -> int:
        return next(self.readings[handle[0]])

    def nvmlDeviceGetComputeRunningProcesses(self, handle: tuple[int, ...]) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid) for pid in self.cards[handle[0]].get("pids", [])]

    def nvmlDeviceGetMaxClockInfo(self, handle: tuple[int, ...], kind: int) -> int:
        return 1980 if kind == 1 else 3201


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch):
    for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", gpus.ORDER):
        monkeypatch.delenv(name, raising=False)

    def install(*cards: dict[str, Any], **environment: str) -> FakeNvml:
        fake = FakeNvml(*cards)
        monkeypatch.setitem(sys.modules, "pynvml", fake)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return fake

    return install


CARDS = [
    Card("GPU-aa11", 0, "x"),
    Card("GPU-aa22", 1, "x"),
    Card("GPU-bb33", 2, "x", slices=(Slice("MIG-cc44"), Slice("MIG-cc55"))),
    Card("GPU-dd66", 3, "x", slices=()),
]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (None, ["0", "1", "2/MIG-cc44"]),
        ("", []),
        ("NoDevFiles", []),
        ("none", []),
        ("void", []),
        ("-1", []),
        ("0,-1,1", ["0"]),
        ("0,9,1", ["0"]),
        ("1,0", ["1", "0"]),
        (" 1 , 0 ", ["1", "0"]),
        ("1,1", []),
        ("0,1,0", []),
        ("2", ["2/MIG-cc44"]),
        ("3", []),
        ("GPU-aa22", ["1"]),
        ("GPU-aa", []),
        ("GPU-bb", ["2/MIG-cc44"]),
        ("GPU-ff,0", []),
        ("GPU-aa22,GPU-aa11", ["1", "0"]),
        ("MIG-cc55", ["2/MIG-cc55"]),
        ("MIG-cc", []),
        ("MIG-cc44,MIG-cc55", ["2/MIG-cc44", "2/MIG-cc55"]),
        ("0,GPU-aa11", []),
    ],
)
def test_what_cuda_shows(selection: str | None, expected: list[str]) -> None:
    shown = [f"{d.card.index}" + (f"/{d.slice.uuid}" if d.slice else "") for d in chosen(selection, CARDS)]
    assert shown == expected


@given(st.lists(st.sampled_from(["0", "1", "2", "7", "-1", "+1", "x", "", "1gpu", "02"]), max_size=5).map(",".join))
def test_numbers_are_read_as_torch_reads_them(selection: str) -> None:
    """A second reader of the same variable; torch does not know how many cards there are."""
    torch_cuda = pytest.importorskip("torch.cuda")
    cards = [Card(f"GPU-{i}", i) for i in range(10)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", selection)
        assert [d.card.index for d in chosen(selection, cards)] == torch_cuda._parse_visible_devices()


def test_facts_through_nvml_with_unsupported_queries(nvml) -> None:
    fake = nvml({**H100, "no_mig": True})
    driver, found = gpus.detect()
    assert driver == "580.65"
    assert found == [
        {
            "name": "NVIDIA H100 80GB HBM3",
            "memory_bytes": H100["memory"],
            "clocks": {"sm_hz": None, "memory_hz": None, "max_sm_hz": 1.98e9, "max_memory_hz": 3.201e9},
            **dict.fromkeys(("power_limit_w", "default_power_limit_w", "compute_capability", "pcie_generation")),
            **dict.fromkeys(("pcie_width", "ecc", "mig", "partition")),
            "order_known": True,
        }
    ]

    def unsupported() -> None:
        raise NVMLError

    fake.nvmlInit = unsupported
    assert gpus.detect() == (None, [])


def check(count: int = 1, **expected: Any) -> None:
    wanted = {"gpu_names": [A100["name"]], "gpu_memory_bytes": 80 * GB, "gpus": count, **expected}
    machine.check_is(wanted, machine.detect(), "the-node")


@pytest.mark.parametrize("size_mib", [81920, 81559, 81251])
def test_whole_cards_pass(nvml, size_mib: int) -> None:
    nvml(*[{**A100, "memory": size_mib * 2**20}] * 8)
    check(8)


@pytest.mark.parametrize(
    ("cards", "environment", "says"),
    [
        ([{**A100, "mig": [40 * GB, 20 * GB]}], {}, r"GPU 0 is a part of 40 GB of a card \(MIG\)"),
        ([{**A100, "mig": [40 * GB]}], {"CUDA_VISIBLE_DEVICES": "MIG-00"}, "part of 40 GB"),
        ([{**A100, "mig": [80 * GB]}], {}, "is a part of 80 GB"),
        ([{**A100, "mig": []}], {}, r"sees 0 GPU\(s\), not 1"),
        ([A100, {**A100, "mig": [10 * GB]}], {"CUDA_VISIBLE_DEVICES": "1"}, "part of 10 GB"),
        ([{**A100, "memory": 40960 * 2**20}], {}, "GPU 0 has 43 GB of memory, not 80 GB"),
        ([A100, H100], {"CUDA_VISIBLE_DEVICES": "1", gpus.ORDER: "PCI_BUS_ID"}, "GPU 0.* is called NVIDIA H100"),
        ([H100, A100], {}, "GPU 0.* is called NVIDIA H100"),
        ([A100, H100], {"CUDA_VISIBLE_DEVICES": "0"}, f"set {gpus.ORDER}=PCI_BUS_ID"),
        ([A100, H100], {gpus.ORDER: "FASTEST_FIRST"}, f"set {gpus.ORDER}=PCI_BUS_ID"),
        ([A100, A100], {"CUDA_VISIBLE_DEVICES": ""}, r"sees 0 GPU\(s\).*CUDA_VISIBLE_DEVICES= leaves it so"),
        ([A100, A100], {"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, "NoDevFiles leaves it so"),
        ([A100, A100], {"CUDA_VISIBLE_DEVICES": "GPU-9"}, r"sees 0 GPU\(s\)"),
    ],
)
def test_another_card_than_the_one_that_was_asked_for(nvml, cards, environment, says: str) -> None:
    nvml(*cards, **environment)
    with pytest.raises(MoecapError, match=says):
        check()


def test_only_what_the_job_sees_is_looked_at(nvml) -> None:
    """A reordered, shortened list: by UUID, so that CUDA's order does not matter."""
    nvml(H100, {**A100, "memory": 40960 * 2**20}, A100, A100, CUDA_VISIBLE_DEVICES="GPU-3333,GPU-2222")
    check(2)
    with pytest.raises(MoecapError, match=r"sees 2 GPU\(s\), not 3"):
        check(3)


def test_a_calibration_on_a_whole_card_refuses_a_part_and_another_size(nvml) -> None:
    """What timed runs compare: the calibrated machine's fingerprint, and as many whole GPUs as the deployment has."""
    nvml(A100)
    calibrated = machine.fingerprint(machine.detect())
    wanted = {"fingerprint": calibrated, "gpu_names": calibrated["gpus"], "gpus": 1}
    machine.check_is(wanted, machine.detect())
    nvml({**A100, "memory": 40960 * 2**20})
    with pytest.raises(MoecapError, match="memory of a GPU is 40 GiB, not 80 GiB"):
        machine.check_is(wanted, machine.detect())
    nvml({**A100, "mig": [80 * GB]})
    with pytest.raises(MoecapError, match="is a part"):
        machine.check_is(wanted, machine.detect())
    assert "gpu_memory_gib" not in machine.fingerprint({**machine.detect(), "gpus": []})


def test_order_is_asked_for_by_every_job(monkeypatch: pytest.MonkeyPatch) -> None:
    from moecap.jobs.workflow import script

    monkeypatch.delenv(gpus.ORDER, raising=False)
    with script(SimpleNamespace(log=[])):
        assert os.environ[gpus.ORDER] == gpus.BY_PLACE
    mixed = [Card("GPU-a", 0, "x"), Card("GPU-b", 1, "y")]
    assert order_is_known(os.environ, mixed) and not order_is_known({}, mixed)
    assert order_is_known({"CUDA_VISIBLE_DEVICES": "GPU-b"}, mixed) and order_is_known({}, mixed[:1] * 2)


def test_energy_of_the_cards_that_the_job_sees_and_of_no_slice(nvml, tmp_path) -> None:
    nvml(H100, H100, {**A100, "mig": [10 * GB]}, CUDA_VISIBLE_DEVICES="1,2")
    with energy.window("gpu", powercap=tmp_path) as window:
        pass
    assert set(window.by_domain) == {"gpu1"}


# -- AMD ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def amd(monkeypatch: pytest.MonkeyPatch, tmp_path, nvml):
    """A node with a CPU and MI300X in the kernel's tables; no NVML."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(gpus, "SYS", tmp_path)

    def install(*partitions: str, size: int = 192 * 2**30, **environment: str) -> None:
        nodes = tmp_path / "class/kfd/kfd/topology/nodes"
        (nodes / "0").mkdir(parents=True)
        (nodes / "0/properties").write_text("cpu_cores_count 96\nsimd_count 0\ndrm_render_minor 0\n")
        for i, partition in enumerate(partitions):
            (nodes / f"{i + 1}").mkdir()
            (nodes / f"{i + 1}/properties").write_text(f"simd_count 1216\ndrm_render_minor {128 + i}\n")
            device = tmp_path / f"class/drm/renderD{128 + i}/device"
            device.mkdir(parents=True)
            for name, text in {
                "product_name": "AMD Instinct MI300X",
                "unique_id": f"{i:016x}",
                "mem_info_vram_total": str(size),
                "current_compute_partition": partition,
            }.items():
                (device / name).write_text(f"{text}\n")
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return install


MI300X = {"gpu_names": ["AMD Instinct MI300X"], "gpu_memory_bytes": 192 * GB}


def test_amd_cards_are_read_from_the_kernel(amd) -> None:
    amd("SPX", "SPX", ROCR_VISIBLE_DEVICES="1,0", HIP_VISIBLE_DEVICES="1")
    ((gpu,),) = (gpus.detect()[1],)
    assert (gpu["name"], gpu["memory_bytes"], gpu["partition"]) == ("AMD Instinct MI300X", 192 * 2**30, None)
    machine.check_is(MI300X, machine.detect())


@pytest.mark.parametrize(
    ("partitions", "environment", "says"),
    [
        (("CPX", "SPX"), {}, r"GPU 0 is a part of 206 GB of a card \(CPX\)"),
        (("SPX", "DPX"), {"ROCR_VISIBLE_DEVICES": f"GPU-{1:016x}"}, "DPX"),
        (("SPX",), {"HIP_VISIBLE_DEVICES": ""}, r"sees 0 GPU\(s\).*HIP_VISIBLE_DEVICES="),
        (("SPX", "SPX"), {"ROCR_VISIBLE_DEVICES": "0", "HIP_VISIBLE_DEVICES": "1"}, r"sees 0 GPU\(s\)"),
    ],
)
def test_amd_parts_and_hidden_cards(amd, partitions, environment, says: str) -> None:
    amd(*partitions, **environment)
    with pytest.raises(MoecapError, match=says):
        machine.check_is(MI300X, machine.detect())
