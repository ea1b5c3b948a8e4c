"""From the hub to a folder or a shared cache: described, transferred, verified file by file, continued after a kill.

Why not ``huggingface_hub.snapshot_download``: it compares a file's size and nothing else, so that a file of the right
length with wrong bytes becomes a checkpoint (tests/unit/test_hub.py holds that, too); a server error ends it at once.
The requests themselves are that library's (``http_get``, ``xet_get``), behind a pin with an upper bound.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import random
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moecap.checkpoints.files import link, remove_others, sha256
from moecap.checkpoints.selection import chosen, why_none
from moecap.errors import MoecapError, PermanentError, no_space

log = logging.getLogger(__name__)

DEFAULT_ENDPOINT = "https://huggingface.co"
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub describes it. ``sha256`` is known for large files, ``git_id`` (a git blob id) for others."""

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


def describe(repo: str, revision: str | None, endpoint: str) -> Snapshot:
    """What ``repo`` holds at ``revision``: commit, licence, and all its files with their hashes.

    Raises:
        PermanentError: it holds no checkpoint in the Hugging Face format, with what it does hold.
    """
    from huggingface_hub import HfApi

    with _explained(repo, revision, endpoint):
        info = HfApi(endpoint=endpoint, token=_token()).model_info(
            repo, revision=revision, files_metadata=True, timeout=30.0
        )
    files = tuple(
        RemoteFile(s.rfilename, int(s.size or 0), s.lfs.sha256 if s.lfs else None, s.blob_id)
        for s in info.siblings or []
    )
    card = info.card_data or {}
    why = why_none([f.path for f in files], _get_key(card, "base_model"))
    if why:
        raise PermanentError(f"{endpoint}/{repo} at {info.sha} cannot be served: {why}.")
    gated = getattr(info, "gated", None)
    return Snapshot(repo, str(info.sha), _licence(card), str(gated) if gated else None, files)


def users_cache() -> Path:
    """Where Hugging Face's libraries keep this user's downloads."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def not_writable(path: Path, repo: str) -> str:
    """What to do about a cache, or a folder, that belongs to somebody else."""
    return (
        f"{path} cannot be written, and {repo} is not complete there. Ask its owner to complete it or to let you write "
        "(one group for all users, and `umask 002`), or name a model cache of your own in the site's file."
    )


def offline() -> bool:
    """Whether the user forbids to ask the hub (``HF_HUB_OFFLINE``)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def from_cache(repo: str, revision: str | None, caches: Sequence[Path]) -> tuple[Snapshot, Path]:
    """What a cache in the hub's layout holds of ``repo`` at ``revision``, without asking the hub; and which of them.

    Hashes are the names of the cache's blobs, by which every file is compared afterwards.

    Raises:
        PermanentError: none of ``caches`` has a snapshot of that commit, branch or tag.
    """
    for cache in caches:
        home = cache / folder_of(repo)
        name = revision or "main"
        reference = home / "refs" / name
        commit = name if COMMIT.fullmatch(name) else _text(reference)
        folder = home / "snapshots" / commit
        if commit and folder.is_dir():
            paths = sorted(p for p in folder.rglob("*") if p.is_file())
            files = tuple(_cached(path, path.relative_to(folder).as_posix()) for path in paths)
            why = why_none([f.path for f in files])
            if why is None:
                return Snapshot(repo, commit, _licence(_card(folder / "README.md")), None, files), cache
    raise PermanentError(
        f"{repo}: HF_HUB_OFFLINE is set, so that nothing is downloaded, and {' and '.join(map(str, caches))} "
        f"{'holds' if len(caches) == 1 else 'hold'} no complete snapshot of revision {revision or 'main'!r}. Unset it, "
        "or give the model's catalogue entry a `path` to a folder that holds the checkpoint."
    )


def _cached(path: Path, name: str) -> RemoteFile:
    blob = path.resolve().name if path.is_symlink() else ""
    return RemoteFile(
        name,
        path.stat().st_size,
        blob if re.fullmatch(r"[0-9a-f]{64}", blob) else None,
        blob if COMMIT.fullmatch(blob) else None,
    )


