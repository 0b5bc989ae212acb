"""Rows of vectors as they are stored and served: floating point, or int8 with a scale a row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEVELS = 127  # symmetric: -127 .. 127


@dataclass(frozen=True)
class Table:
    """Vectors of n nodes.

    Attributes:
        values: float32, float64 or int8 `[n, d]`.
        scale: float16 `[n]` with int8 values, else None; a row is `values * scale`.
    """

    values: np.ndarray
    scale: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def dim(self) -> int:
        """d, the width of a row."""
        return int(self.values.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of the rows, their scales included."""
        return self.values.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def take(self, rows: np.ndarray | slice) -> Table:
        """Some of the rows."""
        return Table(self.values[rows], None if self.scale is None else self.scale[rows])

    def dequantize(self, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Rows as floating point `[m, d]`: float32, or float64 where the table is."""
        if self.scale is None:
            return self.values[rows]
        return self.values[rows].astype(np.float32) * self.scale[rows].astype(np.float32)[:, None]


def quantize_rows(rows: np.ndarray) -> Table:
    """Symmetric int8 with one float16 scale a row: the largest magnitude of a row becomes 127.

    The scale is rounded first and the values by it, so that no more than its rounding is lost.

    Args:
        rows: floating point `[n, d]`, finite, of magnitudes below 127 * 65504 (the largest float16).
    """
    largest = np.abs(rows).max(axis=1, initial=0.0)
    scale = (largest / LEVELS).astype(np.float16)
    # A scale rounded down would clip the largest value; the next float16 up does not.
    short = scale.astype(np.float64) * LEVELS < largest
    scale[short] = np.nextafter(scale[short], np.float16(np.inf))
    divisor = np.where(scale > 0, scale, 1).astype(np.float64)
    values = np.rint(rows / divisor[:, None]).astype(np.int8)
    return Table(values, scale)
