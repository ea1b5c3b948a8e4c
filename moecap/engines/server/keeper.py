"""Keeps a server: starts it, and ends it with all its children when asked, or when whoever asked for it is gone.

    python keeper.py STOP_S COMMAND [ARGUMENT ...]

The keeper reads its standard input. When that ends (the client closed it, or was killed in whatever way), the server
gets SIGTERM, after STOP_S seconds SIGKILL, and so does every process that descends from it, also those that left its
session: as a subreaper the keeper inherits them. Its exit status is the server's. Standard library only: it runs
outside of the package.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def main(arguments: Sequence[str]) -> int:
    stop_s, command = float(arguments[0]), list(arguments[1:])
    with contextlib.suppress(OSError, AttributeError):  # elsewhere than on Linux children that flee are not followed
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the client decides
    try:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        print(f"cannot be started: {error}", file=sys.stderr, flush=True)
        return 127
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    threading.Thread(target=_wait_for_the_end_of_input, args=(stop,), daemon=True).start()
    while server.poll() is None and not stop.wait(0.1):
        pass
    _end_all(server, stop_s)
    code = server.wait()
    return code if code >= 0 else 128 - code


def _wait_for_the_end_of_input(stop: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    stop.set()


def _end_all(server: subprocess.Popen[bytes], stop_s: float) -> None:
    """SIGTERM to the server alone, so that it ends its own workers in good order; SIGKILL to whatever is left then."""
    if server.poll() is None:
        server.terminate()
    deadline = time.monotonic() + stop_s
    while server.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    grace = min(deadline, time.monotonic() + 2)  # children that end by themselves right after it
    while _descendants() and time.monotonic() < grace:
        _reap(server)
        time.sleep(0.05)
    for _ in range(20):
        left = _descendants()
        if not left:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
        _reap(server)


def _reap(server: subprocess.Popen[bytes]) -> None:
    """Children inherited from the server; the server's own status is for `Popen` to read."""
    server.poll()
    for pid in _descendants(direct=True, zombies=True):
        if pid == server.pid:
            continue
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def _descendants(direct: bool = False, zombies: bool = False) -> list[int]:
    """Processes below this one, by ``/proc``."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
                state, parent = stat.rpartition(")")[2].split()[:2]
                if zombies or state != "Z":
                    children.setdefault(int(parent), []).append(int(entry.name))
    found = list(children.get(os.getpid(), []))
    if direct:
        return found
    for pid in found:
        found += children.get(pid, [])
    return found


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
