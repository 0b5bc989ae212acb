"""What do METIS, hot rows, a cache by inclusion probability and bfloat16 each save of the bytes between workers?

    python -m benchmarks.remote_bytes --data gowalla --workers 2,8 --json OUT.json

Global steps are sampled for all workers in one process; bytes are those that messages take (`cluster.exchange =
messages`), per global step, ids included.

- hot rows: the nodes of most edges at every worker, exact; their gradients are all-reduced, touched or not.
- cache: every worker holds features of the remote nodes that its share most probably reaches (SALIENT++). They never
  change, so that what is held is not sent. Features ride on the rows' plan, without ids.

A cache of embedding rows would save nothing: a row that a worker fetches moves in that very step, by its own gradient,
and has to be sent again whenever it is wanted again.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from benchmarks.harness import exit_with, parser, write_json
from benchmarks.sampled_steps import ID_BYTES, SharedSteps, Steps, WholeGraph
from distgnn.config_reading import load_config
from distgnn.partition.inclusion import Reach
from distgnn.report import format_table


def most_probable(graph: WholeGraph, owner: np.ndarray, worker: int, n_held: int, steps: Steps) -> np.ndarray:
    """Whether the worker's cache holds a node, bool `[N]`: the remote nodes that its share most probably reaches."""
    own = owner == worker
    seeds = own & (np.arange(len(owner)) < graph.n_users)
    reach = Reach([(graph.indptr, graph.indices)], graph.degree, steps.fanout, steps.batch / graph.n_edges, seeds)
    chance = np.where(own, -1.0, reach.inclusion())
    held = np.zeros(len(owner), bool)
    held[np.argsort(-chance, kind="stable")[:n_held]] = True
    return held & ~own


def count(graph: WholeGraph, shared: SharedSteps, owner: np.ndarray, workers: int, share: float) -> dict[str, float]:
    """Rows a step, as means: wanted of others, and of these hot, and held in the caches.

    Args:
        owner: worker of every node, integer `[N]`. share: of all nodes that are hot, and that a cache holds.
    """
    n_held = int(share * len(owner))
    hot = np.zeros(len(owner), bool)
    hot[np.argsort(-graph.degree, kind="stable")[:n_held]] = True
    cached = [most_probable(graph, owner, worker, n_held, shared.steps) for worker in range(workers)]
    found: dict[str, list[int]] = {"remote": [], "hot": [], "held": []}
    for step in shared.numbers():
        total = dict.fromkeys(found, 0)
        for worker, batch in enumerate(shared.shares(step, owner, workers)):
            remote = batch.nodes[owner[batch.nodes] != worker]
            total["remote"] += len(remote)
            total["hot"] += int(hot[remote].sum())
            total["held"] += int(cached[worker][remote].sum())
        for name, value in total.items():
            found[name].append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}


def variants(
    found: dict[str, float], workers: int, n_hot: int, gathered: float, dim: int, width: int
) -> dict[str, Any]:
    """Megabytes of a step by what is done to save some; features (float32, `width` a node) by themselves."""
    counts, replicas = workers * (workers - 1) * ID_BYTES, 2 * (workers - 1) * n_hot * (dim + 1) * 4
    remote, cold = found["remote"], found["remote"] - found["hot"]
    plain = counts + remote * (ID_BYTES + 8 * dim)
    return {
        "plain": (plain + gathered) / 1e6,
        "bfloat16": (counts + remote * (ID_BYTES + 4 * dim) + gathered) / 1e6,
        "hot rows": (counts + cold * (ID_BYTES + 8 * dim) + replicas + gathered) / 1e6,
        "features": remote * 4 * width / 1e6,
        "features, hot rows": cold * 4 * width / 1e6,
        "features, cache": (remote - found["held"]) * 4 * width / 1e6,
    }


def main(arguments: list[str] | None = None) -> int:
    """Count, print."""
    options = _parser().parse_args(arguments)
    graph = WholeGraph.of(options.data)
    config = load_config(None, [f"sampler.fanout={options.fanout}", f"train.batch_size={options.batch}"])
    config = config.for_edges(graph.n_edges)
    steps = Steps(config.sampler.fanout, config.train.batch_size, options.steps, options.seed)
    shared = SharedSteps(graph.topology(), steps)
    cases: list[dict[str, Any]] = []
    for workers in map(int, options.workers.split(",")):
        for method in ("both", "random"):
            owner = graph.partition(method, workers, config)
            for share in map(float, options.shares.split(",")):
                found = count(graph, shared, owner, workers, share)
                gathered = 2 * (workers - 1) * steps.batch * options.dim * 4
                sizes = variants(found, workers, int(share * len(owner)), gathered, options.dim, options.width)
                cases.append({"workers": workers, "method": method, "share": share, "rows": found, "megabytes": sizes})
    for part in (_bytes_table(cases), _left_table(cases)):
        print(part, end="\n\n", flush=True)
    write_json(options.json, {"options": vars(options), "cases": cases})
    return 0


def _name(case: dict[str, Any]) -> dict[str, Any]:
    method = "random" if case["method"] == "random" else "METIS"
    return {"W": case["workers"], "partitions": method, "held": f"{case['share']:.0%}"}


def _bytes_table(cases: list[dict[str, Any]]) -> str:
    """Megabytes a step; a row a share of nodes that are hot, or in a cache."""
    rows = []
    for case in cases:
        row = _name(case) | {"remote rows": round(case["rows"]["remote"])}
        rows.append(row | {f"{name} MB": f"{value:.2f}" for name, value in case["megabytes"].items()})
    return format_table(rows, list(rows[0]))


def _left_table(cases: list[dict[str, Any]]) -> str:
    """How many times fewer bytes METIS moves than random partitions, with the same done to both."""
    random = {(c["workers"], c["share"]): c["megabytes"] for c in cases if c["method"] == "random"}
    rows = []
    for case in cases:
        if case["method"] != "random":
            most = random[case["workers"], case["share"]]
            fewer = {name: f"{most[name] / value:.2f}x" for name, value in case["megabytes"].items()}
            rows.append(_name(case) | fewer)
    return format_table(rows, list(rows[0]))


def _parser() -> argparse.ArgumentParser:
    result = parser(__doc__)
    result.add_argument("--data", default="gowalla", help="workload or dataset")
    result.add_argument("--workers", default="2,8")
    result.add_argument("--shares", default="0.01,0.1", help="of all nodes that are hot, or in a worker's cache")
    result.add_argument("--fanout", default="10,10")
    result.add_argument("--batch", type=int, default=0, help="0: that of train.batch_size = 0")
    result.add_argument("--dim", type=int, default=64)
    result.add_argument("--width", type=int, default=64, help="values in a row of features")
    result.add_argument("--steps", type=int, default=8)
    result.add_argument("--seed", type=int, default=0)
    return result


if __name__ == "__main__":
    exit_with(main)
