"""Archives that somebody made to do harm, or changed and signed anew: one paragraph each, and nothing unpacked."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from moecap.archive import read
from moecap.errors import MoecapError
from moecap.report.compare import compare
from moecap.report.redraw import redraw
from tests.unit.test_archive import make, make_results, members

SUMS = "campaign/checksums.sha256"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    drawn = {"charts": {"formats": ["html"], "only": ["radar"]}, "report": {}}  # little: each damage draws anew
    return make(folder, folder / "results", make_results(folder / "results"), redraw=drawn)[0]


def signed(content: dict[str, bytes]) -> dict[str, bytes]:
    """With checksums that are right: whoever changes an archive can do that."""
    top = next(iter(content)).split("/")[0]
    files = {name: data for name, data in content.items() if name != f"{top}/{read.CHECKSUMS}"}
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name[len(top) + 1 :]}\n" for name, data in files.items())
    return {f"{top}/{read.CHECKSUMS}": sums.encode(), **files}


def pack(path: Path, tar: bytes) -> Path:
    path.write_bytes(zstandard.ZstdCompressor().compress(tar))
    return path


def entry(name: str, data: bytes = b"", **attributes) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, data


def tar_of(*entries: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=format) as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return raw.getvalue()


def refused(path: Path, says: str, folder: Path) -> None:
    for act in (read.verify, lambda p: read.extract(p, folder / "out")):
        with pytest.raises(MoecapError, match=says) as error:
            act(path)
        assert "\n" not in str(error.value)
    assert not (folder / "out").exists()


def test_a_bomb_is_refused_before_it_goes_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros, a thousandfold: stopped at the bound, not at the end."""
    monkeypatch.setattr(read, "ALWAYS_BYTES", 2**20)
    data = bytes(32 * 2**20)
    path = pack(tmp_path / "bomb", tar_of(entry("c/checksums.sha256"), entry("c/results/zeros", data)))
    assert path.stat().st_size < 10_000
    refused(path, r"more than any archive|unpacks to more than", tmp_path)


