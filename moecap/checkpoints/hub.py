"""Checkpoints: from the hub, from a folder, and how to tell that one is whole.

A checkpoint becomes a folder ``results/models/{model}/{precision}`` with its files (or links to them) and a
``manifest.json``, written last, that names every file with size and SHA-256, the commit it came from and its licence.

* **Nothing is copied twice.** With a shared cache the blobs lie there, in the hub's own cache layout, so that whatever
  else uses that cache finds them; the results folder holds links. Without one they are written where they are needed,
  and what the user's own hub cache already has is linked, not fetched again.
* **Nothing is believed.** Every file is compared with the size and hash that the hub states (SHA-256 of large files,
  the git blob id of small ones); what differs is thrown away and fetched again.
* **Nothing is lost.** A partial file stays where it is, also after a kill, and is continued by a range request.

``HF_ENDPOINT`` names another hub; the token is read from ``HF_TOKEN`` and from nowhere else, and never written down.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import json
import logging
import os
import random
import re
import shutil
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moecap.errors import MoecapError, PermanentError
from moecap.io import write_json

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
DEFAULT_ENDPOINT = "https://huggingface.co"
COMMIT = re.compile(r"[0-9a-f]{40}")

# What a checkpoint needs to be served, counted and quantized: weights as safetensors (pickles may run code), configs,
# tokenizers, licence texts. Copies of the same weights in other formats stay on the hub.
WANTED = (
    "*.safetensors",
    "*.json",
    "*.model",
    "*.txt",
    "*.jinja",
    "*.tiktoken",
    "*.py",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "README.md",
)
UNWANTED = ("consolidated*", "original/*", "onnx/*", "openvino/*", "gguf/*", "metal/*", ".*", "*/.*")


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub describes it. ``sha256`` is known for large files, ``git_id`` (a git blob id) for all "
    "others."""

    path: str
    size_bytes: int
    sha256: str | None
    git_id: str | None

    @property
    def etag(self) -> str:
        """The name of its blob in the hub's cache layout."""
        return self.sha256 or self.git_id or ""


@dataclass(frozen=True)
class Snapshot:
    """A repository at one commit."""

    repo: str
    commit: str
    licence: str | None
    gated: str | None
    files: tuple[RemoteFile, ...]


class Transient(MoecapError):
    """The hub, or the way to it, failed in a manner that may pass."""


