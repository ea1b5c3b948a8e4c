"""The console script ``moecap``: one file under ``moecap/commands`` per command."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from moecap.errors import MoecapError

# Command -> what it does. A command's module is imported only when it is asked for: `moecap cost` needs no torch.
COMMANDS = {
    "anatomy": "count a model's parameters, bytes, FLOPs and KV per layer and component",
    "cost": "purchase, energy and cost per token of a deployment (equations 5-7)",
    "plan": "predict deployments that need not be owned, and find the cheapest that meets a target",
    "validate": "check a config and its catalogues as the workflow does when it starts",
    "report": "redraw charts and report from an archive",
    "compare": "lay two archives side by side",
    "leaderboard": "merge archives into one static site",
}


def main(argv: list[str] | None = None) -> int:
    """Run the console script; returns the exit status: 0, 1 (an error that was explained) or 2 (usage)."""
    arguments = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="moecap", description=__doc__.split(":")[0])
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    asked = next((a for a in arguments if not a.startswith("-")), None)
    for name, summary in COMMANDS.items():
        if name == asked:
            import_module(f"moecap.commands.{name}").add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=summary)
    args = parser.parse_args(arguments)
    try:
        return args.func(args) or 0
    except MoecapError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 0
