"""The command line with a fault in one worker at one step: `python -m tests.faults.faulty_worker train ...`.

FAULT_RANK and FAULT_STEP say where (the step counts from 1); FAULT_DO says what happens before it:

    cut FILE        the file is truncated to nothing as it lies: who maps it has no page of it left
    alter FILE      one bit of the last quarter is flipped in place
    remove FILE     the file is removed
    memory BYTES    the worker may take no more address space than it has, and that many bytes
    kill            the worker is killed (SIGKILL)
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distgnn import cli
from distgnn.config import Config
from distgnn.distributed.process_group import WorkerGroup
from distgnn.partition.dataset import PreparedDataset
from distgnn.training import launch
from distgnn.training.run import run_worker
from distgnn.training.trainer import PhaseTrainer
from distgnn.types import MiniBatch


def cut(file: str) -> None:
    os.truncate(file, 0)


def alter(file: str) -> None:
    with open(file, "r+b") as stream:
        where = Path(file).stat().st_size * 7 // 8 // 8 * 8  # the lowest byte of an integer
        stream.seek(where)
        (byte,) = stream.read(1)
        stream.seek(where)
        stream.write(bytes([byte ^ 1]))


def memory(nbytes: str) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + int(nbytes)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def kill(_: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


FAULTS: dict[str, Callable[[str], None]] = {
    "cut": cut,
    "alter": alter,
    "remove": os.unlink,
    "memory": memory,
    "kill": kill,
}


def train(config: Config, run: str, dataset: PreparedDataset, group: WorkerGroup) -> dict[str, Any]:
    """A job: training, with the fault."""
    name, _, argument = os.environ["FAULT_DO"].partition(" ")
    rank, step = int(os.environ["FAULT_RANK"]), int(os.environ["FAULT_STEP"])
    step_as_ever = PhaseTrainer.train_step

    def with_a_fault(trainer: PhaseTrainer, batch: MiniBatch, *rest: Any) -> Any:
        if batch.step + 1 == step and group.rank == rank:
            FAULTS[name](argument)
        return step_as_ever(trainer, batch, *rest)

    PhaseTrainer.train_step = with_a_fault  # type: ignore[method-assign]
    return run_worker(config, run, dataset, group)


if __name__ == "__main__":
    launch.TRAIN_JOB = "tests.faults.faulty_worker:train"
    sys.exit(cli.main())
