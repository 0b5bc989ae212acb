"""The Ray cluster: reachable, its token found and accepted, and large enough."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from distgnn import storage
from distgnn.config import ClusterConfig, Config
from distgnn.doctor.finding import FAIL, OK, WARN, Examination, Finding, refusal
from distgnn.types import UserError

ANSWER_SECONDS = 22.0  # below the limit of a check, so that what is known by then is said
_CONNECT_SECONDS = 3.0
_POINT = (
    'eval "$(cluster/local.sh env)" for the local cluster; for another set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH'
)
_FORMS = "set RAY_ADDRESS to host:port of the head, and RAY_API_SERVER_ADDRESS to http://host:port of its dashboard"
UNANSWERED = (
    "check that the cluster's head is alive and can be reached from here; or start one with cluster/local.sh start, "
    'then eval "$(cluster/local.sh env)"'
)


def check_ray(examination: Examination) -> list[Finding]:
    """The cluster that `cluster.ray`, RAY_ADDRESS or RAY_API_SERVER_ADDRESS ask for, with the token of this shell."""
    config = examination.config
    addresses = asked_for(config.cluster.ray)
    if not addresses:
        return [Finding(OK, "Ray", f"skipped: no Ray asked for{_local_hint()}")]
    token = check_token()
    if token.status == FAIL:
        return [token]
    findings, n_nodes = [token], 0
    deadline = time.monotonic() + ANSWER_SECONDS
    started = [(address, _start(address)) for address in addresses]
    for address, asked in started:
        answer = _answer(asked, deadline) if isinstance(asked, subprocess.Popen) else asked
        findings.append(_judge(address, answer, token, config.cluster))
        n_nodes = max(n_nodes, len(answer.get("nodes", [])))
    if n_nodes > 1 and config.cluster.ray:
        findings += _not_shared(config, n_nodes)
    return findings


def asked_for(ray: bool) -> list[str]:
    """Addresses to look at: of the job server (`http://host:port`) and of the head (`host:port`, or `auto`)."""
    found = [os.environ.get("RAY_API_SERVER_ADDRESS", ""), os.environ.get("RAY_ADDRESS", "")]
    addresses = list(dict.fromkeys(address for address in found if address))
    if ray and not os.environ.get("RAY_ADDRESS"):
        addresses.append("auto")
    return addresses


def _not_shared(config: Config, n_nodes: int) -> list[Finding]:
    """Local paths that the workers of several nodes have to see alike."""
    found = []
    out = config.run.out or "runs"
    advice = "name a folder that all nodes share, or a URI such as s3://bucket/"
    if storage.is_local(out):
        found.append(Finding(WARN, "run.out on Ray", f"{out} is local, and the cluster has {n_nodes} nodes", advice))
    if not config.data.path:
        figure = f"it would be prepared into {storage.cache_dir()} of one node, and the cluster has {n_nodes}"
        prepare = (
            "prepare it once with distgnn prepare --out, to a place that all nodes see, and name that in data.path"
        )
        found.append(Finding(WARN, "data on Ray", figure, prepare))
    elif storage.is_local(config.data.path):
        figure = f"{config.data.path} is local, and the cluster has {n_nodes} nodes"
        found.append(Finding(WARN, "data on Ray", figure, advice))
    return found


def _local_hint() -> str:
    """Whether cluster/local.sh has one running that this shell does not point to."""
    home = Path(os.environ.get("DISTGNN_RAY_HOME") or Path.home() / ".cache" / "distgnn" / "ray")
    try:
        state = json.loads((home / "state.json").read_text(encoding="utf-8"))
        if psutil.Process(state["pid"]).create_time() != state["created"]:
            return ""
    except (OSError, ValueError, KeyError, psutil.NoSuchProcess):
        return ""
    return f'; a local cluster runs (port {state["port"]}): eval "$(cluster/local.sh env)" points to it'


def check_token() -> Finding:
    """Which token this shell has for Ray, if any, without showing it."""
    what = "Ray token"
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        mode = os.environ.get("RAY_AUTH_MODE")
        figure = f"none in use: RAY_AUTH_MODE is {mode if mode else 'not set'}"
        return Finding(WARN, what, figure, f"a cluster should ask for one: {_POINT}")
    if os.environ.get("RAY_AUTH_TOKEN"):
        return Finding(OK, what, "from RAY_AUTH_TOKEN")
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(given) if given else Path.home() / ".ray" / "auth_token"
    named = f"RAY_AUTH_TOKEN_PATH = {path}" if given else f"{path} (RAY_AUTH_TOKEN and RAY_AUTH_TOKEN_PATH are not set)"
    try:
        if path.expanduser().read_text(encoding="utf-8").strip():
            return Finding(OK, what, f"from {named}")
        reason = "the file is empty"
    except UnicodeDecodeError:
        reason = "the file is not text"
    except OSError as error:
        reason = error.strerror or str(error)
    return Finding(FAIL, what, f"none: {named}: {reason}", _POINT)


def _start(address: str) -> subprocess.Popen[str] | dict[str, Any]:
    """A process that asks for the nodes, or at once what is wrong with the address or at it."""
    if address.startswith("ray://"):
        return {"unusable": "Ray Client cannot start the workers of a run"}
    try:
        if address.startswith(("http://", "https://")):
            _connect(address)
        else:
            address = _knock(address)
    except UserError as error:
        return {"mistake": str(error)}
    except ValueError:
        return {"unusable": "is no host:port and no http://host:port"}
    except OSError as error:
        return {"unreachable": f"nothing answers there ({error.strerror or error})"}
    return subprocess.Popen(
        [sys.executable, "-m", "distgnn.doctor.ray_nodes", address],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _connect(address: str) -> None:
    """See that somebody listens there; ValueError for what is no address."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    if not parts.hostname or not port:
        raise ValueError(address)
    socket.create_connection((parts.hostname, port), timeout=_CONNECT_SECONDS).close()


