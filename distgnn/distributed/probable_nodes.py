"""Which remote nodes a worker most probably asks for: those whose unchanging rows are worth holding there."""

from __future__ import annotations

import numpy as np

from distgnn.config import SamplerConfig
from distgnn.distributed.hot_rows import HotNodes
from distgnn.graph import Topology
from distgnn.partition.inclusion import Reach
from distgnn.types import USER, UserError


def probable_nodes(
    n_held: int, topology: Topology, low: int, high: int, hot: HotNodes, sampler: SamplerConfig, batch_size: int
) -> HotNodes:
    """The `n_held` nodes of others that a worker's share most probably reaches, by inclusion probability.

    Negatives, which reach every item alike, are left out of the probability.

    Args:
        topology: with every partition. low, high: the worker's own node ids. hot: nodes that are everywhere anyway.
        sampler: fanout and expand. batch_size: B, global.

    Raises:
        UserError: a partition is not held, and so its rows are not known.
    """
    if not topology.holds_all:
        raise UserError(
            "cluster.feature_cache goes by the rows of the whole graph, and with sampler.topology = partitioned a "
            "worker has its own alone: leave it out, or set sampler.topology = replicated"
        )
    nodes = np.arange(topology.n_nodes)
    node_type, stable_id, degree = topology.describe(nodes)
    own = (nodes >= low) & (nodes < high)
    rows = [topology.part_arrays(part) for part in range(topology.n_parts)]
    share = min(batch_size / topology.n_edges, 1.0)
    chance = Reach(rows, degree, sampler.fanout, share, own & (node_type == USER), sampler.expand).inclusion()
    chance[own] = chance[hot.nodes] = 0.0
    best = np.argsort(-chance, kind="stable")[:n_held]
    best = np.sort(best[chance[best] > 0])
    return HotNodes(best, node_type[best], stable_id[best])
