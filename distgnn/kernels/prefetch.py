"""Asking for a row of a table some rows before it is read."""

from __future__ import annotations

from numba import config, njit

from distgnn.kernels.address import prefetch

_LINE = 64  # bytes of a cache line


def _python_prefetch_row(array, row):
    pass


@njit(nogil=True, cache=True, inline="always")
def _compiled_prefetch_row(array, row):
    start = array.ctypes.data + row * array.strides[0]
    for offset in range(0, array.shape[1] * array.itemsize, _LINE):
        prefetch(start + offset)


# `prefetch_row(array, row)`: have a row of a C-contiguous `[n, d]` on its way while other work is done.
prefetch_row = _python_prefetch_row if config.DISABLE_JIT else _compiled_prefetch_row
