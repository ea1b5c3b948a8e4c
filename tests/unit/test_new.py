"""`moecap new` writes a campaign that the checks of the workflow accept."""

from __future__ import annotations

from pathlib import Path

import pytest

from moecap import cli
from moecap.commands.new import QUESTIONS, ask
from moecap.errors import MoecapError

FLAGS = ["--model", "mixtral-8x7b", "--hardware", "H100-SXM5-80GB", "--devices", "2"]


def test_what_is_written_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["new", "mine", *FLAGS, "--precision", "bf16 int4"]) == 0
    assert len((tmp_path / "mine.csv").read_text(encoding="utf-8").splitlines()) == 3
    assert cli.main(["validate", "mine.yaml"]) == 0, capsys.readouterr().err
    assert cli.main(["new", "mine", *FLAGS]) == 1
    assert "exists already" in capsys.readouterr().err


def test_near_misses_and_missing_answers_are_named(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["new", "mine", *FLAGS[2:], "--model", "mixtral-8x7"]) == 1
    assert "Did you mean 'mixtral-8x7b'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    with pytest.raises(MoecapError, match="--model is missing"):
        ask({}, None)


def test_what_no_flag_says_is_asked() -> None:
    asked = []

    def prompt(question: str, default: str | None) -> str:
        asked.append(question)
        return default or "mixtral-8x7b"

    answers = ask({"devices": "4"}, prompt)
    assert answers["devices"] == "4" and answers["model"] == "mixtral-8x7b"
    assert asked == [question for key, (question, _, _) in QUESTIONS.items() if key != "devices"]
