"""Keys and draws against Python integers; neighbouring keys are independent."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from distgnn.kernels import rng
from tests import naive_sampling as naive

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered")  # uint64 wraps by intention

words = st.integers(0, 2**64 - 1)


@given(words, words, words)
@example(0, 0, 0)
@example(2**64 - 1, 2**63, 2**64 - 1)
@settings(max_examples=100, deadline=None)
def test_keys_equal_python_integers(a: int, b: int, c: int) -> None:
    a_, b_, c_ = (np.uint64(x) for x in (a, b, c))
    assert int(rng.splitmix64(a_)) == naive.key_of(a)
    assert int(rng.hash2(a_, b_)) == naive.key_of(a, b)
    assert int(rng.hash3(a_, b_, c_)) == naive.key_of(a, b, c)
    assert int(rng.draw(a_, np.uint64(b % 2**32))) == naive.draw(a, b % 2**32)


def test_splitmix64_is_the_published_sequence() -> None:
    # First outputs of the reference generator started at 0.
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [int(rng.draw(np.uint64(0), np.uint64(j))) for j in range(3)] == published


@given(words, st.integers(1, 2**32 - 1))
@example(2**64 - 1, 2**32 - 1)
@example(0, 1)
@settings(max_examples=200, deadline=None)
def test_bounded_is_the_high_word_of_the_product(bits: int, n: int) -> None:
    assert int(rng.bounded(np.uint64(bits), np.uint64(n))) == naive.bounded(bits, n) < n


def test_streams_are_distinct() -> None:
    streams = [int(value) for name, value in vars(rng).items() if name.startswith("STREAM_")]
    assert len(set(streams)) == len(streams) >= 8


def test_normals_are_keyed_by_node_and_normal() -> None:
    ids = np.arange(4000)
    out = np.empty((4000, 3))
    rng.keyed_normal(np.uint64(1), np.zeros(4000, np.uint8), ids, out)
    some = np.empty((2, 3))
    rng.keyed_normal(np.uint64(1), np.zeros(2, np.uint8), np.array([17, 5]), some)
    assert (some == out[[17, 5]]).all()
    assert stats.kstest(out.reshape(-1), "norm").pvalue > 1e-4
    assert np.abs(np.corrcoef(out.T) - np.eye(3)).max() < 5 / np.sqrt(4000)


def test_dropout_keeps_the_mean() -> None:
    out = np.empty((2000, 8))
    rng.keyed_keep(np.uint64(3), np.arange(2000).astype(np.uint64), 0.25, out)
    assert set(np.unique(out)) == {0.0, 1 / 0.75}
    assert abs((out > 0).mean() - 0.75) < 5 * np.sqrt(0.25 * 0.75 / out.size)
