"""Count every model of the catalogue: its structure into config/catalogue/counts/, its figures into docs/models.md.

python scripts/model_counts.py [--only NAME …]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from moecap.campaign.catalogue import Catalogue
from moecap.campaign.listing import model_rows
from moecap.campaign.model_page import model_page
from moecap.io import atomic_path
from moecap.model.counted import built_skeleton
from moecap.model.counts import key_of, to_plain
from moecap.model.resolve import resolve

FOLDER = Path("config/catalogue/counts")
PAGE = Path("docs/models.md")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="count these anew, keep the others")
    args = parser.parse_args(arguments)
    catalogue, wanted = Catalogue(), set()
    for name, entry in catalogue.models.items():
        found = resolve(name) if entry.config else None
        if found is None or found.config is None:
            continue
        path = FOLDER / f"{key_of(found.config)}.json"
        wanted.add(path)
        if path.exists() and name not in args.only:
            continue
        plain = to_plain(built_skeleton(found.config), name)
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(plain, separators=(",", ":")) + "\n", encoding="utf-8")
        print(f"{name}: {path}", flush=True)
    for path in set(FOLDER.glob("*.json")) - wanted:
        path.unlink()
    with atomic_path(PAGE) as temporary:
        temporary.write_text(model_page(model_rows(catalogue, ("bf16", "int4"))), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
