"""What is odd about a log: repeated rows, users too active to be persons, test edges that nothing can be learnt for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from distgnn.data.interactions import TEST
from distgnn.partition.ingest import LabelledEdges, LogCounts

# A user is suspicious with more rows than this many, and than this many times the median user's.
_SUSPICIOUS_ROWS = 100
_SUSPICIOUS_TIMES_MEDIAN = 50
_EXAMPLES = 3


@dataclass(frozen=True)
class Health:
    """Of a log.

    Attributes:
        rows, duplicates, dropped: of `LogCounts`.
        suspicious_users: users with over 100 rows and over 50 times the median user's.
        suspicious_share: their share of all rows.
        most_active: key and rows of the most active of the suspicious users.
        test_users_unseen: users of the test that have no train or validation edge.
        test_items_unseen: items likewise.
        test_edges_unseen: test edges with such a user or item.
    """

    rows: int
    duplicates: int
    dropped: dict[str, int]
    suspicious_users: int
    suspicious_share: float
    most_active: list[tuple[Any, int]]
    test_users_unseen: int
    test_items_unseen: int
    test_edges_unseen: int

    def lines(self) -> list[str]:
        """In words, a fact a line."""
        lines = [f"{self.rows:,} rows, {self.duplicates:,} of them repeat an edge (earliest time kept, weights summed)"]
        roles = list(self.dropped)
        lines += [
            f"{count:,} {role} edges also stand in {' or '.join(roles[:place])}: kept there alone"
            for place, (role, count) in enumerate(self.dropped.items())
            if count
        ]
        if self.suspicious_users:
            named = ", ".join(f"{key} ({rows:,} rows)" for key, rows in self.most_active)
            share = f"{self.suspicious_share:.1%} of the rows"
            lines.append(f"{self.suspicious_users:,} suspiciously active users with {share}: {named}")
        if self.test_edges_unseen:
            lines.append(
                f"{self.test_users_unseen:,} users and {self.test_items_unseen:,} items of the test were never seen in"
                f" train: {self.test_edges_unseen:,} test edges"
            )
        return lines


def examine(
    counts: LogCounts, rows_of_user: np.ndarray, user_keys: pa.Array, labelled: LabelledEdges, n_items: int
) -> Health:
    """Examine a log.

    Args:
        counts: of deduplication.
        rows_of_user: rows of each stable user in all logs, int64 `[n_users]`.
        user_keys: by stable id.
        labelled: the distinct edges.
        n_items: size of the catalogue.
    """
    active = rows_of_user[rows_of_user > 0]
    threshold = max(_SUSPICIOUS_ROWS, _SUSPICIOUS_TIMES_MEDIAN * float(np.median(active)))
    suspicious = np.flatnonzero(rows_of_user > threshold)
    top = suspicious[np.argsort(-rows_of_user[suspicious], kind="stable")][:_EXAMPLES]
    edges, in_test = labelled.edges, labelled.labels == TEST
    seen_user, seen_item = np.zeros(len(rows_of_user), bool), np.zeros(n_items, bool)
    seen_user[edges.user[~in_test]] = True
    seen_item[edges.item[~in_test]] = True
    user, item = edges.user[in_test], edges.item[in_test]
    return Health(
        rows=counts.rows,
        duplicates=counts.duplicates,
        dropped=counts.dropped,
        suspicious_users=len(suspicious),
        suspicious_share=float(rows_of_user[suspicious].sum() / max(counts.rows, 1)),
        most_active=[(user_keys[int(u)].as_py(), int(rows_of_user[u])) for u in top],
        test_users_unseen=len(np.unique(user[~seen_user[user]])),
        test_items_unseen=len(np.unique(item[~seen_item[item]])),
        test_edges_unseen=int((~seen_user[user] | ~seen_item[item]).sum()),
    )
