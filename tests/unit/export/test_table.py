from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from distgnn.export.table import Table, quantize_rows


@given(arrays(np.float32, (7, 5), elements=st.floats(-1000, 1000, width=32)))
def test_every_value_is_within_half_a_level_and_none_is_clipped(rows: np.ndarray) -> None:
    table = quantize_rows(rows)
    assert table.values.dtype == np.int8
    assert table.scale is not None and table.scale.dtype == np.float16
    assert np.abs(table.values.astype(int)).max() <= 127
    half = table.scale.astype(np.float64)[:, None] / 2
    assert (np.abs(table.dequantize() - rows.astype(np.float64)) <= half * 1.0001 + 1e-30).all()


def test_a_row_takes_its_values_and_two_bytes() -> None:
    table = quantize_rows(np.ones((3, 30), np.float32))
    assert table.nbytes == 3 * 32
    assert (table.take(np.array([2])).nbytes, len(table), table.dim) == (32, 3, 30)


def test_rows_of_zeros_and_tiny_rows_stay_finite() -> None:
    rows = np.array([[0.0, 0.0], [1e-9, -1e-9], [3.0, -1.5]])
    restored = quantize_rows(rows).dequantize()
    assert np.isfinite(restored).all()
    assert (restored[0] == 0).all()
    np.testing.assert_allclose(restored[2], [3.0, -1.5], atol=0.015)


def test_a_float_table_is_itself() -> None:
    rows = np.random.default_rng(0).normal(size=(4, 3))
    assert Table(rows).dequantize() is not None
    assert (Table(rows).dequantize([1, 3]) == rows[[1, 3]]).all()
