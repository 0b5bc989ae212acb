"""Training steps of distgnn on a graph of .npy arrays, timed by stage; prints one line of JSON.

The loop is that of `PhaseTrainer.train` without records and checkpoints: loader, feed, `train_step`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from distgnn.config_reading import load_config
from distgnn.distributed.process_group import WorkerGroup
from distgnn.graph import Topology
from distgnn.loader import DeviceFeed, PrefetchLoader
from distgnn.training.recorder import Recorder
from distgnn.training.totals import STAGES
from distgnn.training.trainer import PhaseTrainer


def trainer_of(options: argparse.Namespace, run: Path) -> PhaseTrainer:
    """A trainer on the arrays' graph in one partition, as `distgnn train` would make it."""
    folder = Path(options.graph)
    indptr, indices = np.load(folder / "indptr.npy"), np.load(folder / "indices.npy")
    n_users = int(np.load(folder / "n_users.npy"))
    user = np.repeat(np.arange(n_users), np.diff(indptr[: n_users + 1]))
    topology = Topology.from_edges(user, indices[: len(user)] - n_users, n_users, len(indptr) - 1 - n_users)
    config = load_config(
        None,
        [
            f"run.out={run}",
            "run.tensorboard=false",
            f"model.encoder={options.model}",
            f"model.dim={options.dim}",
            f"sampler.fanout={options.fanout}",
            f"sampler.expand={options.expand}",
            "sampler.time_respecting=false",
            "loss.name=bpr",
            f"optim.lr={options.lr}",
            f"train.batch_size={options.batch}",
            *options.overrides,
        ],
    )
    group = WorkerGroup.join(0, 1)
    bounds = np.array([0, topology.n_nodes])
    recorder = Recorder(str(run), tensorboard=False, active=False)
    return PhaseTrainer(config, str(run), topology, bounds, "fit", group, recorder, {})


def main() -> int:
    """Warm up, time, print."""
    options = _parser().parse_args()
    cores = sorted(os.sched_getaffinity(0))[: options.threads]
    os.sched_setaffinity(0, cores)  # the sampling thread shares them
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="distgnn-training-") as folder:
        trainer = trainer_of(options, Path(folder))
        sampler = trainer.config.sampler
        loader = PrefetchLoader(trainer.order, trainer.sampler, 0, sys.maxsize, threads=1, prefetch=sampler.prefetch)
        feed = DeviceFeed(loader, trainer.group.device, trainer.block_tensors)
        losses: list[float] = []
        edges = rows = 0
        started = 0.0
        for batch, blocks in feed:
            losses.append(float(trainer.train_step(batch, blocks)))
            edges += batch.sampled_edges
            rows += len(batch.nodes)
            if len(losses) == options.warm_up:
                trainer.totals.seconds.update(dict.fromkeys(STAGES, 0.0))
                loader.blocked_seconds = feed.copy_seconds = 0.0
                edges = rows = 0
                started = time.perf_counter()
            steps = len(losses) - options.warm_up
            enough = steps >= options.least_steps and len(losses) * options.batch >= options.compared
            if steps > 0 and enough and time.perf_counter() - started >= options.seconds:
                break
        seconds = time.perf_counter() - started
        stages = {name: 1000 * s / steps for name, s in trainer.totals.seconds.items() if name != "evaluation"}
        stages["fetch"] += 1000 * feed.copy_seconds / steps
        stages["waiting"] = 1000 * loader.blocked_seconds / steps
    stop = options.compared // options.batch
    last = losses[stop - -(-stop // 10) : stop]
    figures = {
        "positives_per_second": steps * options.batch / seconds,
        "step_ms": 1000 * seconds / steps,
        "stages_ms": stages,
        "steps": steps,
        "edges_a_step": edges / steps,
        "rows_a_step": rows / steps,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "loss": float(np.mean(last)) if last else None,
    }
    print(json.dumps(figures), flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__)
    result.add_argument("graph", help="folder of indptr.npy, indices.npy and n_users.npy")
    result.add_argument("--model", default="lightgcn", choices=("lightgcn", "graphsage"))
    result.add_argument("--batch", type=int, default=1024)
    result.add_argument("--fanout", default="10,10")
    result.add_argument("--dim", type=int, default=64)
    result.add_argument("--lr", type=float, default=0.02)
    result.add_argument("--threads", type=int, default=1)
    result.add_argument("--expand", default="new", choices=("new", "all"))
    result.add_argument("--warm-up", type=int, default=20, help="steps before the clock starts")
    result.add_argument("--seconds", type=float, default=10.0, help="timed at least")
    result.add_argument("--least-steps", type=int, default=20, help="timed at least")
    result.add_argument("--compared", type=int, default=0, help="positives after which to give the loss (0: not)")
    result.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    return result


if __name__ == "__main__":
    sys.exit(main())
