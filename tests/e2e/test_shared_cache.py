"""A variant that one campaign has made is linked by the next one, wherever its results lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from moecap.checkpoints.hub import verify_manifest
from moecap.checkpoints.quantize import make
from tests.conftest import ROOT

pytestmark = pytest.mark.e2e
RECIPE = {"scheme": "W8A8", "algorithm": "rtn"}


def test_a_variant_is_quantized_once_for_all_campaigns(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARED", str(tmp_path / "shared"))
    base, python = demo / "models/demo-moe/bf16", str(ROOT / ".venv-quantize/bin/python")
    first, second, other = (tmp_path / name / "int8" for name in ("one", "two", "three"))
    make(python, base, first, RECIPE, cache="$SHARED", threads=1, facts={"precision": "int8"})
    made = verify_manifest(first)
    assert made["precision"] == "int8" and (first / "model.safetensors").is_symlink()
    (stored,) = (tmp_path / "shared/moecap-variants").iterdir()
    # No interpreter is there to quantize it again: it is linked.
    make("no/such/python", base, second, RECIPE, cache="$SHARED", threads=1, facts={"precision": "int8"})
    assert verify_manifest(second)["files"] == made["files"]
    assert (second / "model.safetensors").resolve() == stored / "model.safetensors"
    # Another recipe is another variant.
    with pytest.raises(Exception, match="quantize_python"):
        make("no/such/python", base, other, RECIPE | {"scheme": "W8A16"}, cache="$SHARED", threads=1)
    assert not other.exists()
