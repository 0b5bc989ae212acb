"""cluster/local.sh: tokens, loopback, and that it stops what it started and nothing else."""

from __future__ import annotations

import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cluster.local_cluster import session_folder
from tests.ray_cluster import LocalCluster, kill, ray_cluster, run_script, start

__all__ = ["ray_cluster"]


def test_it_listens_on_loopback_alone(ray_cluster: LocalCluster) -> None:
    processes = [ray_cluster.head(), *ray_cluster.head().children(recursive=True)]
    addresses = set()
    for process in processes:
        for connection in process.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN:
                addresses.add(connection.laddr.ip)
    assert addresses
    assert addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_the_token_is_the_owners_and_needed(ray_cluster: LocalCluster) -> None:
    assert stat.S_IMODE((ray_cluster.home / "token").stat().st_mode) == 0o600
    words = ("ray", "job", "list")
    assert ray_cluster.run(*words).returncode == 0
    refused = ray_cluster.run(*words, RAY_AUTH_TOKEN_PATH=str(Path(__file__)))
    assert refused.returncode != 0
    assert "token" in refused.stdout.lower()


def test_a_second_start_changes_nothing(ray_cluster: LocalCluster) -> None:
    before = ray_cluster.head().pid
    again = ray_cluster.script("start")
    assert (again.returncode, "already running" in again.stdout) == (0, True)
    assert ray_cluster.head().pid == before
    assert ray_cluster.script("status").returncode == 0


@pytest.fixture
def folder_in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ray's folder of the cluster `tmp_path / "other"`, whose own path is too long for sockets."""
    monkeypatch.setenv("DISTGNN_RAY_HOME", str(tmp_path / "other"))
    folder = session_folder()
    assert folder.parent == Path("/tmp")
    return folder


def test_stop_ends_its_own_processes_and_no_other(
    ray_cluster: LocalCluster, tmp_path: Path, folder_in_tmp: Path
) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)  # ray raylet gcs_server"])
    other = start(tmp_path / "other")
    head = other.head()
    started = [head, *head.children(recursive=True)]
    assert len(started) > 4
    assert folder_in_tmp.exists()
    assert other.script("stop").stdout.strip() == "stopped"
    assert not folder_in_tmp.exists()
    assert not any(process.is_running() for process in started)
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()
    assert ray_cluster.script("status").returncode == 0
    assert other.script("status").returncode == 3
    assert other.script("stop").stdout.strip() == "not running"


@pytest.mark.slow
def test_stop_ends_what_a_killed_head_has_left(tmp_path: Path, folder_in_tmp: Path) -> None:
    other = start(tmp_path / "other")
    started = other.head().children(recursive=True)
    kill([other.head()])
    time.sleep(5)  # in which some end by themselves
    assert any(process.is_running() for process in started)
    assert other.script("status").returncode == 3
    assert other.script("stop").stdout.strip() == "stopped"
    assert not any(process.is_running() for process in started)
    assert not folder_in_tmp.exists()


@pytest.mark.parametrize(("arguments", "message"), [(["restart"], "usage:"), ([], "usage:"), (["env"], "not running")])
def test_mistakes_take_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = run_script(tmp_path, *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_options_that_ray_refuses_are_told(tmp_path: Path, folder_in_tmp: Path) -> None:
    home = tmp_path / "other"
    result = run_script(home, "start", "--no-such-option")
    assert result.returncode == 2
    assert "ray start ended with status" in result.stderr
    assert run_script(home, "status").returncode == 3
    assert not folder_in_tmp.exists()
