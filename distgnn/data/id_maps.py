"""From a log's keys to stable ids, streaming.

A stable id is the rank of a key among all distinct keys of its node type: integers by value, text by its UTF-8 bytes.
So it depends neither on the order of the log nor on how it was cut into batches, and keys 0 ... n-1 keep their numbers.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distgnn.types import UserError

_COMPACT_ABOVE = 1 << 20
_WORDS = {"integer": "whole numbers", "text": "text"}


def _kind(keys: pa.Array) -> str:
    return "integer" if pa.types.is_integer(keys.type) else "text"


class IdMapBuilder:
    """Collects the keys of one node type, batch by batch.

    Holds 4 bytes a key appended, and each distinct key at most about three times.

    Args:
        node_type: `user` or `item`, for messages.
    """

    def __init__(self, node_type: str) -> None:
        self._node_type = node_type
        self._dictionary: pa.Array | None = None
        self._pending: list[pa.DictionaryArray] = []
        self._pending_keys = 0
        self._codes: list[np.ndarray] = []
        self._first = ""
        self.rows = 0

    def append(self, keys: pa.Array, where: str) -> None:
        """Take the keys of a batch.

        Args:
            keys: int64 or string `[n]`, without nulls.
            where: the file, for messages.

        Raises:
            UserError: keys of another kind than before.
        """
        if self._dictionary is None:
            self._dictionary = pa.array([], pa.int64() if _kind(keys) == "integer" else pa.large_string())
            self._first = where
        if _kind(keys) != _kind(self._dictionary):
            raise UserError(
                f"{where}: {self._node_type} keys are {_WORDS[_kind(keys)]}, but {_WORDS[_kind(self._dictionary)]} in"
                f" {self._first}; write them alike"
            )
        encoded = keys.cast(self._dictionary.type).dictionary_encode()
        self._pending.append(encoded)
        self._pending_keys += len(encoded.dictionary)
        self.rows += len(keys)
        if self._pending_keys > max(_COMPACT_ABOVE, 2 * len(self._dictionary)):
            self._compact()

    def _compact(self) -> None:
        """Unify the dictionaries of the pending batches with the one so far; codes given before stay valid."""
        if not self._pending:
            return
        known = pa.DictionaryArray.from_arrays(pa.array([], pa.int32()), self._dictionary)
        chunks = pa.chunked_array([known, *self._pending]).unify_dictionaries().chunks
        self._dictionary = chunks[0].dictionary
        self._codes += [chunk.indices.to_numpy(zero_copy_only=False) for chunk in chunks[1:]]
        self._pending, self._pending_keys = [], 0

    def finish(self) -> tuple[pa.Array, np.ndarray]:
        """End the collection.

        Returns:
            The distinct keys, ascending, int64 or large_string `[n]`: row = stable id; and the stable ids of all keys
            appended, int32 `[rows]`.
        """
        assert self._dictionary is not None
        self._compact()
        order = pc.array_sort_indices(self._dictionary)
        rank = np.empty(len(order), np.int32)
        rank[order.to_numpy()] = np.arange(len(order), dtype=np.int32)
        stable = np.empty(self.rows, np.int32)
        start = 0
        for codes in self._codes:
            stable[start : start + len(codes)] = rank[codes]
            start += len(codes)
        self._codes = []
        return self._dictionary.take(order), stable
