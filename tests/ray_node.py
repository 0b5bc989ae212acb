"""Another node of a local cluster, in a process of its own: `python -m tests.ray_node CPUS`, ended by killing it.

`ray start --address` is of no use here: with RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0, which keeps the cluster on loopback,
it refuses further nodes, and with 1 it takes 127.0.0.1 for the machine's outer address, where the head does not listen.
"""

from __future__ import annotations

import os
import signal
import sys

from ray._private.node import Node
from ray._private.parameter import RayParams


def main() -> None:
    """Join the cluster at RAY_ADDRESS; the node's processes die with this one."""
    parameters = RayParams(
        gcs_address=os.environ["RAY_ADDRESS"],
        node_ip_address="127.0.0.2",  # not the head's: a driver joins the node of its own address
        node_manager_port=0,
        min_worker_port=0,
        max_worker_port=0,
        dashboard_agent_listen_port=None,
        include_log_monitor=False,  # the head's reads the logs of both
        num_cpus=int(sys.argv[1]),
        num_gpus=0,
        object_store_memory=100_000_000,
    )
    node = Node(parameters, head=False, shutdown_at_exit=True, spawn_reaper=True)
    print(f"node {node.node_id}", flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
