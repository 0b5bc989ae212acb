"""What the system refuses, in words: room on a disk, and memory."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from distgnn import resources
from distgnn.types import UserError

_NO_SPACE = {
    errno.ENOSPC: "free some space or write elsewhere",
    errno.EDQUOT: "free some of the quota or write elsewhere",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f) or write elsewhere",
}
# What torch's and C++'s allocators say in exceptions that are no MemoryError.
_NO_MEMORY = (
    *("can't allocate memory", "Cannot allocate memory", "out of memory", "bad_alloc"),
    "could not create a primitive",  # oneDNN; with "descriptor" it is something else
)
TRAINING_MEMORY = "lower model.dim, train.batch_size or sampler.fanout, use more machines, or raise the limit"
_LONGEST_LINE = 300


def first_line(error: BaseException) -> str:
    """The first line of what went wrong."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return lines[0][:_LONGEST_LINE] if lines else type(error).__name__


def is_no_space(error: BaseException) -> bool:
    """Whether a disk, a quota or a limit on file sizes has no room for what was written."""
    return isinstance(error, OSError) and error.errno in _NO_SPACE


def space_facts(error: BaseException, place: Path | None, wanted: int | None = None) -> str:
    """What follows on `cannot be written: ...` where there is no room: bytes wanted and free, and what to do.

    Args:
        place: local, in which file or folder; None: elsewhere. wanted: bytes of what was being written, where known.
    """
    if not isinstance(error, OSError) or error.errno not in _NO_SPACE:
        return ""
    known = [] if wanted is None else [f"{_amount(wanted)} wanted"]
    if place is not None and error.errno == errno.ENOSPC:
        folder = next(path for path in (place, *place.absolute().parents) if path.is_dir())
        known.append(f"{_amount(shutil.disk_usage(folder).free)} free")
    figures = f" ({', '.join(known)})" if known else ""
    return f"{figures}; {_NO_SPACE[error.errno]}"


def _amount(nbytes: int) -> str:
    return f"{nbytes:,} bytes" if nbytes < 2**20 else resources.gib(nbytes)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was refused: by Python, numpy, Arrow, torch (of the host or a GPU) or the system."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    said = str(error)
    known = any(words in said for words in _NO_MEMORY) and "primitive descriptor" not in said
    return isinstance(error, RuntimeError) and known


def system_refusal(
    error: BaseException, where: str = "", memory_advice: str = "use a larger machine, or raise the limit"
) -> UserError | None:
    """What to tell the user where the system had no room or no memory; None: it is something else.

    Args:
        where: what was being done, and who did it. memory_advice: what to do where memory is short.
    """
    start = f"{where}: " if where else ""
    if is_no_space(error):
        assert isinstance(error, OSError)
        file = Path(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else None
        said = f"{file or 'output'}: cannot be written: {first_line(error)}{space_facts(error, file)}"
        return UserError(start + said)
    if is_out_of_memory(error):
        return UserError(f"{start}out of memory: {first_line(error)}; {memory_advice}")
    return None


def read_failure(name: str, error: BaseException, otherwise: str) -> UserError:
    """What to tell the user of a file that cannot be read or mapped: memory is short, or else what is said of it.

    Args:
        name: of the file. otherwise: what is the matter with it where memory is not short, and what to do.
    """
    return system_refusal(error, name) or UserError(f"{name}: {otherwise}")
