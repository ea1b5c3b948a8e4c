"""One citable file: an RO-Crate in a ``.tar.zst`` with everything that a reader needs to check and redraw a campaign.

* **It describes itself**: ``ro-crate-metadata.json`` by the Workflow Run RO-Crate profile; what it holds, from which
  workflow, commit, versions, models and datasets (with revisions and licences), when measured, under which licence.
* **It can be checked**: ``checksums.sha256`` names every file (``sha256sum -c`` understands it); :func:`verify`.
* **It is deterministic**: the same inputs give the same bytes. Names are sorted, owners and modes fixed, times and
  identifiers come from the data, compression runs in one thread at a fixed level.
* **It gives nothing away**: see :mod:`moecap.scrub`.

Inside, results lie as they do in ``results/`` (:mod:`moecap.paths`), so that what draws the report there draws it here.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
import zstandard

from moecap.errors import MoecapError
from moecap.io import METADATA_KEY, atomic_path, read_parquet
from moecap.paths import Paths, fill
from moecap.provenance import ROOT, git_state, provenance
from moecap.scrub import Scrubber, secrets_of

FORMAT = 1
LEVEL = 12
CRATE = "ro-crate-metadata.json"
CHECKSUMS = "checksums.sha256"
FACTS = "archive.json"
RESULTS = "results"
TEXT = {".json", ".jsonl", ".yaml", ".yml", ".csv", ".tsv", ".txt", ".md", ".html", ".svg", ".smk", ".rst", ".log", ""}
# Step tables above this size are left out by default; the archive says which, and how large they were.
STEPS_LIMIT_BYTES = 200 * 1024**2
EPOCH = 315532800  # 1980-01-01: when nothing in the data has a time


def collect(
    results: str | Path,
    deployments: Sequence[Mapping[str, Any]],
    accuracy: Iterable[str | Path] = (),
    more: Iterable[str | Path] = (),
) -> list[Path]:
    """The files of a campaign that belong into an archive, as far as they exist, sorted.

    Only what belongs to ``deployments`` (rows of the table): a results folder also holds what earlier configs left.
    Weights, raw token streams and the routing of every token stay outside; their hashes are in the manifests.

    Args:
        accuracy: accuracy files; the per-question answers are looked for beside each.
        more: further files below ``results``.
    """
    paths = Paths(str(results))
    names: set[str] = {paths.cap, paths.report, paths.plan, paths.answers, *map(str, accuracy), *map(str, more)}
    names |= {str(a).removesuffix(".parquet") + ".samples.parquet" for a in accuracy}
    for row in deployments:
        for kind in ("metrics", "steps", "routing_analysis", "cost", "points"):
            names.add(fill(getattr(paths, kind), deployment=row["deployment"]))
        for kind in ("anatomy", "anatomy_table", "manifest"):
            names.add(fill(getattr(paths, kind), model=row["model"], precision=row["precision"]))
        names.add(fill(paths.manifest, model=row["model"], precision="bf16"))
        names.add(fill(paths.machine, hardware=row["hardware"]))
    found = {Path(name) for name in names}
    found.update(Path(paths.charts).rglob("*"))
    return sorted(p for p in found if p.is_file() and not any(part.startswith(".") for part in p.parts[-2:]))


def make_archive(
    results: str | Path,
    output: str | Path,
    name: str,
    *,
    files: Sequence[Path],
    config: Mapping[str, Any],
    deployments: Sequence[Mapping[str, Any]],
    catalogue: Mapping[str, Any],
    redraw: Mapping[str, Any] | None = None,
    title: str | None = None,
    licence: str = "Apache-2.0",
    steps_limit_bytes: int = STEPS_LIMIT_BYTES,
    root: Path = ROOT,
) -> dict[str, Any]:
    """Write the archive ``output`` (``.tar.zst``), atomically.

    Args:
        results: the results folder; ``files`` lie below it (:func:`collect`).
        name: the archive's name, and that of the folder in it.
        config: the config as resolved. deployments: rows of its table. catalogue: the entries in use.
        redraw: params of the rules ``charts`` and ``report``, and under ``inputs`` their files by kind, in order, so
            that ``moecap report --archive`` draws the same.
        licence: SPDX id of the licence that the archive as a whole is published under.
        root: the repository, for workflow, pinned environments and git state.

    Returns:
        ``name``, ``files``, ``bytes`` (unpacked), ``archive_bytes``, ``sha256``, ``omitted``, ``scrubbed``.

    Raises:
        MoecapError: a file is missing, or holds a secret that cannot be taken out of it.
    """
    results, output = Path(results), Path(output)
    words = {str(row.get(key)) for row in deployments for key in ("deployment", "model", "precision", "hardware")}
    words |= {name, *(str(key) for part in catalogue.values() if isinstance(part, Mapping) for key in part)}
    scrubber = Scrubber(root, more=secrets_of(config), words=words)
    with tempfile.TemporaryDirectory(prefix="moecap-archive-") as stage_name:
        stage = Path(stage_name)
        omitted, scrubbed = _stage_results(results, files, stage / RESULTS, scrubber, steps_limit_bytes)
        _stage_text(stage / "config/config.yaml", _yaml(scrubber.data(_plain(config))))
        _stage_text(stage / "config/deployments.csv", _csv(scrubber.data([_plain(d) for d in deployments])))
        _stage_text(stage / "config/catalogue.yaml", _yaml(scrubber.data(_plain(catalogue))))
        if redraw is not None:
            _stage_text(stage / "config/redraw.json", _json(scrubber.data(portable(_plain(redraw), results))))
        _stage_workflow(root, stage, scrubber)
        licences = _licences(stage, catalogue)
        _stage_text(stage / "licences.csv", _csv(scrubber.data(licences)))
        began, ended = _measured_between(stage / RESULTS)
        facts = scrubber.data(
            {
                "format": FORMAT,
                "name": name,
                "measured_from_unix_s": began,
                "measured_until_unix_s": ended,
                "archived_with": provenance(git_diff_sha256=_git_diff_hash(root)),
                "measured_with": _measured_with(stage / RESULTS),
                "omitted": omitted,
                "scrubbed": scrubbed,
            }
        )
        _stage_text(stage / FACTS, _json(facts))
        _stage_text(stage / CRATE, _json(_crate(stage, name, title or name, licence, facts, licences)))
        members = sorted(p.relative_to(stage).as_posix() for p in stage.rglob("*") if p.is_file())
        for member in members:
            problem = scrubber.leaks((stage / member).read_bytes())
            if problem:
                raise MoecapError(
                    f"{member} holds {problem}, and cannot be cleaned; nothing was archived. Find out how it got "
                    "there, "
                    "remove it at its source, and let the file be made again."
                )
        sums = {m: _sha256(stage / m) for m in members}
        _stage_text(stage / CHECKSUMS, "".join(f"{digest}  {m}\n" for m, digest in sums.items()))
        size = sum((stage / m).stat().st_size for m in members)
        with atomic_path(output) as temporary:
            _write_tar(stage, [CHECKSUMS, CRATE, *(m for m in members if m != CRATE)], name, int(ended), temporary)
    return {
        "name": name,
        "files": len(members),
        "bytes": size,
        "archive_bytes": output.stat().st_size,
        "sha256": _sha256(output),
        "omitted": omitted,
        "scrubbed": scrubbed,
    }


def portable(value: Any, results: str | Path) -> Any:
    """Plain data in which paths below ``results`` are those that they have in an archive.

    >>> portable({"failures": "/scratch/run/failures"}, "/scratch/run")
    {'failures': 'results/failures'}
    """
    prefix = str(results).rstrip("/")
    if isinstance(value, str) and (value == prefix or value.startswith(f"{prefix}/")):
        return RESULTS + value[len(prefix) :]
    if isinstance(value, Mapping):
        return {k: portable(v, results) for k, v in value.items()}
    if isinstance(value, list):
        return [portable(v, results) for v in value]
    return value


def verify(archive: str | Path) -> dict[str, Any]:
    """Check every file of ``archive`` against its checksum, without unpacking it to disk.

    Returns:
        ``name``, ``files``, ``bytes``, ``sha256`` (of the archive itself).

    Raises:
        MoecapError: no such archive, damaged, or a file is missing, added or changed; the message names it.
    """
    expected: dict[str, str] | None = None
    seen: dict[str, str] = {}
    name, size = "", 0

    def look(top: str, member: str, content: IO[bytes]) -> None:
        nonlocal expected, name, size
        name = top
        if member == CHECKSUMS:
            expected = _read_sums(content.read(), archive)
            return
        if member in seen:
            raise MoecapError(f"{archive}: {member} is in it twice; it was tampered with.")
        digest = hashlib.sha256()
        while block := content.read(1 << 20):
            digest.update(block)
            size += len(block)
        seen[member] = digest.hexdigest()

    _visit(archive, look)
    if expected is None:
        raise MoecapError(
            f"{archive} has no {CHECKSUMS}: it is not an archive of this workflow, or it was tampered with."
        )
    changed = [m for m in seen if m in expected and seen[m] != expected[m]]
    for what, members in (
        ("differs from its checksum", changed),
        ("is listed in the checksums but missing", sorted(set(expected) - set(seen))),
        ("is not listed in the checksums", sorted(set(seen) - set(expected))),
    ):
        if members:
            more = f" (and {len(members) - 1} more)" if len(members) > 1 else ""
            raise MoecapError(
                f"{archive}: {members[0]} {what}{more}. The archive was changed after it was made, or damaged on its "
                "way; "
                "get it again from where it was published."
            )
    return {"name": name, "files": len(seen), "bytes": size, "sha256": _sha256(Path(archive))}


@dataclass(frozen=True)
class Archive:
    """A verified archive, unpacked. ``folder`` holds it; ``results`` inside is laid out as a results folder is."""

    path: Path
    folder: Path
    sha256: str

    @property
    def results(self) -> Path:
        return self.folder / RESULTS

    @property
    def facts(self) -> dict[str, Any]:
        """Name, times, versions, commit."""
        return json.loads((self.folder / FACTS).read_text())

    @property
    def config(self) -> dict[str, Any]:
        return yaml.safe_load((self.folder / "config/config.yaml").read_text())

    @property
    def catalogue(self) -> dict[str, Any]:
        return yaml.safe_load((self.folder / "config/catalogue.yaml").read_text())

    @property
    def deployments(self) -> list[dict[str, str]]:
        with (self.folder / "config/deployments.csv").open(newline="") as handle:
            return list(csv.DictReader(handle))

    def file(self, member: str) -> Path:
        """Where a member (``results/cap.parquet``) lies; outside of the archive is refused."""
        path = (self.folder / member).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise MoecapError(f"{self.path}: {member} does not lie in the archive.")
        return path

    @property
    def redraw(self) -> dict[str, Any]:
        """What :func:`moecap.report.redraw.redraw` needs; empty when the archive was made without."""
        path = self.folder / "config/redraw.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def cap(self) -> pa.Table:
        """The CAP table."""
        path = Path(Paths(str(self.results)).cap)
        if not path.is_file():
            raise MoecapError(f"{self.path} holds no cap.parquet.")
        return pq.read_table(path)


@contextmanager
def open_archive(archive: str | Path) -> Iterator[Archive]:
    """Verify ``archive``, unpack it to a temporary folder, and remove that afterwards."""
    with tempfile.TemporaryDirectory(prefix="moecap-archive-") as folder:
        yield extract(archive, folder)


def extract(archive: str | Path, folder: str | Path) -> Archive:
    """Verify ``archive`` and unpack it into ``folder``.

    Raises:
        MoecapError: as :func:`verify`; nothing is unpacked then.
    """
    checked = verify(archive)
    folder = Path(folder)

    def unpack(_: str, member: str, content: IO[bytes]) -> None:
        path = folder / member
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as handle:
            shutil.copyfileobj(content, handle, 1 << 20)

    _visit(archive, unpack)
    return Archive(Path(archive), folder, checked["sha256"])


# -- staging ------------------------------------------------------------------------------------------------------


def _stage_results(
    results: Path, files: Sequence[Path], target: Path, scrubber: Scrubber, steps_limit_bytes: int
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    omitted, scrubbed = [], {}
    steps = sorted(p for p in files if p.name == "steps.parquet")
    budget = steps_limit_bytes
    for path in sorted(files):
        try:
            relative = path.relative_to(results)
        except ValueError:
            raise MoecapError(f"{path} does not lie below {results}; only results are archived.") from None
        if not path.is_file():
            raise MoecapError(f"{path} does not exist; let it be made before it is archived.")
        if path in steps:
            size = path.stat().st_size
            if size > budget:
                omitted.append(
                    {"path": f"{RESULTS}/{relative.as_posix()}", "size_bytes": size, "sha256": _sha256(path)}
                )
                continue
            budget -= size
        changed = _stage_file(path, target / relative, scrubber)
        if changed:
            scrubbed[f"{RESULTS}/{relative.as_posix()}"] = changed
    return omitted, scrubbed


def _stage_file(source: Path, target: Path, scrubber: Scrubber) -> int:
    """Copy ``source``, cleaned; returns 1 when something was replaced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".parquet":
        table = read_parquet(source)
        clean = scrubber.table(table)
        if clean is not table:
            pq.write_table(clean, target, compression="zstd")
            return 1
    elif source.suffix in TEXT:
        content = source.read_text(encoding="utf-8", errors="surrogateescape")
        if source.suffix == ".json":
            cleaned = scrubber.data(json.loads(content))
            clean_text = content if cleaned == json.loads(content) else _json(cleaned)
        else:
            clean_text = scrubber.markup(content) if source.suffix in (".html", ".svg") else scrubber.text(content)
        if clean_text != content:
            target.write_text(clean_text, encoding="utf-8", errors="surrogateescape")
            return 1
    shutil.copyfile(source, target)
    return 0