def _knock(address: str) -> str:
    """host:port of a head that is alive and takes this shell's token."""
    from distgnn import ray_probe

    address = ray_probe.resolve(address)
    _connect(address)
    ray_probe.probe(address)
    return address


def _answer(asked: subprocess.Popen[str], deadline: float) -> dict[str, Any]:
    """What the process says; it is ended at the deadline."""
    with asked:
        try:
            out, err = asked.communicate(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            asked.kill()
            return {"unreachable": f"no answer within {ANSWER_SECONDS:g} s"}
    try:
        answer: dict[str, Any] = json.loads(out.splitlines()[-1])
        return answer
    except (IndexError, ValueError):
        last = (err.strip().splitlines() or [f"the client ended with status {asked.returncode}"])[-1]
        return {"unreachable": last[:300]}


def _judge(address: str, answer: dict[str, Any], token: Finding, cluster: ClusterConfig) -> Finding:
    what = f"Ray {'jobs' if address.startswith('http') else 'cluster'}, {address}"
    hint = _local_hint() if address == "auto" else ""
    if "unusable" in answer:
        return Finding(FAIL, what, answer["unusable"], _FORMS)
    if "mistake" in answer:
        return refusal(what, answer["mistake"] + hint)
    if "refused" in answer:
        return Finding(FAIL, what, f"refuses us: {answer['refused']} (token {token.figure})", _POINT)
    if "unreachable" in answer:
        return Finding(FAIL, what, answer["unreachable"] + hint, UNANSWERED)
    nodes, total = answer["nodes"], Counter[str]()
    for resources in nodes:
        total.update(resources)
    figure = f"{len(nodes)} node{'s' * (len(nodes) != 1)}, {total['CPU']:g} CPUs, {total['GPU']:g} GPUs"
    if short := lacking(cluster, total):
        return refusal(what, f"{figure}: {short}")
    if answer.get("open"):
        advice = "anybody who reaches it runs code there: restart it with RAY_AUTH_MODE=token (cluster/local.sh does)"
        return Finding(WARN, what, f"{figure}; it asks for no token", advice)
    return Finding(OK, what, figure)


def lacking(cluster: ClusterConfig, total: Mapping[str, float]) -> str:
    """What the cluster has too little of, in the words that a run would end with, or nothing."""
    from distgnn.ray_train import refuse_too_many, worker_resources

    try:
        refuse_too_many(cluster, worker_resources(cluster, total), total)
    except UserError as error:
        return str(error)
    return ""
