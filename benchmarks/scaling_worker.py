"""One worker of `benchmarks.scaling`: trains rounds of steps on its own core, counts what they hold, times its parts.

Worker 0 answers requests, lines of JSON, and hands each on to the others of its group. A round is the loop of
`PhaseTrainer.train` without records and checkpoints: loader, feed, `train_step`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from benchmarks.scaling_bound import Work, work_of
from distgnn.config_reading import load_config
from distgnn.distributed.process_group import WorkerGroup
from distgnn.distributed.traffic import KINDS
from distgnn.kernels.sparse_optimizer import gather_rows
from distgnn.loader import DeviceFeed, PrefetchLoader
from distgnn.partition.prepare import open_or_prepare
from distgnn.sampler import SeedOrder
from distgnn.training import trainer as trainer_module
from distgnn.training.recorder import Recorder
from distgnn.training.run import phase_trainer
from distgnn.training.totals import STEP_STAGES, Totals
from distgnn.training.trainer import PhaseTrainer

IDLE_SECONDS = 3600.0  # that a worker waits for the next request
REPEATS = 15
MESSAGE_BYTES = 4 << 20


class Worker:
    """A trainer and what it answers.

    Args:
        settings: of the run, as `--set` takes them. group: of the workers. folder: for the run.
    """

    def __init__(self, settings: list[str], group: WorkerGroup, folder: str) -> None:
        self.group = group
        self.config = load_config(None, [*settings, f"run.out={folder}", "run.tensorboard=false"])
        self.dataset = open_or_prepare(self.config)
        self.config = self.config.for_edges(self.dataset.n_fit).for_log(self.dataset.split, False)
        recorder = Recorder(folder, tensorboard=False, active=False)
        self.trainer: PhaseTrainer = phase_trainer(self.config, folder, self.dataset, "fit", group, recorder, None)

    def train(self, start: int, steps: int) -> dict[str, Any]:
        """Steps from `start` on, as `distgnn train` makes them; wall seconds from barrier to barrier."""
        trainer, sampler = self.trainer, self.config.sampler
        trainer.totals = totals = Totals()
        stop = start + steps
        loader = PrefetchLoader(
            trainer.order, trainer.sampler, start, stop, threads=sampler.threads, prefetch=sampler.prefetch
        )
        feed = DeviceFeed(loader, self.group.device, trainer.block_tensors)
        losses = []
        self.group.barrier()
        started, busy = time.perf_counter(), time.process_time()
        for batch, blocks in feed:
            losses.append(trainer.train_step(batch, blocks))
        busy = time.process_time() - busy
        self.group.barrier()
        seconds = time.perf_counter() - started
        own = {name: totals.seconds[name] - totals.collectives[name] for name in STEP_STAGES}
        own["fetch"] += feed.copy_seconds
        return {
            "seconds": seconds,
            "cpu_seconds": busy,
            "stages": {
                "sampling": totals.seconds["sampling"],
                "waiting": loader.blocked_seconds,
                **own,
                "collectives": sum(totals.collectives[name] for name in STEP_STAGES),
            },
            "positives": totals.positives,
            "sampled_edges": totals.sampled_edges,
            "bytes": {kind: totals.traffic.bytes[kind] for kind in KINDS},
            "exchanges": {kind: totals.traffic.exchanges[kind] for kind in KINDS},
            "in_memory": trainer.embedding.shares_memory,
            "loss": float(torch.stack(losses).double().sum()),
        }

    def stages(self, start: int, steps: int) -> dict[str, Any]:
        """The same steps one part after the other, nothing beside: seconds of each stage, and the work in them."""
        trainer, totals = self.trainer, Totals()
        trainer.totals = totals
        seconds = {"sampling": 0.0, "loss": 0.0}
        timed = _Timed(trainer_module.loss_of)
        trainer_module.loss_of = timed
        work: list[Work] = []
        try:
            for step in range(start, start + steps):
                began = time.perf_counter()
                batch = trainer.sampler.sample(trainer.order.seeds(step), step)
                seconds["sampling"] += time.perf_counter() - began
                trainer.train_step(batch)
                work.append(work_of([batch], trainer.bounds)[0])
        finally:
            trainer_module.loss_of = timed.function
        seconds["loss"] = timed.seconds
        seconds |= {name: totals.seconds[name] for name in STEP_STAGES}
        seconds["forward"] -= timed.seconds
        return {"seconds": seconds, "work": [asdict(w) for w in work]}

    def count(self, start: int, steps: int, workers: int, batch_size: int) -> dict[str, Any]:
        """What each of so many workers would do in these steps, by sampling their shares; with the whole graph."""
        config, topology = self.config, self.trainer.topology
        bounds = self.dataset.book(config.partition.method, config.parts).worker_bounds(workers)
        orders = [SeedOrder(topology, batch_size, config.run.seed, bounds, rank) for rank in range(workers)]
        sample = self.trainer.sampler.sample
        batches = ([sample(order.seeds(step), step) for order in orders] for step in range(start, start + steps))
        return {"work": [[asdict(w) for w in work_of(of_step, bounds)] for of_step in batches]}

    def bandwidths(self) -> dict[str, float]:
        """Bytes a second that every worker sends by an all_to_all over gloo, and copies in the rows that all map."""
        size, rank = self.group.size, self.group.rank
        sizes = [0 if r == rank else MESSAGE_BYTES // (size - 1) for r in range(size)]
        content, arrived = torch.zeros((2, sum(sizes)), dtype=torch.uint8)
        table = self.trainer.embedding.weight.numpy()
        index = np.random.default_rng(rank).integers(0, len(table), MESSAGE_BYTES // table[0].nbytes)
        rows = np.empty((len(index), table.shape[1]), table.dtype)

        def send() -> None:
            dist.all_to_all_single(
                arrived, content, output_split_sizes=sizes, input_split_sizes=sizes, group=self.group.cpu
            )

        messages = len(content) / self._seconds(send)
        return {"messages": messages, "memory": rows.nbytes / self._seconds(lambda: gather_rows(table, index, rows))}

    def _seconds(self, act: Callable[[], object]) -> float:
        """Median seconds, all workers at once."""
        seconds = []
        for _ in range(REPEATS):
            self.group.barrier()
            began = time.perf_counter()
            act()
            seconds.append(time.perf_counter() - began)
        return float(np.median(seconds[3:]))


def memory() -> dict[str, int]:
    """Bytes of this process; pages of several processes count in equal parts, but for `peak_rss`.

    `peak_rss`: the most that was resident. `pss`: resident now. `own`: of that, memory that is no file's.
    """
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
    now = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return {"peak_rss": peak, "pss": now["Pss"], "own": now["Pss_Anon"] + now["Pss_Shmem"]}


class _Timed:
    """A function, and the seconds spent in it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.seconds = function, 0.0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return self.function(*arguments, **named)
        finally:
            self.seconds += time.perf_counter() - began


