"""The demo's archive, moved to an empty clone: drawn again from itself alone, compared, refused when tampered with."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest
import zstandard

from tests.conftest import snakemake
from tests.dag.conftest import copy_workflow

pytestmark = [pytest.mark.e2e, pytest.mark.engine]
PLANTED = {"HF_TOKEN": "hf_PLANTEDplantedPLANTED123", "JUDGE_API_KEY": "judge-secret-4711", "USER": "zebulon"}


# Not there, as where it was never installed: None in sys.modules is something else to who looks whether it is loaded.
WITHOUT_ENGINES = """
import sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        absent = name.partition(".")[0] in ("vllm", "torch", "transformers")
        return None if absent else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
"""


@pytest.fixture(scope="module")
def archive(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = snakemake("--cores", "1", "archive", **PLANTED)
    assert made.returncode == 0, made.stderr[-4000:]
    return Path(shutil.copy(demo / "archive/moecap.tar.zst", tmp_path_factory.mktemp("moved") / "cite.tar.zst"))


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty clone on a machine that has no engine."""
    folder = copy_workflow(tmp_path_factory.mktemp("an empty clone"))
    (folder / "sitecustomize.py").write_text(WITHOUT_ENGINES, encoding="utf-8")
    return folder


def run(clone: Path, *arguments: str):
    path = os.pathsep.join(filter(None, [str(clone), os.environ.get("PYTHONPATH")]))
    return snakemake("--cores", "1", *arguments, cwd=clone, PYTHONPATH=path)


def members(path: Path) -> dict[str, bytes]:
    content = zstandard.ZstdDecompressor().stream_reader(path.open("rb")).read()
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar.getmembers()}


def test_redrawn_byte_by_byte_from_the_archive_alone(demo: Path, archive: Path, clone: Path) -> None:
    done = run(clone, "report", "--config", f"archive={archive}")
    assert done.returncode == 0, done.stderr[-4000:]
    assert "every file of which is intact" in done.stderr
    again = clone / "results/redrawn/cite"
    names = {"report.html", "cap.parquet", *(f"charts/{p.name}" for p in (demo / "charts").glob("[!.]*"))}
    assert len(names) > 10
    assert {name for name in names if (again / name).read_bytes() != (demo / name).read_bytes()} == set()


def test_nothing_of_this_machine_is_in_it(archive: Path) -> None:
    found = members(archive)
    needles = [*PLANTED.values(), str(Path(__file__).parents[2])]
    assert [n for n, content in found.items() if any(needle.encode() in content for needle in needles)] == []
    assert not [n for n in found if "/failures/" in n or n.endswith((".safetensors", ".log"))]


def test_compared_with_itself(archive: Path, clone: Path) -> None:
    done = run(clone, "compare", "--config", f"before={archive}", f"after={archive}")
    assert done.returncode == 0, done.stderr[-4000:]
    assert "better" not in done.stderr and "same. See results/comparison.html" in done.stderr
    assert "## Differences in provenance\n\nNone." in (clone / "results/comparison.md").read_text()


def test_tampered_with(archive: Path, clone: Path, tmp_path: Path) -> None:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, content in members(archive).items():
            content = content.replace(b"measured", b"imagined") if name.endswith("report.html") else content
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    bad = tmp_path / "bad.tar.zst"
    bad.write_bytes(zstandard.ZstdCompressor().compress(raw.getvalue()))
    done = run(clone, "report", "--config", f"archive={bad}")
    assert done.returncode == 1
    assert f"{bad}: results/report.html differs from its checksum" in done.stderr
    assert not (clone / "results/redrawn/bad/report.html").exists()


def test_without_two_archives_compare_says_what_it_wants(clone: Path) -> None:
    done = run(clone, "-n", "compare")
    assert done.returncode == 1
    assert "snakemake compare --config before=A.tar.zst after=B.tar.zst" in done.stdout + done.stderr
