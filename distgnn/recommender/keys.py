"""From the log's keys to stable ids and back."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distgnn.types import UserError

Key = int | str
# The one spelling of an integer: "007" is a name, not the number 7. As in preparing a log.
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")
_INT64 = range(-(2**63), 2**63)
_BISECT_SHARE = 64  # below a key in so many, searching each goes before hashing them all


class UnknownKeyError(UserError, KeyError):
    """A user or item that the run has never seen."""

    __str__ = UserError.__str__  # KeyError's would put the line in quotes


class KeyIndex:
    """The keys of all users or items.

    Keys are whole numbers or text, as the log's were. A number given for text stands for its digits, and digits given
    for numbers stand for the number, so that keys read from a CSV file and from Parquet mean the same.

    Args:
        keys: int64 or large_string `[n]`, by stable id.
        what: `user` or `item`, for messages.
    """

    def __init__(self, keys: pa.Array, what: str) -> None:
        self.keys = keys
        self.what = what
        self.is_integer = pa.types.is_integer(keys.type)
        ascending = pc.all(pc.less(keys[:-1], keys[1:])).as_py() is not False
        self._order = None if ascending else pc.array_sort_indices(keys).to_numpy()
        self._sorted = keys if ascending else keys.take(pa.array(self._order))
        self._integers = self._sorted.to_numpy() if self.is_integer else None

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, at: int) -> Key:
        """The key at a place of the ascending order (for bisection)."""
        key: Key = self._sorted[at].as_py()
        return key

    def parse(self, key: Any) -> Key | None:
        """A key in the kind of these ones; None where it cannot be one of them (`"abc"` among numbers).

        Raises:
            UserError: neither a whole number nor text.
        """
        if isinstance(key, bool) or not isinstance(key, (int, np.integer, str)):
            raise UserError(f"{self.what} key {key!r} is a {type(key).__name__}; give a whole number or text")
        if not self.is_integer:
            return str(key)
        if isinstance(key, str):
            if not _INTEGER.fullmatch(key):
                return None
            key = int(key)
        return int(key) if int(key) in _INT64 else None

    def parse_all(self, keys: pa.Array) -> pa.Array:
        """Integers or strings `[m]` as keys of this kind, null where they cannot be."""
        if self.is_integer and not pa.types.is_integer(keys.type):
            return pa.array([self.parse(key) for key in keys.to_pylist()], pa.int64())
        return keys.cast(self.keys.type)

    def find(self, key: Any) -> int:
        """Stable id of a key, -1 where there is none."""
        parsed = self.parse(key)
        if parsed is None:
            return -1
        if self._integers is not None:
            at = int(np.searchsorted(self._integers, parsed))
            there = at < len(self) and self._integers[at] == parsed
        else:
            at = bisect.bisect_left(self, parsed)
            there = at < len(self) and self[at] == parsed
        if not there:
            return -1
        return at if self._order is None else int(self._order[at])

    def require(self, key: Any) -> int:
        """Stable id of a key.

        Raises:
            UnknownKeyError: there is none.
        """
        found = self.find(key)
        if found < 0:
            raise self.unknown([key])
        return found

    def unknown(self, keys: Sequence[Any]) -> UnknownKeyError:
        """The error for keys that are not there."""
        named = ", ".join(repr(key) for key in keys[:3]) + (", ..." if len(keys) > 3 else "")
        return UnknownKeyError(f"{self.what} {named} not known to the run: it is in none of its edges")

    def find_all(self, keys: pa.Array) -> np.ndarray:
        """Stable ids int64 `[m]` of keys of this kind (see `parse_all`), -1 where there is none or a null."""
        if len(keys) * _BISECT_SHARE < len(self):
            return np.array([-1 if key is None else self.find(key) for key in keys.to_pylist()], np.int64)
        found = pc.index_in(keys, value_set=self.keys, skip_nulls=True)
        return pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)

    def find_given(self, keys: Iterable[Any]) -> tuple[list[Any], np.ndarray]:
        """Keys as a caller gives them (one alone is a list of one), and their stable ids int64, -1 where unknown."""
        given = [keys] if isinstance(keys, (str, int)) else list(keys)
        return given, self.find_all(pa.array([self.parse(key) for key in given], self.keys.type))

    def find_known(self, keys: Iterable[Any]) -> np.ndarray:
        """The distinct stable ids, int64, ascending, of the keys that are known.

        Raises:
            UnknownKeyError: keys are given, and none is known.
        """
        given, ids = self.find_given(keys)
        if given and (ids < 0).all():
            raise self.unknown(given)
        return np.unique(ids[ids >= 0])

    def names(self, stable: np.ndarray) -> list[Key]:
        """Keys of stable ids int64 `[m]`."""
        names: list[Key] = self.keys.take(pa.array(stable)).to_pylist()
        return names
