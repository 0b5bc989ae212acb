"""Layer-wise inference, each worker its own nodes, and the model as a scorer of the whole catalogue."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from distgnn import beat
from distgnn.distributed.device_memory import move, on_host
from distgnn.distributed.embedding import ShardedEmbedding
from distgnn.distributed.exchange import plan_fetch, send_rows
from distgnn.distributed.features import FeatureStore
from distgnn.distributed.process_group import WorkerGroup
from distgnn.graph import Topology
from distgnn.nn.batch import NO_KEYS, block_tensors, entry_index, row_types
from distgnn.nn.model import GraphRecommender
from distgnn.sampler import NeighborSampler
from distgnn.sampler.full import FullNeighborhood, chunks_by_edges, rotated_block
from distgnn.training.product_ranking import InnerProducts
from distgnn.types import USER, UserError

_EDGE_BYTES = 24
_MADE_ROWS = 8  # that a layer makes of a destination at most, the states' own aside
_ROWS = 1 << 14  # of destinations at once: what is made of them by the way stays in the cache

SAMPLED_INFERENCE_STEP = 1 << 62  # a step number that training never reaches


class OwnNodes:
    """A worker's own node range: ids, types and stable ids."""

    def __init__(self, topology: Topology, bounds: np.ndarray, rank: int) -> None:
        self.low, self.high = int(bounds[rank]), int(bounds[rank + 1])
        self.nodes = np.arange(self.low, self.high)
        self.node_type, self.stable_id, self.degree = topology.describe(self.nodes)


