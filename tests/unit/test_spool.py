import hashlib
import os
import signal
import subprocess
import sys
import textwrap

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moecap.measure.spool import ENTRY, Spool, key_of

FACTS = {"dataset": "arithmetic", "batch_size": 4, "repeat": 0}
TABLES = {"points": pa.table({"x": [1.5, None]}), "requests": pa.table({"ids": [[1, 2], []]})}


def test_put_then_get(tmp_path):
    spool = Spool(tmp_path)
    key = spool.put(FACTS, TABLES)
    assert key == key_of(FACTS)
    assert key in spool
    assert list(spool) == [key]
    assert spool.facts(key) == FACTS
    found = spool.get(key)
    assert found is not None
    assert {name: t.to_pydict() for name, t in found.items()} == {name: t.to_pydict() for name, t in TABLES.items()}


def test_absent(tmp_path):
    spool = Spool(tmp_path / "none")
    assert spool.get("0" * 64) is None
    assert "0" * 64 not in spool
    assert list(spool) == []


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none(), max_size=6))
def test_key_ignores_order_and_sees_values(facts):
    assert key_of(facts) == key_of(dict(reversed(facts.items())))
    assert key_of({**facts, "more": 1}) != key_of({**facts, "more": 2})


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "points.parquet").write_bytes(b""),
        lambda folder: (folder / "points.parquet").unlink(),
        lambda folder: (folder / "requests.parquet").write_bytes((folder / "requests.parquet").read_bytes()[:-9]),
        lambda folder: _flip(folder / "requests.parquet"),
        lambda folder: (folder / ENTRY).write_text('{"facts":'),
        lambda folder: (folder / ENTRY).write_text("[]"),
        lambda folder: (folder / ENTRY).unlink(),
        lambda folder: (folder / ENTRY).write_text((folder / ENTRY).read_text().replace("arithmetic", "else")),
    ],
)
def test_damage_is_seen_and_mended(tmp_path, damage):
    spool = Spool(tmp_path)
    key = spool.put(FACTS, TABLES)
    damage(spool.path(key))
    assert spool.get(key) is None
    spool.put(FACTS, TABLES)
    assert spool.get(key) is not None
    assert not list(tmp_path.rglob("*.part"))


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def test_failed_write_leaves_nothing(tmp_path):
    spool = Spool(tmp_path)
    with pytest.raises(AttributeError):
        spool.put(FACTS, {"points": pa.table({"x": [1]}), "requests": None})
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert key_of(FACTS) not in spool


def test_kill_9_while_writing(tmp_path):
    """A process that dies between its files and the rename leaves no entry, and what it left is swept up."""
    code = textwrap.dedent(
        f"""
        import os, signal, pyarrow as pa
        from moecap.measure import spool
        spool._replace_folder = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        spool.Spool({str(tmp_path)!r}).put({FACTS!r}, {{"points": pa.table({{"x": [1]}})}})
        """
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == -signal.SIGKILL
    left = list(tmp_path.rglob("*.part"))
    assert left
    spool = Spool(tmp_path)
    assert key_of(FACTS) not in spool
    for path in left:
        os.utime(path, (0, 0))
    spool.put(FACTS, TABLES)
    assert not list(tmp_path.rglob("*.part"))
    assert spool.get(key_of(FACTS)) is not None


def test_key_is_plain_sha256():
    assert key_of({"b": 1, "a": "ü"}) == hashlib.sha256(b'{"a":"\\u00fc","b":1}').hexdigest()