def fetch(
    source: Mapping[str, Any],
    target: str | os.PathLike[str],
    *,
    cache: str | os.PathLike[str] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Bring the checkpoint that ``source`` describes to ``target``, and return its manifest.

    Args:
        source: ``{"path": folder}`` for a local checkpoint, or ``{"hub": repository, "revision": commit or None}``.
        target: the folder to fill; it becomes exactly this checkpoint.
        cache: a shared cache in the hub's layout, or None. ``~`` and variables are expanded.
        facts: more keys for the manifest (model, precision).

    Raises:
        PermanentError: not there, not allowed, not a checkpoint. MoecapError: the hub did not deliver.
    """
    if source.get("path"):
        return link_local(os.path.expandvars(str(source["path"])), target, facts=facts)
    return download(source["hub"], target, revision=source.get("revision"), cache=cache, facts=facts)


def download(
    repo: str,
    target: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    facts: Mapping[str, Any] | None = None,
    attempts: int = 6,
    workers: int = 4,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Download ``repo`` at ``revision`` to ``target``, verified file by file; returns the manifest.

    Whatever is already there, whole, is not fetched again; what is there in part is continued.

    Raises:
        PermanentError: 401/403 (names the licence page and ``HF_TOKEN``), 404, no safetensors, disk too small.
        MoecapError: still no answer, or still wrong bytes, after ``attempts``.
    """
    endpoint = os.environ.get("HF_ENDPOINT", DEFAULT_ENDPOINT).rstrip("/")
    snapshot = patiently(lambda: describe(repo, revision, endpoint), attempts, sleep, f"{endpoint}/{repo}")
    pinned = bool(revision and COMMIT.fullmatch(revision))
    if not pinned:
        log.warning(
            "%s: revision %s is not pinned; it is commit %s now. Put `revision: %s` into the model's catalogue entry "
            "to "
            "get the same files next year.",
            repo,
            f"`{revision}`" if revision else "(none given)",
            snapshot.commit,
            snapshot.commit,
        )
    folder = Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    store = _Store(snapshot, folder, Path(os.path.expandvars(cache)).expanduser() if cache else None)
    with ThreadPoolExecutor(max_workers=workers) as pool:
        missing = [f for f, there in zip(snapshot.files, pool.map(store.has, snapshot.files), strict=True) if not there]
    _room_for(sum(f.size_bytes - store.partial_bytes(f) for f in missing), store.root, repo)
    log.info(
        "%s at %s: %d files, %.2f GB; %d to fetch (%.2f GB)",
        repo,
        snapshot.commit[:12],
        len(snapshot.files),
        sum(f.size_bytes for f in snapshot.files) / 1e9,
        len(missing),
        sum(f.size_bytes for f in missing) / 1e9,
    )
    with ThreadPoolExecutor(max_workers=workers) as pool:
        jobs = [pool.submit(_get, f, snapshot, store, endpoint, attempts, sleep) for f in missing]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    store.publish(revision)
    return write_manifest(
        folder,
        {
            **(facts or {}),
            "source": {
                "kind": "hub",
                "repository": repo,
                "revision_asked": revision,
                "revision": snapshot.commit,
                "pinned": pinned,
                "gated": snapshot.gated,
            },
            "licence": snapshot.licence,
        },
        # Compared with these a moment ago; a checkpoint of a terabyte is not read twice.
        known={f.path: f.sha256 for f in snapshot.files if f.sha256},
    )


def link_local(
    source: str | os.PathLike[str], target: str | os.PathLike[str], *, facts: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Link the checkpoint in the folder ``source`` to ``target`` and return its manifest. Nothing is copied.

    Raises:
        PermanentError: no such folder, or the checkpoint is damaged (:func:`check_checkpoint`).
    """
    origin = Path(source).expanduser().absolute()
    if not origin.is_dir():
        raise PermanentError(
            f"{source}: no such folder. `path` of a model in the catalogue is a folder in the Hugging Face format "
            "(config.json, *.safetensors, tokenizer files)."
        )
    check_checkpoint(origin)
    folder = Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    names = [p.relative_to(origin).as_posix() for p in sorted(origin.rglob("*")) if p.is_file()]
    wanted = [name for name in names if _is_wanted(name) and name != MANIFEST]
    _remove_others(folder, wanted)
    for name in wanted:
        _link(origin / name, folder / name)
    config = json.loads((origin / "config.json").read_text())
    return write_manifest(
        folder,
        {
            **(facts or {}),
            # The folder's name only: where it lies is this machine's business.
            "source": {"kind": "local", "folder": origin.name, "revision": config.get("_commit_hash")},
            "licence": None,
        },
    )


def link_variant(
    source: str | os.PathLike[str], target: str | os.PathLike[str], *, facts: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Link a checkpoint that has a manifest to ``target``, with the same manifest but for ``facts``.

    Raises:
        PermanentError: the checkpoint is damaged (:func:`check_checkpoint`).
    """
    origin, folder = Path(source), Path(target)
    check_checkpoint(origin)
    manifest = {**_read_object(origin / MANIFEST), **(facts or {})}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    names = [entry["path"] for entry in manifest["files"]]
    _remove_others(folder, names)
    for name in names:
        _link(origin / name, folder / name)
    write_json(manifest, folder / MANIFEST)
    return manifest


def write_manifest(
    folder: str | os.PathLike[str], facts: Mapping[str, Any], *, known: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Check the checkpoint in ``folder`` and write its ``manifest.json``: ``facts`` and every file's size and SHA-256.

    ``known`` maps paths to hashes that were computed already. Returns the manifest.
    """
    folder = Path(folder)
    check_checkpoint(folder)
    files = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and path.name != MANIFEST and not path.name.startswith("."):
            digest = (known or {}).get(name) or sha256(path)
            files.append({"path": name, "size_bytes": path.stat().st_size, "sha256": digest})
    manifest = {**facts, "size_bytes": sum(f["size_bytes"] for f in files), "files": files}
    write_json(manifest, folder / MANIFEST)
    return manifest


def verify_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Compare the files in ``folder`` with its manifest, which is returned.

    Raises:
        MoecapError: the manifest is missing, or a file is missing, has another size or another hash.
    """
    folder = Path(folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise MoecapError(f"{folder / MANIFEST} is missing or not JSON; the checkpoint was never finished.") from error
    for entry in manifest["files"]:
        path = folder / entry["path"]
        if not path.is_file():
            raise MoecapError(f"{path}, named by {MANIFEST}, is missing.")
        if path.stat().st_size != entry["size_bytes"] or sha256(path) != entry["sha256"]:
            raise MoecapError(
                f"{path} is not the file that {MANIFEST} describes: {path.stat().st_size} bytes with another hash, "
                "instead "
                f"of {entry['size_bytes']}. Delete {folder} and start again."
            )
    return manifest


def check_checkpoint(folder: str | os.PathLike[str]) -> None:
    """Refuse a checkpoint that cannot be whole, by its structure alone (no tensor is read).

    Raises:
        PermanentError: no readable ``config.json``, no safetensors, a shard that is missing, cut off or no safetensors
            file, or an index that names a tensor which its shard lacks.
    """
    folder = Path(folder)
    config = _read_object(folder / "config.json")
    if not config:
        raise PermanentError(f"{folder / 'config.json'} is empty; this is not a checkpoint in the Hugging Face format.")
    shards = {p.name: _tensor_names(p) for p in sorted(folder.glob("*.safetensors")) if _is_wanted(p.name)}
    if not shards:
        raise PermanentError(f"{folder} holds no *.safetensors file; other formats are not read.")
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    weight_map = _read_object(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise PermanentError(f"{index} has no `weight_map`.")
    for tensor, shard in sorted(weight_map.items()):
        if shard not in shards:
            raise PermanentError(
                f"{folder}: shard {shard}, which {index.name} names for {tensor}, is missing. The checkpoint is "
                "incomplete."
            )
        if tensor not in shards[shard]:
            raise PermanentError(f"{folder / shard} lacks the tensor {tensor} that {index.name} places there.")


def sha256(path: str | os.PathLike[str]) -> str:
    """Hex SHA-256 of a file."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def describe(repo: str, revision: str | None, endpoint: str) -> Snapshot:
    """What ``repo`` holds at ``revision``: commit, licence, and the files that a checkpoint needs with their hashes."""
    from huggingface_hub import HfApi

    with _explained(repo, revision, endpoint):
        info = HfApi(endpoint=endpoint, token=_token()).model_info(
            repo, revision=revision, files_metadata=True, timeout=30.0
        )
    files = tuple(
        RemoteFile(s.rfilename, int(s.size or 0), s.lfs.sha256 if s.lfs else None, s.blob_id)
        for s in info.siblings or []
        if _is_wanted(s.rfilename)
    )
    if not any(f.path.endswith(".safetensors") for f in files):
        raise PermanentError(
            f"{endpoint}/{repo} holds no *.safetensors file at {info.sha}. Pickled weights (*.bin, *.pt) are not read: "
            "they may run code. Look for a revision or a repository with safetensors."
        )
    card = info.card_data or {}
    gated = getattr(info, "gated", None)
    return Snapshot(
        repo=repo,
        commit=str(info.sha),
        licence=_licence(card),
        gated=str(gated) if gated else None,
        files=files,
    )


def patiently(call: Callable[[], Any], attempts: int, sleep: Callable[[float], None], what: str) -> Any:
    """``call()``, again after 1, 2, 4 … (at most 60) seconds while it raises :class:`Transient`."""
    for attempt in range(1, attempts + 1):
        try:
            return call()
        except Transient as error:
            if attempt == attempts:
                raise MoecapError(
                    f"{what}: gave up after {attempts} attempts. {error} What was downloaded is kept: start again "
                    "later, "
                    "and it goes on from there."
                ) from error
            # A random part keeps the many jobs of one campaign from knocking together.
            wait = min(60.0, 2.0 ** (attempt - 1)) * (1 + 0.25 * random.random())
            log.warning("%s: attempt %d of %d failed: %s Next in %.0f s.", what, attempt, attempts, error, wait)
            sleep(wait)
    raise AssertionError("unreachable")


class _Store:
    """Where the files of a snapshot are put: the results folder itself, or a cache in the hub's layout and links to "
    "it."""

    def __init__(self, snapshot: Snapshot, folder: Path, cache: Path | None) -> None:
        self.snapshot, self.folder, self.cache = snapshot, folder, cache
        self.repo_folder = f"models--{snapshot.repo.replace('/', '--')}"
        self.root = cache if cache else folder
        self.root.mkdir(parents=True, exist_ok=True)

    def place(self, file: RemoteFile) -> Path:
        """Where the bytes go."""
        if self.cache:
            return self.cache / self.repo_folder / "blobs" / file.etag
        return self.folder / file.path

    def partial(self, file: RemoteFile) -> Path:
        """Where they are collected; the name holds the hash, so that another revision does not continue this one."""
        place = self.place(file)
        return place.with_name(f".{place.name}.{file.etag[:12]}.part")

    def partial_bytes(self, file: RemoteFile) -> int:
        partial = self.partial(file)
        return min(partial.stat().st_size, file.size_bytes) if partial.is_file() else 0

    def has(self, file: RemoteFile) -> bool:
        """Whether the file is there and right. One that is there and wrong is removed."""
        place = self.place(file)
        if place.is_file():
            problem = mismatch(place, file)
            if problem is None:
                return True
            log.warning("%s: %s; fetching it again", file.path, problem)
        place.unlink(missing_ok=True)  # also a dangling link
        if self.cache is None and (own := self._in_users_cache(file)):
            _link(own, place)
            return True
        return False

    def _in_users_cache(self, file: RemoteFile) -> Path | None:
        from huggingface_hub import constants

        blob = Path(constants.HF_HUB_CACHE) / self.repo_folder / "blobs" / file.etag
        if blob.is_file() and mismatch(blob, file) is None:
            return blob.absolute()
        return None

    def publish(self, revision: str | None) -> None:
        """Make the snapshot appear in the cache, and the links to it in the results folder."""
        _remove_others(self.folder, [f.path for f in self.snapshot.files])
        if not self.cache:
            return
        home = self.cache / self.repo_folder
        for file in self.snapshot.files:
            entry = home / "snapshots" / self.snapshot.commit / file.path
            blob = self.place(file)
            _link(Path(os.path.relpath(blob, entry.parent)), entry)
            _link(blob.absolute(), self.folder / file.path)
        name = revision or "main"
        if not COMMIT.fullmatch(name):
            reference = home / "refs" / name
            reference.parent.mkdir(parents=True, exist_ok=True)
            reference.write_text(self.snapshot.commit)


def _get(
    file: RemoteFile,
    snapshot: Snapshot,
    store: _Store,
    endpoint: str,
    attempts: int,
    sleep: Callable[[float], None],
) -> None:
    from huggingface_hub.utils import WeakFileLock

    place, partial = store.place(file), store.partial(file)
    place.parent.mkdir(parents=True, exist_ok=True)

    def once() -> None:
        _transfer(file, snapshot, partial, endpoint)
        problem = mismatch(partial, file)
        if problem is not None:
            if partial.stat().st_size >= file.size_bytes:
                partial.unlink()  # whole, but wrong: nothing of it can be continued
            raise Transient(f"{file.path}: {problem}.")
        partial.replace(place)

    with WeakFileLock(partial.with_suffix(".lock")):
        if not place.is_file():  # another job of the same cache may have been here meanwhile
            patiently(once, attempts, sleep, f"{snapshot.repo}: {file.path}")
    partial.with_suffix(".lock").unlink(missing_ok=True)


def _transfer(file: RemoteFile, snapshot: Snapshot, partial: Path, endpoint: str) -> None:
    """Append to ``partial`` what it lacks."""
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.file_download import get_hf_file_metadata, http_get, is_xet_available, xet_get
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(snapshot.repo, file.path, revision=snapshot.commit, endpoint=endpoint)
    headers = build_hf_headers(token=_token(), library_name="moecap")
    if partial.is_file() and partial.stat().st_size > file.size_bytes:
        partial.unlink()
    with _explained(snapshot.repo, snapshot.commit, endpoint, partial.parent):
        if file.sha256 and is_xet_available() and not constants.HF_HUB_DISABLE_XET:
            xet = get_hf_file_metadata(url, token=_token(), endpoint=endpoint).xet_file_data
            if xet is not None:
                xet_get(
                    incomplete_path=partial,
                    xet_file_data=xet,
                    headers=headers,
                    expected_size=file.size_bytes,
                    displayed_filename=file.path,
                )
                return
        with partial.open("ab") as handle:
            http_get(
                url,
                handle,
                resume_size=handle.tell(),
                headers=headers,
                expected_size=file.size_bytes,
                displayed_filename=file.path,
            )


def mismatch(path: Path, file: RemoteFile) -> str | None:
    """How the file at ``path`` differs from what the hub states, or None."""
    size = path.stat().st_size
    if size != file.size_bytes:
        return f"{size} of {file.size_bytes} bytes"
    if file.sha256:
        found = sha256(path)
        return None if found == file.sha256 else f"SHA-256 is {found}, the hub states {file.sha256}"
    if file.git_id:
        found = git_blob_id(path)
        return None if found == file.git_id else f"git blob id is {found}, the hub states {file.git_id}"
    return None


def git_blob_id(path: Path) -> str:
    """The id that git gives to a file's content: SHA-1 of ``blob SIZE\\0`` and the bytes."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


class _explained:
    """Turn what ``huggingface_hub`` raises into errors that a user can act on, sorted by whether a retry may help."""

    def __init__(self, repo: str, revision: str | None, endpoint: str, folder: Path | None = None) -> None:
        self.repo, self.revision, self.endpoint, self.folder = repo, revision, endpoint, folder

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is None or isinstance(error, MoecapError) or not isinstance(error, Exception):
            return
        raise self._translate(error) from error

    def _translate(self, error: Exception) -> MoecapError:
        from huggingface_hub import errors

        where = f"{self.endpoint}/{self.repo}"
        if isinstance(error, errors.OfflineModeIsEnabled):
            return PermanentError(
                f"{where}: HF_HUB_OFFLINE is set, so nothing is downloaded. Unset it, or give the model's catalogue "
                "entry "
                "a `path` to a folder that holds the checkpoint."
            )
        if isinstance(error, (errors.HFValidationError,)):
            return PermanentError(f"{self.repo!r} is not a hub id: owner/name. {' '.join(str(error).split())}")
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return MoecapError(
                f"No space left on the disk that holds {self.folder} while downloading {self.repo}. What was "
                "downloaded is "
                "kept: free some space, or set the model cache to a larger disk, and start again."
            )
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.RevisionNotFoundError):
            return PermanentError(
                f"{where} has no revision {self.revision!r}: not a commit, branch or tag of it (404)."
            )
        if status in (401, 403):
            return PermanentError(self._refused(where, status))
        if status == 404:
            return PermanentError(
                f"{where} does not exist, or not at revision {self.revision!r} (404). Check the hub id."
            )
        if status is not None and status not in (408, 416, 425, 429) and status < 500:
            return PermanentError(f"{where}: the hub refused the request ({status}): {_first_line(error)}")
        answer = f"HTTP {status}" if status else type(error).__name__
        return Transient(f"The hub did not deliver ({answer}: {_first_line(error)}).")

    def _refused(self, where: str, status: int) -> str:
        token = "HF_TOKEN is set, but its account has no access" if _token() else "HF_TOKEN is not set"
        return (
            f"{where}: access refused ({status}). The repository is gated or private, or does not exist; {token}. "
            "Accept "
            f"its licence at {where} with your account, create a token that may read it at "
            f"{self.endpoint}/settings/tokens, "
            "put it into the environment variable HF_TOKEN (never into a config file), and start again."
        )


def _token() -> str | bool:
    """The token from the environment; False keeps the library from looking for one elsewhere."""
    return os.environ.get("HF_TOKEN", "").strip() or False


def _licence(card: Any) -> str | None:
    get = card.get if hasattr(card, "get") else lambda key: getattr(card, key, None)
    licence = get("license")
    if isinstance(licence, list):
        licence = ", ".join(map(str, licence))
    return get("license_name") or licence if licence == "other" else licence


def _is_wanted(name: str) -> bool:
    base = name.rsplit("/", 1)[-1]
    return any(fnmatch.fnmatchcase(base, pattern) for pattern in WANTED) and not any(
        fnmatch.fnmatchcase(name, pattern) for pattern in UNWANTED
    )


def _remove_others(folder: Path, wanted: Iterable[str]) -> None:
    """Remove what an earlier checkpoint left in ``folder``."""
    keep = {folder / name for name in wanted}
    for path in folder.rglob("*"):
        if (path.is_file() or path.is_symlink()) and path not in keep:
            path.unlink()


def _link(source: Path, link: Path) -> None:
    """Point ``link`` at ``source``, replacing what was there."""
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = link.with_name(f".{link.name}.{os.getpid()}.link")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(source)
    temporary.replace(link)


def _room_for(needed_bytes: int, folder: Path, repo: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise MoecapError(
            f"{repo} needs {needed_bytes / 1e9:.1f} GB more, but the disk that holds {folder} has {free / 1e9:.1f} "
            "GB free. "
            "Free some space, or set the model cache to a larger disk."
        )


def _first_line(error: Exception) -> str:
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), "no details")


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PermanentError(f"{path} does not exist; this is not a checkpoint in the Hugging Face format.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PermanentError(f"{path} is not valid JSON ({error}); the checkpoint is damaged.") from error
    if not isinstance(value, dict):
        raise PermanentError(f"{path} is not a JSON object; the checkpoint is damaged.")
    return value


def _tensor_names(path: Path) -> set[str]:
    """Names of the tensors in a safetensors file whose header agrees with its size."""
    size = path.stat().st_size
    try:
        with path.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            if length > size - 8:
                raise ValueError(f"its header should have {length} bytes, the file has {size}")
            header = json.loads(handle.read(length))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (struct.error, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise PermanentError(f"{path} is not a safetensors file ({error}); the checkpoint is damaged.") from error
    if end != size:
        what = "cut off" if size < end else "too long"
        raise PermanentError(f"{path} is {what}: {size} bytes, its header describes {end}. The checkpoint is damaged.")
    return set(tensors)
