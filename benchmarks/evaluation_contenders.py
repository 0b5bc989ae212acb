"""Ranking and layer-wise inference by each contender, in a process of its own; answers requests of `evaluation.py`.

    python benchmarks/evaluation_contenders.py CONTENDER FOLDER THREADS

A request is a line of JSON, so is the answer: seconds, what was done in them, and the process's peak memory.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from distgnn.config_reading import load_config
from distgnn.distributed.embedding import ShardedEmbedding
from distgnn.distributed.process_group import WorkerGroup
from distgnn.graph import Topology
from distgnn.nn.model import GraphRecommender
from distgnn.training.inference import OwnNodes, infer
from distgnn.training.product_ranking import FirstTargets, InnerProducts, ProductRanking, Rows

DIM, SEED = 64, 0
USERS_AT_ONCE = 256
EDGES_AT_ONCE = 1 << 20  # of scattered messages, a row for each
SQUARE = 3072  # of the matrix product that stands for the limit


class Graph:
    """A workload: CSC of users and items, and vectors of a fixed seed."""

    def __init__(self, folder: Path) -> None:
        self.indptr, self.indices = np.load(folder / "indptr.npy"), np.load(folder / "indices.npy")
        self.n_users = int(np.load(folder / "n_users.npy"))
        self.n_nodes = len(self.indptr) - 1
        self.n_items = self.n_nodes - self.n_users

    def topology(self) -> Topology:
        """In one partition, by the ids of the workload."""
        stable = np.concatenate([np.arange(self.n_users), np.arange(self.n_items)]).astype(np.int32)
        offsets = np.array([[0, self.n_users, self.n_nodes]])
        parts = [(self.indptr, self.indices)]
        return Topology(
            offsets, stable, np.arange(self.n_nodes, dtype=np.int32), parts, self.indptr[: self.n_users + 1]
        )

    def ranking(self, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Vectors of n users and of all items, and the users' items as CSR."""
        rng = np.random.default_rng(SEED)
        users, items = (rng.standard_normal((m, DIM), np.float32) for m in (n, self.n_items))
        indptr = self.indptr[: n + 1]
        return users, items, indptr, self.indices[: indptr[-1]].astype(np.int64) - self.n_users


def ranking_of_ours(graph: Graph, threads: int, exact: bool) -> Callable[..., float]:
    """Lists; with `exact` also the exact rank of the first of eight targets a user."""

    def run(users: int, k: int) -> float:
        vectors, items, indptr, seen = graph.ranking(users)
        columns = np.arange(graph.n_items, dtype=np.int32)
        products = InnerProducts(vectors, items)
        best = (np.full(users, -np.inf), np.full(users, -1))
        drawn = np.sort(np.random.default_rng(SEED).integers(0, graph.n_items, (users, 8)), axis=1)
        targets = FirstTargets(Rows(np.arange(users + 1) * 8, drawn.reshape(-1), columns), *best)
        lists = (np.full((users, k), -np.inf), np.full((users, k), -1))
        counted = np.zeros(users, np.bool_)
        started = time.perf_counter()
        ranking = ProductRanking(
            products, np.arange(graph.n_items), np.arange(users), Rows(indptr, seen, columns), k, 1 << 28, threads
        )
        if exact:
            ranking.rank(*lists, targets, (np.zeros(users, np.int64), counted))
            wanted = ~counted
            ranking.count_ahead(*best, wanted, np.zeros(users, np.int64))
        else:
            ranking.rank(*lists)
        return time.perf_counter() - started

    return run


def ranking_of_torch(graph: Graph, kept: bool) -> Callable[..., float]:
    """A product, -inf at the seen items, `torch.topk`, a block of users at a time; `kept`: into the same memory."""

    def run(users: int, k: int) -> float:
        vectors, items, indptr, seen = graph.ranking(users)
        left, right, columns = torch.from_numpy(vectors), torch.from_numpy(items), torch.from_numpy(seen)
        memory = torch.empty((USERS_AT_ONCE, graph.n_items)) if kept else None
        started = time.perf_counter()
        for start in range(0, users, USERS_AT_ONCE):
            stop = min(start + USERS_AT_ONCE, users)
            out = None if memory is None else memory[: stop - start]
            scores = torch.mm(left[start:stop], right.T, out=out)
            rows = torch.repeat_interleave(torch.from_numpy(np.diff(indptr[start : stop + 1])))
            scores[rows, columns[indptr[start] : indptr[stop]]] = -torch.inf
            torch.topk(scores, k)
        return time.perf_counter() - started

    return run


def product_limit(threads: int) -> Callable[..., float]:
    """Seconds of a large square product: the better of torch's and NumPy's."""
    rng = np.random.default_rng(SEED)
    left, right = (rng.standard_normal((SQUARE, SQUARE), np.float32) for _ in range(2))
    out = np.empty_like(left)
    tensors = tuple(torch.from_numpy(array) for array in (left, right, out))

    def run() -> float:
        seconds = []
        with threadpool_limits(threads, "blas"):
            for product in (
                lambda: torch.mm(tensors[0], tensors[1], out=tensors[2]),
                lambda: np.matmul(left, right, out=out),
            ):
                started = time.perf_counter()
                product()
                seconds.append(time.perf_counter() - started)
        return min(seconds)

    return run


