"""A mapped file that is cut off under a process kills it with SIGBUS: what to say then.

Python cannot handle a signal that an instruction raises: its handlers run between instructions of its own, so that the
faulty one would be tried for ever. What runs here is called by the system, in place of the thread that has read beyond
the file's end: in kernels and in array code, which hold no lock of the interpreter's but the one that is taken for it.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)


@contextmanager
def explained_bus_error(explain: Callable[[], str]) -> Iterator[None]:
    """A SIGBUS within the block ends the process with status 1 and a line on stderr, from `explain`."""

    def end(_: int) -> None:
        try:
            os.write(2, f"distgnn: {explain()}\n".encode())
        finally:
            os._exit(1)

    set_handler = ctypes.CDLL(None).signal
    set_handler.argtypes, set_handler.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    handler = _Handler(end)
    before = set_handler(signal.SIGBUS, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        set_handler(signal.SIGBUS, before)
