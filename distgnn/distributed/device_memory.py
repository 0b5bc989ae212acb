"""Copies between host memory and a worker's device, through page-locked buffers where the device is a GPU.

torch keeps page-locked memory in a pool: a buffer whose copy is still on its way is not given out again, so nobody here
has to wait before dropping one. What concerns CUDA in this module has not been run on a GPU.
"""

from __future__ import annotations

import numpy as np
import torch

from distgnn.pages import zeros


def on_host(tensor: torch.Tensor) -> bool:
    """Whether Numba kernels and gloo can take the tensor."""
    return tensor.device.type == "cpu"


def move(source: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor in a device's memory: itself where it is there already, else a copy.

    To a GPU the copy is asynchronous, in the order of the current stream. From a GPU it is there on return.
    """
    if source.device == device:
        return source
    if device.type == "cuda" and on_host(source):
        return source.pin_memory().to(device, non_blocking=True)
    if source.is_cuda and device.type == "cpu":
        return torch.empty(source.shape, dtype=source.dtype, pin_memory=True).copy_(source)
    return source.to(device)


def host_buffer(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """An uninitialised host tensor for rows that go to `device` next: page-locked where that is a GPU."""
    return torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")


def numpy_dtype(dtype: torch.dtype) -> np.dtype:
    """As NumPy names it."""
    found: np.dtype = torch.empty(0, dtype=dtype).numpy().dtype
    return found


def host_zeros(shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """Rows of zeros in host memory, to be read or moved in no order: in large pages."""
    return torch.from_numpy(zeros(shape, numpy_dtype(dtype)))


class RowBuffer:
    """Host memory for the rows of one step after another.

    A step's rows are tens of megabytes, which malloc gives back to the system and takes anew: to touch that many new
    pages takes longer than to copy the rows.
    """

    def __init__(self) -> None:
        self._kept: torch.Tensor | None = None

    def rows(self, n: int, dim: int, dtype: torch.dtype) -> torch.Tensor:
        """Uninitialised `[n, dim]`; what it gave before is overwritten."""
        kept = self._kept
        if kept is None or len(kept) < n or kept.shape[1] != dim or kept.dtype != dtype:
            self._kept = kept = host_zeros((n + n // 8, dim), dtype)
        return kept[:n]


def free_bytes(device: torch.device) -> int | None:
    """What a GPU has free, torch's own unused blocks given back first; None for the CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info(device)[0])


def peak_bytes(device: torch.device) -> int:
    """Most memory that torch has held in tensors on a GPU so far; 0 for the CPU."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else 0
