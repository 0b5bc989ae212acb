"""Entry of the process that asks Ray for its nodes: `python -m distgnn.doctor.ray_nodes ADDRESS`.

In a process of its own, since Ray's client may hang or end its process. The last line of stdout is a JSON object:
`{"nodes": [resources of each]}`, of a job server with `"open"`, whether it asks for no token; or `{"refused": words}`;
or `{"unreachable": words}`.
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from typing import Any


def ask(address: str) -> dict[str, Any]:
    """Connect as a run does (`host:port`) or as `ray job submit` does (`http://host:port`)."""
    import ray.exceptions

    try:
        nodes = _by_http(address) if "://" in address else _as_driver(address)
    except ray.exceptions.AuthenticationError as error:
        return {"refused": _first_line(error)}
    except (ConnectionError, TimeoutError, OSError, RuntimeError, ValueError) as error:
        return {"unreachable": _first_line(error)}
    return {"nodes": nodes, **({"open": answers_anybody(address)} if "://" in address else {})}


def _by_http(address: str) -> list[dict[str, float]]:
    from ray.job_submission import JobSubmissionClient
    from ray.util.state import list_nodes

    JobSubmissionClient(address).list_jobs()
    return [node.resources_total for node in list_nodes(address=address, timeout=10) if node.state == "ALIVE"]


def _as_driver(address: str) -> list[dict[str, float]]:
    import ray

    ray.init(address=address, log_to_driver=False, configure_logging=False)
    try:
        return [node["Resources"] for node in ray.nodes() if node["Alive"]]
    finally:
        ray.shutdown()


def answers_anybody(address: str) -> bool:
    """Whether a job server takes a request without a token."""
    try:
        with urllib.request.urlopen(f"{address.rstrip('/')}/api/version", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


if __name__ == "__main__":
    print(json.dumps(ask(sys.argv[1])), flush=True)
