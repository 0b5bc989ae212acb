"""A Ray cluster of our own on this machine, started and stopped by cluster/local.sh, and `ray job submit` to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class LocalCluster:
    """Where it keeps its state, and the environment that reaches it."""

    home: Path
    environment: dict[str, str]

    def script(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run cluster/local.sh for this cluster."""
        return run_script(self.home, *arguments)

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment that distgnn is in; stdout and stderr together."""
        return subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            env={**self.environment, **environment},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
            check=False,
        )

    def submit(self, job: str, *options: str, wait: bool = True, name: str = "") -> subprocess.CompletedProcess[str]:
        """`ray job submit` of jobs/<job>.py."""
        return self.run(
            "ray",
            "job",
            "submit",
            *(() if wait else ("--no-wait",)),
            *(("--submission-id", name) if name else ()),
            "--working-dir",
            ".",
            "--",
            "python",
            f"jobs/{job}.py",
            *options,
        )

    def status(self, name: str) -> str:
        """Of a submitted job: PENDING, RUNNING, STOPPED, SUCCEEDED, FAILED."""
        return str(self._ask(f"/api/jobs/{name}")["status"])

    def logs(self, name: str) -> str:
        """What a submitted job has printed."""
        return str(self._ask(f"/api/jobs/{name}/logs")["logs"])

    def _ask(self, path: str) -> dict[str, Any]:
        token = (self.home / "token").read_text().strip()
        request = urllib.request.Request(
            self.environment["RAY_API_SERVER_ADDRESS"] + path, headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
            content: dict[str, Any] = json.load(answer)
            return content

    def head(self) -> psutil.Process:
        """The process that cluster/local.sh started."""
        return psutil.Process(json.loads((self.home / "state.json").read_text())["pid"])

    def processes(self, *names: str) -> list[psutil.Process]:
        """Its processes with one of the names in their command."""
        found = []
        for process in self.head().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if any(name in " ".join(process.cmdline()) for name in names):
                    found.append(process)
        return found

    def train_workers(self) -> list[psutil.Process]:
        """Its training workers."""
        return self.processes("RayTrainWorker")


def run_script(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run cluster/local.sh with its state in `home`."""
    return subprocess.run(
        [str(ROOT / "cluster" / "local.sh"), *arguments],
        env={**os.environ, "DISTGNN_RAY_HOME": str(home), "DISTGNN_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def start(home: Path, *options: str) -> LocalCluster:
    """Start a cluster of two CPUs."""
    started = run_script(home, "start", "--num-cpus=2", *options)
    assert started.returncode == 0, started.stderr
    exports = run_script(home, "env").stdout.splitlines()
    shown = dict(line.removeprefix("export ").split("=", 1) for line in exports)
    shown.pop("PATH")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return LocalCluster(home, {**environment, **shown, "PATH": f"{BIN}:{os.environ['PATH']}", "COLUMNS": "1000"})


@pytest.fixture(scope="module")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A cluster for the tests of a module."""
    cluster = start(tmp_path_factory.mktemp("ray"))
    yield cluster
    cluster.script("stop")


@contextmanager
def another_node(cluster: LocalCluster, cpus: int = 1, **environment: str) -> Iterator[psutil.Process]:
    """One more node, whose workers inherit `environment`. In the end it is killed, with all that it has started."""
    process = psutil.Popen(
        [sys.executable, "-m", "tests.ray_node", str(cpus)],
        env={**cluster.environment, **environment},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline().startswith("node "), "the node did not start"
        yield process
    finally:
        kill([process, *process.children(recursive=True)] if process.poll() is None else [])


def kill(processes: list[psutil.Process]) -> None:
    """Kill processes by their ids and wait until they are gone."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, 10)