def inference_of_ours(graph: Graph) -> Callable[..., float]:
    """Two layers by `distgnn.training.inference.infer`, the readout included."""
    group = WorkerGroup.join(0, 1)
    bounds = np.array([0, graph.n_nodes])
    topology = graph.topology()
    own = OwnNodes(topology, bounds, 0)

    def run(encoder: str) -> float:
        config = load_config(None, [f"model.encoder={encoder}", f"model.dim={DIM}"])
        model = GraphRecommender(config.model, 2)
        table = ShardedEmbedding(
            own.node_type, own.stable_id, DIM, 0.1, SEED, torch.float32, config.optim, group, low=0
        )
        started = time.perf_counter()
        infer(model, table, topology, own, bounds, group, 1 << 30)
        return time.perf_counter() - started

    return run


def inference_of_torch(graph: Graph, scatter: bool) -> Callable[..., float]:
    """Two layers by `torch.sparse.mm` of a CSR matrix, or by `index_select` and `index_add_` as PyG does."""
    degree = torch.from_numpy(np.diff(graph.indptr)).float()
    source = torch.from_numpy(graph.indices).long()
    destination = torch.repeat_interleave(torch.from_numpy(np.diff(graph.indptr)))
    scale = {"lightgcn": (degree[source] * degree[destination]).rsqrt(), "graphsage": 1 / degree[destination]}
    rng = np.random.default_rng(SEED)
    start = torch.from_numpy(rng.standard_normal((graph.n_nodes, DIM), np.float32))
    linear = [torch.nn.Linear(DIM, DIM) for _ in range(4)]
    size = (graph.n_nodes, graph.n_nodes)
    warnings.filterwarnings("ignore", "Sparse")
    offsets = torch.from_numpy(graph.indptr)
    matrices = {name: torch.sparse_csr_tensor(offsets, source, weight, size) for name, weight in scale.items()}

    def propagate(encoder: str, x: torch.Tensor) -> torch.Tensor:
        if not scatter:
            return torch.sparse.mm(matrices[encoder], x)
        weight = scale[encoder]
        out = torch.zeros_like(x)
        for first in range(0, len(source), EDGES_AT_ONCE):
            part = slice(first, first + EDGES_AT_ONCE)
            out.index_add_(0, destination[part], x.index_select(0, source[part]) * weight[part, None])
        return out

    @torch.no_grad()
    def run(encoder: str) -> float:
        started = time.perf_counter()
        x = start
        states = [x]
        for layer in range(2):
            summed = propagate(encoder, x)
            if encoder == "graphsage":
                summed = linear[2 * layer](x) + linear[2 * layer + 1](summed)
                summed = torch.nn.functional.gelu(summed) if layer == 0 else summed
            x = summed
            states.append(x)
        if encoder == "lightgcn":
            torch.stack(states).mean(0)
        return time.perf_counter() - started

    return run


def memory_limit(graph: Graph, copy: bool) -> Callable[..., float]:
    """Seconds of copying 256 MB, or of gathering the rows of some of the workload's edges."""
    table = torch.ones((graph.n_nodes, DIM))
    edges = torch.from_numpy(graph.indices[:EDGES_AT_ONCE]).long()
    source, target = torch.ones(1 << 26), torch.zeros(1 << 26)
    rows = torch.zeros((len(edges), DIM))

    def run() -> float:
        started = time.perf_counter()
        if copy:
            target.copy_(source)
        else:
            torch.index_select(table, 0, edges, out=rows)
        return time.perf_counter() - started

    return run


def make(contender: str, graph: Graph, threads: int) -> Callable[..., float]:
    """What a contender does with a request; returns seconds."""
    made: dict[str, Callable[[], Callable[..., float]]] = {
        "rank distgnn": lambda: ranking_of_ours(graph, threads, exact=False),
        "rank distgnn, exact": lambda: ranking_of_ours(graph, threads, exact=True),
        "rank torch": lambda: ranking_of_torch(graph, kept=False),
        "rank torch, kept": lambda: ranking_of_torch(graph, kept=True),
        "rank limit": lambda: product_limit(threads),
        "infer distgnn": lambda: inference_of_ours(graph),
        "infer torch.sparse": lambda: inference_of_torch(graph, scatter=False),
        "infer scatter": lambda: inference_of_torch(graph, scatter=True),
        "infer copy": lambda: memory_limit(graph, copy=True),
        "infer gather": lambda: memory_limit(graph, copy=False),
    }
    return made[contender]()


def main() -> None:
    """Serve until the requests end."""
    contender, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    graph = Graph(folder)
    run = make(contender, graph, threads)
    facts: dict[str, Any] = {"n_items": graph.n_items, "n_users": graph.n_users, "edges": len(graph.indices)}
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        seconds = run(**json.loads(line))
        peak = int(Path("/proc/self/status").read_text().split("VmHWM:", 1)[1].split(None, 1)[0]) << 10
        print(json.dumps({"seconds": seconds, "peak_bytes": peak}), flush=True)


if __name__ == "__main__":
    main()
