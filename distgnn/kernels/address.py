"""Arrays at raw addresses, so that one kernel reads any number of memory-mapped partitions without copying them.

A tuple of arrays would compile anew for every number of partitions. The caller keeps the arrays alive.
"""

from __future__ import annotations

import ctypes

import numpy as np
from llvmlite import ir
from numba import carray, config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

_INT64 = np.int64


@intrinsic
def _as_pointer(typing_context, address):
    """int64 -> void pointer."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


def _python_array_at(address, n, like):
    if n == 0:
        return np.empty(0, like.dtype)
    buffer = (ctypes.c_char * (int(n) * like.dtype.itemsize)).from_address(int(address))
    return np.frombuffer(buffer, dtype=like.dtype)


@njit(nogil=True, cache=True, inline="always")
def _compiled_array_at(address, n, like):
    return carray(_as_pointer(address), (n,), like.dtype)


# `array_at(address, n, like)`: the n elements of like's dtype at an int64 address.
array_at = _python_array_at if config.DISABLE_JIT else _compiled_array_at


@intrinsic
def _prefetch(typing_context, address):
    """LLVM's prefetch for reading, to be kept in all caches."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], cgutils.voidptr_t)
        word = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [pointer, word(0), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(address), generate


@njit(nogil=True, cache=True, inline="always")
def _compiled_prefetch(address):
    _prefetch(address)


def _python_prefetch(address):
    pass


# `prefetch(address)`: have the cache line at an int64 address on its way while other work is done. Any address will do.
prefetch = _python_prefetch if config.DISABLE_JIT else _compiled_prefetch


@intrinsic
def _count(typing_context, address, bound, window):
    """int64 address, a bound of the dtype of the 16 values there, an int64 of 16 bits -> int64."""

    def generate(context, builder, signature, arguments):
        vector = ir.VectorType(ir.IntType(bound.bitwidth), 16)
        lanes = ir.VectorType(ir.IntType(32), 16)
        nothing = ir.Constant(vector, ir.Undefined)
        values = builder.load(builder.inttoptr(arguments[0], vector.as_pointer()), align=bound.bitwidth // 8)
        first = builder.insert_element(nothing, arguments[1], ir.Constant(ir.IntType(32), 0))
        bounds = builder.shuffle_vector(first, nothing, ir.Constant(lanes, [0] * 16))
        below = builder.bitcast(builder.icmp_signed("<=", values, bounds), ir.IntType(16))
        counted = builder.and_(builder.zext(below, ir.IntType(64)), arguments[2])
        return builder.ctpop(counted)

    return types.int64(types.int64, bound, types.int64), generate


def _python_count_up_to(address, bound, window):
    values = _python_array_at(address, 16, np.asarray(bound))
    return sum(int(values[i] <= bound) for i in range(16) if window >> i & 1)


@njit(nogil=True, cache=True, inline="always")
def _compiled_count_up_to(address, bound, window):
    return _count(address, bound, window)


# `count_up_to(address, bound, window)`: how many of 16 values of bound's dtype (a signed integer) at an int64 address
# are <= bound, of those whose bit is set in window. One comparison of vectors: the processor has no branch to guess.
count_up_to = _python_count_up_to if config.DISABLE_JIT else _compiled_count_up_to
# How many elements ahead of its use an address is prefetched; a power of two. Far more than a core has loads under way:
# the queue behind them is what hides a busy memory. As many lines are half of a first cache level of 32 KiB.
AHEAD = 256


@njit(nogil=True, cache=True, inline="always")
def part_of(node, offsets):
    """Partition that owns a node: the last p with offsets[p, 0] <= node (int64 `[P, 3]`)."""
    low = 0
    high = offsets.shape[0]
    while high - low > 1:
        middle = (low + high) >> 1
        if offsets[middle, 0] <= node:
            low = middle
        else:
            high = middle
    return low


@njit(nogil=True, cache=True, inline="always")
def row_bounds(node, part, offsets, indptr_address, like_indptr):
    """Start and end of a node's row in its partition's `indices`."""
    row = node - offsets[part, 0]
    pointers = array_at(indptr_address[part], offsets[part, 2] - offsets[part, 0] + 1, like_indptr)
    return pointers[row], pointers[row + 1]