def _stage_workflow(root: Path, stage: Path, scrubber: Scrubber) -> None:
    """The workflow as it was, and the pins of its environments."""
    wanted = [root / "Snakefile", *(root / "rules").glob("*.smk"), *(root / "scripts").glob("*.py")]
    for path in wanted:
        if path.is_file():
            _stage_text(stage / "workflow" / path.relative_to(root), scrubber.text(path.read_text()))
    for path in (root / "envs").glob("*"):
        if path.suffix in (".txt", ".yaml") and path.is_file():
            _stage_text(stage / "environments" / path.name, scrubber.text(path.read_text()))


def _stage_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _licences(stage: Path, catalogue: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per model variant and dataset: where from, which revision, which licence."""
    rows = []
    for path in sorted((stage / RESULTS / "models").rglob("manifest.json")):
        manifest = json.loads(path.read_text())
        model, precision = path.parts[-3], path.parts[-2]
        entry = (catalogue.get("models") or {}).get(model) or {}
        source = manifest.get("source") or {}
        rows.append(
            {
                "kind": "model",
                "name": model,
                "precision": precision,
                "source": source.get("repository") or source.get("kind"),
                "revision": source.get("revision"),
                "licence": manifest.get("licence") or entry.get("licence") or entry.get("license"),
            }
        )
    for name, entry in sorted((catalogue.get("datasets") or {}).items()):
        entry = _plain(entry)
        where = entry.get("source") if isinstance(entry.get("source"), dict) else entry
        rows.append(
            {
                "kind": "dataset",
                "name": name,
                "precision": None,
                "source": where.get("hub") or where.get("path") or entry.get("task"),
                "revision": where.get("revision"),
                "licence": entry.get("licence") or entry.get("license"),
            }
        )
    return rows


def _measured_between(results: Path) -> tuple[float, float]:
    """First start and last end of a timed run, Unix seconds; 1980 when nothing was timed."""
    began, ended = [], []
    for path in results.rglob("points.parquet"):
        table = pq.read_table(path, columns=["start_unix_s", "wall_s"]).to_pydict()
        for start, wall in zip(table["start_unix_s"], table["wall_s"], strict=True):
            if start is not None:
                began.append(start)
                ended.append(start + (wall or 0.0))
    return (min(began), max(ended)) if began else (float(EPOCH), float(EPOCH))


def _measured_with(results: Path) -> dict[str, Any]:
    """The provenance that each table carries, by path."""
    found = {}
    for path in sorted(results.rglob("*.parquet")):
        raw = (pq.read_schema(path).metadata or {}).get(METADATA_KEY)
        if raw:
            found[f"{RESULTS}/{path.relative_to(results).as_posix()}"] = json.loads(raw)
    return found


def _git_diff_hash(root: Path) -> str | None:
    """SHA-256 of what differs from the commit, so that two dirty trees can be told apart; null when nothing does."""
    if not git_state()["git_dirty"]:
        return None
    diff = subprocess.run(["git", "-C", str(root), "diff", "HEAD", "--binary"], capture_output=True, check=False).stdout
    return hashlib.sha256(diff).hexdigest() if diff else None


# -- the crate ----------------------------------------------------------------------------------------------------

PROFILES = (
    ("https://w3id.org/ro/wfrun/process/0.5", "Process Run Crate", "0.5"),
    ("https://w3id.org/ro/wfrun/workflow/0.5", "Workflow Run Crate", "0.5"),
    ("https://w3id.org/workflowhub/workflow-ro-crate/1.0", "Workflow RO-Crate", "1.0"),
)
MEDIA = {
    ".parquet": "application/vnd.apache.parquet",
    ".json": "application/json",
    ".html": "text/html",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".csv": "text/csv",
    ".yaml": "application/yaml",
    ".txt": "text/plain",
}


def _crate(
    stage: Path,
    name: str,
    title: str,
    licence: str,
    facts: Mapping[str, Any],
    licences: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The RO-Crate's metadata, with everything that the library would make up (times, random ids) set from the data."""
    from rocrate.model.contextentity import ContextEntity
    from rocrate.rocrate import ROCrate

    began, ended = (_iso(facts[f"measured_{end}_unix_s"]) for end in ("from", "until"))
    crate = ROCrate(version="1.1")

    def add(id_: str, /, **properties: Any) -> Any:
        return crate.add(ContextEntity(crate, id_, properties=properties))

    profiles = [add(i, **{"@type": "CreativeWork", "name": n, "version": v}) for i, n, v in PROFILES]
    root = crate.root_dataset
    root["conformsTo"] = profiles
    crate.name, crate.datePublished = title, ended
    crate.description = (
        "Cost, accuracy and performance of sparse Mixture-of-Experts deployments, measured by the MoE-CAP workflow: "
        "tables, charts, report, configuration, versions and checksums."
    )
    crate.license = add(
        f"https://spdx.org/licenses/{licence}", **{"@type": "CreativeWork", "name": licence, "identifier": licence}
    )
    files = {}
    for path in sorted(p for p in stage.rglob("*") if p.is_file()):
        member = path.relative_to(stage).as_posix()
        properties = {
            "contentSize": str(path.stat().st_size),
            "sha256": _sha256(path),
            "encodingFormat": MEDIA.get(path.suffix, "text/plain"),
            "name": PurePosixPath(member).name,
        }
        if member == "workflow/Snakefile":
            files[member] = crate.add_workflow(path, member, main=True, lang="snakemake", properties=properties)
        else:
            files[member] = crate.add_file(path, member, properties=properties)
    versions = facts["archived_with"]
    libraries = versions.get("libraries") or {}
    software = [
        add(f"#software-{n}", **{"@type": "SoftwareApplication", "name": n, "softwareVersion": v})
        for n, v in sorted(libraries.items())
    ]
    action = add(
        "#run",
        **{
            "@type": "CreateAction",
            "name": f"Run of the workflow for {name}",
            "startTime": began,
            "endTime": ended,
            "actionStatus": "http://schema.org/CompletedActionStatus",
        },
    )
    workflow = files.get("workflow/Snakefile")
    if workflow is not None:
        workflow["name"] = "MoE-CAP"
        workflow["softwareRequirements"] = software
        if versions.get("git_commit"):
            workflow["version"] = versions["git_commit"] + ("+changes" if versions.get("git_dirty") else "")
        action["instrument"] = workflow
    action["object"] = [f for m, f in files.items() if m.startswith("config/")]
    action["result"] = [f for m, f in files.items() if m.startswith(f"{RESULTS}/")]
    root["mentions"] = action
    sources = []
    for row in licences:
        where = str(row["source"] or "")
        hub = "https://huggingface.co/" + ("datasets/" if row["kind"] == "dataset" else "")
        identifier = "-".join(str(row[k]) for k in ("kind", "name", "precision") if row[k])
        properties = {"@type": "CreativeWork", "name": row["name"], "additionalType": row["kind"]}
        optional = {
            "version": row["revision"],
            "license": row["licence"],
            "url": hub + where if where.count("/") == 1 else None,
        }
        sources.append(add(f"#{identifier}", **properties, **{k: v for k, v in optional.items() if v}))
    root["isBasedOn"] = sources
    document = crate.metadata.generate()
    document["@graph"] = sorted(document["@graph"], key=lambda entity: (entity["@id"] != CRATE, entity["@id"]))
    return document


def _iso(unix_s: float) -> str:
    return datetime.fromtimestamp(int(unix_s), UTC).isoformat()


# -- tar and zstd -------------------------------------------------------------------------------------------------


def _write_tar(stage: Path, members: Sequence[str], top: str, mtime: int, output: Path) -> None:
    compressor = zstandard.ZstdCompressor(level=LEVEL, threads=0, write_checksum=True)
    with (
        output.open("wb") as raw,
        compressor.stream_writer(raw, closefd=False) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for member in members:
            entry = tarfile.TarInfo(f"{top}/{member}")
            entry.size, entry.mtime, entry.mode = (stage / member).stat().st_size, mtime, 0o644
            with (stage / member).open("rb") as content:
                tar.addfile(entry, content)


def _visit(archive: str | Path, look: Callable[[str, str, IO[bytes]], None]) -> None:
    """``look(top folder, path below it, stream)`` for every file; all but plain files below one folder is refused."""
    try:
        with (
            Path(archive).open("rb") as raw,
            zstandard.ZstdDecompressor().stream_reader(raw) as packed,
            tarfile.open(fileobj=packed, mode="r|") as tar,
        ):
            top = None
            for entry in tar:
                parts = PurePosixPath(entry.name).parts
                if not entry.isreg() or len(parts) < 2 or ".." in parts or entry.name.startswith("/"):
                    raise MoecapError(f"{archive}: {entry.name} is not a plain file below one folder; refused.")
                top = top or parts[0]
                if parts[0] != top:
                    raise MoecapError(f"{archive}: {entry.name} lies outside of {top}/; refused.")
                look(top, "/".join(parts[1:]), tar.extractfile(entry))
            if top is None:
                raise MoecapError(f"{archive} is empty.")
            while packed.read(1 << 20):  # the end of the stream carries a checksum of its own
                pass
    except FileNotFoundError:
        raise MoecapError(f"{archive} does not exist.") from None
    except IsADirectoryError:
        raise MoecapError(f"{archive} is a folder; the archive is a single .tar.zst file.") from None
    except (zstandard.ZstdError, tarfile.TarError, EOFError) as error:
        raise MoecapError(
            f"{archive} is damaged, cut off, or no .tar.zst at all ({str(error) or type(error).__name__}); get it "
            "again "
            "from where it was published."
        ) from error


def _read_sums(content: bytes, archive: str | Path) -> dict[str, str]:
    sums = {}
    for line in content.decode("utf-8", "replace").splitlines():
        digest, separator, member = line.partition("  ")
        if not separator or len(digest) != 64:
            raise MoecapError(f"{archive}: {CHECKSUMS} is not a list of checksums; it was tampered with.")
        sums[member] = digest
    return sums


# -- small things -------------------------------------------------------------------------------------------------


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _plain(value: Any) -> Any:
    """Plain data of pydantic models, tuples and paths."""
    if hasattr(value, "model_dump"):
        return _plain(value.model_dump(mode="json"))
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(v) for v in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=True, allow_unicode=True, width=120)


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Lists become space-separated values, as in the deployment table."""
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in row.items()})
    return text.getvalue()
