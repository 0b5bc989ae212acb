"""DistributedDataParallel that sums gradients: the losses are already divided by the global batch size."""

# No postponed annotations here: DDP checks the hook's annotations as objects.
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from distgnn import beat
from distgnn.distributed.process_group import WorkerGroup


def _sum_hook(group: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    work = dist.all_reduce(bucket.buffer(), group=group, async_op=True)
    future: torch.futures.Future[torch.Tensor] = work.get_future().then(lambda done: done.value()[0])
    return future


def wrap(module: nn.Module, group: WorkerGroup) -> nn.Module:
    """The module under DDP with a summing hook, or as it is where it has no parameters (DDP refuses those)."""
    if not any(p.requires_grad for p in module.parameters()):
        return module
    device_ids = [group.device.index] if group.device.type == "cuda" else None
    with beat.waiting():
        wrapped = DistributedDataParallel(module, device_ids=device_ids, process_group=group.default)
    wrapped.register_comm_hook(group.default, _sum_hook)
    return wrapped
