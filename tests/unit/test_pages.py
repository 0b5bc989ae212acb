"""Memory in large pages is memory like any other."""

from __future__ import annotations

import gc
import os
import resource
import sys
from pathlib import Path

import numpy as np
import pytest

from distgnn.pages import LARGE_PAGE, collapse, map_shared, zeros

linux = pytest.mark.skipif(sys.platform != "linux", reason="large pages are asked for on Linux")


@pytest.mark.parametrize("rows", [0, 3, LARGE_PAGE // 256 + 1])
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_zeros(rows: int, dtype: type[np.generic]) -> None:
    array = zeros((rows, 64), np.dtype(dtype))
    assert array.shape == (rows, 64) and array.dtype == dtype and not array.any()
    array += 1
    assert (array == 1).all()


def large_pages_of(address: int) -> int:
    """Bytes of the mapping at an address that lie on large pages."""
    here, found = False, 0
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        first = line.split()[0]
        if "-" in first:
            low, high = (int(end, 16) for end in first.split("-"))
            here = low <= address < high
        elif here and first in ("AnonHugePages:", "ShmemPmdMapped:"):
            found += int(line.split()[1]) << 10
    return found


@linux
def test_a_table_lies_on_large_pages_and_its_rows_on_lines_of_their_own() -> None:
    if "[never]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="utf-8"):
        pytest.skip("this system gives no large pages")
    table = zeros((8 * LARGE_PAGE // 256, 64), np.dtype(np.float32))
    table += 1
    assert table.ctypes.data % 64 == 0
    assert large_pages_of(table.ctypes.data + LARGE_PAGE) > 0


@linux
def test_memory_that_is_mapped_twice_is_the_same_and_keeps_what_it_holds() -> None:
    size = 4 * LARGE_PAGE + 100
    descriptor = os.memfd_create("test")
    try:
        os.ftruncate(descriptor, size)
        first, second = map_shared(descriptor, size), map_shared(descriptor, size)
    finally:
        os.close(descriptor)
    assert len(first) == size and first.ctypes.data != second.ctypes.data
    assert first.ctypes.data % LARGE_PAGE == 0
    first[:] = np.arange(size) % 251
    large = collapse(first)
    assert large == (large_pages_of(first.ctypes.data) > 0)
    assert np.array_equal(second, np.arange(size) % 251)
    second[-1] = 255
    assert first[-1] == 255


@linux
def test_shared_memory_is_given_back_with_the_last_array_over_it() -> None:
    descriptor = os.memfd_create("test")
    os.ftruncate(descriptor, LARGE_PAGE)
    try:
        rows = map_shared(descriptor, LARGE_PAGE).view(np.float32).reshape(-1, 64)
        address = f"{rows.ctypes.data:x}-"
        gc.collect()
        rows[5] = 2
        assert address in Path("/proc/self/maps").read_text(encoding="utf-8")
        del rows
        gc.collect()
        assert address not in Path("/proc/self/maps").read_text(encoding="utf-8")
    finally:
        os.close(descriptor)


@linux
def test_want_of_memory_is_said() -> None:
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (64 << 30, limits[1]))
    descriptor = os.memfd_create("test")
    try:
        with pytest.raises(MemoryError, match="cannot allocate"):
            zeros((1 << 40,), np.dtype(np.uint8))
        with pytest.raises(OSError, match="Cannot allocate memory"):
            map_shared(descriptor, 1 << 40)
    finally:
        os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_little_is_left_where_it_is() -> None:
    array = np.arange(10)
    assert not collapse(array)
    assert array.tolist() == list(range(10))
