"""A server that the workflow starts: on a port of its own, waited for, watched, logged, ended with all its children."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moecap.engines.server import keeper
from moecap.engines.server.settings import ServerOptions, fill_command
from moecap.errors import MoecapError, PermanentError
from moecap.provenance import PACKAGE

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
#: A port that was free when it was chosen may be taken when the server binds it.
PORT_TRIES = 3
#: How often a starting server is asked whether it is ready.
POLL_S = 0.1
LOG_LINES = 15


class ManagedServer:
    """A running server. Use :func:`start`, or as a context manager.

    Attributes:
        url: its address, without a path.
        log_path: what it prints.
    """

    def __init__(
        self,
        name: str,
        command: list[str],
        environment: dict[str, str],
        options: ServerOptions,
        port: int,
        log_path: Path,
        scratch: Path,
    ) -> None:
        self.name, self.options, self.port = name, options, port
        self.url, self.log_path, self._scratch = f"http://{HOST}:{port}", log_path, scratch
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, keeper.__file__, str(options.stop_s), *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                # Signals to this process's group (Ctrl-C) are not for the server: it is ended in good order.
                start_new_session=True,
            )

    def died(self, wait_s: float = 0) -> str | None:
        """How the server ended by itself; None while it lives (for ``wait_s`` seconds from now on)."""
        try:
            code: int | None = self._process.wait(wait_s)
        except subprocess.TimeoutExpired:
            code = None
        return None if code is None else f"{self.name} (exit status {code}; it printed: {self.last_lines()})"

    def last_lines(self) -> str:
        text = self.log_path.read_text(encoding="utf-8", errors="replace") if self.log_path.exists() else ""
        return " | ".join(line.strip() for line in text.splitlines()[-LOG_LINES:] if line.strip()) or "nothing"

    def wait_until_ready(self, load_s: float) -> None:
        """Return once the health address answers 200.

        Raises:
            MoecapError: the server ended, or was not ready within ``load_s`` seconds.
        """
        deadline = time.monotonic() + load_s
        while True:
            if (ended := self.died()) is not None:
                raise MoecapError(f"The server did not start: {ended}")
            if self._healthy() and self._listens():
                return
            if time.monotonic() > deadline:
                raise MoecapError(
                    f"The server {self.name} was not ready within {load_s:.0f} s (`timeouts.load_s` of its entry in "
                    f"config/catalogue/engines.yaml): {self.url}{self.options.health} does not answer 200. Its log: "
                    f"{self.log_path}; last lines: {self.last_lines()}"
                )
            time.sleep(POLL_S)

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + self.options.health, timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError, ValueError):
            return False

    def _listens(self) -> bool:
        """Whether it is this server that has the port: a stranger that took it would answer, too."""
        import psutil

        try:
            family = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.Error:
            return False
        for process in family:
            with contextlib.suppress(psutil.Error):
                listening = [c for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
                if any(connection.laddr.port == self.port for connection in listening):
                    return True
        return False

    def post(self, path: str) -> None:
        """Ask an address of the server for something that has no body.

        Raises:
            MoecapError: it does not answer 200.
        """
        request = urllib.request.Request(self.url + path, data=b"", method="POST")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                answer.read()
        except (urllib.error.URLError, OSError) as error:
            raise MoecapError(f"{self.name}: POST {path} failed: {error}") from error

    def port_was_taken(self) -> bool:
        """Whether somebody else listens on the port of a server that ended."""
        if self._process.poll() is None:
            return False
        with socket.socket() as probe:
            return probe.connect_ex((HOST, self.port)) == 0

    def stop(self) -> None:
        """End the server and all its children. May be called twice."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(self.options.stop_s + 15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def __enter__(self) -> ManagedServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start(
    name: str,
    options: ServerOptions,
    values: Mapping[str, Any],
    *,
    python: Path,
    load_s: float,
    log_path: str | os.PathLike[str] | None = None,
) -> ManagedServer:
    """Start a server and wait until it is ready.

    Args:
        name: of the engine, for messages.
        values: what the command's braces name, but for those that are found here (port, host, python, bin, scratch).
        python: the interpreter of the engine's environment.
        load_s: seconds that it may take to be ready.
        log_path: what it prints is appended there; None: to a file beside its scratch folder.

    Raises:
        PermanentError: the command does not exist.
        MoecapError: it ended, or was not ready in time.
    """
    for attempt in range(PORT_TRIES):
        port = free_port()
        scratch = Path(tempfile.mkdtemp(prefix="moecap-server-"))
        known = {
            **values,
            "host": HOST,
            "port": port,
            "python": python,
            "bin": python.parent,
            "scratch": scratch,
            "package": PACKAGE,
        }
        command = fill_command(options.command, known)
        environment = dict(zip(options.env, fill_command(tuple(map(str, options.env.values())), known), strict=True))
        if shutil.which(command[0]) is None:
            shutil.rmtree(scratch, ignore_errors=True)
            raise PermanentError(
                f"Engine {name}: the command {command[0]} does not exist on this machine. Install the engine, or name "
                "its program in the entry's `options.command` in config/catalogue/engines.yaml."
            )
        server = ManagedServer(
            name, command, environment, options, port, Path(log_path or scratch / "server.log"), scratch
        )
        try:
            server.wait_until_ready(load_s)
            log.info("%s is ready at %s (log: %s)", name, server.url, server.log_path)
            return server
        except BaseException as error:
            taken = server.port_was_taken()
            server.stop()
            if not (taken and isinstance(error, MoecapError)) or attempt == PORT_TRIES - 1:
                raise
            log.warning("%s: port %d was taken by somebody else meanwhile; another is tried", name, port)
    raise AssertionError("unreachable")


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(server: ManagedServer) -> Iterator[str]:
    """The server's address for the block; the server is ended after it."""
    with server:
        yield server.url
