"""Sixteen neighbouring numbers compared with a bound at once, the answers as bits.

A loop that counts answers is vectorised by the compiler; one that asks which of them are true is not.
"""

from __future__ import annotations

from llvmlite import ir
from numba import config, njit, types
from numba.extending import intrinsic

LANES = 16


def _compare(operator):
    """An intrinsic (address int64, bound float) -> int64 bits of `numbers[j] operator bound`."""

    @intrinsic
    def compare(typing_context, address, bound):
        def generate(context, builder, signature, arguments):
            element = context.get_value_type(signature.args[1])
            vector = ir.VectorType(element, LANES)
            numbers = builder.load(builder.inttoptr(arguments[0], vector.as_pointer()))
            numbers.align = signature.args[1].bitwidth // 8
            lanes = ir.VectorType(ir.IntType(32), LANES)
            first = builder.insert_element(ir.Constant(vector, ir.Undefined), arguments[1], ir.IntType(32)(0))
            bounds = builder.shuffle_vector(first, first, ir.Constant(lanes, [0] * LANES))
            bits = builder.bitcast(builder.fcmp_ordered(operator, numbers, bounds), ir.IntType(LANES))
            return builder.zext(bits, ir.IntType(64))

        return types.int64(address, bound), generate

    return compare


_at_least = _compare(">=")
_above = _compare(">")


@intrinsic
def _lowest_bit(typing_context, bits):
    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.IntType(1)(0))

    return types.int64(bits), generate


@intrinsic
def _count_bits(typing_context, bits):
    def generate(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return types.int64(bits), generate


@njit(nogil=True, cache=True, inline="always")
def _compiled_lanes_at_least(row, start, bound):
    return _at_least(row.ctypes.data + start * row.itemsize, bound)


@njit(nogil=True, cache=True, inline="always")
def _compiled_lanes_above(row, start, bound):
    return _above(row.ctypes.data + start * row.itemsize, bound)


@njit(nogil=True, cache=True, inline="always")
def _compiled_lowest_bit(bits):
    return _lowest_bit(bits)


@njit(nogil=True, cache=True, inline="always")
def _compiled_count_bits(bits):
    return _count_bits(bits)


def _python_lanes_at_least(row, start, bound):
    return sum(1 << j for j in range(LANES) if row[start + j] >= bound)


def _python_lanes_above(row, start, bound):
    return sum(1 << j for j in range(LANES) if row[start + j] > bound)


def _python_lowest_bit(bits):
    return (bits & -bits).bit_length() - 1


def _python_count_bits(bits):
    return bin(bits).count("1")


# `lanes_at_least(row, start, bound)`: int64 whose bit j says whether row[start + j] >= bound, for j < LANES, of a
# contiguous float row that holds them all and a bound of its dtype; NaN is not.
lanes_at_least = _python_lanes_at_least if config.DISABLE_JIT else _compiled_lanes_at_least
# Likewise, > bound.
lanes_above = _python_lanes_above if config.DISABLE_JIT else _compiled_lanes_above
# Position of the lowest bit of an int64 that has one, and the number of bits.
lowest_bit = _python_lowest_bit if config.DISABLE_JIT else _compiled_lowest_bit
count_bits = _python_count_bits if config.DISABLE_JIT else _compiled_count_bits
