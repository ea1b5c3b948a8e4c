"""What an archive says of itself: an RO-Crate by the Workflow Run profile, in ``ro-crate-metadata.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from moecap.archive.read import CRATE, RESULTS, sha256

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


def crate(
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
    files = _files(crate, stage)
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
    root["isBasedOn"] = [add(i, **properties) for i, properties in map(_source, licences)]
    document = crate.metadata.generate()
    document["@graph"] = sorted(document["@graph"], key=lambda entity: (entity["@id"] != CRATE, entity["@id"]))
    return document


def _iso(unix_s: float) -> str:
    return datetime.fromtimestamp(int(unix_s), UTC).isoformat()


def _files(crate: Any, stage: Path) -> dict[str, Any]:
    """Every file of the archive, with size, hash and type."""
    files = {}
    for path in sorted(p for p in stage.rglob("*") if p.is_file()):
        member = path.relative_to(stage).as_posix()
        properties = {
            "contentSize": str(path.stat().st_size),
            "sha256": sha256(path),
            "encodingFormat": MEDIA.get(path.suffix, "text/plain"),
            "name": PurePosixPath(member).name,
        }
        if member == "workflow/Snakefile":
            files[member] = crate.add_workflow(path, member, main=True, lang="snakemake", properties=properties)
        else:
            files[member] = crate.add_file(path, member, properties=properties)
    return files


def _source(row: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Id and properties of a model or dataset that the campaign is based on."""
    where = str(row["source"] or "")
    hub = "https://huggingface.co/" + ("datasets/" if row["kind"] == "dataset" else "")
    identifier = "-".join(str(row[k]) for k in ("kind", "name", "precision") if row[k])
    optional = {
        "version": row["revision"],
        "license": row["licence"],
        "url": hub + where if where.count("/") == 1 else None,
    }
    properties = {"@type": "CreativeWork", "name": row["name"], "additionalType": row["kind"]}
    return f"#{identifier}", {**properties, **{k: v for k, v in optional.items() if v}}
