"""``moecap serve``: a report, or a folder of them, on this machine's loopback address."""

from __future__ import annotations

import argparse
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from moecap.errors import MoecapError


def add_parser(subparsers: Any) -> None:
    """Add the command to the console script."""
    parser = subparsers.add_parser(
        "serve",
        help="show a report or a leaderboard in the browser, from this machine alone",
        epilog="example: moecap serve results/report.html --port 8000",
    )
    parser.add_argument("path", nargs="?", default="results/report.html", help="a page or a folder with index.html")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted."""
    server, address = make_server(args.path, args.port)
    with server:
        print(f"{address}   (Ctrl+C ends)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0


def make_server(path: str | Path, port: int) -> tuple[ThreadingHTTPServer, str]:
    """A server of the page's folder, and the page's address.

    Raises:
        MoecapError: no such page, or the port is taken.
    """
    page = Path(path)
    if page.is_dir():
        page = page / "index.html"
    if not page.is_file():
        raise MoecapError(f"{page} does not exist; `snakemake report` makes a report, `moecap leaderboard` a site.")
    handler = partial(SimpleHTTPRequestHandler, directory=str(page.parent))
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    except (OSError, OverflowError) as error:
        raise MoecapError(f"Port {port} cannot be used ({error}); --port 0 takes any that is free.") from None
    return server, f"http://127.0.0.1:{server.server_address[1]}/{page.name}"
