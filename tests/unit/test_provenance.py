"""Fingerprints of the code behind a script."""

from __future__ import annotations

from pathlib import Path

from moecap.provenance import code_fingerprint, modules_of


def test_a_module_behind_another_counts(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("from moecap.cost.deployment import deployment_cost\nprint(deployment_cost)\n")
    assert {"moecap.cost.deployment", "moecap.hardware.entries"} <= set(modules_of(script))
    assert not {"moecap.errors", "moecap.jobs.failures", "moecap.jobs.workflow"} & set(modules_of(script)), (
        "no result's"
    )
    assert code_fingerprint(script) == code_fingerprint(script)
    other = tmp_path / "other.txt"
    other.write_text("x")
    assert code_fingerprint(script) != code_fingerprint(script, other)
