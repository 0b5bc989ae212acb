"""The result does not depend on the number of partitions, workers or sampler threads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distgnn.config import load_config
from distgnn.training.launch import run_training

CELLS = [(1, 1, 1), (8, 1, 2), (8, 2, 1), (2, 2, 2)]  # partitions, workers, sampler threads
MODELS = {
    "lightgcn, in-batch softmax, adam": [],
    "graphsage, mlp, dropout, bpr, sgd": [
        "model.encoder=graphsage",
        "model.tower=mlp",
        "model.dropout=0.2",
        "loss.name=bpr",
        "loss.num_negatives=2",
        "optim.name=sgd",
        "optim.lr=0.05",
    ],
}


def losses(run: Path) -> list[float]:
    """Loss of every step."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


def blocks(run: Path) -> dict[str, bytes]:
    """Bytes of every dumped step."""
    return {str(f.relative_to(run)): f.read_bytes() for f in sorted((run / "blocks").rglob("*.npz"))}


@pytest.mark.parametrize("model", MODELS)
def test_blocks_are_equal_and_losses_agree(tmp_path: Path, model: str) -> None:
    runs = []
    for parts, workers, threads in CELLS:
        run = tmp_path / f"{parts}-{workers}-{threads}"
        overrides = [
            f"run.out={run}",
            f"partition.parts={parts}",
            f"cluster.workers={workers}",
            f"sampler.threads={threads}",
            "sampler.fanout=5,5",
            "train.max_steps=60",
            "train.batch_size=256",
            "train.log_every=1",
            "run.dump_blocks=true",
            "run.tensorboard=false",
        ]
        run_training(load_config(None, [*overrides, *MODELS[model]]))
        runs.append(run)
    reference, first = losses(runs[0]), blocks(runs[0])
    assert len(reference) == 60
    assert len(first) == 60
    for run in runs[1:]:
        assert blocks(run) == first
        assert losses(run) == pytest.approx(reference, rel=1e-6)
