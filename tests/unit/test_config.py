"""What a user may get wrong in a config, a deployment table or a catalogue, and what they read then."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from moecap.campaign import reference
from moecap.campaign.campaign import Campaign
from moecap.campaign.deployments import read_deployments
from moecap.cap import paper
from moecap.cli import main
from moecap.engines.capabilities import Machine
from moecap.errors import Mistakes
from tests.conftest import ROOT

HEADER = "deployment,model,precision,engine,hardware,devices,datasets,batch_sizes\n"
ROW = "d,demo-moe,bf16,vllm-cpu,this-machine,1,arithmetic,1 4\n"


@pytest.fixture
def site(zen: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a config, a one-row deployment table and a copy of the catalogue; it is the working directory."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    (tmp_path / "table.csv").write_text(HEADER + ROW)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(config: dict | None = None) -> str:
    with pytest.raises(Mistakes) as caught:
        Campaign({"deployments": "table.csv", "cost": {"region": "us-average"}, **(config or {})}, "my.yaml")
    message = str(caught.value)
    assert all(line.strip() for line in message.split("\n")), "a line for each mistake"
    return message


def change(old: str, new: str, file: str = "table.csv") -> None:
    text = Path(file).read_text()
    assert old in text
    Path(file).write_text(text.replace(old, new, 1))


def test_the_table_of_the_fixture_is_valid(site: Path) -> None:
    assert list(Campaign({"deployments": "table.csv", "cost": {"region": "us-average"}}).deployments) == ["d"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("demo-moe", "demo-mo", ["table.csv, line 2 (d)", "`model`", "'demo-mo'", "models.yaml", "'demo-moe'"]),
        (",bf16,", ",bf61,", ["line 2", "`precision`", "'bf61'", "'bf16'"]),
        (",vllm-cpu,", ",vlm-cpu,", ["line 2", "`engine`", "'vlm-cpu'", "'vllm-cpu'"]),
        (",this-machine,", ",this-machin,", ["line 2", "'this-machin'", "'this-machine'"]),
        (",arithmetic,", ",arithmetics,", ["line 2", "`datasets`", "'arithmetics'", "'arithmetic'"]),
        ("1 4", "0 4", ["line 2", "batch_sizes", "greater than or equal to 1", "'0'"]),
        ("1 4", "4 4", ["line 2", "batch_sizes", "twice"]),
        ("1 4", "four", ["line 2", "batch_sizes", "'four'"]),
        (",1,arithmetic", ",2,arithmetic", ["line 2", "devices is 2", "tensor_parallel"]),
        ("devices,", "", ["line 1", "`devices` is missing"]),
        ("devices", "device", ["line 1", "unknown column `device`", "'devices'"]),
        (ROW, ROW + ROW, ["line 3", "already defined in line 2"]),
        (ROW, "", ["no deployment"]),
        ("1 4\n", "1 4,7\n", ["line 2", "9 values for 8 columns"]),
    ],
)  # fmt: skip
def test_a_wrong_table_names_file_line_column_and_value(site: Path, old: str, new: str, said: list[str]) -> None:
    change(old, new)
    message = refused()
    for part in said:
        assert part in message, message


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"seeds": 1}, ["my.yaml", "unknown key `seeds`", "'seed'"]),
        ({"seed": -1}, ["`seed`", "greater than or equal to 0", "-1"]),
        ({"performance": {"repeats": 2}}, ["`performance.repeats`", "greater than or equal to 3"]),
        ({"performance": {"repeat": 3}}, ["unknown key `performance.repeat`", "'repeats'"]),
        ({"cost": {"years": -3}}, ["`cost.years`", "greater than 0", "-3"]),
        ({"cost": {"usd_per_kwh": -0.1}}, ["`cost.usd_per_kwh`", "-0.1"]),
        ({"cost": {"region": "us-averag"}}, ["'us-averag'", "us-average"]),
        ({"cap": {"reference": "e"}}, ["'e'", "table.csv", "d"]),
        ({"deployments": "no.csv"}, ["no.csv", "does not exist"]),
        ({"data_files": {"gsm8k": {"test": "no.jsonl"}}}, ["no.jsonl", "does not exist"]),
    ],
)  # fmt: skip
def test_a_wrong_config_names_key_and_value(site: Path, config: dict, said: list[str]) -> None:
    message = refused(config)
    for part in said:
        assert part in message, message


def test_a_campaign_without_a_price_of_energy_is_refused(site: Path) -> None:
    message = refused({"cost": {"years": 3}})
    assert "neither `region` nor `usd_per_kwh`" in message and "us-average" in message
    Campaign({"deployments": "table.csv", "cost": {"usd_per_kwh": 0.1}}, "my.yaml")


def test_a_negative_price_is_refused(site: Path) -> None:
    path = Path("config/catalogue/hardware.yaml")
    change("low: 8000", "low: -8000", str(path))
    message = refused()
    assert "hardware.yaml" in message and "A100-PCIe-40GB" in message and "-8000" in message


def test_an_engine_without_a_kernel_is_refused_before_anything_runs(site: Path) -> None:
    change(",bf16,", ",fp8-block,")
    assert "ready-made" in refused()
    change(",fp8-block,vllm-cpu", ",int8,vllm-cuda")
    assert "vllm-cuda" in refused()
    change(",vllm-cuda,this-machine,", ",vllm-cpu,H100-SXM5-80GB,")
    assert "price and peaks are those of a GPU" in refused()
    change(",int8,vllm-cpu,H100-SXM5-80GB,", ",int8,vllm-rocm,H100-SXM5-80GB,")
    message = refused()
    assert "vllm-rocm has no kernel" in message and "Engines that do: vllm-cuda, " in message


def test_conda_users_get_the_environment_of_their_engine(site: Path) -> None:
    config = {"deployments": "table.csv", "cost": {"region": "us-average"}}
    assert Campaign(config).graph.conda_environment == "engine-cpu"
    change(",vllm-cpu,this-machine,", ",vllm-cuda,H100-SXM5-80GB,")
    assert Campaign(config).graph.conda_environment == "engine-cuda"


def test_a_model_without_a_source_is_refused(site: Path) -> None:
    with Path("config/catalogue/models.yaml").open("a") as models:
        models.write("\nnowhere:\n  licence: mit\n")
    change("demo-moe", "nowhere")
    assert "'nowhere', which has no `source` in config/catalogue/models.yaml" in refused()


def test_without_a_kernel_the_demo_falls_back_and_says_so(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Machine(
        "this-machine", isa="x86_64", vendor="GenuineIntel", flags=frozenset({"avx2"}), packages=frozenset()
    )
    monkeypatch.setattr("moecap.campaign.checks.this_machine", lambda name: plain)
    change(",bf16,", ",int8,")
    assert "no kernel" in refused() or "cannot serve" in refused()
    campaign = Campaign({"deployments": "table.csv", "cost": {"region": "us-average"}, "fallback": True})
    assert campaign.deployment("d").engine == "transformers"
    assert "served by transformers instead" in campaign.warnings[0]


def test_bytes_are_measured_of_bf16_models_that_the_workflow_trains_unless_asked(site: Path) -> None:
    Path("table.csv").write_text(
        HEADER
        + ROW
        + "e,demo-moe,int8,vllm-cpu,this-machine,1,arithmetic,1\n"
        + "f,olmoe-1b-7b,bf16,vllm-cpu,this-machine,1,arithmetic,1\n"
    )

    given = {"deployments": "table.csv", "cost": {"region": "us-average"}}

    def measured(**config: str) -> list[str]:
        return Campaign({**given, **config}).graph.measured_bytes_files()

    assert measured() == ["results/bytes/demo-moe/bf16.parquet"]
    assert measured(measured_bytes="all") == [*measured(), "results/bytes/olmoe-1b-7b/bf16.parquet"]
    assert measured(measured_bytes="none") == []
    assert "measured_bytes" in refused({"measured_bytes": "some"})
    table, _plan, planner, *replays = Campaign(given).params.report()["tables"]
    assert planner["path"] == "results/planner/cross_check.parquet"
    assert table["path"] == measured()[0]
    pytest.importorskip("torch")
    from moecap.checks.byte_check import SCHEMA

    assert set(table["columns"]) <= set(SCHEMA.names)
    from moecap.checks.replay_check import SCHEMA as CHECKED

    assert all(set(replay["columns"]) <= set(CHECKED.names) for replay in replays)


def test_the_replay_is_checked_where_routers_can_be_read_in_the_decode(site: Path) -> None:
    Path("table.csv").write_text(
        HEADER
        + ROW
        + "e,demo-moe,bf16,transformers,this-machine,1,arithmetic,1\n"
        + "f,olmoe-1b-7b,bf16,vllm-cpu,this-machine,1,arithmetic,1\n"
    )
    given = {"deployments": "table.csv", "cost": {"region": "us-average"}}
    name = Campaign(given).graph.replay_checked[0]
    assert Campaign(given).graph.replay_checked == [name]
    assert Campaign(given).graph.replay_check_files() == [f"results/replay_check/{name}.parquet"]
    assert Campaign({**given, "replay_check": "all"}).graph.replay_checked == [name, "f"]
    assert Campaign({**given, "replay_check": "none"}).graph.replay_checked == []
    assert "replay_check" in refused({"replay_check": "some"})


def test_a_task_that_does_not_exist_is_refused(site: Path) -> None:
    change("task: arithmetic\n", "task: arithmetik\n", "config/catalogue/datasets.yaml")
    message = refused()
    assert "'arithmetik'" in message and "'arithmetic'" in message


def test_an_unpinned_revision_is_a_warning(site: Path) -> None:
    Path("table.csv").write_text(
        "deployment,model,precision,engine,hardware,devices,tensor_parallel,datasets,batch_sizes\n"
        "d,mixtral-8x7b,bf16,vllm-cuda,H100-SXM5-80GB,2,2,gsm8k,1\n"
    )
    assert "not pinned" in " ".join(Campaign({"deployments": "table.csv", "cost": {"region": "us-average"}}).warnings)


def test_comments_and_blank_lines_keep_line_numbers(site: Path) -> None:
    Path("table.csv").write_text(f"# a comment\n\n{HEADER}\n{ROW.replace('bf16', 'bf17')}")
    assert "line 5 (d)" in refused()


def test_broken_yaml_is_one_paragraph(site: Path) -> None:
    Path("config/catalogue/models.yaml").write_text("a: [1,\n")
    assert "models.yaml, line 2: not valid YAML" in refused()


def test_validate_on_the_command_line(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("my.yaml").write_text(yaml.safe_dump({"deployments": "table.csv", "cost": {"region": "us-average"}}))
    assert main(["validate", "my.yaml", "--json"]) == 0
    assert '"valid": true' in capsys.readouterr().out
    change(",bf16,", ",bf61,")
    assert main(["validate", "my.yaml"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: table.csv, line 2") and "Traceback" not in captured.err


def test_shipped_configs_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for path in sorted(Path("config").glob("*.yaml")):
        if path.name not in ("site.yaml",):
            Campaign(yaml.safe_load(path.read_text()), str(path))


def test_the_papers_rows_are_all_in_the_rerun() -> None:
    """Every printed row, but for Arena-Hard: same model, precision, GPUs, offload and, where printed, batch size."""
    rerun = {
        (row.model, row.precision.split("-")[0], row.devices, row.offload): row
        for row in read_deployments(ROOT / "config/paper-rerun.csv")
    }
    printed = [row for row in paper.read_tables(ROOT / "config/paper") if row["dataset"] == "gsm8k"]
    assert len(printed) == 3 + 9 + 6
    for row in printed:
        found = rerun[row["model"], row["precision"], row["devices"], row["offload"]]
        assert "gsm8k" in found.datasets and (row["batch_size"] or 32) in found.batch_sizes, row["deployment"]


def test_deployment_table_reads_lists(site: Path) -> None:
    row = read_deployments("table.csv")[0]
    assert row.batch_sizes == (1, 4) and row.datasets == ("arithmetic",)


def test_generated_pages_are_in_step() -> None:
    assert (ROOT / "docs/config.md").read_text() == reference.config_page(), "run `python -m moecap.campaign.reference`"
    import json

    for name, schema in reference.schemas().items():
        assert json.loads((ROOT / f"config/schemas/{name}.json").read_text()) == schema, (
            "run `python -m moecap.campaign.reference`"
        )


def test_terms_of_cost_per_deployment_and_by_site(site: Path) -> None:
    Path("table.csv").write_text(HEADER + ROW + "e,demo-moe,int8,vllm-cpu,this-machine,1,arithmetic,1\n")
    own = {"e": {"region": "us-residential", "pue": "aws", "utilisation": 0.5}}
    campaign = Campaign(
        {"deployments": "table.csv", "cost": {"region": "us-average", "pue": "google", "deployments": own}}, "my.yaml"
    )
    first, second = (campaign.params.cost(campaign.deployments[name]) for name in ("d", "e"))
    # each depends on its own terms and prices, and on nobody else's; a site's figure is in them, not its name
    assert first["settings"]["deployments"] == {} and first["settings"]["pue"] == 1.1
    assert second["settings"]["deployments"] == {"e": {"region": "us-residential", "pue": 1.15, "utilisation": 0.5}}
    assert set(first["hardware"]["electricity"]) == {"us-average"}
    assert set(second["hardware"]["electricity"]) == {"us-average", "us-residential"}
    assert campaign.params.plan()["settings"]["pue"] == 1.1


def test_hardware_without_a_price_is_a_warning_at_the_start(site: Path) -> None:
    columns = "H100-NVL-94GB,1,gsm8k,1"
    Path("table.csv").write_text(HEADER + f"f,mixtral-8x7b,bf16,vllm-cuda,{columns}\n")
    given = {"deployments": "table.csv", "cost": {"region": "us-average"}}
    warnings = " ".join(Campaign(given).warnings)
    assert "H100-NVL-94GB: no price is known" in warnings and "f cost to buy is null" in warnings
    given["cost"] = {"region": "us-average", "deployments": {"f": {"hardware_usd": 60_000}}}
    assert "no price is known" not in " ".join(Campaign(given).warnings)


def test_weights_that_the_devices_do_not_hold_are_a_warning(site: Path) -> None:
    def warned(row: str) -> list[str]:
        head = "deployment,model,precision,engine,hardware,devices,tensor_parallel,datasets,batch_sizes,offload\n"
        Path("table.csv").write_text(head + row)
        campaign = Campaign({"deployments": "table.csv", "cost": {"region": "us-average"}})
        return [warning for warning in campaign.warnings if "will not fit" in warning]

    (warning,) = warned("d,mixtral-8x7b,bf16,vllm-cuda,H100-SXM5-80GB,1,1,gsm8k,1,none\n")
    assert "table.csv, line 2 (d)" in warning and "93 GB" in warning and "1 x H100-SXM5-80GB hold 86 GB" in warning
    assert not warned("d,mixtral-8x7b,bf16,vllm-cuda,H100-SXM5-80GB,2,2,gsm8k,1,none\n")
    assert not warned("d,mixtral-8x7b,int4,vllm-cuda,H100-SXM5-80GB,1,1,gsm8k,1,none\n")


def test_a_wrong_value_in_a_list_names_the_column(site: Path) -> None:
    Path("table.csv").write_text(HEADER + ROW.rstrip("\n") + " 0\n")
    assert "`batch_sizes`: " in refused({"deployments": "table.csv"}) and "0" in refused({"deployments": "table.csv"})
