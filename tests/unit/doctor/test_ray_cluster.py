from __future__ import annotations

import http.server
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from distgnn.config_reading import load_config
from distgnn.doctor import ray_cluster, ray_nodes
from distgnn.doctor.finding import FAIL, OK, WARN, Examination, Finding


@pytest.fixture(autouse=True)
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No Ray in the environment, a home of our own."""
    for name in list(os.environ):
        if name.startswith("RAY_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DISTGNN_RAY_HOME", str(tmp_path / "ray"))
    return tmp_path


@pytest.fixture
def port() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the probe of an address says, instead of asking it."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(ray_cluster, "_start", lambda address, *_: given[address])
    return given


def check(*overrides: str) -> list[Finding]:
    return ray_cluster.check_ray(Examination(load_config(None, list(overrides))))


def test_no_ray_asked_for(shell: Path) -> None:
    (finding,) = check()
    assert str(finding) == "ok    Ray: skipped: no Ray asked for"


def test_a_local_cluster_that_the_shell_does_not_point_to(shell: Path) -> None:
    (shell / "ray").mkdir()
    state = {"pid": os.getpid(), "created": psutil.Process().create_time(), "port": 6379}
    (shell / "ray" / "state.json").write_text(json.dumps(state))
    (finding,) = check()
    assert 'a local cluster runs (port 6379): eval "$(cluster/local.sh env)" points to it' in finding.figure
    (shell / "ray" / "state.json").write_text(json.dumps({**state, "created": 1.0}))  # its process id was reused
    assert check()[0].figure == "skipped: no Ray asked for"


def test_which_addresses_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ray_cluster.asked_for(ray=True) == ["auto"]
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://h:8265")
    assert ray_cluster.asked_for(ray=False) == ["http://h:8265"]
    assert ray_cluster.asked_for(ray=True) == ["http://h:8265", "auto"]
    monkeypatch.setenv("RAY_ADDRESS", "h:6379")
    assert ray_cluster.asked_for(ray=True) == ["http://h:8265", "h:6379"]


def test_tokens(shell: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ray_cluster.check_token().status == WARN
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    none = ray_cluster.check_token()
    assert none.status == FAIL
    assert f"{shell}/.ray/auth_token" in none.figure
    assert "cluster/local.sh env" in none.advice
    (shell / ".ray").mkdir()
    (shell / ".ray" / "auth_token").write_text("secret")
    assert ray_cluster.check_token().status == OK
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(shell / "empty"))
    assert "No such file" in ray_cluster.check_token().figure
    (shell / "empty").touch()
    assert "the file is empty" in ray_cluster.check_token().figure
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert ray_cluster.check_token() == Finding(OK, "Ray token", "from RAY_AUTH_TOKEN")


def test_without_a_token_nothing_is_asked(shell: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    (finding,) = check()
    assert (finding.what, finding.status) == ("Ray token", FAIL)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ray://127.0.0.1:10001", "Ray Client cannot start the workers"),
        ("somewhere", "is no host:port"),
        ("127.0.0.1:70000", "is no host:port"),
    ],
)
def test_addresses_of_no_use(address: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    finding = check()[-1]
    assert finding.status == FAIL
    assert words in finding.figure
    assert "host:port" in finding.advice


def test_nobody_listens(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))  # bound, not listening
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{other.getsockname()[1]}")
        finding = check()[-1]
    assert finding.status == FAIL
    assert "Connection refused" in finding.figure
    assert "cluster/local.sh start" in finding.advice


def test_a_head_that_does_not_speak(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    finding = check()[-1]
    assert finding.status == FAIL
    assert f"no Ray cluster answers at 127.0.0.1:{port}" in finding.figure
    assert "cluster/local.sh start" in finding.advice


def test_a_job_server_that_does_not_speak(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "ANSWER_SECONDS", 3.0)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{port}")
    finding = check()[-1]
    assert finding.status == FAIL
    assert "no answer within 3 s" in finding.figure
    assert not [child for child in psutil.Process().children() if "distgnn.doctor.ray_nodes" in child.cmdline()]


def test_a_client_that_breaks(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{port}")
    finding = check()[-1]
    assert (finding.status, finding.figure) == (FAIL, "the client ended with status 1")


def test_a_sound_cluster(answers: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    answers["auto"] = {"nodes": [{"CPU": 4, "GPU": 1}, {"CPU": 2}]}
    found = check("cluster.ray=true", "run.out=s3://bucket/run", "data.path=s3://bucket/data")
    assert [finding.status for finding in found] == [OK, OK]
    assert found[1].figure == "2 nodes, 6 CPUs, 1 GPUs"


def test_local_folders_on_several_nodes(answers: dict[str, Any]) -> None:
    def warned(*overrides: str) -> list[str]:
        found = check("cluster.ray=true", *overrides)
        return [finding.what for finding in found if finding.status == WARN and finding.what.endswith("on Ray")]

    answers["auto"] = {"nodes": [{"CPU": 4}, {"CPU": 2}]}
    assert warned("run.out=/data/run") == ["run.out on Ray", "data on Ray"]
    assert warned("run.out=s3://bucket/run", "data.path=/data/set") == ["data on Ray"]
    assert warned("run.out=s3://bucket/run", "data.path=s3://bucket/set") == []
    answers["auto"] = {"nodes": [{"CPU": 4}]}
    assert warned("run.out=/data/run") == []


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([{"CPU": 4, "GPU": 2}, {"CPU": 2}], ""),
        ([{"CPU": 6, "GPU": 1}], "need 2 GPUs, the Ray cluster has 1"),
        ([{"CPU": 5, "GPU": 2}], "need 6 CPUs, the Ray cluster has 5"),
    ],
)
def test_a_cluster_that_lacks_something(answers: dict[str, Any], nodes: list[dict[str, float]], words: str) -> None:
    answers["auto"] = {"nodes": nodes}
    options = ["cluster.workers=2", "cluster.threads_per_worker=3", "cluster.use_gpu=true"]
    finding = check("cluster.ray=true", *options)[1]
    assert finding.status == (FAIL if words else OK)
    assert words in finding.figure
    assert finding.advice.startswith("lower cluster.workers" if words else "")
    ranged = check("cluster.ray=true", *options, "cluster.workers=1,2")[1]
    assert ranged.status == OK  # the fewest of them fit


@pytest.mark.parametrize(("status", "is_open"), [(200, True), (401, False)])
def test_whether_a_job_server_asks_for_a_token(status: int, is_open: bool) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/api/version" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert ray_nodes.answers_anybody(f"http://127.0.0.1:{server.server_port}/") is is_open


def test_a_cluster_open_to_anybody(answers: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://h:8265")
    answers["http://h:8265"] = {"nodes": [{"CPU": 5}], "open": True}
    finding = check()[-1]
    assert finding.status == WARN
    assert "asks for no token" in finding.figure
    assert "RAY_AUTH_MODE=token" in finding.advice
