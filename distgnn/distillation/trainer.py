"""Training a student's rows on one worker: shares of the steps as in training, lazy Adam at the rows' owners."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import torch
from torch import nn

from distgnn import beat
from distgnn.config import Config, OptimConfig
from distgnn.distillation.batches import CandidateSampler, StudentBatch
from distgnn.distillation.compression import best_rank_rows, unit_rows
from distgnn.distillation.objective import student_loss
from distgnn.distillation.teacher import Teacher, top_lists
from distgnn.distributed.device_memory import move
from distgnn.distributed.embedding import ShardedEmbedding
from distgnn.distributed.process_group import WorkerGroup
from distgnn.graph import Topology
from distgnn.loader import PrefetchLoader
from distgnn.sampler import SeedOrder
from distgnn.timeline import BACKWARD, CHECKPOINT, FETCH, FORWARD, RECORD, UPDATE
from distgnn.timing import StageClock
from distgnn.training.checkpoint import (
    CheckpointInfo,
    list_checkpoints,
    load_checkpoint,
    remove_checkpoint,
    save_checkpoint,
)
from distgnn.training.inference import OwnNodes
from distgnn.training.recorder import Recorder
from distgnn.types import USER, UserError

_STEP_OPTIONS = ("dim", "epochs", "batch_size", "lr", "top", "listed", "negatives", "temperature", "label_weight")


class StudentTrainer:
    """Distils a teacher into rows of width `distill.dim`.

    Args:
        config: with `distill.batch_size` resolved. run: directory of the student's run.
        topology: the teacher's training graph. bounds: int64 `[W + 1]` node ranges.
        facts: `dataset` and `dataset_hash` for the checkpoints.
    """

    def __init__(
        self,
        config: Config,
        run: str,
        topology: Topology,
        bounds: np.ndarray,
        own: OwnNodes,
        teacher: Teacher,
        group: WorkerGroup,
        facts: dict[str, str],
    ) -> None:
        self.config, self.distill, self.run, self.topology = config, config.distill, run, topology
        self.bounds, self.own, self.teacher, self.group, self.facts = bounds, own, teacher, group, facts
        self.is_user = own.node_type == USER
        # Scores of about 1: unit users, items of mean square 1.
        self.item_scale = float(np.sqrt(np.mean(np.square(teacher.items, dtype=np.float64).sum(1)))) or 1.0
        own_rows = np.where(self.is_user[:, None], unit_rows(teacher.own), teacher.own / self.item_scale)
        self.teacher_rows = own_rows.astype(np.float32)
        self.optim = OptimConfig(name="adam", lr=self.distill.lr)
        self.embedding = ShardedEmbedding(
            own.node_type,
            own.stable_id,
            self.distill.dim,
            0.0,
            config.run.seed,
            torch.float32,
            self.optim,
            group,
            low=own.low,
            transport=config.cluster.exchange,
        )
        start = best_rank_rows(self.teacher_rows, self.is_user, self.distill.dim, group)
        self.embedding.weight.copy_(torch.from_numpy(start))
        self.order = SeedOrder(topology, self.distill.batch_size, config.run.seed, bounds, group.rank)
        self.seconds = dict.fromkeys(("lists", "sampling", "fetch", "forward", "backward", "optimizer"), 0.0)
        self.step = self.positives = self.remote_rows = 0
        self.training = 0.0

    def train(self, recorder: Recorder) -> None:
        """All epochs, or those after the checkpoint that was resumed; a collective."""
        self.recorder = recorder
        started = time.perf_counter()
        users = np.flatnonzero(self.is_user & (self.own.degree > 0))
        list_of = np.full(len(self.own.nodes), -1, np.int64)
        list_of[users] = np.arange(len(users))
        nodes = self.own.nodes[users]
        top = self.distill.top
        lists = top_lists(self.teacher_rows[users], nodes, self.teacher.items, self.topology, top, self.group)
        self.seconds["lists"] = time.perf_counter() - started
        self.recorder.say(f"distill: lists of {lists.shape[1]} for every user in {self.seconds['lists']:.1f} s")
        sampler = CandidateSampler(self.topology, self.own, lists, list_of, self.distill, self.config.run.seed)
        steps = self.distill.epochs * self.order.steps_per_epoch
        loader = PrefetchLoader(
            self.order,
            sampler,
            self.step,
            steps,
            threads=self.config.sampler.threads,
            prefetch=self.config.sampler.prefetch,
        )
        own = move(torch.from_numpy(self.teacher_rows), self.group.device)
        items = move(torch.from_numpy(self.teacher.items / np.float32(self.item_scale)), self.group.device)
        losses: list[torch.Tensor] = []
        started = time.perf_counter()
        for batch in loader:
            losses.append(self._step(batch, own, items, steps))
            self.step = batch.step + 1
            epoch_done = self.step % self.order.steps_per_epoch == 0
            if epoch_done or self.step % self.config.train.log_every == 0:
                with beat.within(RECORD):
                    self._record(losses, time.perf_counter() - started, steps)
                losses = []
            if epoch_done:
                with beat.within(CHECKPOINT):
                    self.save()
        self.training = time.perf_counter() - started

    def _step(self, batch: StudentBatch, own: torch.Tensor, items: torch.Tensor, steps: int) -> torch.Tensor:
        clock = StageClock(self.seconds)
        self.seconds["sampling"] += batch.seconds
        beat.at(FETCH, batch.step)
        plan = self.embedding.plan(batch.nodes, self.bounds, exchange=False)
        rows = self.embedding.fetch(plan)
        clock.lap("fetch", then=FORWARD)
        temperature = self.config.loss.temperature
        loss = student_loss(self.distill, temperature, batch, rows, own, items, self.group)
        clock.lap("forward", then=BACKWARD)
        loss.backward()
        clock.lap("backward", then=UPDATE)
        assert rows.grad is not None
        self.embedding.optim = dataclasses.replace(self.optim, lr=self.distill.lr * (1.0 - batch.step / steps))
        self.embedding.apply_gradient(plan, rows.grad, batch.step + 1)
        clock.lap("optimizer")
        self.positives += len(batch.share)
        self.remote_rows += plan.n_remote(self.group.rank)
        return loss.detach()

    def _record(self, losses: list[torch.Tensor], seconds: float, steps: int) -> None:
        local = torch.stack(losses).double().sum().item()
        loss = self.group.sum_floats([local])[0] / len(losses)
        if not np.isfinite(loss):
            raise UserError(f"distill step {self.step}: the loss is {loss}: lower distill.lr")
        epoch = (self.step - 1) // self.order.steps_per_epoch + 1
        record = {"phase": "student", "step": self.step, "epoch": epoch, "loss": loss, "seconds": seconds}
        self.recorder.add(record)
        self.recorder.progress(
            f"distill epoch {epoch}/{self.distill.epochs}  step {self.step}/{steps}  loss {loss:.4f}",
            last=self.step == steps,
        )
        self.loss = loss

    def settings(self) -> dict[str, Any]:
        """What a checkpoint's steps depend on."""
        return {
            "run.seed": self.config.run.seed,
            **{f"distill.{name}": getattr(self.distill, name) for name in _STEP_OPTIONS},
        }

    def save(self) -> None:
        """Write a checkpoint and drop the ones before it; a collective."""
        facts = {
            **self.facts,
            "schedule": {},
            "teacher": self.teacher.content_hash,
            "steps": self.settings(),
        }
        self.topology.refuse_change()
        save_checkpoint(
            self.run, self.teacher.phase, self.step, nn.Identity(), None, self.embedding, self.own, self.group, facts
        )
        if self.group.rank == 0:
            for info in list_checkpoints(self.run)[:-1]:
                remove_checkpoint(info)
        self.group.barrier()
        self.group.announce({"phase": "student", "step": self.step, "loss": self.loss})

    def resume(self, info: CheckpointInfo) -> None:
        """Go on from a checkpoint.

        Raises:
            UserError: not this dataset's or teacher's, or of options with which its steps would be other steps.
        """
        if info.manifest.get("teacher") != self.teacher.content_hash:
            raise UserError(
                f"{info.uri}: was distilled from the vectors of another teacher, or of this one before it was trained "
                "again; choose another run.out"
            )
        known = info.manifest["steps"]
        for key, value in self.settings().items():
            if known.get(key) != value:
                raise UserError(
                    f"{info.uri}: was distilled with {key} = {known.get(key)}, now {value}; set it back, or choose "
                    "another run.out"
                )
        load_checkpoint(info, nn.Identity(), None, self.embedding, self.topology, self.facts["dataset_hash"])
        self.step = info.step
