"""`distgnn doctor` and a real Ray head that asks for a token: the right one, a wrong one, none, and no head."""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ray_cluster import LocalCluster, ray_cluster

__all__ = ["ray_cluster"]
Doctor = Callable[..., tuple[int, str]]


@pytest.fixture
def doctor(ray_cluster: LocalCluster, tmp_path: Path) -> Doctor:
    """Exit code and output of the command with these variables changed; None takes one away."""

    def run(*arguments: str, **changes: str | None) -> tuple[int, str]:
        variables = {**ray_cluster.environment, "DISTGNN_RAY_HOME": str(ray_cluster.home), **changes}
        result = subprocess.run(
            [sys.executable, "-m", "distgnn", "doctor", *arguments],
            cwd=tmp_path,
            env={key: value for key, value in variables.items() if value is not None},
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        assert result.stderr == ""
        return result.returncode, result.stdout

    return run


def test_the_right_token(doctor: Doctor, ray_cluster: LocalCluster) -> None:
    shell = ray_cluster.environment
    code, text = doctor("--set", "cluster.ray=true", "--set", "cluster.threads_per_worker=1")
    assert code == 0, text
    assert f"ok    Ray token: from RAY_AUTH_TOKEN_PATH = {shell['RAY_AUTH_TOKEN_PATH']}" in text
    for what in (f"jobs, {shell['RAY_API_SERVER_ADDRESS']}", f"cluster, {shell['RAY_ADDRESS']}"):
        assert f"ok    Ray {what}: 1 node, 2 CPUs, 0 GPUs" in text
    assert Path(shell["RAY_AUTH_TOKEN_PATH"]).read_text() not in text


def refusals(text: str) -> list[str]:
    """The lines that say so, each with the advice below it."""
    lines = text.splitlines()
    return [
        f"{line} {lines[n + 1]}" for n, line in enumerate(lines) if line.startswith("FAIL") and "refuses us" in line
    ]


def test_a_wrong_token(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(secrets.token_hex(32))
    code, text = doctor(RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"))
    assert code == 2
    jobs, head = refusals(text)
    assert "invalid" in jobs.lower()
    assert "the token that is set is not its own" in head
    assert "cluster/local.sh env" in jobs
    assert "cluster/local.sh env" in head


def test_no_token(doctor: Doctor, tmp_path: Path) -> None:
    code, text = doctor(RAY_AUTH_MODE=None, RAY_AUTH_TOKEN_PATH=None, HOME=str(tmp_path))
    assert code == 2
    assert "warn  Ray token: none in use" in text
    jobs, head = refusals(text)
    assert "missing" in jobs.lower()
    assert "it wants a token" in head


def test_more_than_the_cluster_has(doctor: Doctor) -> None:
    code, text = doctor("--set", "cluster.workers=3", "--set", "cluster.threads_per_worker=1", RAY_ADDRESS=None)
    assert code == 2
    assert "FAIL  Ray jobs" in text
    assert "need 3 CPUs, the Ray cluster has 2" in text


def test_no_cluster(doctor: Doctor) -> None:
    code, text = doctor(RAY_ADDRESS="127.0.0.1:1", RAY_API_SERVER_ADDRESS="http://127.0.0.1:1")
    assert code == 2
    assert text.count("nothing answers there (Connection refused)") == 2
    assert "cluster/local.sh start" in text


def test_a_cluster_that_the_shell_does_not_point_to(doctor: Doctor) -> None:
    code, text = doctor(RAY_ADDRESS=None, RAY_API_SERVER_ADDRESS=None)
    assert code == 0
    assert "ok    Ray: skipped: no Ray asked for; a local cluster runs" in text
