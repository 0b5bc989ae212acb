"""Asking for a row of a table some rows before it is read."""

from __future__ import annotations

from numba import config, njit

from distgnn.kernels.address import prefetch

_LINE = 64  # bytes of a cache line


@njit(nogil=True, cache=True, inline="always")
def prefetch_lines(address, size):
    """Have every 64th of so many bytes from an address on on its way: all of their lines, where they begin one."""
    for byte in range(0, size, _LINE):
        prefetch(address + byte)


def _python_prefetch_row(array, row):
    pass


@njit(nogil=True, cache=True, inline="always")
def _compiled_prefetch_row(array, row):
    prefetch_lines(array.ctypes.data + row * array.strides[0], array.shape[1] * array.itemsize)


# `prefetch_row(array, row)`: have a row of a C-contiguous `[n, d]` on its way while other work is done.
prefetch_row = _python_prefetch_row if config.DISABLE_JIT else _compiled_prefetch_row
