"""What the check against a GPU's counters does with what they say; the decoding itself, on the CPU."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

spec = importlib.util.spec_from_file_location("validate_gpu", Path(__file__).parents[2] / "scripts/validate_gpu.py")
validate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(validate)

HEADS = ("ID", "Process Name", "Kernel Name", "Grid Size", "Section Name", "Metric Name", "Metric Unit", "Metric Value")
ROWS = [
    ("0", "python3", "gemv", "(64, 1, 1)", "Command line profiler metrics", validate.READ, "byte", "117,440,512"),
    ("1", "python3", "silu", "(64, 1, 1)", "Command line profiler metrics", validate.READ, "Mbyte", "1.5"),
    ("1", "python3", "silu", "(64, 1, 1)", "Command line profiler metrics", "dram__bytes_write.sum", "byte", "7"),
]
NCU = "==PROF== Connected to process 4711 (python3)\n==PROF== Disconnected from process 4711\n" + "".join(
    ",".join(f'"{cell}"' for cell in row) + "\n" for row in (HEADS, *ROWS)
)


def test_counters_are_summed_over_kernels_in_their_units() -> None:
    assert validate.dram_bytes(NCU.splitlines(keepends=True)) == (117_440_512 + 1_500_000, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("==ERROR== ERR_NVGPUCTRPERM: no permission\n", "ERR_NVGPUCTRPERM.*NVreg_RestrictProfilingToAdminUsers"),
        ("==PROF== Connected\n", "profiled no kernel"),
        (NCU.replace('"byte"', '"sector"'), "'sector'"),
        (NCU.replace("dram__bytes_read", "dram__bytes_write"), "has no dram__bytes_read.sum"),
    ],
)
def test_a_log_without_the_counters_is_an_error_that_says_why(text: str, message: str) -> None:
    with pytest.raises(validate.MoecapError, match=message):
        validate.dram_bytes(text.splitlines(keepends=True))


def test_where_there_is_no_gpu_the_reason_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(validate.torch.cuda, "is_available", lambda: False)
    assert "no CUDA device" in validate.reason_to_skip()
    with pytest.raises(validate.MoecapError, match="no CUDA device"):
        validate.run(tmp_path)
    monkeypatch.setattr(validate.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(validate.shutil, "which", lambda _: None)
    assert "ncu" in validate.reason_to_skip()


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same program with a layer that fits a test, and a calibration that takes no time."""
    size = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    monkeypatch.setitem(validate.MODELS, "mixtral-layer", lambda device: validate.real_layer(device, **size))
    monkeypatch.setattr(validate, "PROMPT_TOKENS", 5)
    monkeypatch.setattr(validate, "TIMED_STEPS", 2)
    bandwidths = {"read_bandwidth_bytes_per_s": 1e12, "copy_bandwidth_bytes_per_s": 1.5e12}
    monkeypatch.setattr(validate.machine, "calibrate", lambda *_: bandwidths)


def test_rows_tables_and_verdicts(narrow: None) -> None:
    counted = [validate.step("mixtral-layer", size, "cpu") for size in (1, 4)]
    assert all(row["predicted_weight_bytes"] == row["measured_weight_bytes"] for row in counted)
    times = validate.timed("mixtral-layer", "cpu", (1, 4))
    for row in counted:
        row |= {"dram_bytes": row["s_mbu_complete_bytes"] / 1.01, "kernels": 9, "dram_error": 0.01}
    rows = validate.joined(counted, times)
    assert [list(row) for row in rows] == [list(validate.COLUMNS)] * 2
    assert rows[0]["s_mbu_complete"] == pytest.approx(
        rows[0]["s_mbu_complete_bytes"] / (rows[0]["tpot_ms"] * 1e-3) / 1e12
    )
    assert validate.wrong(rows) == []
    facts = {"machine": "GPU", "versions": {"torch": "2"}, "date": "d"}
    assert "within 5% of the counters" in validate.markdown(rows, facts)
    rows[1] |= {"dram_error": -0.2, "s_mbu_complete": 1.1}
    assert len(validate.wrong(rows)) == 2
    assert "-20.0% off the GPU's counters" in validate.markdown(rows, facts)


def test_the_whole_model_is_olmoe_as_published() -> None:
    from transformers import AutoConfig

    from moecap.model.counted import anatomy

    config = dict(validate.resolve("olmoe-1b-7b").config)
    shape = AutoConfig.for_model(config.pop("model_type"), **config)
    counted = anatomy("olmoe-1b-7b")
    assert counted.precision == "bf16"
    assert (shape.num_hidden_layers, shape.num_experts, counted.experts) == (16, 64, 64)
    assert counted.total_params == pytest.approx(6.92e9, rel=0.01)
