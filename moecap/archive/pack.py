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
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
import zstandard

from moecap.archive.crate import crate
from moecap.archive.read import CHECKSUMS, CRATE, FACTS, RESULTS, sha256
from moecap.errors import MoecapError
from moecap.io import METADATA_KEY, atomic_path, read_parquet
from moecap.paths import Paths, fill
from moecap.provenance import ROOT, git_state, provenance
from moecap.scrub import Scrubber, secrets_of

FORMAT = 1
LEVEL = 12
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
        _stage_text(stage / CRATE, _json(crate(stage, name, title or name, licence, facts, licences)))
        members = sorted(p.relative_to(stage).as_posix() for p in stage.rglob("*") if p.is_file())
        for member in members:
            problem = scrubber.leaks((stage / member).read_bytes())
            if problem:
                raise MoecapError(
                    f"{member} holds {problem}, and cannot be cleaned; nothing was archived. Find out how it got "
                    "there, remove it at its source, and let the file be made again."
                )
        sums = {m: sha256(stage / m) for m in members}
        _stage_text(stage / CHECKSUMS, "".join(f"{digest}  {m}\n" for m, digest in sums.items()))
        size = sum((stage / m).stat().st_size for m in members)
        with atomic_path(output) as temporary:
            _write_tar(stage, [CHECKSUMS, CRATE, *(m for m in members if m != CRATE)], name, int(ended), temporary)
    return {
        "name": name,
        "files": len(members),
        "bytes": size,
        "archive_bytes": output.stat().st_size,
        "sha256": sha256(output),
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
                omitted.append({"path": f"{RESULTS}/{relative.as_posix()}", "size_bytes": size, "sha256": sha256(path)})
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


# -- small things -------------------------------------------------------------------------------------------------


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
