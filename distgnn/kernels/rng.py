"""Counter-based randomness: every draw is a hash of its key, there is no generator state.

The mixer is SplitMix64's finaliser (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators").
A key is folded one word at a time with `combine`, which is a bijection in the word for a fixed prefix, so two keys that
differ in one word never collide. Draw j of a key is the j-th output of SplitMix64 started at the key.

All operands are uint64: numba turns uint64 + int64 into float64, and plain Python would overflow differently.
"""

from __future__ import annotations

import numpy as np
from numba import njit

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_LOW_32 = np.uint64(0xFFFFFFFF)
_S30, _S27, _S31, _S32, _S11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(32), np.uint64(11)
_ONE = np.uint64(1)

# What a draw is for: the first word after the seed, so that no two uses share a key.
STREAM_DRAW = np.uint64(1)
STREAM_ORDER = np.uint64(2)
STREAM_NEGATIVE = np.uint64(3)
STREAM_SHARED_NEGATIVE = np.uint64(4)
STREAM_INIT = np.uint64(5)
STREAM_DROPOUT = np.uint64(6)
STREAM_TIE = np.uint64(7)
STREAM_SPLIT = np.uint64(8)
STREAM_LISTED = np.uint64(9)
STREAM_DISTILL_ITEM = np.uint64(10)


@njit(nogil=True, cache=True, inline="always")
def mix64(x):
    """SplitMix64's finaliser: a bijection of uint64."""
    x = (x ^ (x >> _S30)) * _MIX_1
    x = (x ^ (x >> _S27)) * _MIX_2
    return x ^ (x >> _S31)


@njit(nogil=True, cache=True, inline="always")
def splitmix64(x):
    """First output of SplitMix64 started at `x`."""
    return mix64(x + GOLDEN)


@njit(nogil=True, cache=True, inline="always")
def combine(key, word):
    """Fold one uint64 word into a uint64 key."""
    return mix64((key ^ word) + GOLDEN)


@njit(nogil=True, cache=True, inline="always")
def hash2(a, b):
    """Key of two words."""
    return combine(splitmix64(a), b)


@njit(nogil=True, cache=True, inline="always")
def hash3(a, b, c):
    """Key of three words."""
    return combine(hash2(a, b), c)


@njit(nogil=True, cache=True, inline="always")
def draw(key, j):
    """Draw j (uint64) of a key: 64 random bits."""
    return mix64(key + (j + _ONE) * GOLDEN)


@njit(nogil=True, cache=True, inline="always")
def bounded(bits, n):
    """Map 64 random bits to [0, n), n < 2**32: the high word of bits * n (Lemire 2019), bias below n / 2**64."""
    return ((bits >> _S32) * n + (((bits & _LOW_32) * n) >> _S32)) >> _S32


@njit(nogil=True, cache=True, inline="always")
def scaled(bits, n):
    """Map 64 random bits to [0, n), n < 2**32, as a fixed-point number: 32 bits before the point, 32 after it."""
    return (bits >> _S32) * n + (((bits & _LOW_32) * n) >> _S32)


@njit(nogil=True, cache=True, inline="always")
def bounded_wide(bits, n):
    """As `bounded`, for any uint64 n: the high word of the 128-bit product."""
    high, low = bits >> _S32, bits & _LOW_32
    n_high, n_low = n >> _S32, n & _LOW_32
    middle = high * n_low + ((low * n_low) >> _S32)
    other = low * n_high + (middle & _LOW_32)
    return high * n_high + (middle >> _S32) + (other >> _S32)


@njit(nogil=True, cache=True, inline="always")
def unit(bits):
    """Map 64 random bits to a float64 in [0, 1)."""
    return np.float64(bits >> _S11) * (1.0 / 9007199254740992.0)


@njit(nogil=True, cache=True)
def keyed_normal(key, type_, stable_id, out):
    """Fill `out` float `[n, d]` with N(0, 1) of (key, type, stable id, channel) by Box-Muller.

    Args:
        key: uint64. type_: uint8 `[n]`. stable_id: int64 `[n]`.
    """
    for i in range(out.shape[0]):
        row = combine(combine(key, np.uint64(type_[i])), np.uint64(stable_id[i]))
        for c in range(0, out.shape[1], 2):
            u = 1.0 - unit(draw(row, np.uint64(c)))
            angle = 2.0 * np.pi * unit(draw(row, np.uint64(c + 1)))
            radius = np.sqrt(-2.0 * np.log(u))
            out[i, c] = radius * np.cos(angle)
            if c + 1 < out.shape[1]:
                out[i, c + 1] = radius * np.sin(angle)


@njit(nogil=True, cache=True)
def keys_of_nodes(node_type, stable_id, out):
    """Out uint64 `[n]` = key of (type, stable id), from uint8 and int64 `[n]`."""
    for i in range(out.shape[0]):
        out[i] = combine(combine(np.uint64(0), np.uint64(node_type[i])), np.uint64(stable_id[i]))


@njit(nogil=True, cache=True)
def keyed_keep(step_key, node_key, p, out):
    """Dropout multipliers: out float `[n, d]` is 1 / (1 - p) or 0, by (step key, node key, channel).

    Args:
        step_key: uint64 of (seed, step, site). node_key: uint64 `[n]` of (type, stable id). p: probability of a zero.
    """
    scale = 1.0 / (1.0 - p)
    for i in range(out.shape[0]):
        row = combine(step_key, node_key[i])
        for c in range(out.shape[1]):
            out[i, c] = scale if unit(draw(row, np.uint64(c))) >= p else 0.0