def serve(worker: object, group: WorkerGroup, imports: int) -> None:
    """Answer requests `{"do": method, argument: value}` until there are no more; worker 0 has them from stdin.

    `{"do": "memory"}` is answered here. imports: bytes that the process had of its own before it made anything.
    """
    while True:
        line = sys.stdin.readline() if group.rank == 0 else ""
        request = json.loads(group.share_text(line or "{}"))
        if not request:
            return
        what = request.pop("do")
        answer = {**memory(), "imports": imports} if what == "memory" else getattr(worker, what)(**request)
        answers: list[Any] = [answer]
        if group.size > 1:
            answers = [None] * group.size
            dist.all_gather_object(answers, answer, group=group.cpu)
        if group.rank == 0:
            print(json.dumps({"workers": answers}), flush=True)


def run(options: argparse.Namespace, make: Callable[[list[str], WorkerGroup, str], object]) -> int:
    """Pin, join, say that the worker is ready, serve."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[options.core]})
    torch.set_num_threads(1)
    imports = memory()["own"]
    group = WorkerGroup.join(
        options.rank, options.workers, init_method=options.init_method, timeout_seconds=IDLE_SECONDS
    )
    with tempfile.TemporaryDirectory(prefix="distgnn-scaling-") as folder:
        worker = make(options.settings, group, folder)
        if group.rank == 0:
            print(json.dumps({"ready": True}), flush=True)
        serve(worker, group, imports)
    return 0


def parser(question: str | None) -> argparse.ArgumentParser:
    """Options of a worker."""
    result = argparse.ArgumentParser(description=question)
    result.add_argument("--rank", type=int, default=0)
    result.add_argument("--workers", type=int, default=1)
    result.add_argument("--core", type=int, default=0, help="which of the cores to stay on")
    result.add_argument("--init-method", default="", help="file://... where the workers find each other")
    result.add_argument("--set", dest="settings", action="append", default=[], metavar="SECTION.KEY=VALUE")
    return result


if __name__ == "__main__":
    sys.exit(run(parser(__doc__).parse_args(), Worker))
