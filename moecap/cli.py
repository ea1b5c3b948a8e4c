"""The console script ``moecap``: one file under ``moecap/commands`` per command."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

import moecap
from moecap.errors import MoecapError, nearest, shown

ABOUT = """\
Which sparse Mixture-of-Experts model, at which precision, on which engine and hardware? Counts, costs and predictions
from the command line, and the tables that the workflow made.
"""
EXAMPLES = """\
examples:
  moecap anatomy mixtral-8x7b --precision int4      what a model weighs, and what a token reads of it
  moecap cost --hardware H100-SXM5-80GB --devices 2 --tokens-per-s 1000
  moecap plan --model qwen3-30b-a3b --tpot-s 0.02   the cheapest hardware that holds 20 ms a token
  moecap show results/cap.parquet --sort usd_per_million_tokens --top 5
  moecap validate my.yaml                           every mistake, before a GPU second is spent
"""

# Command -> what it does. A command's module is imported only when it is asked for: `moecap cost` needs no torch.
COMMANDS = {
    "anatomy": "count a model's parameters, bytes, FLOPs and KV per layer and component",
    "cost": "purchase, energy and cost per token of a deployment (equations 5-7)",
    "list": "what the catalogue holds: models, hardware, engines, datasets, with filters",
    "plan": "predict deployments that need not be owned, and find the cheapest that meets a target",
    "backtest": "hold the planner against public measurements, with holdouts",
    "audit": "whether published figures are possible, and what would explain them if not",
    "import": "turn public result files into a CAP table, with costs from our catalogue",
    "new": "a config and a deployment table to start from",
    "validate": "check a config and its catalogues as the workflow does when it starts",
    "report": "redraw charts and report from an archive",
    "compare": "lay two archives side by side",
    "leaderboard": "merge archives into one static site",
    "show": "rows of a CAP table or an archive: filtered, sorted, as a table, CSV, Markdown or JSON",
    "routing": "what traces say of drift between precisions, of expert parallelism and of speculative decoding",
    "serve": "show a report or a leaderboard in the browser, from this machine alone",
}


def main(argv: list[str] | None = None) -> int:
    """Run the console script; returns the exit status: 0, 1 (an error that was explained) or 2 (usage)."""
    arguments = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="moecap", description=ABOUT, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"moecap {moecap.__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    asked = next((a for a in arguments if not a.startswith("-")), None)
    if asked is not None and asked not in COMMANDS:
        parser.error(f"there is no command {asked!r}. {nearest(asked, COMMANDS)}")
    for name, summary in COMMANDS.items():
        if name == asked:
            import_module(f"moecap.commands.{name}").add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=summary)
    args = parser.parse_args(arguments)
    try:
        return args.func(args) or 0
    except MoecapError as error:
        print(shown(error), file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 0
