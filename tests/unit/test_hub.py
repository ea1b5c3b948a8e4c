"""Downloads against a real HTTP hub that misbehaves, and checkpoints that are not whole."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("huggingface_hub")

from moecap.checkpoints import hub
from moecap.errors import MoecapError, PermanentError
from tests.hub.server import Hub, checkpoint, cut_after, garbage, stall_after, status

ROOT = Path(__file__).resolve().parents[2]
REPO = "org/model"
SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture
def files():
    return checkpoint()


@pytest.fixture
def server(files, monkeypatch, tmp_path):
    from huggingface_hub import constants

    with Hub({REPO: files}) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "users-cache"))
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # 10 MB by default: what a lost connection costs
        yield running


def fetch(target: Path, **options):
    waits: list[float] = []
    options.setdefault("revision", None)
    manifest = hub.download(REPO, target, sleep=waits.append, **options)
    return manifest, waits


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.name != "manifest.json"
    }


def wanted(files):
    return {n: c for n, c in files.items() if n not in ("pytorch_model.bin", "original/consolidated.00.safetensors")}


def test_download_is_complete_verified_and_described(server, files, tmp_path, caplog):
    manifest, waits = fetch(tmp_path / "m")
    assert contents(tmp_path / "m") == wanted(files)
    assert waits == []
    assert manifest == json.loads((tmp_path / "m/manifest.json").read_text())
    assert {f["path"]: f["sha256"] for f in manifest["files"]} == {
        n: hashlib.sha256(c).hexdigest() for n, c in wanted(files).items()
    }
    assert manifest["size_bytes"] == sum(map(len, wanted(files).values()))
    assert manifest["source"]["revision"] == server.commits[REPO]
    assert manifest["licence"] == "apache-2.0"
    assert hub.verify_manifest(tmp_path / "m") == manifest


def test_unpinned_revision_is_a_warning_and_the_commit_is_recorded(server, tmp_path, caplog):
    manifest, _ = fetch(tmp_path / "m", revision="main")
    assert "is not pinned" in caplog.text and server.commits[REPO] in caplog.text
    assert manifest["source"] == manifest["source"] | {"pinned": False, "revision_asked": "main"}
    caplog.clear()
    manifest, _ = fetch(tmp_path / "m", revision=server.commits[REPO])
    assert "pinned" not in caplog.text and manifest["source"]["pinned"] is True


def test_second_download_fetches_nothing(server, tmp_path):
    fetch(tmp_path / "m")
    server.requests.clear()
    fetch(tmp_path / "m")
    assert [r.path for r in server.requests] == [f"/api/models/{REPO}"]


def test_shared_cache_is_linked_and_used_by_the_next_one(server, files, tmp_path):
    cache = tmp_path / "cache"
    fetch(tmp_path / "a", cache=cache)
    shard = tmp_path / "a" / SHARD
    assert shard.is_symlink() and shard.resolve().is_relative_to(cache)
    assert contents(tmp_path / "a") == wanted(files)
    server.requests.clear()
    fetch(tmp_path / "b", cache=cache)
    assert not server.gets(SHARD)
    # The hub's own library finds the files in the cache too.
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(REPO, SHARD, cache_dir=cache, revision="main")
    assert Path(found).read_bytes() == files[SHARD]


def test_what_the_users_own_cache_has_is_linked(server, files, tmp_path):
    fetch(tmp_path / "a", cache=tmp_path / "users-cache")
    server.requests.clear()
    fetch(tmp_path / "b")
    assert not server.gets(SHARD) and (tmp_path / "b" / SHARD).is_symlink()
    assert contents(tmp_path / "b") == wanted(files)


def test_a_new_revision_leaves_nothing_of_the_old_one(server, files, tmp_path):
    fetch(tmp_path / "m")
    server.repos[REPO] = {n.replace("of-00002", "of-00001"): c for n, c in checkpoint(1, shards=1).items()}
    fetch(tmp_path / "m")
    assert not (tmp_path / "m" / SHARD).exists()
    assert contents(tmp_path / "m") == wanted(server.repos[REPO])


@pytest.mark.parametrize("code", [401, 403])
@pytest.mark.parametrize("at", ["api", SHARD])
def test_refused_names_licence_page_and_token(server, tmp_path, monkeypatch, code, at):
    server.fault(at, status(code, X_Error_Code="GatedRepo"))
    with pytest.raises(PermanentError) as refused:
        fetch(tmp_path / "m")
    message = str(refused.value)
    assert f"{server.url}/{REPO}" in message and "HF_TOKEN is not set" in message and str(code) in message
    assert "licence" in message and "/settings/tokens" in message
    assert not (tmp_path / "m/manifest.json").exists()


def test_token_comes_from_the_environment_and_goes_nowhere_else(server, tmp_path, monkeypatch, caplog):
    secret = "hf_" + "s3cr3t" * 5
    monkeypatch.setenv("HF_TOKEN", secret)
    caplog.set_level("DEBUG")
    fetch(tmp_path / "m")
    assert {r.authorization for r in server.requests} == {f"Bearer {secret}"}
    server.fault("api", status(403))
    with pytest.raises(PermanentError) as refused:
        fetch(tmp_path / "m2")
    written = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert secret.encode() not in written
    assert secret not in caplog.text and secret not in str(refused.value)
    assert "HF_TOKEN is set, but" in str(refused.value)


def test_404_and_unknown_revision_are_permanent(server, tmp_path):
    with pytest.raises(PermanentError, match=r"does not exist.*404"):
        hub.download("org/no-such", tmp_path / "m")
    with pytest.raises(PermanentError, match="no revision 'v9'"):
        hub.download(REPO, tmp_path / "m", revision="v9")


def test_file_that_vanished_is_permanent(server, tmp_path):
    server.fault(SHARD, status(404, X_Error_Code="EntryNotFound"))
    with pytest.raises(PermanentError, match="404"):
        fetch(tmp_path / "m")


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
def test_errors_that_pass_are_retried_with_growing_waits(server, files, tmp_path, code):
    server.fault("api", *[status(code)] * 3)
    _, waits = fetch(tmp_path / "m")
    assert len(waits) == 3
    assert waits[0] < waits[1] < waits[2]
    assert contents(tmp_path / "m") == wanted(files)


@pytest.mark.parametrize("code", [429, 500])
def test_errors_that_pass_are_retried_for_files(server, files, tmp_path, code):
    server.fault(SHARD, status(code, Retry_After="0"))
    fetch(tmp_path / "m")
    assert len(server.gets(SHARD)) == 2
    assert contents(tmp_path / "m") == wanted(files)


def test_gives_up_with_one_paragraph_and_goes_on_later(server, files, tmp_path):
    server.fault(SHARD, *[status(500)] * 3)
    with pytest.raises(MoecapError) as gave_up:
        fetch(tmp_path / "m", attempts=3)
    assert not isinstance(gave_up.value, PermanentError)
    assert "gave up after 3 attempts" in str(gave_up.value) and "HTTP 500" in str(gave_up.value)
    assert "\n" not in str(gave_up.value)
    assert not (tmp_path / "m/manifest.json").exists()
    fetch(tmp_path / "m")
    assert contents(tmp_path / "m") == wanted(files)


def test_api_that_hangs_times_out_and_is_retried(server, files, tmp_path, monkeypatch):
    import huggingface_hub

    asked = huggingface_hub.HfApi.model_info
    monkeypatch.setattr(
        huggingface_hub.HfApi, "model_info", lambda self, *a, **k: asked(self, *a, **{**k, "timeout": 0.3})
    )
    server.fault("api", stall_after(0, 5))
    _, waits = fetch(tmp_path / "m")
    assert len(waits) == 1


def test_truncated_body_is_resumed_by_a_range_request(server, files, tmp_path):
    server.fault(SHARD, cut_after(5000))
    fetch(tmp_path / "m")
    ranges = [r.range for r in server.gets(SHARD)]
    assert ranges[0] is None and ranges[1] == "bytes=5000-"
    assert contents(tmp_path / "m") == wanted(files)


def test_stalled_body_is_resumed_by_a_range_request(server, files, tmp_path):
    server.fault(SHARD, stall_after(3000, 10))
    fetch(tmp_path / "m")
    assert [r.range for r in server.gets(SHARD)] == [None, "bytes=3000-"]
    assert contents(tmp_path / "m") == wanted(files)


@pytest.mark.parametrize("cached", [False, True])
def test_wrong_bytes_are_detected_and_fetched_again(server, files, tmp_path, cached, caplog):
    server.fault(SHARD, garbage())
    server.fault("tokenizer.json", garbage())
    fetch(tmp_path / "m", cache=tmp_path / "cache" if cached else None)
    assert len(server.gets(SHARD)) == len(server.gets("tokenizer.json")) == 2
    assert "SHA-256 is" in caplog.text and "git blob id is" in caplog.text
    assert contents(tmp_path / "m") == wanted(files)


def test_wrong_bytes_every_time_are_an_error_not_a_checkpoint(server, tmp_path):
    server.fault(SHARD, *[garbage()] * 3)
    with pytest.raises(MoecapError, match="the hub states"):
        fetch(tmp_path / "m", attempts=3)
    assert not (tmp_path / "m" / SHARD).exists() and not (tmp_path / "m/manifest.json").exists()


def test_a_file_damaged_on_disk_is_fetched_again(server, files, tmp_path):
    fetch(tmp_path / "m")
    path = tmp_path / "m" / SHARD
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(MoecapError, match="is not the file"):
        hub.verify_manifest(tmp_path / "m")
    fetch(tmp_path / "m")
    assert contents(tmp_path / "m") == wanted(files)


def test_killed_download_goes_on_where_it_was(server, tmp_path):
    server.repos[REPO] = files = checkpoint(2, elements=60_000)
    server.fault(SHARD, stall_after(100_000, 60))
    code = (
        "import sys; from huggingface_hub import constants; constants.DOWNLOAD_CHUNK_SIZE = 1000\n"
        "from moecap import hub; hub.download(sys.argv[1], sys.argv[2])"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, REPO, str(tmp_path / "m")],
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DOWNLOAD_TIMEOUT": "60"},
        cwd=ROOT,
    )

    def fetched() -> int:
        return sum(p.stat().st_size for p in (tmp_path / "m").rglob(f".{SHARD}*.part"))

    deadline = time.monotonic() + 60
    while fetched() < 90_000:
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    there = fetched()
    server.requests.clear()
    fetch(tmp_path / "m")
    assert [r.range for r in server.gets(SHARD)] == [f"bytes={there}-"]
    assert contents(tmp_path / "m") == wanted(files)
    assert not list((tmp_path / "m").rglob(".*"))


def test_no_room_is_said_before_anything_is_fetched(server, tmp_path, monkeypatch):
    usage = hub.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(MoecapError, match="GB free"):
        fetch(tmp_path / "m")
    assert not server.gets(SHARD)


def test_repository_without_safetensors(server, files, tmp_path):
    server.repos[REPO] = {"config.json": b'{"a": 1}', "pytorch_model.bin": b"x" * 5000}
    with pytest.raises(PermanentError, match=r"no \*\.safetensors"):
        fetch(tmp_path / "m")


def on_disk(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_local_checkpoint_is_linked_and_described(tmp_path, files):
    source = on_disk(tmp_path / "private/source", files)
    manifest = hub.fetch({"path": str(source)}, tmp_path / "m", facts={"model": "x"})
    assert (tmp_path / "m" / SHARD).is_symlink()
    assert contents(tmp_path / "m") == wanted(files)
    assert manifest["source"] == {"kind": "local", "folder": "source", "revision": None} and manifest["model"] == "x"
    assert str(tmp_path) not in json.dumps(manifest)


def test_local_path_expands_variables(tmp_path, files, monkeypatch):
    on_disk(tmp_path / "source", files)
    monkeypatch.setenv("SCRATCH_HERE", str(tmp_path))
    hub.fetch({"path": "$SCRATCH_HERE/source"}, tmp_path / "m")
    with pytest.raises(PermanentError, match="no such folder"):
        hub.fetch({"path": "$SCRATCH_HERE/elsewhere"}, tmp_path / "m")


def damage(name):
    def cut(files):
        files[name] = files[name][:-100]

    return cut


def drop(name):
    return lambda files: files.pop(name)


def put(name, content):
    return lambda files: files.update({name: content})


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (drop("config.json"), "config.json does not exist"),
        (put("config.json", b"{"), "not valid JSON"),
        (put("config.json", b"[]"), "not a JSON object"),
        (put("config.json", b"{}"), "is empty"),
        (put("config.json", b"\xff\xfe"), "not valid JSON"),
        (damage(SHARD), "cut off"),
        (put(SHARD, b""), "not a safetensors file"),
        (put(SHARD, b"\xff" * 64), "not a safetensors file"),
        (put(SHARD, b"\x02" + bytes(7) + b"[]"), "not a safetensors file"),
        (put(SHARD, b"\x02" + bytes(7) + b"{}"), "lacks the tensor layers.0.weight"),
        (drop(SHARD), f"shard {SHARD}"),
        (put("model.safetensors.index.json", b"{}"), "no `weight_map`"),
    ],
)
def test_damaged_checkpoint_is_a_named_error(tmp_path, files, how, says):
    how(files)
    source = on_disk(tmp_path / "source", files)
    with pytest.raises(PermanentError) as refused:
        hub.link_local(source, tmp_path / "m")
    assert says in str(refused.value) and str(source) in str(refused.value)
    assert not (tmp_path / "m/manifest.json").exists()
