"""Training steps of PyTorch Geometric on a graph of .npy arrays, timed by stage; prints one line of JSON.

A script without imports from distgnn, for an interpreter that has torch_geometric and pyg-lib or torch_sparse. The
caller looks for the fastest way that PyG offers, by these options: `--aggregation` (edge index and scatter, torch's
sparse CSR product, torch_sparse's SparseTensor), `--trim` (`trim_to_layer`), `--optimizer` (dense fused Adam or
SparseAdam), `--workers` (loader processes). Negatives are drawn once, uniformly over the items, and go through
LinkNeighborLoader beside their positives: its own negative sampling knows no item range on a homogeneous graph.

PyG does not leave the target edges out of the blocks, and its negatives may be positives: it does less than distgnn.
"""

import argparse
import json
import os
import resource
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

warnings.filterwarnings("ignore")


class Pairs(torch.utils.data.Sampler):
    """Batches of positives, each followed by its negative: rows b and E + b of the labelled edges."""

    def __init__(self, n_edges, batch, rank, world):
        self.n_edges, self.batch, self.rank, self.world = n_edges, batch, rank, world

    def __iter__(self):
        order = torch.randperm(self.n_edges)  # by the seed that all ranks have, who take turns in it
        order = order[self.rank :: self.world][: self.n_edges // self.world]
        for start in range(0, len(order) - self.batch + 1, self.batch):
            rows = order[start : start + self.batch]
            yield torch.cat([rows, rows + self.n_edges]).tolist()

    def __len__(self):
        return self.n_edges // self.world // self.batch


def hops(batch, n_hops):
    """(num_sampled_nodes, num_sampled_edges); with torch_sparse PyG does not say, but hops follow each other."""
    if batch.get("num_sampled_nodes") is not None:
        return [int(n) for n in batch.num_sampled_nodes], [int(n) for n in batch.num_sampled_edges]
    source, target = batch.edge_index
    reached, drawn = [int(batch.edge_label_index.max()) + 1], [0]
    for _ in range(n_hops):
        drawn.append(int((target < reached[-1]).sum()))
        reached.append(max(reached[-1], int(source[: drawn[-1]].max()) + 1))
    return [reached[0], *np.diff(reached).tolist()], np.diff(drawn).tolist()


class Net(torch.nn.Module):
    """LightGCN with full degrees, or GraphSAGE with the mean, on a sampled homogeneous subgraph."""

    def __init__(self, options, n_nodes, degree):
        super().__init__()
        from torch_geometric.nn import SAGEConv

        self.options = options
        self.embedding = torch.nn.Embedding(n_nodes, options.dim, sparse=options.optimizer == "sparse")
        torch.nn.init.normal_(self.embedding.weight, std=0.1)
        self.register_buffer("root", degree.clamp(min=1).float().sqrt())
        self.layers = options.fanout.count(",") + 1
        self.convs = torch.nn.ModuleList()
        if options.model == "graphsage":
            self.convs.extend(SAGEConv(options.dim, options.dim) for _ in range(self.layers))

    def edges(self, edge_index, size):
        """What the layers take, made once a batch (and again where it is trimmed)."""
        kind = self.options.aggregation
        if kind == "scatter":
            return edge_index
        if kind == "sparse_tensor":
            from torch_sparse import SparseTensor

            return SparseTensor(row=edge_index[1], col=edge_index[0], sparse_sizes=(size, size), is_sorted=False)
        from torch_geometric.utils import to_torch_csr_tensor

        return to_torch_csr_tensor(edge_index.flip(0), size=(size, size))

    def mean(self, x, edges):
        """Mean over the drawn in-edges, by the chosen kind."""
        if self.options.aggregation == "scatter":
            total = x.new_zeros(x.shape).index_add_(0, edges[1], x.index_select(0, edges[0]))
            drawn = torch.bincount(edges[1], minlength=len(x))
        elif self.options.aggregation == "sparse_tensor":
            from torch_sparse import matmul

            return matmul(edges, x, reduce="mean")
        else:
            total, drawn = edges @ x, edges.crow_indices().diff()
        return total / drawn.clamp(min=1)[:, None]

    def forward(self, batch):
        from torch_geometric.utils import trim_to_layer

        x, edge_index = self.embedding(batch.n_id), batch.edge_index
        nodes, edges_of_hop = hops(batch, self.layers)
        root = self.root[batch.n_id][:, None]
        seeds = nodes[0]
        total, n = x[:seeds], x.shape[0]
        edges = None
        for layer in range(self.layers):
            if self.options.trim:
                x, edge_index, _ = trim_to_layer(layer, nodes, edges_of_hop, x, edge_index)
                n = x.shape[0]
                edges = None
            if edges is None:
                edges = self.edges(edge_index, n)
            if self.options.model == "graphsage":
                x = self.convs[layer](x, edges)
                if layer + 1 < self.layers:
                    x = F.gelu(x)
            else:
                # The mean of what was drawn, times the degree, is the sum without bias, as in distgnn.
                x = self.mean(x / root[:n], edges) * root[:n]
                total = total + x[:seeds]
        return x[:seeds] if self.options.model == "graphsage" else total / (self.layers + 1)


def memory():
    """Resident bytes now, pages of several processes in equal parts: all, and those of no file."""
    content = Path("/proc/self/smaps_rollup").read_text()
    pss, anonymous, shared = (
        int(content.split(f"\n{name}:", 1)[1].split()[0]) << 10 for name in ("Pss", "Pss_Anon", "Pss_Shmem")
    )
    return pss, anonymous + shared


def main():
    options = parser().parse_args()
    cores = sorted(os.sched_getaffinity(0))[options.rank * options.threads :][: options.threads]
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(max(1, options.threads - options.workers))
    torch.manual_seed(0)
    try:
        from torch_geometric.data import Data
        from torch_geometric.loader import LinkNeighborLoader
        from torch_geometric.typing import WITH_PYG_LIB, WITH_TORCH_SPARSE
    except ImportError as error:
        print(json.dumps({"unavailable": f"torch_geometric cannot be imported: {error}"}))
        return 0
    if not (WITH_PYG_LIB or WITH_TORCH_SPARSE):
        print(json.dumps({"unavailable": "neither pyg-lib nor torch_sparse is installed: PyG cannot sample"}))
        return 0
    imports = memory()[1]
    folder = Path(options.graph)
    n_users = int(np.load(folder / "n_users.npy"))
    indptr = torch.from_numpy(np.load(folder / "indptr.npy"))
    source = torch.from_numpy(np.load(folder / "indices.npy")).long()
    n_nodes, n_edges = len(indptr) - 1, len(source) // 2
    target = torch.repeat_interleave(indptr.diff())
    user, item = target[:n_edges], source[:n_edges]  # users stand first
    data = Data(num_nodes=n_nodes, edge_index=torch.stack([source, target]))
    negative = torch.randint(n_users, n_nodes, (n_edges,))
    loader = LinkNeighborLoader(
        data,
        [int(f) for f in options.fanout.split(",")],
        edge_label_index=torch.stack([torch.cat([user, user]), torch.cat([item, negative])]),
        batch_sampler=Pairs(n_edges, options.batch // options.world, options.rank, options.world),
        num_workers=options.workers,
        persistent_workers=False,
    )
    degree = torch.bincount(data.edge_index[1], minlength=n_nodes)
    model = Net(options, n_nodes, degree)
    if options.world > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=options.init_method, rank=options.rank, world_size=options.world
        )
        net, model = model, torch.nn.parallel.DistributedDataParallel(model)
    else:
        net = model
    if options.optimizer == "sparse":
        dense = list(net.convs.parameters())
        optimizers = [torch.optim.SparseAdam(list(net.embedding.parameters()), lr=options.lr)]
        optimizers += [torch.optim.Adam(dense, lr=options.lr)] if dense else []
    else:
        optimizers = [torch.optim.Adam(model.parameters(), lr=options.lr, fused=True)]

    stages = dict.fromkeys(("loading", "forward", "backward", "optimizer"), 0.0)
    losses, edges, rows, started, steps = [], 0, 0, 0.0, 0
    batches = iter(loader)
    while True:
        since = time.perf_counter()

        def lap(stage):
            nonlocal since
            now = time.perf_counter()
            stages[stage] += now - since
            since = now

        batch = next(batches, None)
        if batch is None:
            batches = iter(loader)
            batch = next(batches)
        lap("loading")
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        out = model(batch)
        u, v = out[batch.edge_label_index[0]], out[batch.edge_label_index[1]]
        score = (u * v).sum(1)
        loss = F.softplus(score[len(score) // 2 :] - score[: len(score) // 2]).mean()
        lap("forward")
        loss.backward()
        lap("backward")
        for optimizer in optimizers:
            optimizer.step()
        losses.append(float(loss))
        lap("optimizer")
        edges += batch.edge_index.shape[1]
        rows += len(batch.n_id)
        if len(losses) == options.warm_up:
            stages.update(dict.fromkeys(stages, 0.0))
            edges = rows = 0
            started = time.perf_counter()
        steps = len(losses) - options.warm_up
        enough = steps >= options.least_steps and len(losses) * options.batch >= options.compared
        if steps > 0 and enough and time.perf_counter() - started >= options.seconds:
            break
    seconds = time.perf_counter() - started
    loading = stages["loading"]
    stop = options.compared // options.batch
    last = losses[stop - -(-stop // 10) : stop]
    pss, own = memory()
    figures = {
        "positives_per_second": steps * options.batch / seconds,
        "positives_per_second_without_loading": steps * options.batch / (seconds - loading),
        "step_ms": 1000 * seconds / steps,
        "stages_ms": {name: 1000 * s / steps for name, s in stages.items()},
        "steps": steps,
        "edges_a_step": edges / steps,
        "rows_a_step": rows / steps,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "loss": float(np.mean(last)) if last else None,
        "pss_bytes": pss,
        "own_bytes": own - imports,  # in no file, without what the imports alone take
        "sampler": "pyg-lib" if WITH_PYG_LIB else "torch_sparse",
    }
    print(json.dumps(figures), flush=True)
    return 0


def parser():
    result = argparse.ArgumentParser(description=__doc__)
    result.add_argument("graph", help="folder of indptr.npy, indices.npy and n_users.npy")
    result.add_argument("--model", default="lightgcn", choices=("lightgcn", "graphsage"))
    result.add_argument("--batch", type=int, default=1024, help="positives of a step, over all ranks")
    result.add_argument("--world", type=int, default=1, help="ranks that train together by DistributedDataParallel")
    result.add_argument("--rank", type=int, default=0)
    result.add_argument("--init-method", default="", help="file://... where they find each other")
    result.add_argument("--fanout", default="10,10")
    result.add_argument("--dim", type=int, default=64)
    result.add_argument("--lr", type=float, default=0.02)
    result.add_argument("--threads", type=int, default=1)
    result.add_argument("--workers", type=int, default=0, help="loader processes, which take of the threads")
    result.add_argument("--aggregation", default="scatter", choices=("scatter", "sparse_tensor", "torch_csr"))
    result.add_argument("--trim", action="store_true")
    result.add_argument("--optimizer", default="dense", choices=("dense", "sparse"))
    result.add_argument("--warm-up", type=int, default=20)
    result.add_argument("--seconds", type=float, default=10.0)
    result.add_argument("--least-steps", type=int, default=20)
    result.add_argument("--compared", type=int, default=0, help="positives after which to give the loss (0: not)")
    return result


if __name__ == "__main__":
    sys.exit(main())
