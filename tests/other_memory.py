"""A stand-in for a GPU on the CPU: tensors "in other memory" that refuse to be mixed with host tensors, as a GPU's do.

Their device is called `meta`, since autograd knows that one without a driver; their values are real, kept in a host
tensor inside. What has been asked of torch there is done on the host. Inside `other_memory()`:

- an operation on tensors of both memories raises, but for copies (0-dimensional host tensors pass, as with CUDA);
- `.numpy()` of a tensor in other memory raises;
- a collective raises unless its tensors are in the memory of its group: that of the worker's device for
  `group.default` and `group.gather` (NCCL), the host for `group.cpu` (gloo).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from distgnn.distributed.process_group import WorkerGroup

OTHER = torch.device("meta")
_COPIES = {"aten::_to_copy", "aten::copy_"}
_COLLECTIVES = ("all_to_all_single", "all_reduce", "all_gather", "broadcast", "gather")


class MixedMemories(AssertionError):
    """What a GPU would refuse."""


class OtherTensor(torch.Tensor):
    """A tensor in other memory; `inside` has its values."""

    inside: torch.Tensor

    @staticmethod
    def __new__(cls, inside: torch.Tensor) -> OtherTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls, inside.shape, strides=inside.stride(), dtype=inside.dtype, device=OTHER
        )
        made.inside = inside
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise MixedMemories(f"{function} outside of other_memory()")


def _inside(value: Any) -> Any:
    return value.inside if isinstance(value, OtherTensor) else value


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [a for a in tree_flatten((args, kwargs))[0] if isinstance(a, torch.Tensor)]
        other = any(isinstance(t, OtherTensor) for t in tensors)
        name = function._schema.name
        if other and name not in _COPIES and any(not isinstance(t, OtherTensor) and t.dim() > 0 for t in tensors):
            raise MixedMemories(f"{name} on tensors of both memories")
        if name == "aten::copy_":
            other = isinstance(args[0], OtherTensor)
        if kwargs.get("device") is not None:
            other = torch.device(kwargs["device"]).type == OTHER.type
            kwargs["device"] = torch.device("cpu")
        result = function(*tree_map(_inside, args), **tree_map(_inside, kwargs))
        if function._schema.is_mutable:
            return args[0]
        return tree_map(lambda r: OtherTensor(r) if other and isinstance(r, torch.Tensor) else r, result)


def _checked(collective: Callable[..., Any], host_group: Any, seen: list[str]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        host = kwargs["group"] is host_group
        what = f"{collective.__name__} over {'gloo' if host else 'NCCL'}"
        for tensor in tree_flatten((args, kwargs))[0]:
            if isinstance(tensor, torch.Tensor) and isinstance(tensor, OtherTensor) == host:
                raise MixedMemories(f"{what} of {tensor.device} tensors")
        seen.append(what)
        return collective(*tree_map(_inside, args), **tree_map(_inside, kwargs))

    return call


@contextmanager
def other_memory(group: WorkerGroup) -> Iterator[tuple[WorkerGroup, list[str]]]:
    """(the group with its device in other memory, the collectives that it has posted)."""
    split = dataclasses.replace(group, device=OTHER, cpu=dist.new_group(backend="gloo"))
    seen: list[str] = []
    patches = [mock.patch.object(dist, name, _checked(getattr(dist, name), split.cpu, seen)) for name in _COLLECTIVES]
    for patch in patches:
        patch.start()
    try:
        with _Mode():
            yield split, seen
    finally:
        for patch in patches:
            patch.stop()