@torch.no_grad()
def infer(
    model: GraphRecommender,
    embedding: ShardedEmbedding,
    topology: Topology,
    own: OwnNodes,
    bounds: np.ndarray,
    group: WorkerGroup,
    memory_bytes: int,
    features: FeatureStore | None = None,
) -> torch.Tensor:
    """Output vectors `[n_own, out_dim]` of a worker's nodes from full neighbourhoods, layer by layer; a collective.

    Memory beyond the layers' states is bounded: destinations go in chunks of about memory_bytes of gathered rows (one
    destination at the least). States and vectors are in the embedding's memory; layers run on the worker's device.
    """
    model.eval()
    width = embedding.weight.shape[1] * embedding.weight.element_size()
    most_rows = max(1, memory_bytes // (4 * width))
    start = _input_rows(model, embedding, features, group.device, most_rows)
    if group.size == 1 and on_host(start) and group.device == start.device:
        states = _layers_of_all(model, start, topology, own, memory_bytes)
        return _vectors(model, states, own, group.device, most_rows)
    chunks = chunks_by_edges(own.degree, most_rows)
    rounds = int(group.max_floats([len(chunks)])[0])
    neighborhood = FullNeighborhood(topology)
    states = [start]
    for index in range(model.encoder.n_layers):
        parts = []
        for i in range(rounds):
            first, last = chunks[i] if i < len(chunks) else (0, 0)
            block, sources = neighborhood.block(own.nodes[first:last])
            plan = plan_fetch(sources, bounds, group, embedding.device)
            rows = move(send_rows(plan, states[-1].index_select(0, plan.rows), group), group.device)
            tensors = block_tensors([block], NO_KEYS, group.device, embedding.weight.dtype)[0]
            parts.append(move(model.encoder.layer(index, tensors, rows, 0), embedding.device))
        states.append(torch.cat(parts))
    return _vectors(model, states, own, group.device, most_rows)


def _layers_of_all(
    model: GraphRecommender, start: torch.Tensor, topology: Topology, own: OwnNodes, memory_bytes: int
) -> list[torch.Tensor]:
    """All layers' states where one worker has all nodes, on the CPU: nothing is fetched, gathered or relabelled.

    A state lies behind room for the rows of the largest chunk: a chunk's destinations are put in front of it.
    """
    n, dtype = len(own.nodes), start.dtype
    width = start.shape[1] * start.element_size()
    # An edge's index and the copies that it was made of.
    per_edge = 4 * width if model.encoder.row_per_edge else _EDGE_BYTES
    # Small chunks stay in the cache, but each passes over all nodes' degrees.
    per_row = max(_MADE_ROWS * width, memory_bytes // max(_ROWS, n // 16))
    chunks = chunks_by_edges(per_edge * own.degree + per_row, memory_bytes)
    room = max((last - first for first, last in chunks), default=0)
    rows = _behind(room, start)
    states = [start]
    for index in range(model.encoder.n_layers):
        following = rows.new_empty(0)
        for first, last in chunks:
            block = rotated_block(topology, own.degree, first, last)
            tensors = block_tensors([block], NO_KEYS, start.device, dtype)[0]
            sources = rows[room - block.n_dst :]
            sources[: block.n_dst] = states[-1][first:last]
            made = model.encoder.layer(index, tensors, sources, 0)
            if first == 0:
                following = made.new_empty((room + n, made.shape[1]))
            following[room + first : room + last] = made
        rows = following
        states.append(rows[room:])
    return states


def _behind(room: int, state: torch.Tensor) -> torch.Tensor:
    """A copy of a state `[room + n, d]` with room in front."""
    rows = state.new_empty((room + len(state), state.shape[1]))
    rows[room:] = state
    return rows


def _input_rows(
    model: GraphRecommender,
    embedding: ShardedEmbedding,
    features: FeatureStore | None,
    device: torch.device,
    most_rows: int,
) -> torch.Tensor:
    """What a worker's own nodes start from `[n_own, d]`, in the embedding's memory; itself where nothing is added."""
    if features is None:
        return embedding.weight
    out = torch.empty_like(embedding.weight)
    for start in range(0, len(out), most_rows):
        part = slice(start, start + most_rows)
        rows = move(embedding.weight[part], device)
        out[part] = move(model.input_rows(rows, features.own(start, start + most_rows)), out.device)
    return out


def _vectors(
    model: GraphRecommender, states: list[torch.Tensor], own: OwnNodes, device: torch.device, most_rows: int
) -> torch.Tensor:
    """Readout and towers on the device, at most so many nodes at once; the vectors go where the states are."""
    out = states[0].new_empty((len(own.nodes), model.out_dim))
    most_rows = min(most_rows, _ROWS) if on_host(out) and device == out.device else most_rows
    for start in range(0, len(own.nodes), most_rows):
        part = slice(start, min(start + most_rows, len(own.nodes)))
        rows = model.encoder.readout([move(state[part], device) for state in states])
        is_user = own.node_type[part] == USER
        users_first = move(torch.from_numpy(np.argsort(~is_user, kind="stable")), device)
        keys = torch.zeros(len(rows), dtype=torch.int64, device=device)  # dropout is off
        user, item = model.towers(rows[users_first], int(is_user.sum()), keys, 0)
        vectors = rows.new_empty((len(rows), model.out_dim))
        vectors[users_first] = torch.cat([user, item])
        out[part] = move(vectors, out.device)
    return out


@torch.no_grad()
def infer_sampled(
    model: GraphRecommender,
    embedding: ShardedEmbedding,
    sampler: NeighborSampler,
    own: OwnNodes,
    bounds: np.ndarray,
    group: WorkerGroup,
    chunk: int = 4096,
    features: FeatureStore | None = None,
) -> torch.Tensor:
    """The same vectors from sampled neighbourhoods, as training sees them; a collective."""
    model.eval()
    rounds = int(group.max_floats([-(-len(own.nodes) // chunk)])[0])
    out = embedding.weight.new_empty((len(own.nodes), model.out_dim))
    for i in range(rounds):
        nodes = own.nodes[i * chunk : (i + 1) * chunk]
        batch = sampler.sample(nodes, SAMPLED_INFERENCE_STEP)
        tensors = block_tensors(batch.blocks, NO_KEYS, group.device, embedding.weight.dtype)
        plan = embedding.plan(batch.nodes, bounds, exchange=features is not None)
        rows = embedding.fetch(plan).detach()
        found = None if features is None else features.fetch(plan, batch.nodes, row_types(batch))
        user, item = model(tensors, rows, batch.n_seed_users, 0, found, entry_index(batch, group.device))
        assert batch.seed_index is not None
        vectors = torch.cat([user, item])[move(torch.from_numpy(batch.seed_index), group.device)]
        out[i * chunk : i * chunk + len(nodes)] = move(vectors, out.device)
    return out


class ModelScorer:
    """Inner products of this worker's users with every item, items broadcast in blocks by their owners.

    Vectors stay in the memory that they come in; products are made on the worker's device.

    Args:
        vectors: `[n_own, d]` of `own`. users: stable users of the task, in order. block_items: items in a broadcast.
    """

    def __init__(
        self,
        vectors: torch.Tensor,
        own: OwnNodes,
        topology: Topology,
        users: np.ndarray,
        group: WorkerGroup,
        block_items: int = 1 << 16,
    ) -> None:
        if not bool(torch.isfinite(vectors).all()):
            raise UserError(
                "the model's vectors are not finite: training diverged; lower optim.lr or raise loss.temperature"
            )
        nodes = np.asarray(topology.node_id[: topology.n_users], np.int64)[users] - own.low
        self.user_vectors = vectors[move(torch.from_numpy(nodes), vectors.device)]
        items = np.flatnonzero(own.node_type != USER)
        items = items[np.argsort(own.stable_id[items])]
        self.item_stable = own.stable_id[items]
        self.item_vectors = vectors[move(torch.from_numpy(items), vectors.device)]
        self.group = group
        self.block_items = block_items

    def item_blocks(self) -> Iterator[tuple[np.ndarray, Any]]:
        """(stable items ascending, their vectors) of every worker in rank order; a collective."""
        if self.group.size == 1 and self.item_vectors.device == self.group.device:
            yield self.item_stable, self._payload(self.item_vectors)
            return
        communicator = self.group.communicator(self.item_vectors.device)
        for owner in range(self.group.size):
            size = torch.tensor([len(self.item_stable)])
            with beat.waiting():
                dist.broadcast(size, src=owner, group=self.group.cpu)
            for start in range(0, int(size), self.block_items):
                n = min(self.block_items, int(size) - start)
                if owner == self.group.rank:
                    stable = torch.from_numpy(self.item_stable[start : start + n].copy())
                    vectors = self.item_vectors[start : start + n].contiguous()
                else:
                    stable = torch.empty(n, dtype=torch.int64)
                    vectors = self.item_vectors.new_empty((n, self.item_vectors.shape[1]))
                with beat.waiting():
                    dist.broadcast(stable, src=owner, group=self.group.cpu)
                    dist.broadcast(vectors, src=owner, group=communicator)
                yield stable.numpy(), self._payload(vectors)

    def _payload(self, item_vectors: torch.Tensor) -> InnerProducts | torch.Tensor:
        """What ranking on the CPU takes; columns `[d, m]` for products on a GPU."""
        if self.group.device.type == "cpu":
            return InnerProducts(self.user_vectors.numpy(), item_vectors.numpy())
        return move(item_vectors, self.group.device).T.contiguous()

    def score(self, start: int, stop: int, payload: torch.Tensor) -> np.ndarray:
        """Scores `[stop - start, m]`, made on a GPU."""
        return (move(self.user_vectors[start:stop], self.group.device) @ payload).cpu().numpy()
