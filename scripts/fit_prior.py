"""Fit the planner's prior to measured points and write its coefficients.

Rows never leave the files; what is written are coefficients, intervals and the names of what they were fitted on.
"""

from __future__ import annotations

import argparse
from typing import Any

import yaml

from moecap.hardware import catalogue as hardware
from moecap.io import atomic_path
from moecap.plan.backtest import intervals, usable
from moecap.plan.cases import cases_of
from moecap.plan.fitting import fit
from moecap.plan.formats import read_all
from moecap.plan.names import DATA
from moecap.plan.points import Point, unique
from moecap.plan.prior import FIRST
from moecap.plan.terms import DECODE, PREFILL

HEAD = """# What engines take for each term of a step (moecap/plan/terms.py): multipliers, from scripts/fit_prior.py.
# `pooled` is for engines that were not measured. `intervals`: by what of a deployment is new, factors of the
# prediction that hold 90% of what was measured. No measured row is in here.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="+")
    parser.add_argument("--source", required=True, help="where the points come from, with their licence")
    parser.add_argument("--date", required=True)
    args = parser.parse_args()
    points, _ = read_all(args.paths)
    cases, _ = cases_of(unique(p for p in points if isinstance(p, Point)), hardware.load())
    clean = [case for case, fair in zip(cases, usable(cases), strict=True) if fair]
    fitted = fit(clean)
    ends = intervals(clean, fitted)
    engines: dict[str, Any] = {
        name: {
            "decode": dict(zip(DECODE, (float(f"{v:.4g}") for v in own.decode), strict=True)),
            "prefill": dict(zip(PREFILL, (float(f"{v:.4g}") for v in own.prefill), strict=True)),
            "overload": float(f"{own.overload:.4g}"),
            "first_token": dict(zip(FIRST, (float(f"{v:.4g}") for v in own.first), strict=True)),
            "intervals": ends[name],
            "points": sum(name in (c.engine, "pooled") for c in clean),
        }
        for name, own in fitted.engines.items()
    }
    known = {"models": sorted({c.model for c in clean}), "hardware": sorted({c.hardware for c in clean})}
    data = {"source": args.source, "date": args.date, "fitted_on": known, "engines": engines}
    with atomic_path(DATA / "prior.yaml") as path:
        path.write_text(HEAD + yaml.safe_dump(data, sort_keys=False, width=120), encoding="utf-8")


if __name__ == "__main__":
    main()
