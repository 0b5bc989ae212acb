"""Bytes and messages in a run's report are those that one counts from its batches, on a tiny graph of extremes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distgnn.config_reading import load_config
from distgnn.partition.prepare import open_or_prepare
from distgnn.sampler import NeighborSampler, SeedOrder
from distgnn.training.launch import run_training
from tests.exactness.datasets import adversarial_log

STEPS, DIM, VALUE, ID, SIZE = 12, 8, 8, 4, 8  # float64 values; int32 ids in requests and answers, int64 sizes
FANOUT = (2, 3)


@pytest.mark.parametrize(("workers", "exchange"), [(2, "messages"), (3, "messages"), (3, "memory")])
def test_counts_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, exchange: str) -> None:
    monkeypatch.setenv("DISTGNN_CACHE", str(tmp_path / "cache"))
    settings = [
        *adversarial_log(tmp_path),
        f"run.out={tmp_path / 'run'}",
        "run.dtype=float64",
        "run.tensorboard=false",
        f"model.dim={DIM}",
        f"sampler.fanout={','.join(map(str, FANOUT))}",
        "sampler.topology=partitioned",
        "train.batch_size=7",
        f"train.max_steps={STEPS}",
        "loss.name=bpr",
        "loss.num_negatives=2",
        "partition.parts=5",
        f"cluster.workers={workers}",
        f"cluster.exchange={exchange}",
    ]
    config = load_config(None, settings)
    report = run_training(config)

    dataset = open_or_prepare(config)
    graph = dataset.topology("fit", "random", 5)
    bounds = dataset.book("random", 5).worker_bounds(workers)
    sampler = NeighborSampler(graph, FANOUT, config.run.seed, negatives="uniform", num_negatives=2)
    others = workers - 1
    told = 0 if exchange == "messages" else others * SIZE  # of each exchange: how long the others are
    topology = rows = gradients = 0
    for rank in range(workers):
        order = SeedOrder(graph, 7, config.run.seed, bounds, rank)
        for step in range(STEPS):
            batch = sampler.sample(order.seeds(step), step)
            remote = np.searchsorted(bounds[1:], batch.nodes, side="right") != rank
            topology += others * len(batch.share) * ID + told  # the items of its edges, told to everybody
            for block in batch.blocks:
                asked = remote[: block.n_dst]
                topology += others * SIZE + int(asked.sum()) * ID
                topology += int(np.diff(block.indptr)[asked].sum()) * ID + told  # what the owners answer
            wanted = int(remote.sum())
            if exchange == "messages":
                rows += others * SIZE + wanted * (8 + DIM * VALUE)
                gradients += wanted * DIM * VALUE
            else:  # nobody is asked; an owner reads which nodes, and where their gradients are
                rows += wanted * DIM * VALUE
                gradients += wanted * (8 + 8 + DIM * VALUE)
    nothing = {"features": 0, "gathered": 0}
    assert report["remote_bytes_by_kind"] == {"topology": topology, "rows": rows, "gradients": gradients, **nothing}
    assert report["remote_bytes"] == topology + rows + gradients
    assert report["remote_bytes_per_step"]["topology"] == pytest.approx(topology / STEPS)
    messages = workers * others  # of one exchange
    assert report["messages_per_step"] == {
        "topology": (1 + (3 if exchange == "messages" else 2) * len(FANOUT)) * messages,
        "rows": (3 if exchange == "messages" else 1) * messages,
        "gradients": messages,
        **nothing,
    }