def test_a_bomb_that_lies_about_its_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows the last file unpacks, too."""
    monkeypatch.setattr(read, "ALWAYS_BYTES", 2**20)
    path = pack(tmp_path / "bomb", tar_of(entry("c/x", b"x")) + bytes(32 * 2**20))
    refused(path, "unpacks to more than", tmp_path)


@pytest.mark.parametrize("declared", [2**40, 2**63, 2**80])
def test_a_file_that_declares_more_than_there_is(tmp_path: Path, declared: int) -> None:
    info = tarfile.TarInfo("c/x")
    info.size = declared
    path = pack(tmp_path / "a", info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    refused(path, "more than any archive|damaged", tmp_path)


def test_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "MOST_FILES", 10)
    path = pack(tmp_path / "a", tar_of(*(entry(f"c/{i}") for i in range(11))))
    refused(path, "in 11 files", tmp_path)


@pytest.mark.parametrize(
    "name",
    ["c/../x", "/c/x", "../c/x", "c/a/../../../x", "x", "c/..", "c\\..\\x/y", "c/x\ny", "c/\x1b[2J", ".", "./", "/"],
)
def test_names_that_lead_elsewhere(tmp_path: Path, name: str) -> None:
    refused(pack(tmp_path / "a", tar_of(entry(name, b"x"))), "refused|empty", tmp_path)


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, b"Z"],
)
def test_only_plain_files(tmp_path: Path, kind: bytes) -> None:
    path = pack(tmp_path / "a", tar_of(entry("c/x", type=kind, linkname="/etc/passwd")))
    refused(path, "not a plain file|damaged", tmp_path)


def test_sparse_files_are_none(tmp_path: Path) -> None:
    headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(2**40)}
    headers |= {"GNU.sparse.name": "c/x"}
    path = pack(tmp_path / "a", tar_of(entry("c/x", b"1\n0\n1\n".ljust(512, b"\0"), pax_headers=headers)))
    refused(path, "not a plain file|damaged|more than any", tmp_path)


@pytest.mark.parametrize("name", [SUMS, "campaign/results/cap.parquet", "campaign/results/./cap.parquet"])
def test_a_member_twice(sound: Path, tmp_path: Path, name: str) -> None:
    content = members(sound)
    twice = content[name.replace("/./", "/")]
    raw = tar_of(*(entry(n, data) for n, data in content.items()), entry(name, twice))
    refused(pack(tmp_path / "a", raw), "is in it twice", tmp_path)


def test_a_file_named_twice_in_the_checksums(sound: Path, tmp_path: Path) -> None:
    content = members(sound)
    content[SUMS] += content[SUMS].splitlines(keepends=True)[0]
    refused(pack(tmp_path / "a", tar_of(*(entry(n, d) for n, d in content.items()))), "not a list of", tmp_path)


GARBAGE = random.Random(1).randbytes(600)
SKIPPABLE = (0x184D2A50).to_bytes(4, "little") + (4).to_bytes(4, "little") + b"evil"


@pytest.mark.parametrize(
    "after",
    [b"x", b"\0", GARBAGE, SKIPPABLE, zstandard.ZstdCompressor().compress(GARBAGE), bytes(10_240)],
    ids=["one byte", "a zero", "garbage", "a skippable frame", "a second frame", "zeros"],
)
def test_bytes_after_the_archive(sound: Path, tmp_path: Path, after: bytes) -> None:
    path = tmp_path / "a"
    path.write_bytes(sound.read_bytes() + after)
    refused(path, "follow the end of the archive", tmp_path)


@pytest.mark.parametrize("offset", [0, 512, 1024, 10_240])
@pytest.mark.parametrize("garbage", [GARBAGE[:512], tar_of(entry("campaign/y", b"hidden"))], ids=["noise", "a tar"])
def test_bytes_after_the_last_file(sound: Path, tmp_path: Path, offset: int, garbage: bytes) -> None:
    content = members(sound)
    raw = tar_of(*(entry(n, d) for n, d in content.items()))
    end = len(raw.rstrip(b"\0"))
    end += -end % 512 + offset
    refused(
        pack(tmp_path / "a", raw[:end].ljust(end, b"\0") + garbage),
        "follows the last file|damaged|not listed|in it twice",
        tmp_path,
    )


def test_a_name_as_long_as_memory(tmp_path: Path) -> None:
    path = pack(tmp_path / "a", tar_of(entry("c/" + "x" * 2**20, b"x")))
    refused(path, "damaged.*a header of", tmp_path)


def test_a_frame_that_asks_for_memory(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=28, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters)
    raw = io.BytesIO()
    with compressor.stream_writer(raw, closefd=False) as packed:
        packed.write(tar_of(entry("c/x", b"x")))
    path = tmp_path / "a"
    path.write_bytes(raw.getvalue())
    refused(path, "damaged.*", tmp_path)


def test_no_room_is_said_before_anything_is_unpacked(sound: Path, tmp_path: Path, monkeypatch) -> None:
    usage = read.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(read.shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(MoecapError, match="GB free"):
        read.extract(sound, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_and_a_folder_of_one_name(sound: Path, tmp_path: Path) -> None:
    content = signed({**members(sound), "campaign/archive.json/x": b"x"})
    path = pack(tmp_path / "a", tar_of(*(entry(n, d) for n, d in content.items())))
    with pytest.raises(MoecapError, match="could not be read or unpacked"), read.open_archive(path):
        pass


# -- parts that were changed, with checksums made anew -----------------------------------------------------------------

PARTS = (
    "archive.json",
    "config/config.yaml",
    "config/catalogue.yaml",
    "config/deployments.csv",
    "config/redraw.json",
    "results/cap.parquet",
    "results/machine/h.json",
    "results/models/m/bf16/manifest.json",
    "results/metrics/one/routing.parquet",
)
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut off": lambda data: data[: len(data) // 2],
    "noise": lambda data: random.Random(len(data)).randbytes(200),
    "a list": lambda _: b"[]",
    "a list of numbers": lambda _: b"[1, 2]",
    "null": lambda _: b"null",
    "text": lambda _: b'"x"',
    "no keys": lambda _: b"{}",
    "other types": lambda _: json.dumps(dict.fromkeys(("name", "charts", "inputs", "report", "gpus"), 3)).encode(),
    "deep": lambda _: b"[" * 100_000,
    "not UTF-8": lambda data: b"\xff\xfe" + data,
}


# Every part and every damage, not every pair.
PAIRS = [(part, list(DAMAGE)[(3 * i + k) % len(DAMAGE)]) for i, part in enumerate(PARTS) for k in range(3)]


@pytest.mark.parametrize(("part", "how"), PAIRS)
def test_a_part_that_was_damaged_and_signed_anew(sound: Path, tmp_path: Path, part: str, how: str) -> None:
    """It is drawn, or refused in one paragraph that names the archive."""
    content = members(sound)
    content[f"campaign/{part}"] = DAMAGE[how](content[f"campaign/{part}"])
    path = pack(tmp_path / "a.tar.zst", tar_of(*(entry(n, d) for n, d in signed(content).items())))
    acts = [lambda: compare(sound, path), _properties(path)]
    if how == PAIRS[3 * PARTS.index(part)][1]:  # drawing takes seconds: once per part
        acts.append(lambda: redraw(path, tmp_path / "drawn"))
    for act in acts:
        try:
            act()
        except MoecapError as error:
            assert str(path) in str(error) or tmp_path.name in str(error) or part.split("/")[-1] in str(error)
            assert "\n" not in str(error)


def _properties(path: Path) -> Callable[[], None]:
    def look() -> None:
        with read.open_archive(path) as opened:
            for name in ("facts", "config", "catalogue", "deployments", "redraw"):
                getattr(opened, name)
            opened.cap()

    return look
