"""Names that Snakemake knows already: rules, read off the workflow's own files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from moecap.errors import MoecapError, nearest
from moecap.provenance import ROOT

_RULE = re.compile(r"^\s*(?:rule|checkpoint)\s+(\w+)\s*:", re.MULTILINE)


@cache
def rule_names(root: Path = ROOT) -> frozenset[str]:
    """Names of all rules; none where the workflow's files are not beside the library."""
    files = [root / "Snakefile", *sorted((root / "rules").glob("*.smk"))]
    return frozenset(n for path in files if path.is_file() for n in _RULE.findall(path.read_text(encoding="utf-8")))


def check_targets(targets: Iterable[str], known: Iterable[str]) -> None:
    """Refuse what a user asked for where it is neither a rule, a deployment nor the path of a file.

    Args:
        targets: as given on the command line.
        known: names of rules, those of deployments among them.

    Raises:
        MoecapError: with the nearest names.
    """
    names = set(known)
    for target in targets:
        if target not in names and "/" not in target and not Path(target).exists():
            raise MoecapError(
                f"{target!r} is neither a target of the workflow nor a deployment. {nearest(target, names)}"
            )
