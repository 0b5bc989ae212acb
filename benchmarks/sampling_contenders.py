"""Contenders of `benchmarks.sampler`, each in a process of its own that answers requests, a JSON line each.

    PYTHON sampling_contenders.py NAME FOLDER

FOLDER holds the graph: indptr.npy int64 `[N + 1]`, indices.npy int32 `[E]`. A request has `fanout`, `expand`,
`threads`, `batches`, `warmup` and `seed`; the answer has the `edges` drawn and the `seconds` of wall time of `batches`
batches, after `warmup` of them. This file imports nothing of ours but in our own contenders, so that peers run where
distgnn is not installed.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SEEDS = 1024
Sample = Callable[[np.ndarray, int], int]  # distinct seeds int64 [SEEDS] and a batch's number -> edges drawn


def distgnn(folder: Path) -> Callable[[dict[str, Any]], Callable[[], Sample]]:
    """Our sampler: every hop relabelled, with types, stable ids and degrees of all nodes, as training takes them."""
    from distgnn.graph import Topology
    from distgnn.sampler import NeighborSampler

    indptr, indices = np.load(folder / "indptr.npy"), np.load(folder / "indices.npy")
    n_users, n_nodes = int(np.load(folder / "n_users.npy")), len(indptr) - 1
    stable = np.concatenate([np.arange(n_users), np.arange(n_nodes - n_users)]).astype(np.int32)
    graph = Topology(
        np.array([[0, n_users, n_nodes]]),
        stable,
        np.arange(n_nodes, dtype=np.int32),
        [(indptr, indices)],
        indptr[: n_users + 1],
    )

    def prepared(request: dict[str, Any]) -> Callable[[], Sample]:
        sampler = NeighborSampler(graph, request["fanout"], 0, expand=request["expand"])

        def sample(seeds: np.ndarray, batch: int) -> int:
            return sampler.sample(seeds, batch).sampled_edges

        return lambda: sample

    return prepared


def ceiling(folder: Path) -> Callable[[dict[str, Any]], Callable[[], Sample]]:
    """Dependent pairs of random reads from arrays of the same size: an edge's end, then what is known of that node."""
    from numba import njit

    @njit(nogil=True)
    def gather(position: np.ndarray, indices: np.ndarray, slot: np.ndarray) -> int:
        total = 0
        for k in range(position.shape[0]):
            total += slot[indices[position[k]]]
        return total

    indices = np.load(folder / "indices.npy")
    n_nodes = len(np.load(folder / "indptr.npy", mmap_mode="r")) - 1
    gather(np.zeros(1, np.int64), indices, np.zeros(n_nodes, np.int64))

    def prepared(request: dict[str, Any]) -> Callable[[], Sample]:
        def of_thread() -> Sample:
            slot = np.zeros(n_nodes, np.int64)
            position = np.random.default_rng(request["seed"]).integers(0, len(indices), 1_000_000)

            def sample(seeds: np.ndarray, batch: int) -> int:
                gather(position, indices, slot)
                return len(position)

            return sample

        return of_thread

    return prepared


def pyg(folder: Path) -> Callable[[dict[str, Any]], Callable[[], Sample]]:
    """PyG's sampler by pyg-lib."""
    import pyg_lib  # noqa: F401  (its operators)
    import torch

    indptr, indices = (torch.from_numpy(np.load(folder / f"{n}.npy").astype(np.int64)) for n in ("indptr", "indices"))

    def prepared(request: dict[str, Any]) -> Callable[[], Sample]:
        def sample(seeds: np.ndarray, batch: int) -> int:
            row, *_ = torch.ops.pyg.neighbor_sample(
                indptr, indices, torch.from_numpy(seeds), request["fanout"], csc=True, replace=False, directed=True
            )
            return len(row)

        return lambda: sample

    return prepared


def torch_sparse(folder: Path) -> Callable[[dict[str, Any]], Callable[[], Sample]]:
    """PyG's sampler by torch-sparse."""
    import torch
    import torch_sparse  # noqa: F401  (its operators)

    indptr, indices = (torch.from_numpy(np.load(folder / f"{n}.npy").astype(np.int64)) for n in ("indptr", "indices"))

    def prepared(request: dict[str, Any]) -> Callable[[], Sample]:
        def sample(seeds: np.ndarray, batch: int) -> int:
            _, row, *_ = torch.ops.torch_sparse.neighbor_sample(
                indptr, indices, torch.from_numpy(seeds), request["fanout"], False, True
            )
            return len(row)

        return lambda: sample

    return prepared


def graphbolt(folder: Path) -> Callable[[dict[str, Any]], Callable[[], Sample]]:
    """GraphBolt: every hop sampled for all nodes so far, then compacted."""
    import torch
    from dgl import graphbolt as gb

    indptr, indices = (torch.from_numpy(np.load(folder / f"{n}.npy")) for n in ("indptr", "indices"))
    graph = gb.fused_csc_sampling_graph(indptr, indices)

    def prepared(request: dict[str, Any]) -> Callable[[], Sample]:
        def sample(seeds: np.ndarray, batch: int) -> int:
            nodes, edges = torch.from_numpy(seeds.astype(np.int32)), 0
            for fanout in request["fanout"]:
                hop = graph.sample_neighbors(nodes, torch.tensor([fanout]))
                edges += len(hop.sampled_csc.indices)
                nodes, *_ = gb.unique_and_compact_csc_formats(hop.sampled_csc, nodes)
            return edges

        return lambda: sample

    return prepared


CONTENDERS = {f.__name__: f for f in (distgnn, ceiling, pyg, torch_sparse, graphbolt)}


def measure(of_thread: Callable[[], Sample], request: dict[str, Any], n_nodes: int) -> dict[str, float]:
    """Run a request's batches, every thread its own; the seeds are drawn before the clock starts."""
    threads = request["threads"]
    rng = np.random.default_rng(request["seed"])
    counts = [request["warmup"] + request["batches"]] * threads
    seeds = [[rng.choice(n_nodes, SEEDS, replace=False) for _ in range(n)] for n in counts]
    edges = [0] * threads
    start, done = threading.Barrier(threads + 1), threading.Barrier(threads + 1)

    def run(thread: int) -> None:
        sample = of_thread()
        for batch in range(request["warmup"]):
            sample(seeds[thread][batch], batch * threads + thread)
        start.wait()
        for batch in range(request["warmup"], counts[thread]):
            edges[thread] += sample(seeds[thread][batch], batch * threads + thread)
        done.wait()

    workers = [threading.Thread(target=run, args=(thread,)) for thread in range(threads)]
    for worker in workers:
        worker.start()
    start.wait()
    started = time.perf_counter()
    done.wait()
    seconds = time.perf_counter() - started
    for worker in workers:
        worker.join()
    return {"edges": sum(edges), "seconds": seconds, "batches": request["batches"] * threads}


def main() -> None:
    """Answer requests until there are no more."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    started = time.perf_counter()
    try:
        prepared = CONTENDERS[name](folder)
    except (ImportError, OSError) as error:
        print(json.dumps({"missing": f"{type(error).__name__}: {error}"}), flush=True)
        return
    n_nodes = len(np.load(folder / "indptr.npy", mmap_mode="r")) - 1
    print(json.dumps({"ready": time.perf_counter() - started}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(measure(prepared(request), request, n_nodes)), flush=True)


if __name__ == "__main__":
    main()
