"""Whether a Ray cluster is there and takes our token, told in milliseconds.

`ray.init` tries for 20 s with a wrong token and for two minutes where nothing listens, and then says the same of both.
"""

from __future__ import annotations

import os
from pathlib import Path

import grpc

from distgnn.types import UserError

START_HINT = 'start one with cluster/local.sh start, then eval "$(cluster/local.sh env)"; or set RAY_ADDRESS'
_CHECK = "/ray.rpc.NodeInfoGcsService/CheckAlive"  # of the cluster's head; the empty request asks for itself


def address_from_environment() -> str:
    """RAY_ADDRESS, or `auto`: the cluster on this machine.

    Raises:
        UserError: an address that only `ray job submit` can use.
    """
    address = os.environ.get("RAY_ADDRESS") or "auto"
    if address.startswith(("http://", "https://")):
        raise UserError(
            f"RAY_ADDRESS = {address} is for ray job submit alone: put that into RAY_API_SERVER_ADDRESS, and host:port "
            "of the cluster's head into RAY_ADDRESS"
        )
    return address


def find_local() -> list[str]:
    """host:port of the clusters whose heads run on this machine."""
    from ray._private import services  # what address="auto" uses itself

    return sorted(services.find_gcs_addresses())


def resolve(address: str) -> str:
    """`auto` to host:port.

    Raises:
        UserError: no cluster on this machine, or more than one.
    """
    if address != "auto":
        return address
    found = find_local()
    if not found:
        raise UserError(f"no Ray cluster on this machine; {START_HINT}")
    if len(found) > 1:
        raise UserError(f"several Ray clusters on this machine: set RAY_ADDRESS to one of {', '.join(found)}")
    return found[0]


def token() -> str:
    """The token that Ray takes from the environment or from its default place; empty without one."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return os.environ["RAY_AUTH_TOKEN"].strip()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return path.expanduser().read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def probe(address: str, timeout_seconds: float = 10.0) -> None:
    """Ask the head of a cluster at host:port whether it is alive.

    Raises:
        UserError: nothing answers there, or it refuses the token.
    """
    sends_token = os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
    metadata = [("authorization", f"Bearer {token()}")] if sends_token else []
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        ask = channel.unary_unary(_CHECK, request_serializer=bytes, response_deserializer=bytes)
        try:
            ask(b"", timeout=timeout_seconds, metadata=metadata)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                what = "the token that is set is not its own" if sends_token else "it wants a token"
                raise UserError(
                    f"the Ray cluster at {address} refuses us: {what}; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH "
                    '(for a local cluster: eval "$(cluster/local.sh env)")'
                ) from None
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise UserError(f"no Ray cluster answers at {address}; {START_HINT}") from None
            raise UserError(
                f"what answers at {address} is no Ray cluster ({error.code().name.lower()}); set RAY_ADDRESS to "
                "host:port of a cluster's head"
            ) from None
