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
        "from moecap.checkpoints import hub; hub.download(sys.argv[1], sys.argv[2])"
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


# -- which files -------------------------------------------------------------------------------------------------------

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARDS = ["model-1.safetensors", "model-2.safetensors"]
# What there is beside config, tokenizer and README; what is taken of it (None: all).
MANY = {
    "whole and in shards": ([WHOLE, INDEX, *SHARDS], [WHOLE]),
    "in shards": ([INDEX, *SHARDS], None),
    "a stale index": ([INDEX, WHOLE, SHARDS[0]], [WHOLE]),
    "a variant": ([WHOLE, "model.fp16.safetensors"], [WHOLE]),
    "variants in shards": ([INDEX, *SHARDS, "model.fp16-00001-of-00001.safetensors"], [INDEX, *SHARDS]),
    "folders": (
        [
            *(WHOLE, f"fp16/{WHOLE}", f"checkpoint-500/{WHOLE}", "original/consolidated.00.safetensors"),
            *(f"onnx/{WHOLE}", "gguf/m.gguf", "vision-lora/adapter_model.safetensors"),
        ],
        [WHOLE],
    ),
    "Mistral's format beside": (
        [INDEX, *SHARDS, "consolidated.safetensors", "params.json"],
        [INDEX, *SHARDS, "params.json"],
    ),
    "an adapter beside": (
        [WHOLE, "adapter_model.safetensors", "adapter_config.json"],
        [WHOLE, "adapter_config.json"],
    ),
    "training's state": (
        [WHOLE, "optimizer.safetensors", "training_args.bin", "pytorch_model.bin.index.json"],
        [WHOLE],
    ),
    "a name of its own": (["gptq_model-4bit-128g.safetensors"], None),
}


@pytest.mark.parametrize("where", ["hub", "folder"])
@pytest.mark.parametrize("name", MANY)
def test_what_a_loader_reads_is_taken_and_nothing_twice(server, tmp_path, name, where):
    there, taken = MANY[name]
    whole = checkpoint(0, shards=2)
    weights = next(content for n, content in whole.items() if n.startswith("model-00001"))
    index = json.dumps({"weight_map": {"layers.0.weight": "model-1.safetensors", "x": "model-2.safetensors"}}).encode()
    files = {"config.json": whole["config.json"], "tokenizer.json": b"{}", "README.md": b"x"}
    files |= {name: index if name == INDEX else weights for name in there}
    if "model-2.safetensors" in files:
        files["model-2.safetensors"] = _shard("x")
    server.repos[REPO] = files
    if where == "hub":
        fetch(tmp_path / "m")
    else:
        hub.link_local(on_disk(tmp_path / "source", files), tmp_path / "m")
    assert sorted(contents(tmp_path / "m")) == sorted(["config.json", "tokenizer.json", "README.md", *(taken or there)])
    left = [n for n in files if n not in contents(tmp_path / "m")]
    assert not [n for n in left if server.gets(n)], "what is not taken is not fetched"


