"""``moecap new NAME``: a config and a deployment table to start from, by flags or by questions."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from moecap.errors import MoecapError

#: What a first campaign has to say: flag -> (question, kind of catalogue entry, default).
QUESTIONS: dict[str, tuple[str, str | None, str | None]] = {
    "model": ("Which model?", "model", None),
    "precision": ("At which precisions (with spaces)?", "precision", "bf16"),
    "engine": ("On which engine?", "engine", "vllm-cuda"),
    "hardware": ("On which hardware?", None, "this-machine"),
    "devices": ("On how many devices?", None, "1"),
    "datasets": ("Scored on which datasets (with spaces)?", "dataset", "gsm8k"),
    "batch_sizes": ("At which batch sizes (with spaces)?", None, "1 8 32"),
    "region": ("Whose price of electricity (a region of the catalogue)?", None, "us-average"),
}


def add_parser(subparsers: Any) -> None:
    """Add the command to the console script."""
    parser = subparsers.add_parser(
        "new",
        help="a config and a deployment table to start from",
        epilog="example: moecap new mine --model mixtral-8x7b --hardware H100-SXM5-80GB --devices 2; what no flag "
        "says is asked, or takes its default where nobody can answer",
    )
    parser.add_argument("name", help="NAME.yaml and NAME.csv are written here")
    for key, (question, _, default) in QUESTIONS.items():
        suffix = f" (default {default})" if default else ""
        parser.add_argument(f"--{key.replace('_', '-')}", metavar=key.upper(), help=question.rstrip("?") + suffix)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Write the files and say what comes next."""
    answers = {key: getattr(args, key) for key in QUESTIONS}
    answers = ask(answers, _prompt if sys.stdin.isatty() else None)
    config, table = make(args.name, answers)
    for path, text in ((Path(f"{args.name}.csv"), table), (Path(f"{args.name}.yaml"), config)):
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            raise MoecapError(f"{path} exists already; choose another name, or remove it.") from None
        except OSError as error:
            raise MoecapError(f"{path} cannot be written: {error.strerror}.") from None
    print(f"{args.name}.yaml and {args.name}.csv. Next: moecap validate {args.name}.yaml")
    return 0


def _prompt(question: str, default: str | None) -> str:
    from rich.prompt import Prompt

    return Prompt.ask(question, default=default) if default else Prompt.ask(question)


def ask(answers: Mapping[str, str | None], prompt: Callable[[str, str | None], str] | None) -> dict[str, str]:
    """``answers`` with what is missing asked for, or taken from the defaults where ``prompt`` is None.

    Raises:
        MoecapError: an answer that has no default is missing and nobody can be asked.
    """
    complete: dict[str, str] = {}
    for key, (question, _, default) in QUESTIONS.items():
        found = answers.get(key)
        if found is None:
            found = prompt(question, default) if prompt else default
        if not found:
            raise MoecapError(f"--{key.replace('_', '-')} is missing, and nobody can be asked here. {question}")
        complete[key] = found
    return complete


def make(name: str, answers: Mapping[str, str]) -> tuple[str, str]:
    """The config (YAML) and the deployment table (CSV) of a campaign: a row per precision.

    Raises:
        MoecapError: a name that the catalogue does not have, with near misses.
    """
    from moecap.campaign.catalogue import Catalogue

    catalogue = Catalogue()
    for key, (_, kind, _) in QUESTIONS.items():
        if kind is not None:
            for entry in answers[key].split():
                if not (kind == "precision" and entry == "bf16"):
                    catalogue.find(kind, entry, "moecap new", f"--{key.replace('_', '-')}")  # type: ignore[arg-type]
    catalogue.hardware.find(answers["hardware"])
    rows = [
        {
            "deployment": f"{answers['model']}-{precision}",
            "model": answers["model"],
            "precision": precision,
            "engine": answers["engine"],
            "hardware": answers["hardware"],
            "devices": answers["devices"],
            "tensor_parallel": answers["devices"],
            "datasets": answers["datasets"],
            "batch_sizes": answers["batch_sizes"],
        }
        for precision in answers["precision"].split()
    ]
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    config = {
        "deployments": f"{name}.csv",
        "results": f"results/{Path(name).name}",
        "cost": {"region": answers["region"]},
        "cap": {"reference": rows[0]["deployment"]},
    }
    head = "# Every key, its default and its meaning: docs/config.md. Next: moecap validate " + f"{name}.yaml\n"
    return head + yaml.safe_dump(config, sort_keys=False), table.getvalue()
