"""The workflow from another folder: as a module of another workflow, with its config; without one, one paragraph."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT, snakemake

TABLE = """\
deployment,model,precision,engine,hardware,devices,datasets,batch_sizes
mine,demo-moe,bf16,vllm-cpu,this-machine,1,arithmetic,1 2
"""
CONFIG = """\
something: of another workflow
bench:
  deployments: mine.csv
  results: out
  seed: {seed}
  site: null
  cost: {{years: 3, region: us-average}}
"""
SNAKEFILE = f"""\
configfile: "big.yaml"

module moecap:
    snakefile: "{ROOT}/Snakefile"
    config: config["bench"]

use rule * from moecap as moecap_*

rule own:
    input: "out/data/demo/manifest.json"
    output: "own.txt"
    shell: "cp {{input}} {{output}}"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.csv").write_text(TABLE)
    (tmp_path / "big.yaml").write_text(CONFIG.format(seed=3))
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    return tmp_path


def test_as_a_module_of_another_workflow(folder: Path) -> None:
    # As where the library is not installed beside Snakemake: nothing but the module's place says where it is.
    run = snakemake("--cores", "1", "--", "own.txt", cwd=folder, PYTHONPATH="")
    assert run.returncode == 0, run.stdout + run.stderr
    assert (folder / "own.txt").read_text() == (folder / "out/data/demo/manifest.json").read_text()
    assert (folder / "out/records/data/demo/manifest.json.json").is_file()
    assert not (folder / "results").exists()
    planned = snakemake("-n", "--cores", "1", "--", "moecap_all", cwd=folder, PYTHONPATH="")
    assert planned.returncode == 0, planned.stdout + planned.stderr
    assert "rule moecap_measure:" in planned.stdout and "rule moecap_demo_data:" not in planned.stdout


def test_a_mistake_in_anothers_config_is_named_where_it_stands(folder: Path) -> None:
    (folder / "big.yaml").write_text(CONFIG.format(seed="minus"))
    run = snakemake("-n", "--cores", "1", cwd=folder)
    assert run.returncode != 0
    assert "big.yaml, line 5: `seed`:" in run.stderr and "Traceback" not in run.stderr


def test_without_a_config_one_paragraph_says_where_it_is_looked_for(tmp_path: Path) -> None:
    run = snakemake("-n", "--cores", "1", "--snakefile", f"{ROOT}/Snakefile", "--directory", str(tmp_path))
    (said,) = [line for line in run.stderr.splitlines() if line.startswith("error")]
    assert run.returncode != 0 and str(tmp_path) in said and "--configfile" in said


def test_as_the_workflow_catalogue_draws_it() -> None:
    run = snakemake("-s", "workflow/Snakefile", "-c", "1", "-d", ".test", "--forceall", "--rulegraph")
    assert run.returncode == 0 and "digraph" in run.stdout and "measure" in run.stdout, run.stderr
