"""Archives: complete, self-describing, deterministic, discreet, and not to be tampered with."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
import zstandard

from moecap.archive import pack, read
from moecap.cap.table import to_table
from moecap.errors import MoecapError
from moecap.io import read_metadata, write_json, write_parquet
from moecap.paths import Paths, fill
from moecap.scrub import Scrubber

SECRET = "hf_" + "Qx7" * 9
ROWS = [
    {"deployment": d, "model": "m", "precision": p, "engine": "e", "hardware": "h", "devices": 1, "datasets": ["d"],
     "batch_sizes": [1, 4]}
    for d, p in (("one", "bf16"), ("two", "int8"))
]  # fmt: skip


def make_results(folder: Path, speed: float = 1.0, secret: str | None = None, version: str = "1.0") -> list[Path]:
    """A small results tree; ``secret`` is planted in texts, cells, metadata and logs. Returns the accuracy files."""
    paths = Paths(str(folder))
    provenance = {"git_commit": "c" * 40, "libraries": {"engine": version}, "note": secret or "none"}
    rows = [
        {**row, "dataset": "d", "batch_size": b, "status": "measured", "accuracy": 0.9, "accuracy_low": 0.85,
         "accuracy_high": 0.95, "accuracy_n": 100, "output_tokens_per_s": 100.0 * b * speed,
         "output_tokens_per_s_low": 95.0 * b * speed, "output_tokens_per_s_high": 105.0 * b * speed,
         "tpot_s": 0.01 / speed, "tpot_s_low": 0.0099 / speed, "tpot_s_high": 0.0101 / speed,
         "hardware_usd": 1000.0, "usd_per_million_tokens": 2.0 / speed, "failure_reason": secret}
        for row in ROWS
        for b in row["batch_sizes"]
    ]  # fmt: skip
    write_parquet(to_table(rows, provenance), paths.cap)
    table = pa.table({"x": [1.0, 2.0], "where": ["here", secret or "there"]})
    for row in ROWS:
        for kind in ("metrics", "steps", "routing_analysis", "cost"):
            write_parquet(table, fill(getattr(paths, kind), deployment=row["deployment"]), provenance)
        points = pa.table({"start_unix_s": [1.7e9, 1.7e9 + 60], "wall_s": [2.0, 3.0]})
        write_parquet(points, fill(paths.points, deployment=row["deployment"]), provenance)
        variant = {"model": "m", "precision": row["precision"]}
        write_json({"layers": 2}, fill(paths.anatomy, **variant))
        write_json(
            {"source": {"kind": "hub", "repository": "org/m", "revision": "a" * 40}, "licence": "mit", "files": []},
            fill(paths.manifest, **variant),
        )
        weights = Path(fill(paths.checkpoint, **variant)) / "model.safetensors"
        weights.write_bytes(b"weights" * 100)
    write_json({"cpu_model": "a cpu", "note": secret}, fill(paths.machine, hardware="h"))
    for name, content in (("radar.svg", f"<svg>{secret}</svg>"), ("radar.html", f"<html>{secret}</html>")):
        Path(paths.charts).mkdir(exist_ok=True)
        (Path(paths.charts) / name).write_text(content)
    (Path(paths.charts) / "radar.png").write_bytes(b"\x89PNG\r\n")
    Path(paths.report).write_text(f"<html><p>{secret}</p></html>")
    accuracy = []
    for row in ROWS:
        keys = {"model": "m", "precision": row["precision"], "engine": "e", "dataset": "d", "settings": "01234567"}
        write_parquet(table, fill(paths.accuracy, **keys), provenance)
        write_parquet(table, fill(paths.samples, **keys), provenance)
        accuracy.append(Path(fill(paths.accuracy, **keys)))
    log = Path(paths.log) / "x.log"
    log.parent.mkdir(parents=True)
    log.write_text(f"{secret}\n")
    return accuracy


def make(folder: Path, results: Path, accuracy: list[Path], **more) -> tuple[Path, dict]:
    output = folder / "a.tar.zst"
    options = {
        "files": pack.collect(results, ROWS, accuracy),
        "config": {"seed": 1, "results": "results"},
        "deployments": ROWS,
        "catalogue": {"models": {"m": {"license": "mit"}}, "datasets": {"d": {"hub": "org/d", "licence": "cc-by-4.0"}}},
        "redraw": {"charts": {}, "report": {}},
    }
    return output, pack.make_archive(results, output, "campaign", **{**options, **more})


@pytest.fixture
def made(tmp_path):
    accuracy = make_results(tmp_path / "results")
    return make(tmp_path, tmp_path / "results", accuracy)


def members(path: Path) -> dict[str, bytes]:
    content = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(path.read_bytes())).read()
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar.getmembers()}


def rewrite(path: Path, change) -> None:
    """Take an archive apart, let ``change`` alter the dict of members, put it together again."""
    content = members(path)
    change(content)
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, data in content.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    path.write_bytes(zstandard.ZstdCompressor().compress(raw.getvalue()))


def test_holds_what_a_reader_needs_and_no_weights(made):
    path, summary = made
    names = {n.removeprefix("campaign/") for n in members(path)}
    assert {
        "ro-crate-metadata.json",
        "checksums.sha256",
        "archive.json",
        "licences.csv",
        "config/config.yaml",
        "config/deployments.csv",
        "config/catalogue.yaml",
        "config/redraw.json",
        "environments/core.txt",
        "results/cap.parquet",
        "results/report.html",
        "results/charts/radar.svg",
        "results/charts/radar.png",
        "results/metrics/one.parquet",
        "results/metrics/one/steps.parquet",
        "results/metrics/one/routing.parquet",
        "results/cost/two.parquet",
        "results/performance/one/points.parquet",
        "results/anatomy/m/int8.json",
        "results/models/m/bf16/manifest.json",
        "results/machine/h.json",
        "results/accuracy/m/bf16/e/d-01234567.parquet",
        "results/accuracy/m/bf16/e/d-01234567.samples.parquet",
    } <= names
    assert not [n for n in names if n.endswith((".safetensors", ".log"))]
    assert summary["files"] == len(names) - 1
    assert read.verify(path) == {k: summary[k] for k in ("name", "files", "bytes", "sha256")}


def test_sha256sum_understands_the_checksums(made, tmp_path):
    with tarfile.open(fileobj=io.BytesIO(zstandard.ZstdDecompressor().stream_reader(made[0].open("rb")).read())) as tar:
        tar.extractall(tmp_path / "out", filter="data")
    subprocess.run(["sha256sum", "--check", "--quiet", "checksums.sha256"], cwd=tmp_path / "out/campaign", check=True)


def test_only_the_campaigns_own_files(tmp_path):
    accuracy = make_results(tmp_path / "results")
    path, _ = make(tmp_path, tmp_path / "results", accuracy, files=pack.collect(tmp_path / "results", ROWS[:1], []))
    names = members(path)
    assert "campaign/results/metrics/one.parquet" in names and "campaign/results/metrics/two.parquet" not in names


def test_same_inputs_same_bytes_whatever_place_and_time(tmp_path, monkeypatch):
    outputs = []
    for place in ("a", "a-longer-place"):
        folder = tmp_path / place
        folder.mkdir()
        accuracy = make_results(folder / "results")
        for p in folder.rglob("*"):
            os.utime(p, (len(place) * 1e6,) * 2)
        outputs.append(make(folder, folder / "results", accuracy)[0].read_bytes())
        monkeypatch.setenv("PYTHONHASHSEED", "7")
        monkeypatch.setattr("time.time", lambda: 4e9)
    assert outputs[0] == outputs[1]


def test_owner_modes_and_times_are_fixed(made):
    content = zstandard.ZstdDecompressor().stream_reader(made[0].open("rb")).read()
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        entries = tar.getmembers()
    assert {(e.uid, e.gid, e.uname, e.gname, e.mode, e.mtime) for e in entries} == {
        (0, 0, "", "", 0o644, 1_700_000_063)
    }


def test_crate_describes_itself(made):
    content = members(made[0])
    crate = json.loads(content["campaign/ro-crate-metadata.json"])
    graph = {e["@id"]: e for e in crate["@graph"]}
    root = graph["./"]
    assert {p["@id"] for p in root["conformsTo"]} >= {"https://w3id.org/ro/wfrun/workflow/0.5"}
    assert root["datePublished"] == "2023-11-14T22:14:23+00:00"
    assert graph[graph["#run"]["result"][0]["@id"]]["@type"] == "File"
    assert graph["#model-m-bf16"]["license"] == "mit" and graph["#model-m-bf16"]["version"] == "a" * 40
    assert graph["#dataset-d"]["license"] == "cc-by-4.0"
    described = {i for i, e in graph.items() if e["@type"] == "File" or "File" in e["@type"]}
    sums = dict(reversed(line.split("  ")) for line in content["campaign/checksums.sha256"].decode().splitlines())
    assert described == set(sums) - {"ro-crate-metadata.json"}
    assert all(graph[n]["sha256"] == sums[n] for n in described)


def test_crate_is_read_by_the_library(made, tmp_path):
    from rocrate.rocrate import ROCrate

    with read.open_archive(made[0]) as opened:
        crate = ROCrate(opened.folder)
        assert crate.root_dataset["name"] == "campaign"
        assert len(crate.get_by_type("File")) == made[1]["files"] - 1


def test_opened_archive_gives_the_same_table(made, tmp_path):
    with read.open_archive(made[0]) as opened:
        assert opened.cap().equals(pq.read_table(tmp_path / "results/cap.parquet"))
        assert opened.config == {"seed": 1, "results": "results"}
        assert [d["deployment"] for d in opened.deployments] == ["one", "two"]
        assert opened.deployments[0]["batch_sizes"] == "1 4"
        assert opened.facts["name"] == "campaign"
        assert opened.redraw == {"charts": {}, "report": {}}
        folder = opened.folder
    assert not folder.exists()


def test_large_step_tables_are_left_out_and_named(tmp_path):
    accuracy = make_results(tmp_path / "results")
    path, summary = make(tmp_path, tmp_path / "results", accuracy, steps_limit_bytes=10)
    assert [o["path"] for o in summary["omitted"]] == [f"results/metrics/{d}/steps.parquet" for d in ("one", "two")]
    assert not [n for n in members(path) if n.endswith("steps.parquet")]
    with read.open_archive(path) as opened:
        assert opened.facts["omitted"] == summary["omitted"]


def test_no_secret_no_name_no_path(tmp_path, monkeypatch):
    planted = {
        "env": SECRET,
        "password": "correct-horse-battery",
        "config": "from-the-config-file",
        "user": "zebulon",
        "home": "/home/zebulon/private/gsm8k.jsonl",
        "scratch": "/scratch/zebulon/run7",
        "key": "AKIA" + "ABCDEFGH12345678",
    }
    monkeypatch.setenv("HF_TOKEN", planted["env"])
    monkeypatch.setenv("DB_PASSWORD", planted["password"])
    monkeypatch.setenv("USER", planted["user"])
    monkeypatch.setenv("LOGNAME", planted["user"])
    everything = " ".join([*planted.values(), "https://zebulon:hunter22@host/x", str(tmp_path / "results/x.y")])
    accuracy = make_results(tmp_path / "results", secret=everything)
    path, summary = make(
        tmp_path,
        tmp_path / "results",
        accuracy,
        config={
            "results": str(tmp_path / "results"),
            "data_files": {"d": {"test": planted["home"]}},
            "api_key": planted["config"],
            "remote": "https://zebulon:hunter22@host/x",
        },
        deployments=[{**r, "note": everything} for r in ROWS],
        catalogue={"models": {"m": {"source": {"path": planted["scratch"]}}}},
        redraw={"charts": {"title": everything}},
    )
    assert summary["scrubbed"]
    searched = {}
    for name, content in members(path).items():
        searched[name] = content
        if name.endswith(".parquet"):  # compressed: look into the cells and the metadata
            file = io.BytesIO(content)
            searched[name + "#cells"] = (str(pq.read_table(file).to_pylist()) + str(read_metadata(file))).encode()
            searched[name + "#schema"] = str(pq.read_schema(file).metadata).encode()
    needles = [*planted.values(), "hunter22", str(tmp_path), "/home/", "/scratch/", str(Path(__file__).parents[2])]
    found = {(n, needle) for n, content in searched.items() for needle in needles if needle.encode() in content}
    assert not found
    # It is still the same table, column by column.
    with read.open_archive(path) as opened:
        assert opened.cap().schema.equals(pq.read_schema(tmp_path / "results/cap.parquet"))
        assert opened.config["data_files"]["d"]["test"] == "[path]/gsm8k.jsonl"
        assert opened.config["api_key"] == "[removed]"


def test_nothing_to_scrub_leaves_every_byte(tmp_path, monkeypatch):
    accuracy = make_results(tmp_path / "results")
    path, summary = make(tmp_path, tmp_path / "results", accuracy)
    assert summary["scrubbed"] == {}
    for name, content in members(path).items():
        original = tmp_path / name.removeprefix("campaign/")
        if original.is_file() and "/results/" in f"/{name}":
            assert content == original.read_bytes(), name


def test_secret_in_a_picture_stops_the_archive(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    accuracy = make_results(tmp_path / "results")
    (tmp_path / "results/charts/radar.png").write_bytes(b"\x89PNG" + SECRET.encode())
    with pytest.raises(MoecapError, match=r"radar\.png holds the value of a secret"):
        make(tmp_path, tmp_path / "results", accuracy)
    assert not list(tmp_path.glob("*.zst"))


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("tokens/s and 3/4", "tokens/s and 3/4"),
        ("https://huggingface.co/data/home/x", "https://huggingface.co/data/home/x"),
        ("results/data/x.parquet", "results/data/x.parquet"),
        ("/gpfs/group/alice/m", "[path]/m"),
        ("/home/alice", "[path]"),
        ("open(/home/alice/x/run.log)", "open([path]/run.log)"),
        ("Authorization: Bearer abcdefghijklmnop1234", "Authorization: [removed]"),
    ],
)
def test_scrubber_on_text(tmp_path, text, clean):
    assert Scrubber(tmp_path, environment={}, names=()).text(text) == clean


def test_a_user_named_like_a_deployment_does_not_spoil_the_tables(tmp_path, monkeypatch):
    monkeypatch.setenv("USER", "demo")
    monkeypatch.setenv("LOGNAME", "zebulon")
    scrubber = Scrubber(tmp_path, words=["demo-bf16", "this-machine"])
    assert scrubber.text("demo-bf16 by zebulon") == "demo-bf16 by [removed]"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.update({"campaign/results/cap.parquet": b"?"}), r"results/cap\.parquet differs from its checksum"),
        (lambda c: c.pop("campaign/results/cost/one.parquet"), "listed in the checksums but missing"),
        (lambda c: c.update({"campaign/results/extra.txt": b"?"}), r"extra\.txt is not listed"),
        (lambda c: c.pop("campaign/checksums.sha256"), r"no checksums\.sha256"),
        (lambda c: c.update({"campaign/checksums.sha256": b"nonsense\n"}), "not a list of checksums"),
        (lambda c: c.update({"campaign/../../evil": b"?"}), "refused"),
        (lambda c: c.update({"other/file": b"?"}), "lies outside"),
        (lambda c: c.clear(), "is empty"),
    ],
)
def test_tampering_is_named_and_nothing_is_unpacked(made, tmp_path, change, says):
    rewrite(made[0], change)
    with pytest.raises(MoecapError, match=says):
        read.verify(made[0])
    with pytest.raises(MoecapError):
        read.extract(made[0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.99])
def test_cut_off_archive(made, keep):
    content = made[0].read_bytes()
    made[0].write_bytes(content[: int(keep if keep == 0 or keep >= 4 else len(content) * keep)])
    with pytest.raises(MoecapError, match=r"damaged|empty|missing"):
        read.verify(made[0])


def test_every_flipped_byte_is_noticed(made):
    content = bytearray(made[0].read_bytes())
    for position in range(20, len(content), max(1, len(content) // 25)):
        content[position] ^= 0xFF
        made[0].write_bytes(content)
        with pytest.raises(MoecapError):
            read.verify(made[0])
        content[position] ^= 0xFF


def test_no_archive_at_all(tmp_path):
    with pytest.raises(MoecapError, match="does not exist"):
        read.verify(tmp_path / "no.tar.zst")
    with pytest.raises(MoecapError, match="is a folder"):
        read.verify(tmp_path)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(MoecapError, match="damaged"):
        read.verify(tmp_path / "text")


def test_a_step_table_that_is_cut_off_is_named(tmp_path):
    accuracy = make_results(tmp_path / "results")
    steps = tmp_path / "results/metrics/one/steps.parquet"
    steps.write_bytes(steps.read_bytes()[: steps.stat().st_size // 2])
    with pytest.raises(MoecapError, match=r"metrics/one/steps\.parquet is not a complete Parquet file .* delete it"):
        make(tmp_path, tmp_path / "results", accuracy)
    assert not list(tmp_path.glob("*.zst"))


def test_missing_file_is_named(tmp_path):
    accuracy = make_results(tmp_path / "results")
    with pytest.raises(MoecapError, match="does not exist"):
        make(tmp_path, tmp_path / "results", accuracy, files=[tmp_path / "results/none.parquet"])
    with pytest.raises(MoecapError, match="does not lie below"):
        make(tmp_path, tmp_path / "results", accuracy, files=[Path(__file__)])


def test_config_is_yaml_that_loads(made):
    content = members(made[0])
    assert yaml.safe_load(content["campaign/config/catalogue.yaml"])["models"] == {"m": {"license": "mit"}}


def test_charts_and_report_are_redrawn_byte_by_byte(tmp_path, capsys, monkeypatch):
    """What the workflow drew, drawn again from the archive alone, in a process that could not import an engine."""
    from moecap import cli
    from moecap.charts.standard import write_all
    from moecap.io import read_parquet
    from moecap.report.inputs import read_inputs
    from moecap.report.page import render_report

    results = tmp_path / "results"
    accuracy = make_results(results)
    machine = results / "machine/h.json"
    for row in ROWS:  # not a routing analysis that could be drawn
        (results / f"metrics/{row['deployment']}/routing.parquet").unlink()
    for planted in (results / "charts").iterdir():
        planted.unlink()
    cap = read_parquet(results / "cap.parquet")
    write_all(cap, results / "charts", "one", {}, ["svg", "html"])
    page = render_report(read_inputs(results / "cap.parquet", machines=[machine], reference="one"))
    (results / "report.html").write_text(page)
    redraw = {
        "charts": {"reference": "one", "formats": ["svg", "html"]},
        "report": {"reference": "one", "failures": str(results / "failures")},
        "inputs": {"machines": [str(machine)]},
    }
    path, _ = make(tmp_path, results, accuracy, redraw=redraw)
    drawn = {p.relative_to(results): p.read_bytes() for p in results.glob("charts/*")} | {
        Path("report.html"): page.encode(),
        Path("cap.parquet"): (results / "cap.parquet").read_bytes(),
    }
    for p in sorted(results.rglob("*"), reverse=True):
        p.unlink() if p.is_file() else p.rmdir()

    assert cli.main(["report", "--archive", str(path), "--output", str(tmp_path / "again"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["name"] == "campaign"
    again = {p.relative_to(tmp_path / "again"): p.read_bytes() for p in (tmp_path / "again").rglob("*") if p.is_file()}
    assert again.keys() == drawn.keys() and len(again) >= 3
    assert {n for n in again if again[n] != drawn[n]} == set()


def test_verify_command(made, capsys):
    from moecap import cli

    assert cli.main(["report", "--archive", str(made[0]), "--verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == made[1]["files"]
    rewrite(made[0], lambda c: c.update({"campaign/results/report.html": b"better"}))
    assert cli.main(["report", "--archive", str(made[0]), "--verify"]) == 1
    error = capsys.readouterr().err
    assert "report.html differs from its checksum" in error and "Traceback" not in error


def test_redrawing_needs_the_core_only():
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.split('.')[0] in {'torch', 'transformers', 'vllm', 'snakemake', 'huggingface_hub'}:\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import moecap.report.redraw, moecap.charts.standard, moecap.report.page, moecap.report.compare\n"
        "import moecap.commands.report\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
