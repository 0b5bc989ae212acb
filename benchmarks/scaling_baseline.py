"""The usual way to train on several workers, as a worker of `benchmarks.scaling`: everything replicated.

Every worker holds the whole graph and an embedding of all nodes; DistributedDataParallel averages its gradient over
gloo, and torch's Adam moves all of it. Sampler, blocks and encoder are distgnn's. A worker takes every W-th seed edge
of the global batch, so that shares are even. With `--sparse` gradients hold the rows of the step alone, and SparseAdam
moves those.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.scaling_worker import parser, run
from distgnn.config import Config
from distgnn.config_reading import load_config
from distgnn.distributed.device_memory import RowBuffer
from distgnn.distributed.process_group import WorkerGroup
from distgnn.graph import Topology
from distgnn.loader import PrefetchLoader
from distgnn.nn.batch import NO_KEYS, BlockTensors, block_tensors
from distgnn.nn.model import GraphRecommender
from distgnn.partition.prepare import open_or_prepare
from distgnn.sampler import NeighborSampler, SeedOrder
from distgnn.training.objective import loss_of
from distgnn.types import SeedEdges


class EvenOrder(SeedOrder):
    """Shares of every W-th edge of a step.

    Args:
        rank, size: of the worker. The rest as `SeedOrder`.
    """

    def __init__(self, topology: Topology, batch_size: int, seed: int, rank: int, size: int) -> None:
        super().__init__(topology, batch_size, seed)
        self.part, self.size = rank, size

    def seeds(self, step: int) -> SeedEdges:
        """This worker's share of a step."""
        whole = super().seeds(step)
        share = np.arange(self.part, whole.global_size, self.size)
        return dataclasses.replace(whole, share=share, user=whole.user[share], item=whole.item[share])


class Replica(nn.Module):
    """An embedding of all nodes and the encoder; maps a minibatch to its vectors.

    Args:
        n_nodes: N. sparse: kind of the embedding's gradient.
    """

    def __init__(self, config: Config, n_nodes: int, sparse: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_nodes, config.model.dim, sparse=sparse)
        nn.init.normal_(self.embedding.weight, std=config.model.init_std)
        self.encoder = GraphRecommender(config.model, len(config.sampler.fanout), {})

    def forward(self, nodes: torch.Tensor, blocks: list[BlockTensors], n_users: int) -> Any:
        return self.encoder(blocks, self.embedding(nodes), n_users, 0, None, None)


class Baseline:
    """A replica and what it answers, as `benchmarks.scaling_worker.Worker`."""

    def __init__(self, settings: list[str], group: WorkerGroup, folder: str, sparse: bool) -> None:
        self.group = group
        self.config = config = load_config(None, [*settings, f"run.out={folder}"])
        dataset = open_or_prepare(config)
        topology = dataset.topology("fit", config.partition.method, config.parts, None, False, False)
        self.topology, self.gradients = topology, RowBuffer()
        torch.manual_seed(config.run.seed)
        self.model = Replica(config, topology.n_nodes, sparse)
        self.wrapped = DistributedDataParallel(self.model) if group.size > 1 else self.model
        kind = torch.optim.SparseAdam if sparse else torch.optim.Adam
        self.optimizer = kind(list(self.model.parameters()), lr=config.optim.lr)
        self.order = EvenOrder(topology, config.train.batch_size, config.run.seed, group.rank, group.size)
        self.sampler = NeighborSampler(
            topology, config.sampler.fanout, config.run.seed, negatives="uniform", num_negatives=1
        )

    def train(self, start: int, steps: int) -> dict[str, Any]:
        """Steps from `start` on; wall seconds from barrier to barrier."""
        sampler, group = self.config.sampler, self.group
        loader = PrefetchLoader(
            self.order, self.sampler, start, start + steps, threads=sampler.threads, prefetch=sampler.prefetch
        )
        stages = dict.fromkeys(("sampling", "forward", "backward", "optimizer"), 0.0)
        alone = WorkerGroup(0, 1, group.device, None, None, None)  # BPR has nothing to gather
        positives, loss_sum = 0, 0.0
        group.barrier()
        started, busy = time.perf_counter(), time.process_time()
        for batch in loader:
            since = time.perf_counter()
            self.optimizer.zero_grad(set_to_none=True)
            blocks = block_tensors(batch.blocks, NO_KEYS, group.device, torch.float32, self.gradients)
            user, item = self.wrapped(torch.from_numpy(batch.nodes), blocks, batch.n_seed_users)
            # DDP averages: a worker's part of the global mean, times W.
            loss = group.size * loss_of(self.config.loss, batch, user, item, self.topology, alone)
            forward = time.perf_counter()
            loss.backward()
            backward = time.perf_counter()
            self.optimizer.step()
            ended = time.perf_counter()
            times = (batch.seconds, forward - since, backward - forward, ended - backward)
            stages = {name: stages[name] + t for name, t in zip(stages, times, strict=True)}
            positives += len(batch.share)
            loss_sum += float(loss.detach()) / group.size
        busy = time.process_time() - busy
        group.barrier()
        return {
            "seconds": time.perf_counter() - started,
            "cpu_seconds": busy,
            "stages": stages,
            "positives": positives,
            "loss": loss_sum,
        }


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--sparse", action="store_true", help="gradients of the touched rows, and SparseAdam")
    chosen = options.parse_args()
    sys.exit(run(chosen, partial(Baseline, sparse=chosen.sparse)))
