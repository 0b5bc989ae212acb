"""What a training step reaches, worked out beforehand: SALIENT++'s vertex-inclusion probability (Kaler et al. 2023).

A node stays out of a hop with the product over its neighbours u of 1 - min(1, f / d_u) p_u. This takes seed edges and
draws as independent, where a step takes its edges without replacement and a node draws distinct neighbours; it takes
draws as uniform and without cut-offs. Nothing is sampled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distgnn.kernels.neighbor_sums import add_neighbor_terms

Rows = Sequence[tuple[np.ndarray, np.ndarray]]

_CERTAIN = -700.0  # log of a chance to stay out that is none: finite, and 1 - exp of it is 1


class Reach:
    """How a minibatch spreads over the graph, hop by hop.

    Args:
        rows: indptr int64 and indices (node ids) of consecutive ranges of nodes, together all N.
        degree: of all nodes, integer `[N]`.
        fanout: of the hops, the seeds' first.
        seed_share: of the edges that are seed edges of a global step: B / E.
        seed_user: whose edges the minibatch may take, bool `[N]`: all users' for a global step, a worker's own users'
            for its share. Items are False.
        expand: all: every node reached draws at every hop; new: only at the hop after the one that reached it.

    Attributes:
        log_out: log of the chance to be out of F_h, float64 `[N]`, for h = 0 ... L.
        term: of hop h, what a node adds to each of its neighbours' `log_out`, float64 `[N]`.
    """

    def __init__(
        self,
        rows: Rows,
        degree: np.ndarray,
        fanout: Sequence[int],
        seed_share: float,
        seed_user: np.ndarray,
        expand: str = "all",
    ) -> None:
        self.rows, self.degree, self.fanout, self.expand = rows, degree, tuple(fanout), expand
        self.seed_term = seed_user * (np.log1p(-seed_share) if seed_share < 1.0 else _CERTAIN)
        self.log_out = [self._sums(self.seed_term) + self.seed_term * degree]
        self.term: list[np.ndarray] = []
        for hop, width in enumerate(self.fanout):
            drawn = np.minimum(1.0, width / np.maximum(degree, 1)) * self.drawing(hop)
            with np.errstate(divide="ignore"):
                self.term.append(np.maximum(np.log1p(-np.minimum(drawn, 1.0)), _CERTAIN))
            self.log_out.append(self.log_out[hop] + self._sums(self.term[hop]))

    def _sums(self, term: np.ndarray) -> np.ndarray:
        """Of every node the sum of its neighbours' terms, float64 `[N]`."""
        total = np.zeros(len(term))
        start = 0
        for indptr, indices in self.rows:
            stop = start + len(indptr) - 1
            add_neighbor_terms(indptr, indices, term, total[start:stop])
            start = stop
        assert start == len(term)
        return total

    def drawing(self, hop: int) -> np.ndarray:
        """Probability of every node to draw neighbours at a hop, float64 `[N]`."""
        if self.expand == "all" or hop == 0:
            return -np.expm1(self.log_out[hop])
        return np.exp(self.log_out[hop - 1]) - np.exp(self.log_out[hop])

    def inclusion(self) -> np.ndarray:
        """Probability of every node to be in the minibatch, float64 `[N]`."""
        return -np.expm1(self.log_out[-1])

    def work(self) -> np.ndarray:
        """Expected draws of the minibatch by the user whose seed edge leads to them, float64 `[N]`, 0 for items.

        What a node draws is laid on those that may have brought it in, in proportion to their terms, hop by hop back
        to the seed edges. Its sum is the draws of the whole minibatch.
        """
        owed = np.zeros(len(self.degree))
        for hop in range(len(self.fanout) - 1, -1, -1):
            if hop + 1 < len(self.fanout):
                owed = self._back(owed, hop)
            owed += self.drawing(hop) * np.minimum(self.degree, self.fanout[hop])
        each = _ratio(owed, self.log_out[0])
        return self.seed_term * (self.degree * each + self._sums(each))

    def _back(self, owed: np.ndarray, hop: int) -> np.ndarray:
        """What nodes owe that draw at hop + 1, laid on those that draw at the hop."""
        stays = self.log_out[hop] if self.expand == "all" else np.zeros(len(owed))
        each = _ratio(owed, stays + self._sums(self.term[hop]))
        return each * stays + self.term[hop] * self._sums(each)


def _ratio(owed: np.ndarray, total: np.ndarray) -> np.ndarray:
    """What is owed over the total, float64 `[N]`, 0 where the total is."""
    return np.divide(owed, total, out=np.zeros(len(owed)), where=total != 0)
