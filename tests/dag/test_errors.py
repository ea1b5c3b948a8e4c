"""What a user reads after a mistake, from Snakemake and from `moecap validate` alike: one paragraph, no traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from moecap.cli import main
from tests.conftest import ROOT, snakemake

Change = Callable[[Path], None]
TASK = "task: arithmetic\n"
TASK_LINE = (ROOT / "config/catalogue/datasets.yaml").read_text(encoding="utf-8").partition(TASK)[0].count("\n") + 1


def replace(file: str, old: str, new: str) -> Change:
    def change(site: Path) -> None:
        path = site / file
        assert old in path.read_text(), f"{file} has no {old!r}"
        path.write_text(path.read_text().replace(old, new, 1))

    return change


def drop(file: str, *keys: str) -> Change:
    """Without one key of a YAML file."""

    def change(site: Path) -> None:
        data = yaml.safe_load((site / file).read_text())
        owner = data
        for key in keys[:-1]:
            owner = owner[key]
        del owner[keys[-1]]
        (site / file).write_text(yaml.safe_dump(data))

    return change


def set_key(part: str, key: str, value: object) -> Change:
    """With another value in the config."""

    def change(site: Path) -> None:
        config = yaml.safe_load((site / "my.yaml").read_text())
        config[part] = {**config.get(part, {}), key: value}
        (site / "my.yaml").write_text(yaml.safe_dump(config))

    return change


def only_on(isa: str) -> Change:
    """int8 kernels for a CPU that the tests do not run on, whichever that is, and no other engine in its place."""

    def change(site: Path) -> None:
        path = site / "catalogue/engines.yaml"
        engines = yaml.safe_load(path.read_text())
        engines["vllm-cpu"]["capabilities"]["precisions"]["W8A8"] = [{"name": "elsewhere", "isa": isa}]
        path.write_text(yaml.safe_dump(engines))
        config = yaml.safe_load((site / "my.yaml").read_text())
        (site / "my.yaml").write_text(yaml.safe_dump(config | {"fallback": False}))

    return change


MISTAKES = {
    "unknown model": (replace("table.csv", "demo-moe,int8", "demo-mo,int8"), ["line 3 (demo-int8)", "'demo-moe'"]),
    "unknown precision": (replace("table.csv", "moe,int8", "moe,int9"), ["line 3", "`precision`", "'int9'", "'int8'"]),
    "batch size 0": (replace("table.csv", "1 4 16 64", "0 4"), ["line 2 (demo-bf16)", "batch_sizes", "'0'"]),
    "negative price": (
        replace("catalogue/hardware.yaml", "low: 8000", "low: -8000"),
        ["hardware.yaml", "A100-PCIe-40GB.price.low", "-8000"],
    ),
    "price in another currency": (
        replace("catalogue/hardware.yaml", "currency: USD", "currency: CHF"),
        ["hardware.yaml", "gpus.A100-PCIe-40GB.price", "in CHF", "costs are in USD", "`usd_per_unit`"],
    ),
    "price without a source": (
        drop("catalogue/hardware.yaml", "gpus", "H100-SXM5-80GB", "price", "source"),
        ["hardware.yaml", "`gpus.H100-SXM5-80GB.price.source` is missing", "names its `source` and `status`"],
    ),
    "negative lifetime": (set_key("cost", "years", value=-3), ["my.yaml", "`cost.years`", "greater than 0", "-3"]),
    "unknown region": (
        set_key("cost", "region", value="us-averag"),
        ["my.yaml", "`cost.region`", "'us-averag'", "'us-average'"],
    ),
    "unknown site": (set_key("cost", "pue", value="gogle"), ["my.yaml", "`cost.pue`", "'gogle'", "'google'"]),
    "terms of a deployment that is not there": (
        set_key("cost", "deployments", value={"demo-int9": {"years": 5}}),
        ["my.yaml, line ", "`cost.deployments.demo-int9`", "'demo-int9'", "'demo-int8'"],
    ),
    "plan on hardware that is not there": (
        set_key("plan", "systems", value=["H100-SXM-80GB"]),
        ["my.yaml", "`plan.systems`", "'H100-SXM-80GB'", "'H100-SXM5-80GB'"],
    ),
    "missing column": (replace("table.csv", ",precision", ""), ["line 1", "`precision` is missing"]),
    "task that does not exist": (
        replace("catalogue/datasets.yaml", TASK, "task: arithmetik\n"),
        [f"datasets.yaml, line {TASK_LINE} (arithmetic)", "`task`", "'arithmetik'", "'arithmetic'"],
    ),
    "engine that cannot serve the precision here": (
        only_on("z80"),
        ["line 3 (demo-int8)", "vllm-cpu cannot serve", "W8A8", "z80", "Engines that do: transformers"],
    ),
}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config with a table and a catalogue of its own, away from the repository's."""
    monkeypatch.chdir(ROOT)
    shutil.copytree(ROOT / "config/catalogue", tmp_path / "catalogue")
    shutil.copy(ROOT / "config/demo.csv", tmp_path / "table.csv")
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    paths = {"deployments": "table.csv", "catalogue": "catalogue", "results": "results"}
    config |= {key: str(tmp_path / value) for key, value in paths.items()}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_paragraph_before_any_job(
    mistake: str, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, said = MISTAKES[mistake]
    change(site)
    assert main(["validate", str(site / "my.yaml")]) == 1
    validated = capsys.readouterr().err
    assert all(line.startswith("error: ") for line in validated.splitlines()), validated
    for part in said:
        assert part in validated

    run = snakemake("--cores", "1", "--configfile", str(site / "my.yaml"))
    assert run.returncode == 1
    shown = run.stdout + run.stderr
    assert validated in shown, shown
    assert "Traceback" not in shown and "common.smk" not in shown and "WorkflowError" not in shown, shown
    assert not (site / "results").exists(), "nothing ran"


def test_a_corrupt_checkpoint_is_one_paragraph_from_the_job(site: Path) -> None:
    """It is found when it is read; the rest of the workflow does not stumble over it."""
    broken = site / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "qwen2_moe"}')
    header = json.dumps({"lm_head.weight": {"dtype": "BF16", "shape": [4, 4], "data_offsets": [0, 32]}}).encode()
    (broken / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with (site / "catalogue/models.yaml").open("a") as models:
        models.write(f"\nbroken:\n  source: {{path: {broken}}}\n")
    replace("table.csv", "demo-bf16,demo-moe", "demo-bf16,broken")(site)
    target = site / "results/models/broken/bf16/manifest.json"
    run = snakemake("--cores", "1", "--configfile", str(site / "my.yaml"), "--", str(target))
    assert run.returncode == 1 and not target.exists()
    shown = run.stdout + run.stderr
    (line,) = [line for line in shown.splitlines() if line.startswith("error in download:")]
    assert "model.safetensors is cut off" in line and "damaged" in line
    assert "Traceback" not in shown, shown
