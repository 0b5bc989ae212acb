"""What does a partitioning cost: cut, halo, bytes between workers, and how evenly the sampled work is shared?

    python -m benchmarks.partitioning --data gowalla,debian-deps,w1 --parts 2,4,8,16 --json OUT.json

Global steps are sampled for all W = P workers in one process, and everything is counted; nothing is trained or timed.
Work: neighbours that a worker draws (and aggregates) in a step; rows: of embeddings that it wants; moved: rows whose
optimizer it is. `max / mean` is over workers, the mean over steps. `bound` is the draws of one worker that does the
whole step, over those of the busiest of W: what strong scaling can reach at most.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from benchmarks.harness import exit_with, parser, write_json
from benchmarks.sampled_steps import SharedSteps, Steps, WholeGraph, bytes_by_kind
from distgnn.config_reading import load_config
from distgnn.partition.book import relabel
from distgnn.partition.cut import Cut, CutCounter
from distgnn.report import format_table

METHODS = ("nodes", "edges", "both", "inclusion", "work", "random")


def cut_of(graph: WholeGraph, part: np.ndarray, parts: int) -> Cut:
    """The measures that `prepare` states.

    Args:
        part: of every node, integer `[N]`.
    """
    book = relabel(part, graph.n_users, parts)
    counter = CutCounter(book)
    owner = np.repeat(part, graph.degree)
    neighbors = book.node_id[graph.indices]
    for p in range(parts):
        counter.add(p, neighbors[owner == p])
    return counter.result()


def measure(
    graph: WholeGraph, shared: SharedSteps, part: np.ndarray, parts: int, whole: dict[int, int], dim: int
) -> dict[str, Any]:
    """Counts of a step, as means over the steps.

    Args:
        part: of every node, integer `[N]`. whole: draws of one worker that takes the whole step, by step.
    """
    counts = {step: shared.count(step, part, parts) for step in shared.numbers()}
    exchanged = [
        bytes_by_kind(count.exchanges(dim, partitioned=True, in_batch=shared.steps.negatives == "in_batch"))
        for count in counts.values()
    ]
    kinds = {kind: float(np.mean([one[kind] for one in exchanged])) for kind in exchanged[0]}
    cut = cut_of(graph, part, parts)

    def balance(name: str) -> float:
        values = np.array([getattr(count, name) for count in counts.values()])
        return float((values.max(1) / values.mean(1)).mean())

    return {
        "cut": cut.cut,
        "halo": cut.halo,
        "node_balance": cut.node_balance,
        "edge_balance": cut.edge_balance,
        "work_balance": balance("edges"),
        "row_balance": balance("nodes"),
        "moved_balance": balance("moved"),
        "bound": float(np.mean([whole[step] / count.edges.max() for step, count in counts.items()])),
        "remote_rows": float(np.mean([count.remote_rows for count in counts.values()])),
        "bytes": kinds,
    }


def main(arguments: list[str] | None = None) -> int:
    """Count, print."""
    options = _parser().parse_args(arguments)
    cases: list[dict[str, Any]] = []
    for name in options.data.split(","):
        graph = WholeGraph.of(name)
        config = load_config(None, [f"sampler.fanout={options.fanout}", f"train.batch_size={options.batch}"])
        config = config.for_edges(graph.n_edges)
        steps = Steps(config.sampler.fanout, config.train.batch_size, options.steps, options.seed)
        shared = SharedSteps(graph.topology(), steps)
        nobody = np.zeros(len(graph.degree), np.int64)
        whole = {step: int(shared.count(step, nobody, 1).edges[0]) for step in shared.numbers()}
        for parts in map(int, options.parts.split(",")):
            for method in METHODS:
                found = measure(graph, shared, graph.partition(method, parts, config), parts, whole, options.dim)
                cases.append({"data": name, "batch": steps.batch, "parts": parts, "method": method, **found})
    print(table(cases), flush=True)
    write_json(options.json, {"options": vars(options), "cases": cases})
    return 0


def table(cases: list[dict[str, Any]]) -> str:
    """A row a partitioning; bytes beside those of random partitions of as many."""
    random = {(c["data"], c["parts"]): c["bytes"] for c in cases if c["method"] == "random"}
    rows = []
    for case in cases:
        row = {
            "data": case["data"],
            "B": f"{case['batch']:,}",
            "P": case["parts"],
            "method": case["method"],
            "cut": f"{case['cut']:.1%}",
        }
        columns = ("halo", "node_balance", "edge_balance", "work_balance", "row_balance", "moved_balance", "bound")
        for key in columns:
            row[key.replace("_balance", "s" if key.startswith(("node", "edge", "row")) else "")] = f"{case[key]:.2f}"
        for title, kinds in (
            ("rows", ("rows", "gradients")),
            ("topology", ("topology",)),
            ("all", tuple(case["bytes"])),
        ):
            own, most = (sum(b[k] for k in kinds) for b in (case["bytes"], random[case["data"], case["parts"]]))
            row |= {f"{title} MB": f"{own / 1e6:.1f}", f"fewer {title}": f"{most / own:.2f}x"}
        rows.append(row)
    return format_table(rows, list(rows[0]))


def _parser() -> argparse.ArgumentParser:
    result = parser(__doc__)
    result.add_argument("--data", default="gowalla,debian-deps,w1", help="workloads or datasets")
    result.add_argument("--parts", default="2,4,8,16")
    result.add_argument("--fanout", default="10,10")
    result.add_argument("--batch", type=int, default=0, help="0: that of train.batch_size = 0")
    result.add_argument("--dim", type=int, default=64)
    result.add_argument("--steps", type=int, default=10, help="sampled, spread over an epoch")
    result.add_argument("--seed", type=int, default=0)
    return result


if __name__ == "__main__":
    exit_with(main)