def _shard(tensor: str) -> bytes:
    header = json.dumps({tensor: {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(8)


@pytest.mark.parametrize(
    ("there", "says"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], r"an adapter \(LoRA\).*merge"),
        (["config.json", "adapter_config.json", "adapter_model.safetensors"], r"an adapter \(LoRA\)"),
        (["params.json", "consolidated.safetensors", "tekken.json"], "Mistral's own format"),
        (["config.json", "params.json", "consolidated-00001-of-00002.safetensors"], "Mistral's own format"),
        (["bf16/config.json", "bf16/model.safetensors"], r"lie in folders \(bf16\)"),
        (["config.json", "onnx/model.safetensors"], r"folders that no loader reads \(onnx\)"),
        (["config.json", "pytorch_model.bin"], r"no \*\.safetensors file, but pickles"),
        (["model-q4.gguf"], "GGUF"),
        (["model.safetensors"], "no config.json"),
        (["config.json"], r"no \*\.safetensors file"),
    ],
)
@pytest.mark.parametrize("where", ["hub", "folder"])
def test_what_is_no_checkpoint_has_a_true_reason(server, tmp_path, there, says, where):
    files = {name: b'{"a": 1}' if name.endswith("json") else _shard("x") for name in there}
    server.repos[REPO] = files
    with pytest.raises(PermanentError, match=says) as refused:
        if where == "hub":
            fetch(tmp_path / "m")
        else:
            hub.link_local(on_disk(tmp_path / "source", files), tmp_path / "m")
    assert not server.gets("x") and "\n" not in str(refused.value)
    assert not [r for r in server.requests if "/resolve/" in r.path], "nothing was fetched"


# -- caches ------------------------------------------------------------------------------------------------------------


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """What would change if anything in a folder were written again: inode and time of change."""
    return {str(p): (p.lstat().st_ino, p.lstat().st_ctime_ns) for p in sorted(folder.rglob("*"))}


def test_a_complete_cache_is_used_and_not_touched(server, files, tmp_path):
    """It may belong to another user, and be read-only to this one."""
    fetch(tmp_path / "a", cache=tmp_path / "cache", revision="main")
    before = state(tmp_path / "cache")
    fetch(tmp_path / "b", cache=tmp_path / "cache", revision="main")
    assert state(tmp_path / "cache") == before
    assert contents(tmp_path / "b") == wanted(files)


@pytest.mark.skipif(os.geteuid() != 0, reason="acts as another user")
@pytest.mark.parametrize("complete", [True, False])
def test_a_second_user_of_a_read_only_cache(server, files, tmp_path, complete):
    cache = tmp_path / "cache"
    fetch(tmp_path / "a", cache=cache)
    if not complete:
        next((cache / "models--org--model/blobs").iterdir()).unlink()
    for folder in (*tmp_path.parents, tmp_path):
        if folder.is_relative_to("/tmp/pytest-of-root") or str(folder).startswith("/tmp/pytest"):
            folder.chmod(0o755)
    home = tmp_path / "second"
    home.mkdir()
    os.chown(home, 65534, 65534)
    said = home / "said.txt"
    child = os.fork()
    if child == 0:  # all modules are loaded: another user may not be able to read them
        try:
            os.setgroups([])
            os.setegid(65534)
            os.seteuid(65534)
            fetch(home / "m", cache=cache)
            said.write_text("done")
        except BaseException as error:
            said.write_text(f"{type(error).__name__} {error}")
        os._exit(0)
    os.waitpid(child, 0)
    if complete:
        assert said.read_text() == "done"
        assert contents(home / "m") == wanted(files)
    else:
        assert said.read_text().startswith("PermanentError") and "cannot be written" in said.read_text()
        assert "umask 002" in said.read_text()


@pytest.fixture
def offline(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("place", ["cache", "users-cache"])
def test_offline_with_a_complete_cache(server, files, tmp_path, place, monkeypatch):
    """At a pinned commit, or a branch that the cache knows; not one request is made."""
    from huggingface_hub import constants

    fetch(tmp_path / "a", cache=tmp_path / place, revision="main")
    server.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for i, revision in enumerate([server.commits[REPO], "main"]):
        target = tmp_path / f"b{i}"
        manifest, _ = fetch(target, cache=tmp_path / "cache", revision=revision)
        assert contents(target) == wanted(files) and manifest["source"]["revision"] == server.commits[REPO]
        assert manifest["licence"] == "apache-2.0"
    assert server.requests == []


def test_offline_without_it_says_so(server, offline, tmp_path):
    with pytest.raises(PermanentError, match=r"HF_HUB_OFFLINE is set.*no complete snapshot of revision 'v1'"):
        fetch(tmp_path / "m", revision="v1")


def test_offline_with_a_damaged_cache_says_which_file(server, tmp_path, monkeypatch):
    from huggingface_hub import constants

    fetch(tmp_path / "a", cache=tmp_path / "cache")
    blob = (tmp_path / "a" / SHARD).resolve()
    blob.write_bytes(bytes(blob.stat().st_size))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PermanentError, match=f"{SHARD} in the cache .* is damaged"):
        fetch(tmp_path / "m", cache=tmp_path / "cache")


def test_a_password_in_the_endpoint_is_in_no_message(server, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HF_ENDPOINT", server.url.replace("://", "://me:hunter22-x@"))
    server.fault("api", status(403))
    with pytest.raises(PermanentError) as refused:
        fetch(tmp_path / "m")
    assert "hunter22" not in str(refused.value) and "[removed]@127.0.0.1" in str(refused.value)
    manifest, _ = fetch(tmp_path / "m2")
    assert "hunter22" not in json.dumps(manifest)


def test_why_the_transfer_is_our_own(server, files, tmp_path):
    """The hub's library takes wrong bytes of the right length. When this fails, its transfer may take ours' place."""
    from huggingface_hub import snapshot_download

    server.fault(SHARD, garbage())
    folder = snapshot_download(REPO, cache_dir=tmp_path / "theirs", endpoint=server.url, token=False)
    assert (Path(folder) / SHARD).read_bytes() != files[SHARD]
