"""Records of training, and the live line."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import torch

from distgnn.distributed.traffic import KINDS
from distgnn.timeline import RECORD
from distgnn.types import MiniBatch, UserError

if TYPE_CHECKING:
    from distgnn.training.trainer import PhaseTrainer


class Window:
    """Loss and throughput between two records; the loss is the global one."""

    def __init__(self, trainer: PhaseTrainer) -> None:
        self.trainer = trainer
        self.started = self.first = time.perf_counter()
        self.paused = 0.0
        self.out = 0.0  # seconds in evaluation, over the phase
        self.losses: list[torch.Tensor] = []
        self.edges = self.positives = 0
        self.first_step = trainer.step
        self.last: dict[str, float] = {}
        self.traffic = dict.fromkeys(KINDS, 0)  # up to the last record, over the workers

    def add(self, loss: torch.Tensor, batch: MiniBatch) -> None:
        """A step: its loss is this worker's part."""
        self.losses.append(loss)
        self.edges += batch.sampled_edges
        self.positives += batch.global_size

    def pause(self) -> None:
        """Evaluation begins."""
        self.paused = time.perf_counter()

    def unpause(self) -> None:
        """Evaluation has ended."""
        away = time.perf_counter() - self.paused
        self.started += away
        self.out += away

    def training_seconds(self) -> float:
        """Of the phase so far, without evaluation."""
        return time.perf_counter() - self.first - self.out

    def record(self) -> None:
        """One record for the steps since the last one; a collective."""
        if not self.losses:
            return
        trainer = self.trainer
        began = time.perf_counter()
        local = torch.stack(self.losses).double().sum().item()
        loss, edges = trainer.group.sum_floats([local, float(self.edges)])
        traffic = trainer.totals.traffic.over_workers(trainer.group)
        moved = {kind: traffic[kind] - self.traffic[kind] for kind in KINDS}
        seconds = time.perf_counter() - self.started
        if trainer.group.watch.timeline is not None:
            trainer.group.watch.timeline.add(RECORD, began)
        self.last = {
            "loss": loss / len(self.losses),
            "edges": edges / seconds,
            "positives": self.positives / seconds,
        }
        trainer.loss = self.last["loss"]
        if not np.isfinite(loss):
            raise UserError(
                f"{trainer.phase} step {trainer.step}: the loss is {loss}: training diverged; lower optim.lr"
            )
        trainer.recorder.add(
            {
                "phase": trainer.phase,
                "step": trainer.step,
                "epoch": (trainer.step - 1) // trainer.order.steps_per_epoch + 1,
                "loss": self.last["loss"],
                "seconds": seconds,
                "positives_per_second": self.last["positives"],
                "sampled_edges_per_second": self.last["edges"],
                "remote_bytes": sum(moved.values()),
                "remote_bytes_by_kind": moved,
            }
        )
        self.traffic = traffic
        self.losses, self.edges, self.positives = [], 0, 0
        self.started = time.perf_counter()

    def show(self, epochs: int, stop: int, last: bool = False) -> None:
        """The live line."""
        trainer = self.trainer
        done = trainer.step - self.first_step
        left = self.training_seconds() / max(done, 1) * (stop - trainer.step)
        figures = "loss -"  # until the first record
        if self.last:
            figures = (
                f"loss {self.last['loss']:.4f}  {self.last['edges'] / 1e6:.2f} M edges/s  "
                f"{self.last['positives']:,.0f} positives/s"
            )
        trainer.recorder.progress(
            f"{trainer.phase} epoch {min(trainer.step // trainer.order.steps_per_epoch + 1, epochs)}/{epochs}  "
            f"step {trainer.step}/{stop}  {figures}  ETA {int(left) // 60}:{int(left) % 60:02d}",
            last=last,
        )
