"""Memory in large pages, where the system has them.

Rows that are read in no order lie on as many pages, and a processor remembers where a few thousand are: for each of the
others it asks memory first. Of 4 KiB they cover some megabytes, of 2 MiB all tables that a machine holds. Where large
pages are not to be had, or only some, everything works as it does without.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import os
import weakref

import numpy as np

LARGE_PAGE = 2 << 20
_COLLAPSE = 25  # MADV_COLLAPSE of Linux 6.1, which Python has no name for yet
_NO_ACCESS = 0  # PROT_NONE
_FIXED = 0x10  # MAP_FIXED
_FAILED = ctypes.c_void_p(-1).value  # MAP_FAILED

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """As `numpy.zeros`. What fills a large page lies on such, if they are to be had, and begins a page.

    Raises:
        MemoryError: the system does not give as much.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.zeros(shape, dtype)
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"cannot allocate {size} bytes") from error
    with contextlib.suppress(OSError):  # a system built without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype, math.prod(shape)).reshape(shape)


def collapse(array: np.ndarray) -> bool:
    """Copy a contiguous array to large pages, also in shared memory, for which systems seldom choose them.

    Pages that nobody has touched take memory by it. Returns whether all that can be now lies on large pages.
    """
    if array.nbytes < LARGE_PAGE:
        return False
    start = array.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
    return bool(_libc.madvise(start, array.ctypes.data + array.nbytes - start, _COLLAPSE) == 0)


def map_shared(descriptor: int, size: int) -> np.ndarray:
    """A file's first bytes uint8 `[size]`, mapped to be shared, at an address where they may lie on large pages.

    They stay mapped as long as somebody refers to them.

    Raises:
        OSError: they cannot be mapped.
    """
    private, shared = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.MAP_SHARED | _FIXED
    room = size + LARGE_PAGE
    reserved = _mapped(_libc.mmap(None, room, _NO_ACCESS, private, -1, 0))
    address = -(-reserved // LARGE_PAGE) * LARGE_PAGE
    try:
        _mapped(_libc.mmap(address, size, mmap.PROT_READ | mmap.PROT_WRITE, shared, descriptor, 0))
    except OSError:
        _libc.munmap(reserved, room)
        raise
    end = -(-(address + size) // mmap.PAGESIZE) * mmap.PAGESIZE
    for start, stop in ((reserved, address), (end, reserved + room)):
        if stop > start:
            _libc.munmap(start, stop - start)
    memory = (ctypes.c_char * size).from_address(address)
    weakref.finalize(memory, _libc.munmap, address, size).atexit = False
    return np.frombuffer(memory, np.uint8)  # type: ignore[call-overload]


def _mapped(address: int | None) -> int:
    if address is None or address == _FAILED:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return address
