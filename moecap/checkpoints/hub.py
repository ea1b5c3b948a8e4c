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

import json
import logging
import os
import shutil
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from moecap.checkpoints import transfer
from moecap.checkpoints.files import link, remove_others, sha256
from moecap.checkpoints.selection import INDEX, WHOLE, chosen, why_none
from moecap.errors import MoecapError, PermanentError
from moecap.io import write_json

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"


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
    shared = Path(os.path.expandvars(cache)).expanduser() if cache else None
    endpoint = os.environ.get("HF_ENDPOINT", transfer.DEFAULT_ENDPOINT).rstrip("/")
    if transfer.offline():
        caches = [*([shared] if shared else []), transfer.users_cache()]
        snapshot, found_in = transfer.from_cache(repo, revision, caches)
        shared = found_in if found_in == shared else None
    else:
        ask = lambda: transfer.describe(repo, revision, endpoint)  # noqa: E731
        snapshot = transfer.patiently(ask, attempts, sleep, f"{endpoint}/{repo}")
    pinned = bool(revision and transfer.COMMIT.fullmatch(revision))
    if not pinned:
        asked = f"`{revision}`" if revision else "(none given)"
        log.warning(
            "%s: revision %s is not pinned; it is commit %s now. Put `revision: %s` into the model's catalogue entry "
            "to get the same files next year.",
            *(repo, asked, snapshot.commit, snapshot.commit),
        )
    folder = Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    try:
        snapshot = _bring(snapshot, folder, shared, revision, _Patience(endpoint, attempts, workers, sleep))
    except PermissionError as error:
        raise PermanentError(transfer.not_writable(Path(error.filename or shared or folder), repo)) from error
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


@dataclass(frozen=True)
class _Patience:
    """Whom to ask, how often and how many at a time."""

    endpoint: str
    attempts: int
    workers: int
    sleep: Callable[[float], None]


def _bring(
    snapshot: transfer.Snapshot, folder: Path, cache: Path | None, revision: str | None, how: _Patience
) -> transfer.Snapshot:
    """Fetch what is missing of the files that a loader reads, and put all of them into ``folder``; returns those."""
    store = transfer.Store(snapshot, folder, cache)
    index = next((f for f in snapshot.files if f.path == INDEX), None)
    shards = None
    if index is not None and not any(f.path == WHOLE for f in snapshot.files):
        _fetch([index], store, how)  # it says which files are the weights
        shards = transfer.shards_of(store.place(index))
    store = transfer.Store(transfer.choose(snapshot, shards), folder, cache)
    _fetch(store.snapshot.files, store, how)
    store.publish(revision)
    return store.snapshot


def _fetch(files: Sequence[transfer.RemoteFile], store: transfer.Store, how: _Patience) -> None:
    """Those of ``files`` that are not there, several at a time."""
    repo = store.snapshot.repo
    with ThreadPoolExecutor(max_workers=how.workers) as pool:
        missing = [f for f, there in zip(files, pool.map(store.has, files), strict=True) if not there]
    if missing and transfer.offline():
        raise PermanentError(
            f"{repo}: HF_HUB_OFFLINE is set, and {missing[0].path} in the cache at {store.root} is damaged. Unset it, "
            "and the file is fetched again."
        )
    _room_for(sum(f.size_bytes - store.partial_bytes(f) for f in missing), store.root, repo)
    log.info(
        "%s at %s: %d files, %.2f GB; %d to fetch (%.2f GB)",
        *(repo, store.snapshot.commit[:12], len(files), sum(f.size_bytes for f in files) / 1e9),
        *(len(missing), sum(f.size_bytes for f in missing) / 1e9),
    )
    with ThreadPoolExecutor(max_workers=how.workers) as pool:
        jobs = [pool.submit(transfer.get, f, store, how.endpoint, how.attempts, how.sleep) for f in missing]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


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
    names = [p.relative_to(origin).as_posix() for p in sorted(origin.rglob("*")) if p.is_file()]
    check_checkpoint(origin)
    folder = Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    wanted = [name for name in chosen(names, transfer.shards_of(origin / INDEX)) if name != MANIFEST]
    remove_others(folder, wanted)
    for name in wanted:
        link(origin / name, folder / name)
    config = json.loads((origin / "config.json").read_text(encoding="utf-8"))
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
    remove_others(folder, names)
    for name in names:
        link(origin / name, folder / name)
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
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise MoecapError(f"{folder / MANIFEST} is missing or not JSON; the checkpoint was never finished.") from error
    for entry in manifest["files"]:
        path = folder / entry["path"]
        if not path.is_file():
            raise MoecapError(f"{path}, named by {MANIFEST}, is missing.")
        if path.stat().st_size != entry["size_bytes"] or sha256(path) != entry["sha256"]:
            raise MoecapError(
                f"{path} is not the file that {MANIFEST} describes: {path.stat().st_size} bytes with another hash, "
                f"instead of {entry['size_bytes']}. Delete {folder} and start again."
            )
    return manifest


#: Weights in formats of engines of their own, in a folder that otherwise is a checkpoint.
OWN_FORMATS = ("*.gguf",)


def check_checkpoint(folder: str | os.PathLike[str]) -> None:
    """Refuse a checkpoint that cannot be whole, by its structure alone (no tensor is read).

    Raises:
        PermanentError: no readable ``config.json``, no safetensors, a shard that is missing, cut off or no safetensors
            file, or an index that names a tensor which its shard lacks.
    """
    folder = Path(folder)
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    why = why_none(names, _base_model(folder))
    if "config.json" not in names:
        raise PermanentError(f"{folder / 'config.json'} does not exist; {why}.")
    config = _read_object(folder / "config.json")
    if not config:
        raise PermanentError(f"{folder / 'config.json'} is empty; this is not a checkpoint in the Hugging Face format.")
    if any(fnmatch(name, pattern) for name in names for pattern in OWN_FORMATS):
        return  # an engine's own format, made by the workflow: its manifest has the checksums
    if why:
        raise PermanentError(f"{folder} cannot be served: {why}.")
    index = folder / INDEX
    taken = chosen(names, transfer.shards_of(index))
    shards = {name: _tensor_names(folder / name) for name in taken if name.endswith(".safetensors")}
    if INDEX not in taken:
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


def _base_model(folder: Path) -> str | None:
    """What an adapter is for."""
    try:
        found = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        return str(found["base_model_name_or_path"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _room_for(needed_bytes: int, folder: Path, repo: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise MoecapError(
            f"{repo} needs {needed_bytes / 1e9:.1f} GB more, but the disk that holds {folder} has {free / 1e9:.1f} "
            "GB free. Free some space, or set the model cache to a larger disk."
        )


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
