"""The rows of a partition a second time, by time: what time-respecting sampling reads instead of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distgnn.kernels.temporal_sampling import GROUP_BITS, order_by_time

_NARROW = np.iinfo(np.int32)
_GROUP = 1 << GROUP_BITS
_LINE = 64  # bytes of a cache line


def time_dtype(timestamp: np.ndarray) -> type[np.signedinteger]:
    """int32 where all timestamps int64 `[e]` fit, as seconds of a log do; else int64. A graph has one dtype.

    The least int32 stands for all earlier cut-offs, and does not fit.
    """
    narrow = len(timestamp) == 0 or (timestamp.min() > _NARROW.min and timestamp.max() <= _NARROW.max)
    return np.int32 if narrow else np.int64


def padded(n: int) -> int:
    """Length of an array of n values in whole groups, and one more: whatever a search reads is there."""
    return (n // _GROUP + 1) * _GROUP


def _aligned(n: int, dtype: np.dtype | type[np.signedinteger]) -> np.ndarray:
    """An array whose groups of 16 are cache lines, as those of a mapped file are: half as many lines to wait for."""
    width = np.dtype(dtype).itemsize
    room = np.empty(n + _LINE // width, dtype)
    return room[-room.ctypes.data % _LINE // width :][:n]


def _fence_length(e: int) -> int:
    return padded(e // _GROUP) + padded(e // _GROUP**2)


# Files of a partition, by the arrays of `TimedRows`.
TIMED_ARRAYS = {"time": "time", "fence": "time_fence", "neighbor": "time_neighbor", "place": "time_place"}


@dataclass(frozen=True)
class TimedRows:
    """Rows by (timestamp, position), `e` edges of a partition.

    Attributes:
        time: timestamps, int32 or int64, ascending within a row; `[padded(e)]`, so that every one of them stands in a
            whole group of 16, and one more group.
        fence: the last time of each group, `[padded(e // 16)]`, then the last of each 16 of these,
            `[padded(e // 256)]`: where searches start.
        neighbor: node ids, as wide as those of `indices`, `[e]`.
        place: for every position of a row in the order of `indices` its place by time, as wide, `[e]`.
    """

    time: np.ndarray
    fence: np.ndarray
    neighbor: np.ndarray
    place: np.ndarray

    @classmethod
    def of(
        cls,
        indptr: np.ndarray,
        indices: np.ndarray,
        timestamp: np.ndarray,
        dtype: type[np.signedinteger] | None = None,
    ) -> TimedRows:
        """From a partition's CSC and timestamps int64 `[e]`; dtype: of the graph's times, None: those given are all."""
        e = len(indices)
        time = _aligned(padded(e), dtype or time_dtype(timestamp))
        time[e:] = 0
        neighbor, place = np.empty_like(indices), np.empty_like(indices)
        order_by_time(indptr, indices, timestamp, time, neighbor, place)
        fence = _aligned(_fence_length(e), time.dtype)
        fence[:] = 0
        for start, stride in ((0, _GROUP), (padded(e // _GROUP), _GROUP**2)):
            fence[start : start + e // stride] = time[stride - 1 : e : stride]
        return cls(time, fence, neighbor, place)

    def as_plain_arrays(self) -> TimedRows:
        """Memory maps as plain arrays, for which the kernels have been compiled already."""
        return TimedRows(*(np.asarray(getattr(self, name)).view(np.ndarray) for name in TIMED_ARRAYS))

    def addresses(self) -> tuple[int, ...]:
        """Of the times, of both kinds of fences, of the neighbours and of the places."""
        coarse = self.fence[padded(len(self.place) // _GROUP) :]
        return tuple(a.ctypes.data for a in (self.time, self.fence, coarse, self.neighbor, self.place))

    def check(self, indices: np.ndarray, dtype: np.dtype) -> None:
        """Assert that they go with a partition's indices `[e]`, and that times have the graph's dtype."""
        e = len(indices)
        for array, wanted, n in (
            (self.time, dtype, padded(e)),
            (self.fence, dtype, _fence_length(e)),
            (self.neighbor, indices.dtype, e),
            (self.place, indices.dtype, e),
        ):
            assert array.dtype == wanted and array.flags.c_contiguous and len(array) == n

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(getattr(self, name).nbytes for name in TIMED_ARRAYS)
