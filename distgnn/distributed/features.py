"""Feature rows, sharded by owner as the embedding rows are, and fetched by the same plan.

Users and items have rows of different widths: what goes from a worker to another is the values of the users it asked
for, then those of the items, in one exchange without padding. Features of hot nodes are at every worker, and are read
there from the dataset at the start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from distgnn.distributed.device_memory import host_buffer, move, on_host
from distgnn.distributed.embedding import RowPlan, ShardedEmbedding
from distgnn.distributed.exchange import send_values
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
    ) -> None:
        self.group, self.dtype = group, dtype
        self.wire = torch.float32 if wire is None else wire
        self.n_own = len(stable_id)
        self.device = embedding.device
        hot = embedding.hot
        hot_row = embedding.local_rows(hot.nodes)
        foreign = hot_row >= self.n_own
        is_user = np.concatenate([node_type, hot.node_type[foreign]]) == USER
        stable_id = np.concatenate([stable_id, hot.stable_id[foreign]])
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

    @property
    def widths(self) -> dict[str, int]:
        """Values in a row, by role."""
        return {role: table.shape[1] for role, table in self._tables.items()}

    def own(self, start: int, stop: int) -> NodeFeatures:
        """Features of own nodes [start, stop), on the worker's device; positions count from `start`."""
        rows = torch.arange(start, min(stop, self.n_own), device=self.device)
        return self._handed_out(self._of(rows))

    def fetch(self, plan: RowPlan, node_type: np.ndarray, traffic: Traffic | None = None) -> NodeFeatures:
        """Features of a plan's nodes on the worker's device; a collective.

        Args:
            node_type: of the nodes, uint8 `[n]`. traffic: counts what is exchanged.
        """
        assert plan.exchange is not None
        if self.group.size == 1:
            return self._handed_out(self._of(plan.exchange.rows))
        is_user = move(torch.from_numpy(node_type == USER), self.device)
        order = plan.exchange.order if plan.cold is None else plan.cold[plan.exchange.order]
        arrived = self._exchange(plan, is_user[order], traffic)
        result: NodeFeatures = {}
        replicas = self._of(self._hot_row[plan.hot_index])
        slot = torch.where(is_user, torch.cumsum(is_user, 0), torch.cumsum(~is_user, 0)) - 1
        for role, table in self._tables.items():
            mine = is_user if role == "user" else ~is_user
            at = torch.nonzero(mine)[:, 0]
            values = self._new(len(at), table)
            values[slot[order[mine[order]]]] = arrived[role]
            values[slot[plan.hot[replicas[role].at]]] = replicas[role].values
            result[role] = FeatureRows(at, values)
        return self._handed_out(result)

    def _exchange(self, plan: RowPlan, is_user: torch.Tensor, traffic: Traffic | None) -> dict[str, torch.Tensor]:
        """By role the rows that arrive, in the order of the plan's exchange.

        Args:
            is_user: of the nodes wanted, bool, in that order.
        """
        assert plan.exchange is not None
        wanted, asked = plan.exchange.wanted, plan.exchange.asked
        leaving, arriving = _by_role(self._is_user[plan.exchange.rows], asked), _by_role(is_user, wanted)
        owned = self._of(plan.exchange.rows)
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
