"""The group of workers of one attempt. A group of one is a group: the same code runs without any peer."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from distgnn import beat
from distgnn.timing import Watch
from distgnn.types import UserError

START_SECONDS = 120.0  # imports take their time, whatever the timeout is
Listener = Callable[[dict[str, Any]], None]
_listeners: list[Listener] = []


@contextmanager
def progress_to(listener: Listener) -> Iterator[None]:
    """Whom this process's workers tell their figures within the block; every rank tells them equally often."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@dataclass(frozen=True)
class WorkerGroup:
    """Rank, size and the communicators.

    Attributes:
        rank, size: this worker and W.
        device: where tensors of the model live.
        default: the trainer's group (NCCL with GPUs, gloo without), for tensors on `device`.
        cpu: gloo group for host tensors.
        gather: group of its own for gathered outputs, so that their backward never interleaves with DDP's buckets.
        timeout: of a collective.
        watch: of this worker.
    """

    rank: int
    size: int
    device: torch.device
    default: Any
    cpu: Any
    gather: Any
    timeout: timedelta = timedelta(seconds=600)
    watch: Watch = field(default_factory=Watch)

    @classmethod
    def join(
        cls,
        rank: int,
        size: int,
        *,
        use_gpu: bool = False,
        timeout_seconds: float = 600.0,
        init_method: str = "",
        device: torch.device | None = None,
    ) -> WorkerGroup:
        """Initialise torch.distributed for this process (reads MASTER_ADDR and MASTER_PORT without `init_method`).

        A group that is already initialised is joined as it is.

        Args:
            device: this worker's GPU, with its index, where another launcher has chosen it; None: that of LOCAL_RANK.

        Raises:
            UserError: GPUs asked for and not there, or fewer than workers.
        """
        timeout = timedelta(seconds=timeout_seconds)
        device = (device or _own_gpu(rank)) if use_gpu else torch.device("cpu")
        if use_gpu:
            torch.cuda.set_device(device)
        with beat.waiting():
            cls._connect(rank, size, use_gpu, timeout, init_method, device)
            default = dist.group.WORLD
            cpu = dist.new_group(backend="gloo", timeout=timeout) if use_gpu else default
            gather = dist.new_group(timeout=timeout)
        return cls(rank, size, device, default, cpu, gather, timeout)

    @staticmethod
    def _connect(
        rank: int, size: int, use_gpu: bool, timeout: timedelta, init_method: str, device: torch.device
    ) -> None:
        """Initialise torch.distributed where nobody has."""
        if not dist.is_initialized():
            backend = "nccl" if use_gpu else "gloo"
            # NCCL then connects here, and not within the first collective.
            bound = device if use_gpu else None
            if size == 1:
                for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
                    os.environ.setdefault(name, "lo")  # nobody to listen for
                dist.init_process_group(
                    backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout, device_id=bound
                )
            else:
                if init_method.startswith("file://"):
                    _wait_for_all(init_method.removeprefix("file://"), rank, size)
                dist.init_process_group(
                    backend,
                    init_method=init_method or "env://",
                    rank=rank,
                    world_size=size,
                    timeout=timeout,
                    device_id=bound,
                )

    def new_cpu_group(self) -> Any:
        """A gloo group of the same workers, for a thread of its own; a collective."""
        with beat.waiting():
            return dist.new_group(backend="gloo", timeout=self.timeout)

    def communicator(self, device: torch.device) -> Any:
        """The group that moves tensors of a memory: NCCL takes no host tensors, gloo none of a GPU."""
        return self.cpu if device.type == "cpu" else self.default

    def leave(self) -> None:
        """Destroy the communicators, with their threads; nothing can be sent after it.

        A communicator lives as long as anybody refers to it, this group among others. Its threads drop tensors, for
        which they want the interpreter's lock: one that asks while the interpreter is taken down aborts the process.
        Of DistributedDataParallel's communicator torch keeps a reference to the end of the process.
        """
        for name in ("default", "cpu", "gather"):
            object.__setattr__(self, name, None)
        if dist.is_initialized():
            dist.destroy_process_group()
        gc.collect()  # trainers and what DistributedDataParallel wraps refer to each other

    def sum_floats(self, values: list[float]) -> list[float]:
        """Sum of each value over the workers, float64."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        with beat.waiting():
            dist.all_reduce(tensor, group=self.cpu)
        result: list[float] = tensor.tolist()
        return result

    def max_floats(self, values: list[float]) -> list[float]:
        """Largest of each value over the workers."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        with beat.waiting():
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.cpu)
        result: list[float] = tensor.tolist()
        return result

    def decide(self, value: int) -> int:
        """Rank 0's integer, at every worker."""
        if self.size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.int64)
        with beat.waiting():
            dist.broadcast(tensor, src=0, group=self.cpu)
        return int(tensor.item())

    def share_text(self, text: str) -> str:
        """Rank 0's text, at every worker."""
        if self.size == 1:
            return text
        content = torch.tensor(list(text.encode()), dtype=torch.uint8)
        size = self.decide(len(content))
        if self.rank != 0:
            content = torch.empty(size, dtype=torch.uint8)
        with beat.waiting():
            dist.broadcast(content, src=0, group=self.cpu)
        return bytes(content.tolist()).decode()

    def announce(self, figures: dict[str, Any]) -> None:
        """Tell the listeners (see `progress_to`) where the job stands; every worker calls it."""
        for listener in _listeners:
            listener(figures)

    def barrier(self) -> None:
        """Wait for everybody."""
        if self.size > 1:
            with beat.waiting():
                dist.barrier(group=self.cpu)

    def gather_arrays(self, array: np.ndarray) -> list[np.ndarray] | None:
        """Every worker's array (same dtype and trailing shape, any length), at rank 0; None elsewhere."""
        if self.size == 1:
            return [array]
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with beat.waiting():
            dist.all_gather(lengths, torch.tensor([len(array)]), group=self.cpu)
        most = max(int(n) for n in lengths)
        padded = torch.zeros((most, *array.shape[1:]), dtype=torch.from_numpy(array[:0]).dtype)
        padded[: len(array)] = torch.from_numpy(array)
        parts = [torch.empty_like(padded) for _ in range(self.size)] if self.rank == 0 else None
        with beat.waiting():
            dist.gather(padded, parts, dst=0, group=self.cpu)
        if parts is None:
            return None
        return [part[: int(n)].numpy() for part, n in zip(parts, lengths, strict=True)]


def _wait_for_all(path: str, rank: int, size: int) -> None:
    """Until every worker is there: the timeout is of collectives, and begins only then."""
    store = dist.FileStore(f"{path}-started", size)
    store.set(str(rank), "")
    store.wait([str(other) for other in range(size)], timedelta(seconds=START_SECONDS))


def _own_gpu(rank: int) -> torch.device:
    """The GPU of LOCAL_RANK (without it: of the rank) among those that this process sees."""
    if not torch.cuda.is_available():
        raise UserError("cluster.use_gpu = true, but torch sees no CUDA device; set cluster.use_gpu = false")
    index, n = int(os.environ.get("LOCAL_RANK", rank)), torch.cuda.device_count()
    if index >= n:
        raise UserError(
            f"cluster.use_gpu = true: worker {rank} needs a GPU of its own, number {index} on its machine, and torch "
            f"sees {n}; lower cluster.workers"
        )
    return torch.device("cuda", index)
