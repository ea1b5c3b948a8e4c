"""Files cut short or with bytes changed: either they are read, or a named error says so; they stay as they are."""

from __future__ import annotations

import random

import numpy as np
import pytest
from safetensors.numpy import save_file

from moecap.errors import MoecapError
from moecap.io import read_parquet, write_parquet
from moecap.metrics import steps
from moecap.model.headers import read_checkpoint
from moecap.routing import store as routing

from .systems import make_run, small


def schedule(path):
    anatomy = small(16, 2)
    write_parquet(make_run(anatomy, np.random.default_rng(0)).schedule, path)


def step_table(path):
    anatomy = small(16, 2)
    run = make_run(anatomy, np.random.default_rng(0))
    steps.write_steps(steps.step_batches(run.schedule, run.requests, run.routing, anatomy), path)


def trace(path):
    with routing.RoutingWriter(path, layers=[1, 2], top_k=2, n_experts=16) as out:
        for number in range(20):
            out.add(f"{number:064x}", np.random.default_rng(number).integers(0, 16, (30, 2, 2)))


def checkpoint(path):
    save_file({f"model.layers.{i}.weight": np.zeros((4, 8), np.float16) for i in range(8)}, path)


KINDS = {
    "schedule.parquet": (schedule, read_parquet),
    "steps.parquet": (step_table, lambda path: list(steps.read_steps(path))),
    "routing.parquet": (trace, lambda path: list(routing.read(path).items())),
    "model.safetensors": (checkpoint, lambda path: read_checkpoint(path.parent)),
}


@pytest.mark.parametrize("name", KINDS)
def test_damage_is_named_and_the_file_kept(name, tmp_path):
    make, read = KINDS[name]
    path = tmp_path / name
    make(path)
    whole = path.read_bytes()
    read(path)
    dice = random.Random(0)
    named = 0
    for number in range(120):
        data = bytearray(whole)
        if number % 2:
            del data[dice.randrange(len(data)) :]
        else:
            end = min(len(data), 600)  # headers and footers, where structure is
            at = dice.randrange(end)
            data[at if dice.random() < 0.5 else -1 - at] = dice.randrange(256)
        path.write_bytes(data)
        try:
            read(path)
        except MoecapError as error:
            named += 1
            assert name in str(error) and "\n" not in str(error)
        else:
            assert number % 2 == 0, "a file that was cut short was read"
        assert path.read_bytes() == data
        assert [p.name for p in tmp_path.iterdir()] == [name]
    assert named > 60
