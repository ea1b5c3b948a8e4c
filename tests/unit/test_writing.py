"""What a user reads where the operating system lets no file be written: caused for real where that is possible."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from moecap.errors import MoecapError
from moecap.io import atomic_directory, atomic_path, write_json
from tests.conftest import ROOT


@pytest.mark.parametrize("number", ["EROFS", "EACCES", "EPERM", "EDQUOT", "EFBIG", "ENAMETOOLONG", "ENOTDIR", "ENOSPC"])
@pytest.mark.parametrize("write", [atomic_path, atomic_directory])
def test_each_refusal_is_one_paragraph_and_leaves_what_was_there(tmp_path: Path, number: str, write: object) -> None:
    final = tmp_path / "out"
    code = getattr(errno, number)
    with pytest.raises(MoecapError, match=r"out.*kept") as caught, write(final):  # type: ignore[operator]
        raise OSError(code, os.strerror(code))
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_an_error_of_another_file_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "out"):
        (tmp_path / "missing").read_text(encoding="utf-8")
    with pytest.raises(PermissionError), atomic_path(tmp_path / "out"):
        raise PermissionError(errno.EACCES, "no", "/elsewhere/secret")


def test_a_path_through_a_file_and_a_name_that_is_too_long(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "x.json", tmp_path / ("n" * 300)):
        with pytest.raises(MoecapError, match="cannot be written"):
            write_json({}, path)


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    """Caused by the operating system: `ulimit -f`, in a process of its own."""
    code = (
        "import resource, sys; from moecap.io import write_json\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n    write_json({'x': 'y' * 100_000}, sys.argv[1])\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "big.json")], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert run.stdout.startswith("MoecapError") and "ulimit -f" in run.stdout, run.stdout + run.stderr
    assert list(tmp_path.iterdir()) == []
