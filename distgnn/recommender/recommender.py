"""Top-k recommendations from an export, in a plain Python process."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from distgnn.export.fold_in import mean_of_items
from distgnn.export.reader import Export, read_export
from distgnn.export.table import Table, quantize_rows
from distgnn.kernels.quantized import int8_scores
from distgnn.recommender.keys import Key, KeyIndex
from distgnn.recommender.ranking import EVERYTHING, Catalogue, ItemFilter, Lists, Seen, top_k_of_scores
from distgnn.types import UserError

Recommendations = list[tuple[Key, float]]


class Recommender:
    """Recommends items by the vectors that a run has exported.

    Keys are those of the log: whole numbers or text. Lists are best first; items of equal score stand in the order that
    the evaluation gives them. A list is shorter than k where fewer items are left. One instance may be used by several
    threads at once.

    Args:
        export: what to serve.
        threads: for requests of many users; 0: the cores that the process may use.
    """

    def __init__(self, export: Export, threads: int = 0) -> None:
        self.manifest = export.manifest
        self.users = KeyIndex(export.user_keys, "user")
        self.items = KeyIndex(export.item_keys, "item")
        self.threads = threads or len(os.sched_getaffinity(0))
        self._vectors = export.users
        self._catalogue = Catalogue(export.items)
        self._seen = Seen(export.seen_indptr, export.seen_items)
        self._degree = export.item_degree
        self._fold_in = export.fold_in
        self._inverse_norm: np.ndarray | None = None

    @classmethod
    def load(cls, path: str, threads: int = 0) -> Recommender:
        """Load a run's export.

        Args:
            path: a run's directory or its `embeddings/`, local or any fsspec URI.

        Raises:
            UserError: no export there, or a file of it is missing or damaged; its name is in the message.
        """
        return cls(read_export(os.fspath(path)), threads)

    def recommend(
        self,
        user_key: Any,
        k: int = 20,
        *,
        filter_seen: bool = True,
        allow: Iterable[Any] | None = None,
        block: Iterable[Any] | None = None,
    ) -> Recommendations:
        """The k best items for a user, with their scores.

        Args:
            user_key: of a user known to the run.
            k: from 1 to the number of items.
            filter_seen: leave out the items that the user has in training.
            allow: item keys that may be recommended; None: all. block: item keys that may not. Keys that the run does
                not know are passed over.

        Raises:
            UnknownKeyError: a user not known to the run (a `UserError` and a `KeyError`).
            UserError: k out of range, or no allowed item is known.
        """
        stable = np.array([self.users.require(user_key)])
        return self._named(self.top_k(stable, k, filter_seen=filter_seen, chosen=self.item_filter(allow, block)))[0]

    def recommend_many(
        self,
        user_keys: Sequence[Any],
        k: int = 20,
        *,
        filter_seen: bool = True,
        allow: Iterable[Any] | None = None,
        block: Iterable[Any] | None = None,
    ) -> list[Recommendations]:
        """The lists of many users, in their order: as `recommend`, but much faster than one by one."""
        given, stable = self.users.find_given(user_keys)
        if (stable < 0).any():
            raise self.users.unknown([key for key, at in zip(given, stable, strict=True) if at < 0])
        return self._named(self.top_k(stable, k, filter_seen=filter_seen, chosen=self.item_filter(allow, block)))

    def recommend_for_history(
        self,
        item_keys: Iterable[Any],
        k: int = 20,
        *,
        allow: Iterable[Any] | None = None,
        block: Iterable[Any] | None = None,
    ) -> Recommendations:
        """The k best items for somebody whom training never saw, from what they have had; none of it is recommended.

        The user's vector is a linear map of the mean of the items' vectors (see `distgnn.export.fold_in`). Items that
        the run does not know are passed over.

        Raises:
            UnknownKeyError: no item of the history is known.
            UserError: an empty history, k out of range, or no allowed item is known.
        """
        history = self.items.find_known(item_keys)
        if not len(history):
            raise UserError("the history is empty: nothing to recommend by; popular(k) needs none")
        self._check(k)
        own = self._catalogue.items.dequantize(history).astype(np.float32)
        mean = mean_of_items(own, np.array([0, len(history)]), np.arange(len(history), dtype=np.int32))
        vector = mean @ self._fold_in
        if self._vectors.scale is not None:
            user = quantize_rows(vector)
        else:
            user = Table(vector.astype(self._vectors.values.dtype))
        lists = self._catalogue.top_k(
            user, self._nobody(), k, Seen.of_one(history.astype(np.int32)), self.item_filter(allow, block)
        )
        return self._named(lists)[0]

    def similar_items(self, item_key: Any, k: int = 20) -> Recommendations:
        """The k items whose vectors have the largest cosine with an item's, itself left out.

        Raises:
            UnknownKeyError: an item not known to the run. UserError: k out of range.
        """
        item = self.items.require(item_key)
        self._check(k)
        lists = top_k_of_scores(self._cosines(item), len(self.users), k, np.array([item]), EVERYTHING)
        return self._named(lists)[0]

    def popular(
        self, k: int = 20, *, allow: Iterable[Any] | None = None, block: Iterable[Any] | None = None
    ) -> Recommendations:
        """The k items with the most training edges; the score is their number.

        Raises:
            UserError: k out of range, or no allowed item is known.
        """
        return self._named(self.top_popular(k, self.item_filter(allow, block)))[0]

    def item_filter(self, allow: Iterable[Any] | None = None, block: Iterable[Any] | None = None) -> ItemFilter:
        """Item keys as a filter for `top_k`.

        Raises:
            UserError: no allowed item is known to the run.
        """
        allowed = blocked = None
        if allow is not None:
            allowed = self.items.find_known(allow)
            if not len(allowed):
                raise UserError("allow holds no item: give some, or None for all")
        if block is not None:
            ids = self.items.find_given(block)[1]
            blocked = ids[ids >= 0]
        return ItemFilter(allowed, blocked)

    def top_k(self, users: np.ndarray, k: int, *, filter_seen: bool = True, chosen: ItemFilter = EVERYTHING) -> Lists:
        """Lists by stable ids: of stable users int64 `[n]`, (stable items, scores), see `ranking.Lists`.

        Raises:
            UserError: k out of range.
        """
        self._check(k)
        seen = self._rows_seen(users) if filter_seen else Seen.nothing(len(users))
        return self._catalogue.top_k(self._vectors.take(users), users, k, seen, chosen, self.threads)

    def top_popular(self, k: int, chosen: ItemFilter = EVERYTHING) -> Lists:
        """The list of the most popular items, by stable ids.

        Raises:
            UserError: k out of range.
        """
        self._check(k)
        nothing = np.empty(0, np.int64)
        return top_k_of_scores(self._degree.astype(np.float64), len(self.users), k, nothing, chosen)

    def _check(self, k: int) -> None:
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= len(self.items):
            raise UserError(f"k = {k!r} must be a whole number from 1 to {len(self.items)}, the run's number of items")

    def _nobody(self) -> np.ndarray:
        """A stable id that no user has, for the order of ties."""
        return np.array([len(self.users)])

    def _rows_seen(self, users: np.ndarray) -> Seen:
        begin, count = self._seen.indptr[users], np.diff(self._seen.indptr)[users]
        if len(users) == 1:
            return Seen.of_one(self._seen.items[begin[0] : begin[0] + count[0]])
        indptr = np.concatenate([[0], np.cumsum(count)])
        entry = np.repeat(begin - indptr[:-1], count) + np.arange(indptr[-1])
        return Seen(indptr, self._seen.items[entry])

    def _cosines(self, item: int) -> np.ndarray:
        """Cosine of every item with one, `[n_items]`; 0 with a row of zeros."""
        items = self._catalogue.items
        if self._inverse_norm is None:
            squares = np.einsum("nd,nd->n", items.values, items.values, dtype=np.float64)
            norm = np.sqrt(squares)
            inverse = np.divide(1.0, norm, out=np.zeros_like(norm), where=norm > 0)
            self._inverse_norm = inverse.astype(np.float64 if items.values.dtype == np.float64 else np.float32)
        inverse = self._inverse_norm
        if items.scale is None:
            return (items.values @ items.values[item]) * (inverse * inverse[item])
        cosines = np.empty((1, len(items)), np.float32)  # a row's scale is in both, and drops out
        int8_scores(items.values[item : item + 1], inverse[item : item + 1], items.values, inverse, cosines)
        return cosines[0]

    def _named(self, lists: Lists) -> list[Recommendations]:
        """Lists with the items' keys."""
        named = []
        for items, scores in zip(*lists, strict=True):
            n = int((items >= 0).sum())
            named.append(list(zip(self.items.names(items[:n]), scores[:n].tolist(), strict=True)))
        return named
