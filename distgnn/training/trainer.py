"""One phase of training on one worker: plain torch.distributed, and the same code in a group of one.

seeds -> minibatch -> fetch rows -> encoder, towers, loss -> backward -> rows' gradients home, sparse and dense update
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch

from distgnn import beat
from distgnn.config import Config
from distgnn.distributed.data_parallel import wrap
from distgnn.distributed.device_memory import RowBuffer
from distgnn.distributed.embedding import RowPlan, ShardedEmbedding
from distgnn.distributed.features import FeatureStore, NodeFeatures
from distgnn.distributed.hot_rows import HotNodes, hot_nodes
from distgnn.distributed.output_board import OutputBoard
from distgnn.distributed.probable_nodes import probable_nodes
from distgnn.distributed.process_group import WorkerGroup
from distgnn.graph import Topology
from distgnn.loader import DeviceFeed, PrefetchLoader
from distgnn.nn.batch import NO_KEYS, BlockTensors, block_tensors, dropout_key, entry_index, node_keys, row_types
from distgnn.nn.model import GraphRecommender
from distgnn.sampler import NeighborSampler, SeedOrder, store_of
from distgnn.timeline import (
    BACKWARD,
    BLOCKED,
    CHECKPOINT,
    DENSE,
    EVALUATION,
    FETCH,
    FORWARD,
    RECORD,
    UPDATE,
)
from distgnn.timing import StageClock
from distgnn.training.checkpoint import (
    CheckpointFolder,
    CheckpointInfo,
    checkpoint_folders,
    choose_checkpoint,
    load_checkpoint,
    remove_checkpoint,
    save_checkpoint,
)
from distgnn.training.dense_optimizer import dense_optimizer
from distgnn.training.dump import dump_blocks
from distgnn.training.evaluation import RankingResult, build_ranking_task, evaluate_ranking
from distgnn.training.inference import ModelScorer, OwnNodes, infer, infer_sampled
from distgnn.training.objective import loss_of
from distgnn.training.recorder import Recorder
from distgnn.training.step_settings import refuse_other_steps, step_settings
from distgnn.training.totals import STEP_STAGES, Totals
from distgnn.training.window import Window
from distgnn.types import MiniBatch, UserError


@dataclass
class Schedule:
    """Where a phase stands; goes into checkpoints.

    Attributes:
        best_ndcg, best_epoch: of the validation split; epochs count from 1.
        stale: evaluations since the best one.
        final_epochs: epochs of the final fit, once known.
    """

    best_ndcg: float = -1.0
    best_epoch: int = 0
    stale: int = 0
    final_epochs: int = 0


class PhaseTrainer:
    """Trains one phase on one topology.

    Args:
        config: of the run. run: its directory. bounds: int64 `[W + 1]` node ranges.
        topology: `fit` or `full`, with all partitions at every worker or with each worker's own.
        phase: fit or full. dataset_facts: `dataset` and `dataset_hash` for the checkpoints.
        tables: memory of the embedding rows, moments and features; None: the worker's device.
        features: by role, `user` and `item`, float32 `[n, f]` by stable id; unused with `model.features = false`.
    """

    def __init__(
        self,
        config: Config,
        run: str,
        topology: Topology,
        bounds: np.ndarray,
        phase: str,
        group: WorkerGroup,
        recorder: Recorder,
        dataset_facts: dict[str, str],
        tables: torch.device | None = None,
        features: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.config, self.run, self.topology, self.phase = config, run, topology, phase
        self.group, self.recorder, self.bounds, self.dataset_facts = group, recorder, bounds, dataset_facts
        if topology.n_edges == 0:
            raise UserError(f"the {phase} graph has no edge: nothing to train on; give a larger log or a smaller split")
        self.dtype = getattr(torch, config.run.dtype)
        self.own = OwnNodes(topology, bounds, group.rank)
        own = self.own
        n_hot = config.cluster.n_hot(topology.n_nodes)
        wire = torch.bfloat16 if config.cluster.wire == "bfloat16" else None
        self.embedding = ShardedEmbedding(
            own.node_type,
            own.stable_id,
            config.model.dim,
            config.model.init_std,
            config.run.seed,
            self.dtype,
            config.optim,
            group,
            tables,
            low=own.low,
            hot=hot_nodes(n_hot, own.low, own.node_type, own.stable_id, own.degree, group),
            wire=wire,
            transport=config.cluster.exchange,
        )
        self.features = None
        if features and config.model.features:
            described = (own.node_type, own.stable_id)
            cached = self._cached_nodes()
            self.features = FeatureStore(features, *described, self.embedding, self.dtype, group, wire, cached, bounds)
        elif config.cluster.feature_cache:
            raise UserError(
                "cluster.feature_cache holds features of other workers' nodes, and the model takes none: leave it out, "
                "or see data.item_features and model.features"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.run.seed % 2**63)
            model = GraphRecommender(config.model, len(config.sampler.fanout), self.feature_widths)
        self.model = model.to(device=group.device, dtype=self.dtype)
        self.wrapped = wrap(self.model, group)
        self.board = None
        if self.embedding.shares_memory and config.loss.gathers:
            self.board = OutputBoard.of(2 * config.train.batch_size, self.model.out_dim, self.dtype, group)
        self.optimizer = dense_optimizer(self.model, config.optim)
        store = store_of(topology, bounds, group, steps=config.sampler.prefetch, transport=config.cluster.exchange)
        self.order = SeedOrder(topology, config.train.batch_size, config.run.seed, bounds, group.rank, store)
        self.sampler = NeighborSampler(
            topology,
            config.sampler.fanout,
            config.run.seed,
            expand=config.sampler.expand,
            exclude_targets=config.sampler.exclude_targets,
            negatives=config.loss.negatives_kind(),
            num_negatives=config.loss.num_negatives,
            time_respecting=config.sampler.respects_time,
            weighted=config.sampler.weighted,
            leaf_degrees=self.model.encoder.reads_degrees,
            store=store,
        )
        self._rows, self._gradients = RowBuffer(), self.embedding.gradient_buffer()  # of a step's rows
        self._most_items = int(np.diff(topology.user_offsets).max(initial=0))  # of a user
        self.schedule = Schedule()
        self.totals = Totals()
        self.step = 0
        self.loss: float | None = None  # global, of the last record
        self.validated: dict[str, float] = {}  # of the last validation

    def _cached_nodes(self) -> HotNodes | None:
        """Nodes of others whose features this worker holds; None without `cluster.feature_cache`."""
        config, own = self.config, self.own
        n_held = config.cluster.n_cached(self.topology.n_nodes)
        if self.group.size == 1 or not n_held:
            return None
        high = own.low + len(own.stable_id)
        hot, batch_size = self.embedding.hot, config.train.batch_size
        return probable_nodes(n_held, self.topology, own.low, high, hot, config.sampler, batch_size)

    @property
    def feature_widths(self) -> dict[str, int]:
        """Width of the features that the model takes, by role."""
        return {} if self.features is None else self.features.widths

    def release(self) -> None:
        """Drop rows, moments, features and the sampler's tables: the memory is wanted for something else."""
        self.embedding.release()
        self._rows, self._gradients, self.board = RowBuffer(), RowBuffer(), None  # they may lie in the rows' memory
        self.topology.drop_tables()
        if self.features is not None:
            self.features.release()

    def block_tensors(self, batch: MiniBatch) -> list[BlockTensors]:
        """The minibatch's blocks on the worker's device; on a GPU the copies are asynchronous."""
        keys = node_keys(batch.node_type, batch.stable_id) if self.config.model.dropout else NO_KEYS
        return block_tensors(batch.blocks, keys, self.group.device, self.dtype, self._gradients)

    def fetch_features(self, plan: RowPlan, batch: MiniBatch) -> NodeFeatures | None:
        """Features of the minibatch's nodes, where the model takes any; a collective."""
        if self.features is None:
            return None
        return self.features.fetch(plan, batch.nodes, row_types(batch), self.totals.traffic)

    def train_step(self, batch: MiniBatch, blocks: list[BlockTensors] | None = None) -> torch.Tensor:
        """Forward, backward and update of one step; a collective.

        Args:
            blocks: the minibatch's, where they are on the device already.

        Returns:
            This worker's part of the loss, detached.
        """
        clock = self._clock(batch.step)
        beat.at(FETCH, batch.step)
        plan = self.embedding.plan(batch.nodes, self.bounds, exchange=self.features is not None)
        blocks = self.block_tensors(batch) if blocks is None else blocks
        rows = self.embedding.fetch(plan, self._rows)
        ready = self._own_backward_end(rows)
        features = self.fetch_features(plan, batch)
        clock.lap("fetch", then=FORWARD)
        self.wrapped.train()
        if self.optimizer is not None:
            self.optimizer.zero_grad(set_to_none=True)
        key = dropout_key(self.config.run.seed, batch.step)
        entries = entry_index(batch, rows.device)
        user, item = self.wrapped(blocks, rows, batch.n_seed_users, key, features, entries)
        loss = loss_of(self.config.loss, batch, user, item, self.topology, self.group, self.totals.traffic, self.board)
        clock.lap("forward", then=BACKWARD)
        loss.backward()
        if ready:
            beat.left()
            self.group.watch.collected(DENSE, ready[-1])
        clock.lap("backward", then=UPDATE)
        assert rows.grad is not None
        self.embedding.apply_gradient(plan, rows.grad, batch.step + 1)
        if self.optimizer is not None:
            self.optimizer.step()
        clock.lap("optimizer", UPDATE)
        self.embedding.count(plan, self.totals.traffic)
        self._count(batch)
        return loss.detach()

    def _clock(self, step: int) -> StageClock:
        """Of the stages of a step, counted from 0, or of what follows it."""
        timeline = self.group.watch.timeline
        if timeline is not None:
            timeline.step, timeline.phase = step, self.phase
        return StageClock(self.totals.seconds, self.group.watch, self.totals.collectives)

    def _own_backward_end(self, rows: torch.Tensor) -> list[float]:
        """Gets the time at which the backward pass reaches the rows: what comes after waits for dense gradients."""
        ready: list[float] = []

        def reached(_: torch.Tensor) -> None:
            ready.append(time.perf_counter())
            beat.entered()

        if self.wrapped is not self.model and self.group.size > 1:
            rows.register_post_accumulate_grad_hook(reached)
        return ready

    def _count(self, batch: MiniBatch) -> None:
        totals = self.totals
        totals.seconds["sampling"] += batch.seconds
        totals.steps += 1
        totals.positives += len(batch.share)
        totals.sampled_edges += batch.sampled_edges
        totals.traffic.add("topology", *batch.sent)
        if self._most_items >= self.topology.n_items:
            every = self.topology.degree(batch.node_of(batch.user_index)) >= self.topology.n_items
            totals.users_with_every_item += int(every.sum())
        totals.without_negatives += batch.without_negatives

    def resume(self, info: CheckpointInfo) -> None:
        """Go on from a checkpoint.

        Raises:
            UserError: not this dataset's, not this model's, or settings with which its steps would be other steps.
        """
        refuse_other_steps(info, self.config, self.feature_widths)
        load_checkpoint(
            info,
            self.model,
            self.optimizer,
            self.embedding,
            self.topology,
            self.dataset_facts["dataset_hash"],
        )
        self.group.barrier()  # rows in shared memory are read by others
        self.step = info.step
        self.schedule = Schedule(**info.manifest["schedule"])

    def train(self, epochs: int, validation: tuple[np.ndarray, np.ndarray] | None, max_steps: int = 0) -> None:
        """Run the phase to its end.

        Args:
            epochs: at most. validation: stable (users, items) that steer early stopping, or None.
            max_steps: stop after that many steps (0: epochs decide).
        """
        train = self.config.train
        steps = epochs * self.order.steps_per_epoch
        stop = min(max_steps, steps) if max_steps else steps
        sampler = self.config.sampler
        beat.at(BLOCKED, self.step, self.phase)
        timeline = self.group.watch.timeline
        if timeline is not None:
            timeline.phase = self.phase
        loader = PrefetchLoader(
            self.order,
            self.sampler,
            self.step,
            stop,
            threads=sampler.threads,
            prefetch=sampler.prefetch,
            timeline=timeline,
        )
        feed = DeviceFeed(loader, self.group.device, self.block_tensors, timeline)
        window = Window(self)
        own = self._own_seconds(loader, feed)
        stopped = self._stopped(train.patience)
        for batch, blocks in () if stopped else feed:
            if self.config.run.dump_blocks:
                dump_blocks(self.run, self.phase, batch, self.group)
            window.add(self.train_step(batch, blocks), batch)
            before, own = own, self._own_seconds(loader, feed)
            self.totals.own.add(own - before)
            self.step = batch.step + 1
            epoch_done = self.step % self.order.steps_per_epoch == 0
            checkpoint = epoch_done or self.step == stop
            if train.checkpoint_every:
                checkpoint = self.step % train.checkpoint_every == 0 or self.step == stop
            if self.step % train.log_every == 0 or checkpoint or epoch_done:
                with beat.within(RECORD):
                    window.record()
            window.show(epochs, stop)
            if epoch_done and validation is not None and train.eval_every:
                epoch = self.step // self.order.steps_per_epoch
                if epoch % train.eval_every == 0 or self.step == stop:
                    window.pause()
                    self._validate(validation, epoch)
                    window.unpause()
                    stopped = bool(self.group.decide(int(self._stopped(train.patience))))
            if checkpoint or stopped:
                self.save()
            if stopped:
                break
        self.totals.blocked += loader.blocked_seconds
        self.totals.blocked_by_others += loader.blocked_by_others
        self.totals.seconds["fetch"] += feed.copy_seconds
        self.totals.training += window.training_seconds()
        window.show(epochs, stop, last=True)

    def _own_seconds(self, loader: PrefetchLoader[MiniBatch], feed: DeviceFeed[BlockTensors]) -> float:
        """That went into steps so far, but for collectives and waits for other workers."""
        seconds, collectives = self.totals.seconds, self.totals.collectives
        steps = sum(seconds[stage] - collectives[stage] for stage in STEP_STAGES)
        return steps + feed.copy_seconds + loader.blocked_seconds - loader.blocked_by_others

    def _stopped(self, patience: int) -> bool:
        return self.phase == "fit" and self.schedule.stale >= patience

    def _validate(self, edges: tuple[np.ndarray, np.ndarray], epoch: int) -> None:
        result = self.evaluate(edges, exact_mrr=False)
        ndcg = result.metrics["ndcg@20"]
        if ndcg > self.schedule.best_ndcg:
            self.schedule.best_ndcg, self.schedule.best_epoch, self.schedule.stale = ndcg, epoch, 0
        else:
            self.schedule.stale += 1
        self.validated = {name: result.metrics[name] for name in ("recall@20", "ndcg@20")}
        self.recorder.add(
            {"phase": self.phase, "step": self.step, "epoch": epoch, "seconds": result.seconds, **result.metrics}
        )
        self.recorder.progress(
            f"{self.phase} epoch {epoch}: validation recall@20 {result.metrics['recall@20']:.4f} "
            f"ndcg@20 {ndcg:.4f}{' (best)' if not self.schedule.stale else ''}",
            last=True,
        )

    def vectors(self, sampled: bool = False) -> torch.Tensor:
        """Output vectors `[n_own, out_dim]` of this worker's nodes; a collective."""
        tables = (self.model, self.embedding)
        if sampled:
            return infer_sampled(*tables, self.sampler, self.own, self.bounds, self.group, features=self.features)
        memory = int(self.config.evaluate.memory_gib * 2**30)
        return infer(*tables, self.topology, self.own, self.bounds, self.group, memory, features=self.features)

    def evaluate(
        self, edges: tuple[np.ndarray, np.ndarray], *, exact_mrr: bool = True, sampled: bool = False
    ) -> RankingResult:
        """Full-catalogue metrics on held-out stable (users, items); a collective."""
        clock = self._clock(self.step - 1)
        with beat.within(EVALUATION):
            result = self._ranking(edges, exact_mrr, sampled)
        clock.lap("evaluation")
        return result

    def _ranking(self, edges: tuple[np.ndarray, np.ndarray], exact_mrr: bool, sampled: bool) -> RankingResult:
        task = build_ranking_task(self.topology, *edges, node_range=(self.own.low, self.own.high))
        scorer = ModelScorer(self.vectors(sampled), self.own, self.topology, task.users, self.group)
        return evaluate_ranking(
            scorer,
            task,
            exact_mrr=exact_mrr,
            memory_bytes=int(self.config.evaluate.memory_gib * 2**30),
            group=self.group.cpu if self.group.size > 1 else None,
        )

    def save(self) -> None:
        """Write a checkpoint and drop old ones, but for the best of the phase; a collective.

        Raises:
            UserError: a file of the dataset has changed under the run: there is no checkpoint of what came of it.
        """
        self.topology.refuse_change()
        facts = {
            **self.dataset_facts,
            "schedule": asdict(self.schedule),
            "epoch": self.step // self.order.steps_per_epoch,
            "model": asdict(self.config.model),
            "features": self.feature_widths,
            "steps": step_settings(self.config),
        }
        started = time.perf_counter()
        with beat.within(CHECKPOINT):
            save_checkpoint(
                self.run,
                self.phase,
                self.step,
                self.model,
                self.optimizer,
                self.embedding,
                self.own,
                self.group,
                facts,
            )
            if self.group.rank == 0:
                self._drop_checkpoints()
            self.group.barrier()
        if self.group.watch.timeline is not None:
            self.group.watch.timeline.add(CHECKPOINT, started)
        self.group.announce(
            {"phase": self.phase, "step": self.step, "epoch": facts["epoch"], "loss": self.loss, **self.validated}
        )

    def _drop_checkpoints(self) -> None:
        """Remove what is not to be kept, and what an earlier attempt left beyond this step."""
        now = CheckpointFolder("", self.step, self.phase).order
        best = self.schedule.best_epoch * self.order.steps_per_epoch
        folders = checkpoint_folders(self.run)
        own = [c for c in folders if c.phase == self.phase and c.order <= now]
        old = [c for c in own[: -self.config.train.keep_checkpoints] if c.step != best or self.phase == "full"]
        for folder in [*old, *(c for c in folders if c.order > now)]:
            remove_checkpoint(folder)

    def restore_best(self) -> None:
        """Go back to the best validated epoch, where it is not the last one; a collective.

        Where its checkpoint is damaged or gone, the trainer stays at the last one and says so.
        """
        best = self.schedule.best_epoch * self.order.steps_per_epoch
        if best and best != self.step:
            found, faults = choose_checkpoint(self.run, self.group, only=(self.phase, best))
            if found is None:
                why = "; ".join(faults) or "its checkpoint is gone"
                self.recorder.warn(f"the best step, {best}, cannot be had ({why}): step {self.step} is taken instead")
                return
            schedule = self.schedule
            self.resume(found)
            self.schedule = schedule
