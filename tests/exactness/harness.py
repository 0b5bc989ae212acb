"""Runs cells in groups of real gloo processes, and keeps what every worker has computed.

A group of W processes runs all its cells one after the other. Of every cell it keeps, in the folder of that name: the
loss of every step and the hash of every dumped batch (rank 0), this worker's raw row gradients of the first step and
its rows after the last, by stable id, and the summed dense gradients of the first step.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from distgnn.config import Config
from distgnn.config_reading import load_config
from distgnn.distributed.process_group import WorkerGroup
from distgnn.partition.dataset import PreparedDataset
from distgnn.training.recorder import Recorder
from distgnn.training.run import phase_trainer
from distgnn.training.trainer import PhaseTrainer
from distgnn.types import MiniBatch
from tests.exactness import breaks
from tests.exactness.cells import Cell
from tests.exactness.datasets import own_copy, prepared
from tests.two_workers import to_the_end


@dataclass
class Outcome:
    """What a cell's workers have computed together.

    Attributes:
        losses: of every step. blocks: step's file -> SHA-256. edges: seed edges of each worker's share, a step's row.
        gradients: row gradients of the first step. rows: after the last; both by type and stable id, float64 `[N, d]`.
        dense: gradients of the dense parameters in the first step.
    """

    losses: list[float]
    blocks: dict[str, str]
    edges: np.ndarray
    gradients: np.ndarray
    rows: np.ndarray
    dense: dict[str, np.ndarray]


class _Watch:
    """Takes the raw gradients out of a trainer's first step."""

    def __init__(self, trainer: PhaseTrainer, config: Config) -> None:
        self.trainer, self.config = trainer, config
        self.edges: list[int] = []
        self.rows = np.empty(0)
        self.dense: dict[str, np.ndarray] = {}
        self._step = trainer.train_step
        trainer.train_step = self  # type: ignore[assignment, method-assign]

    def __call__(self, batch: MiniBatch, *arguments: object) -> torch.Tensor:
        embedding, optim = self.trainer.embedding, self.config.optim
        before = embedding.weight.clone()
        loss: torch.Tensor = self._step(batch, *arguments)  # type: ignore[arg-type]
        if not self.edges:
            if optim.name == "sgd":
                rows = (before - embedding.weight) / optim.lr
            else:  # moments start at 0
                rows = embedding.moments[0] / (1 - optim.beta1)
            self.rows = rows.numpy().copy()
            for name, parameter in self.trainer.model.named_parameters():
                assert parameter.grad is not None
                self.dense[name] = parameter.grad.numpy().copy()
        self.edges.append(len(batch.share))
        return loss


def _run_cell(cell: Cell, root: Path, folder: Path, group: WorkerGroup) -> None:
    dataset_folder = prepared(cell.graph, cell.parts, root)
    if cell.topology == "partitioned":
        dataset_folder = own_copy(dataset_folder, group.rank, group.size)
    method = PreparedDataset.open(str(dataset_folder), verify=False).partitionings()[0].rpartition("-")[0]
    config = load_config(None, [f"partition.method={method}", *cell.overrides()])
    dataset = PreparedDataset.open(str(dataset_folder), verify=False)
    run = folder / str(cell)
    recorder = Recorder(str(run), tensorboard=False, active=group.rank == 0)
    trainer = phase_trainer(config, str(run), dataset, "fit", group, recorder, None)
    watch = _Watch(trainer, config)
    trainer.train(config.train.max_steps, None, config.train.max_steps)
    own = trainer.own
    np.savez(
        run / f"rank{group.rank}.npz",
        node=own.node_type.astype(np.int64) * trainer.topology.n_users + own.stable_id,
        edges=watch.edges,
        gradients=watch.rows,
        rows=trainer.embedding.weight.numpy(),
        **{f"dense {name}": gradient for name, gradient in watch.dense.items()},
    )
    if group.rank == 0:
        dumps = sorted((run / "blocks").rglob("*.npz"))
        facts = {
            "losses": [record["loss"] for record in recorder.records],
            "blocks": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in dumps},
        }
        (run / "facts.json").write_text(json.dumps(facts))
        shutil.rmtree(run / "blocks")
        shutil.rmtree(run / "checkpoints")
    group.barrier()


def _work(rank: int, workers: int, cells: list[Cell], root: Path, folder: Path, break_name: str) -> None:
    torch.set_num_threads(1)
    if break_name:
        breaks.apply(break_name)
    meet = folder / f"meet-{workers}"
    group = WorkerGroup.join(rank, workers, init_method=f"file://{meet}", timeout_seconds=120)
    for cell in cells:
        _run_cell(cell, root, folder, group)
    group.leave()


def run_cells(cells: list[Cell], root: Path, folder: Path, break_name: str = "", timeout: float = 600.0) -> None:
    """Run cells, those of one number of workers after those of another.

    Args:
        root: where the prepared datasets are, or are made. folder: for the outcomes.
        break_name: one of `breaks.BREAKS` that every worker makes; empty: none.
        timeout: seconds for all cells of a number of workers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for cell in cells:  # not by several workers at once
        made = prepared(cell.graph, cell.parts, root)
        for rank in range(cell.workers if cell.topology == "partitioned" else 0):
            own_copy(made, rank, cell.workers)
    context = multiprocessing.get_context("spawn")
    for workers in sorted({cell.workers for cell in cells}):
        chosen = [cell for cell in cells if cell.workers == workers]
        processes = [
            context.Process(target=to_the_end, args=(_work, rank, workers, chosen, root, folder, break_name))
            for rank in range(workers)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout)
            if process.is_alive():
                process.kill()
        assert [process.exitcode for process in processes] == [0] * workers, chosen


def outcome(cell: Cell, folder: Path) -> Outcome:
    """What was computed of a cell."""
    run = folder / str(cell)
    facts = json.loads((run / "facts.json").read_text())
    ranks = [np.load(run / f"rank{rank}.npz") for rank in range(cell.workers)]
    order = np.argsort(np.concatenate([rank["node"] for rank in ranks]))
    return Outcome(
        losses=facts["losses"],
        blocks=facts["blocks"],
        edges=np.stack([rank["edges"] for rank in ranks], 1),
        gradients=np.concatenate([rank["gradients"] for rank in ranks])[order],
        rows=np.concatenate([rank["rows"] for rank in ranks])[order],
        dense={name: ranks[0][name] for name in ranks[0].files if name.startswith("dense ")},
    )


def differences(cell: Cell, folder: Path, tolerance: float = 1e-9) -> list[str]:
    """What differs between a cell and its reference: nothing, where the promise is kept."""
    ours, theirs = outcome(cell, folder), outcome(cell.reference, folder)
    found = [] if ours.blocks == theirs.blocks else ["blocks"]
    pairs = {
        "losses": (np.array(ours.losses), np.array(theirs.losses)),
        "row gradients": (ours.gradients, theirs.gradients),
        "rows": (ours.rows, theirs.rows),
    }
    if theirs.dense:  # together: some are 0 but for rounding (an item's bias cancels in BPR)
        names = sorted(theirs.dense)
        pairs["dense gradients"] = tuple(
            np.concatenate([outcome.dense[name].reshape(-1) for name in names]) for outcome in (ours, theirs)
        )
    for name, (a, b) in pairs.items():
        assert np.abs(b).max() > 0, name
        if a.shape != b.shape or not np.abs(a - b).max() <= tolerance * np.abs(b).max():
            found.append(name)
    return found
