"""Ways to share a model out over devices, and which of them an engine would load."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from moecap.engines.vllm.limits import Scales, Split, refusals, sizes_of_anatomy
from moecap.errors import MoecapError
from moecap.model.parallel import per_device
from moecap.model.recipes import resolve_precision
from moecap.model.structure import Anatomy
from moecap.plan.terms import Parallel

#: Kinds of layouts that a plan can be asked for: tensor, expert, attention-data and pipeline parallelism; and
#: tensor-parallel workers in two pools, for prefill and for decode, beside the same workers doing both.
KINDS = ("tp", "ep", "dp", "pp", "pools")


def layouts(devices: int, kinds: tuple[str, ...] = ("tp",)) -> Iterator[Parallel]:
    """Layouts of so many devices: all tensor-parallel; experts placed whole; attention data-parallel; two stages."""
    if "tp" in kinds or "pools" in kinds or devices == 1:
        yield Parallel(tp=devices)
    if devices > 1 and "ep" in kinds:
        yield Parallel(tp=devices, ep=devices)
    if devices > 1 and "dp" in kinds:
        yield Parallel(dp=devices, ep=devices)
    if devices > 1 and devices % 2 == 0 and "pp" in kinds:
        yield Parallel(tp=devices // 2, pp=2)


def refused(anatomy: Anatomy, parallel: Parallel) -> str | None:
    """Why the model would not be loaded so; None: it would."""
    try:
        per_device(anatomy, tp=parallel.tp, dp=parallel.dp, ep=parallel.ep, pp=parallel.pp)
    except MoecapError as error:
        return str(error)
    split = Split(parallel.tp, parallel.pp, parallel.ep, parallel.dp)
    found = refusals(sizes_of_anatomy(anatomy), split, _scales(anatomy.precision))
    return found[0] if found else None


@lru_cache(maxsize=256)
def _scales(precision: str) -> Scales:
    """How many weights share a scale; where the precision's name is not a recipe's, nothing is objected to."""
    try:
        layout = resolve_precision(precision).layout
    except MoecapError:
        return Scales()
    companions = layout.companions if layout is not None else ()
    block = next(((c.rows, c.columns) for c in companions if c.rows > 1 and c.columns > 1), None)
    group = next((c.columns for c in companions if c.rows == 1 and c.columns > 1), None)
    return Scales(block=block, group=group)
