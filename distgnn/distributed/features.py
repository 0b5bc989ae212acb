"""Feature rows, sharded by owner as the embedding rows are, and fetched by the same plan.

Users and items have rows of different widths: what goes from a worker to another is the values of the users it asked
for, then those of the items, in one exchange without padding. Features of hot nodes are at every worker, and are read
there from the dataset at the start; so are those of the nodes that a worker caches. They never change: an owner knows
who holds which of its rows, and leaves them out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from distgnn.distributed.device_memory import host_buffer, move, on_host
from distgnn.distributed.embedding import RowPlan, ShardedEmbedding
from distgnn.distributed.exchange import FetchPlan, plan_fetch, send_values
from distgnn.distributed.hot_rows import HotNodes
from distgnn.distributed.process_group import WorkerGroup
from distgnn.distributed.traffic import Traffic
from distgnn.kernels.sparse_optimizer import gather_rows
from distgnn.types import USER

ROLES = ("user", "item")


@dataclass(frozen=True)
class FeatureRows:
    """Features of one role's nodes among some nodes.

    Attributes:
        at: their positions among the nodes, int64 `[m]`, ascending. values: `[m, f]`.
    """

    at: torch.Tensor
    values: torch.Tensor


NodeFeatures = dict[str, FeatureRows]  # by role, of the roles that have features


class FeatureStore:
    """The features of a worker's own nodes, float32, and of the hot nodes; in the memory of the embedding rows.

    Args:
        features: by role, float32 `[n, f]` by stable id, memory-mapped: only the worker's own rows are read.
        node_type, stable_id: of the own nodes, uint8 and int64 `[n_own]`.
        embedding: whose rows are fetched by the same plans.
        dtype: of the rows that are handed out: the model's. group: of the workers.
        wire: dtype of values on the way between workers; None: float32, which loses nothing.
        cached: nodes of others, not hot, whose features this worker holds; None: at no worker are there any (with
            several workers, caches are made known: a collective). bounds: int64 `[W + 1]` node ranges; for a cache.
    """

    def __init__(
        self,
        features: Mapping[str, np.ndarray],
        node_type: np.ndarray,
        stable_id: np.ndarray,
        embedding: ShardedEmbedding,
        dtype: torch.dtype,
        group: WorkerGroup,
        wire: torch.dtype | None = None,
        cached: HotNodes | None = None,
        bounds: np.ndarray | None = None,
    ) -> None:
        self.group, self.dtype = group, dtype
        self.wire = torch.float32 if wire is None else wire
        self.n_own = len(stable_id)
        self.device = embedding.device
        hot = embedding.hot
        hot_row = embedding.local_rows(hot.nodes)
        foreign = hot_row >= self.n_own
        self.cached = HotNodes.none() if cached is None else cached
        self._first_cached = self.n_own + int(foreign.sum())
        is_user = np.concatenate([node_type, hot.node_type[foreign], self.cached.node_type]) == USER
        stable_id = np.concatenate([stable_id, hot.stable_id[foreign], self.cached.stable_id])
        within = np.where(is_user, np.cumsum(is_user), np.cumsum(~is_user)) - 1
        self._is_user, self._within, self._hot_row = (
            move(torch.from_numpy(a), self.device) for a in (is_user, within, hot_row)
        )
        self._tables = {
            role: move(
                torch.from_numpy(np.asarray(features[role][stable_id[is_user == (role == "user")]])), self.device
            )
            for role in ROLES
            if role in features
        }
        self._held_by = None if cached is None or group.size == 1 else self._tell_owners(bounds)

    def _tell_owners(self, bounds: np.ndarray | None) -> torch.Tensor:
        """Which of the own rows each worker caches, bool `[W, n_own]`; a collective."""
        assert bounds is not None
        told = plan_fetch(self.cached.nodes, bounds, self.group, self.device)
        held = torch.zeros((self.group.size, self.n_own), dtype=torch.bool, device=self.device)
        for worker, rows in enumerate(told.rows.split(told.asked)):
            held[worker, rows] = True
        return held

    @property
    def widths(self) -> dict[str, int]:
        """Values in a row, by role."""
        return {role: table.shape[1] for role, table in self._tables.items()}

    def own(self, start: int, stop: int) -> NodeFeatures:
        """Features of own nodes [start, stop), on the worker's device; positions count from `start`."""
        rows = torch.arange(start, min(stop, self.n_own), device=self.device)
        return self._handed_out(self._of(rows))

    def fetch(
        self, plan: RowPlan, nodes: np.ndarray, node_type: np.ndarray, traffic: Traffic | None = None
    ) -> NodeFeatures:
        """Features of a plan's nodes on the worker's device; a collective.

        Args:
            nodes: int64 `[n]`. node_type: of them, uint8 `[n]`. traffic: counts what is exchanged.
        """
        assert plan.exchange is not None
        if self.group.size == 1:
            return self._handed_out(self._of(plan.exchange.rows))
        is_user = move(torch.from_numpy(node_type == USER), self.device)
        order = plan.exchange.order if plan.cold is None else plan.cold[plan.exchange.order]
        exchange, here, here_row = replace(plan.exchange, order=order), plan.hot, self._hot_row[plan.hot_index]
        if self._held_by is not None:
            cached = move(torch.from_numpy(self.cached.find(nodes)), self.device)
            exchange = self._without_cached(exchange, cached < 0, self._held_by)
            order = exchange.order
            found = torch.nonzero(cached >= 0)[:, 0]
            here, here_row = torch.cat([here, found]), torch.cat([here_row, self._first_cached + cached[found]])
        arrived = self._exchange(exchange, is_user[order], traffic)
        result: NodeFeatures = {}
        replicas = self._of(here_row)
        slot = torch.where(is_user, torch.cumsum(is_user, 0), torch.cumsum(~is_user, 0)) - 1
        for role, table in self._tables.items():
            mine = is_user if role == "user" else ~is_user
            at = torch.nonzero(mine)[:, 0]
            values = self._new(len(at), table)
            values[slot[order[mine[order]]]] = arrived[role]
            values[slot[here[replicas[role].at]]] = replicas[role].values
            result[role] = FeatureRows(at, values)
        return self._handed_out(result)

    @staticmethod
    def _without_cached(plan: FetchPlan, wanted: torch.Tensor, held_by: torch.Tensor) -> FetchPlan:
        """The plan less the rows that are held where they are wanted.

        Args:
            wanted: of the nodes, those that are not cached here, bool `[n]`. held_by: see `_tell_owners`.
        """
        here = wanted[plan.order]
        asked = torch.cat([~held_by[w, rows] for w, rows in enumerate(plan.rows.split(plan.asked))])
        return FetchPlan(
            plan.order[here],
            [int(part.sum()) for part in here.split(plan.wanted)],
            [int(part.sum()) for part in asked.split(plan.asked)],
            plan.rows[asked],
        )

    def _exchange(self, plan: FetchPlan, is_user: torch.Tensor, traffic: Traffic | None) -> dict[str, torch.Tensor]:
        """By role the rows that arrive, in the order of the plan.

        Args:
            is_user: of the nodes wanted, bool, in that order.
        """
        leaving, arriving = _by_role(self._is_user[plan.rows], plan.asked), _by_role(is_user, plan.wanted)
        owned = self._of(plan.rows)
        roles, workers = list(self._tables), range(self.group.size)
        parts = {role: owned[role].values.split(leaving[role]) for role in roles}
        values = send_values(
            torch.cat([parts[role][w].reshape(-1) for w in workers for role in roles]),
            [sum(arriving[role][w] * self.widths[role] for role in roles) for w in workers],
            [sum(leaving[role][w] * self.widths[role] for role in roles) for w in workers],
            self.group,
            self.wire,
        )
        pieces = values.split([arriving[role][w] * self.widths[role] for w in workers for role in roles])
        if traffic is not None:
            others = [piece for i, piece in enumerate(pieces) if i // len(roles) != self.group.rank]
            traffic.add("features", sum(piece.numel() for piece in others) * self.wire.itemsize, 1)
        return {
            role: torch.cat(pieces[i :: len(roles)]).view(sum(arriving[role]), self.widths[role])
            for i, role in enumerate(roles)
        }

    def _of(self, rows: torch.Tensor) -> NodeFeatures:
        """Features of rows int64 `[n]` held here, by role."""
        is_user = self._is_user[rows]
        result = {}
        for role, table in self._tables.items():
            at = torch.nonzero(is_user if role == "user" else ~is_user)[:, 0]
            within = self._within[rows[at]]
            if on_host(table):
                values = self._new(len(at), table)
                gather_rows(table.numpy(), within.numpy(), values.numpy())
            else:
                values = table.index_select(0, within)
            result[role] = FeatureRows(at, values)
        return result

    def _new(self, n: int, table: torch.Tensor) -> torch.Tensor:
        """Uninitialised rows `[n, f]`, beside the table."""
        if on_host(table):
            return host_buffer((n, table.shape[1]), table.dtype, self.group.device)
        return table.new_empty((n, table.shape[1]))

    def _handed_out(self, found: NodeFeatures) -> NodeFeatures:
        device = self.group.device
        return {
            role: FeatureRows(move(rows.at, device), move(rows.values, device).to(self.dtype))
            for role, rows in found.items()
        }

    def release(self) -> None:
        """Drop all rows: the memory is wanted for something else."""
        self._tables.clear()


def _by_role(is_user: torch.Tensor, sizes: list[int]) -> dict[str, list[int]]:
    """How many users and items are in each part, of so many nodes each."""
    users = [int(part.sum()) for part in is_user.split(sizes)]
    return {"user": users, "item": [n - u for n, u in zip(sizes, users, strict=True)]}
