"""Start and stop a Ray cluster on this machine: what cluster/local.sh runs.

State lies in $DISTGNN_RAY_HOME (~/.cache/distgnn/ray): the token (readable by its owner alone), the log, and what was
started (process id and its start time, so that a reused id is never taken for it).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil

USAGE = "usage: cluster/local.sh start [options of ray start] | stop | status | env"
START_SECONDS, STOP_SECONDS = 90.0, 5.0
OBJECT_STORE_BYTES = 200_000_000  # distgnn moves nothing of size through it
DASHBOARD_PORT = 8265
_LONGEST_HOME = 38  # with /ray/session_<time>_<process>/sockets/<name> at most 107 bytes


class ClusterError(Exception):
    """One line: what is wrong, and what to do."""


def home() -> Path:
    """The folder of the cluster's state."""
    return Path(os.environ.get("DISTGNN_RAY_HOME") or Path.home() / ".cache" / "distgnn" / "ray").absolute()


def session_folder() -> Path:
    """Ray's own files and logs: with the state, or in /tmp where the paths of its sockets would be too long."""
    if len(str(home())) <= _LONGEST_HOME:
        return home() / "ray"
    digest = hashlib.sha256(str(home()).encode()).hexdigest()[:8]
    return Path(f"/tmp/distgnn-ray-{os.getuid()}-{digest}")


def environment(state: dict[str, Any]) -> dict[str, str]:
    """What reaches the cluster."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(home() / "token"),
        "RAY_ADDRESS": f"127.0.0.1:{state['port']}",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{state['dashboard_port']}",
        # Ray's own switch for a cluster of one machine: its servers then bind to loopback.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def last_started() -> dict[str, Any] | None:
    """What was started, running or not."""
    try:
        state: dict[str, Any] = json.loads((home() / "state.json").read_text(encoding="utf-8"))
        return state if {"pid", "created"} <= state.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def read_state() -> dict[str, Any] | None:
    """What was started and is still running."""
    state = last_started()
    if state is None:
        return None
    try:
        process = psutil.Process(state["pid"])
        return state if process.create_time() == state["created"] and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def start(options: list[str]) -> None:
    """Start the head and wait until jobs can be submitted."""
    if read_state() is not None:
        print("already running")
        status()
        return
    _end_processes()  # that a killed head has left
    home().mkdir(parents=True, exist_ok=True, mode=0o700)
    session_folder().mkdir(mode=0o700, exist_ok=True)
    if session_folder().stat().st_uid != os.getuid():
        raise ClusterError(f"{session_folder()} belongs to another user; set DISTGNN_RAY_HOME to another folder")
    _ensure_token()
    state: dict[str, Any] = {"port": _free_port(0), "dashboard_port": _free_port(DASHBOARD_PORT)}
    bin_folder = Path(sys.executable).parent
    command = [
        str(bin_folder / "ray"),
        "start",
        "--head",
        "--block",
        "--disable-usage-stats",
        "--node-ip-address=127.0.0.1",
        "--dashboard-host=127.0.0.1",
        "--include-dashboard=true",
        f"--port={state['port']}",
        f"--dashboard-port={state['dashboard_port']}",
        f"--dashboard-agent-listen-port={_free_port(0)}",
        f"--ray-client-server-port={_free_port(0)}",
        f"--temp-dir={session_folder()}",
    ]
    if not any(option.startswith("--object-store-memory") for option in options):
        command.append(f"--object-store-memory={OBJECT_STORE_BYTES}")
    with open(home() / "log", "wb") as log:
        process = subprocess.Popen(
            [*command, *options],
            env={**os.environ, **environment(state), "PATH": f"{bin_folder}:{os.environ.get('PATH', '')}"},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    state |= {"pid": process.pid, "created": psutil.Process(process.pid).create_time()}
    (home() / "state.json").write_text(json.dumps(state), encoding="utf-8")
    deadline = time.monotonic() + START_SECONDS
    while not _answers(state):
        if process.poll() is not None or time.monotonic() > deadline:
            reason = f"ended with status {process.poll()}" if process.poll() is not None else "does not answer"
            _end_processes()
            with contextlib.suppress(OSError):
                session_folder().rmdir()  # where Ray has written nothing that says why
            raise ClusterError(f"ray start {reason}; see {home() / 'log'}")
        time.sleep(0.25)
    status()
    print('to reach it:  eval "$(cluster/local.sh env)"')


def stop() -> None:
    """End the processes that start started, and theirs; no other. Ray's files go with them where they are in /tmp."""
    print("stopped" if _end_processes() else "not running")
    if session_folder().parent != home():
        shutil.rmtree(session_folder(), ignore_errors=True)


def _end_processes() -> bool:
    """Whether there were any."""
    state, started = read_state(), _left_of_last()
    if state is not None:
        head = psutil.Process(state["pid"])
        started = [*{*started, *head.children(recursive=True), head}]
        with contextlib.suppress(psutil.NoSuchProcess):
            head.terminate()  # it ends its own; then whatever is left, first by asking
    _, alive = psutil.wait_procs(started, timeout=STOP_SECONDS if state else 0)
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                end(process)
        _, alive = psutil.wait_procs(alive, timeout=STOP_SECONDS)
    (home() / "state.json").unlink(missing_ok=True)
    return bool(started)


def _left_of_last() -> list[psutil.Process]:
    """Processes of the last start's session, some of which outlive a head that is killed; each writes Ray's logs."""
    state = last_started()
    if state is None:
        return []
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == state["pid"] and any(
                Path(file.path).is_relative_to(session_folder()) for file in process.open_files()
            ):
                found += [process, *process.children(recursive=True)]
    return found


def status() -> int:
    """Print whether it runs and where; 0 if it does, 3 if not (as init scripts have it)."""
    state = read_state()
    if state is None:
        print("not running")
        return 3
    print(
        f"running: process {state['pid']}, address 127.0.0.1:{state['port']}, "
        f"dashboard http://127.0.0.1:{state['dashboard_port']}, token in {home() / 'token'}"
    )
    if not _answers(state):
        print("its dashboard does not answer yet")
    return 0


def print_environment() -> None:
    """Shell lines for eval; the Python that runs the cluster comes first in PATH."""
    state = read_state()
    if state is None:
        raise ClusterError("not running: cluster/local.sh start first")
    for name, value in environment(state).items():
        print(f"export {name}={shlex.quote(value)}")
    print(f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"')


def _ensure_token() -> None:
    path = home() / "token"
    if path.exists() and path.read_text(encoding="utf-8").strip():
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(secrets.token_hex(32))


def _free_port(wanted: int) -> int:
    """The port if nobody has it, else some free one."""
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise ClusterError("no free port on 127.0.0.1")


def _answers(state: dict[str, Any]) -> bool:
    """Whether the job server takes requests with our token."""
    token = (home() / "token").read_text(encoding="utf-8").strip()
    request = urllib.request.Request(
        f"http://127.0.0.1:{state['dashboard_port']}/api/jobs/", headers={"Authorization": f"Bearer {token}"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError, ValueError):
        return False


def main(arguments: list[str]) -> int:
    """Run one command; the exit status."""
    command, options = (arguments[0] if arguments else ""), arguments[1:]
    try:
        if command == "start":
            start(options)
        elif command in ("stop", "status", "env") and not options:
            return {"stop": stop, "status": status, "env": print_environment}[command]() or 0
        else:
            raise ClusterError(USAGE)
    except ClusterError as error:
        print(f"cluster/local.sh: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
