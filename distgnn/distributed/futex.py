"""Sleep until a word of shared memory changes (futex, Linux): who waits takes no processor time and wakes at once."""

from __future__ import annotations

import ctypes
import platform

_NUMBERS = {"x86_64": 202, "aarch64": 98, "riscv64": 98}
_NUMBER = _NUMBERS.get(platform.machine()) if platform.system() == "Linux" else None
_WAIT, _WAKE = 0, 1
_EVERYBODY = 2**31 - 1
AVAILABLE = _NUMBER is not None
_system_call = ctypes.CDLL(None).syscall  # lets go of the interpreter's lock


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def wait(address: int, value: int, seconds: float) -> None:
    """Sleep while the 32-bit word there has this value, at most so long; may also return for no reason.

    Args:
        address: of the word, a multiple of 4, in memory that processes map together. value: of its 32 bits.
    """
    whole = int(seconds)
    limit = _TimeSpec(whole, int((seconds - whole) * 1e9))
    _system_call(
        ctypes.c_long(_NUMBER or 0),
        ctypes.c_void_p(address),
        ctypes.c_int(_WAIT),
        ctypes.c_uint32(value & 0xFFFFFFFF),
        ctypes.byref(limit),
    )


def wake(address: int) -> None:
    """Wake all who wait for the word there."""
    _system_call(ctypes.c_long(_NUMBER or 0), ctypes.c_void_p(address), ctypes.c_int(_WAKE), ctypes.c_int(_EVERYBODY))