def _card(readme: Path) -> Any:
    from huggingface_hub import ModelCard

    try:
        return ModelCard.load(readme).data
    except Exception:  # a card is prose: what cannot be read in it says nothing
        return {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def folder_of(repo: str) -> str:
    """A repository's folder in a cache of the hub's layout."""
    return f"models--{repo.replace('/', '--')}"


def choose(snapshot: Snapshot, shards: Sequence[str] | None) -> Snapshot:
    """Of a snapshot's files those that a loader reads (:mod:`moecap.checkpoints.selection`)."""
    wanted = set(chosen([f.path for f in snapshot.files], shards))
    return replace(snapshot, files=tuple(f for f in snapshot.files if f.path in wanted))


def shards_of(index: Path) -> list[str] | None:
    """The files that an index names; None: it cannot be read, which is told when the checkpoint is checked."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return sorted({str(name) for name in weight_map.values()})
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def patiently(call: Callable[[], Any], attempts: int, sleep: Callable[[float], None], what: str) -> Any:
    """``call()``, again after 1, 2, 4 … (at most 60) seconds while it raises :class:`Transient`."""
    for attempt in range(1, attempts + 1):
        try:
            return call()
        except Transient as error:
            if attempt == attempts:
                raise MoecapError(
                    f"{what}: gave up after {attempts} attempts. {error} What was downloaded is kept: start again "
                    "later, and it goes on from there."
                ) from error
            # A random part keeps the many jobs of one campaign from knocking together.
            wait = min(60.0, 2.0 ** (attempt - 1)) * (1 + 0.25 * random.random())
            log.warning("%s: attempt %d of %d failed: %s Next in %.0f s.", what, attempt, attempts, error, wait)
            sleep(wait)
    raise AssertionError("unreachable")


class Store:
    """Where the files of a snapshot are put: the results folder, or a cache in the hub's layout and links to it."""

    def __init__(self, snapshot: Snapshot, folder: Path, cache: Path | None) -> None:
        self.snapshot, self.folder, self.cache = snapshot, folder, cache
        self.repo_folder = folder_of(snapshot.repo)
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
            link(own, place)
            return True
        return False

    def _in_users_cache(self, file: RemoteFile) -> Path | None:
        blob = users_cache() / self.repo_folder / "blobs" / file.etag
        if blob.is_file() and mismatch(blob, file) is None:
            return blob.absolute()
        return None

    def publish(self, revision: str | None) -> None:
        """Make the snapshot appear in the cache, and the links to it in the results folder."""
        remove_others(self.folder, [f.path for f in self.snapshot.files])
        if not self.cache:
            return
        home = self.cache / self.repo_folder
        for file in self.snapshot.files:
            entry = home / "snapshots" / self.snapshot.commit / file.path
            blob = self.place(file)
            # A cache that is somebody else's may be complete and read-only: its own entries are for its other users.
            with suppress(PermissionError):
                link(Path(os.path.relpath(blob, entry.parent)), entry)
            link(blob.absolute(), self.folder / file.path)
        name = revision or "main"
        reference = home / "refs" / name
        if not COMMIT.fullmatch(name) and _text(reference) != self.snapshot.commit:
            with suppress(PermissionError):
                reference.parent.mkdir(parents=True, exist_ok=True)
                reference.write_text(self.snapshot.commit, encoding="utf-8")


def get(
    file: RemoteFile,
    store: Store,
    endpoint: str,
    attempts: int,
    sleep: Callable[[float], None],
) -> None:
    """Fetch a file to its place, from where it was left, until it is what the hub states."""
    from huggingface_hub.utils import WeakFileLock

    place, partial, snapshot = store.place(file), store.partial(file), store.snapshot
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
                "entry a `path` to a folder that holds the checkpoint."
            )
        if isinstance(error, (errors.HFValidationError,)):
            return PermanentError(f"{self.repo!r} is not a hub id: owner/name. {' '.join(str(error).split())}")
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return MoecapError(no_space(self.folder or Path(), f"while {self.repo} was downloaded"))
        if isinstance(error, PermissionError):
            return PermanentError(not_writable(self.folder or Path(), self.repo))
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
        limit = "" if status != 429 or _token() else " Asked too often: with HF_TOKEN set it allows more."
        return Transient(f"The hub did not deliver ({answer}: {_first_line(error)}).{limit}")

    def _refused(self, where: str, status: int) -> str:
        token = "HF_TOKEN is set, but its account has no access" if _token() else "HF_TOKEN is not set"
        return (
            f"{where}: access refused ({status}). The repository is gated or private, or does not exist; {token}. "
            f"Accept its licence at {where} with your account, create a token that may read it at "
            f"{self.endpoint}/settings/tokens, put it into the environment variable HF_TOKEN (never into a config "
            "file), and start again."
        )


def _token() -> str | bool:
    """The token from the environment; False keeps the library from looking for one elsewhere."""
    return os.environ.get("HF_TOKEN", "").strip() or False


def _get_key(card: Any, key: str) -> Any:
    return card.get(key) if hasattr(card, "get") else getattr(card, key, None)


def _licence(card: Any) -> str | None:
    licence = _get_key(card, "license")
    if isinstance(licence, list):
        licence = ", ".join(map(str, licence))
    return _get_key(card, "license_name") or licence if licence == "other" else licence


def _first_line(error: Exception) -> str:
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), "no details")
