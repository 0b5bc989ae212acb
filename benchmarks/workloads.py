"""Interaction logs made from a fixed seed, of the sizes that the benchmarks speak of, as prepared datasets.

`w1`: 100k users, 50k items, 5M interactions. `w2`: 1M users, 300k items, 25M interactions. In both every user has the
same number of interactions, and items are drawn by Zipf's law with exponent 0.8. `flat`: 500k users and 500k items of
degree 20, so that no hub flatters anybody. Repeated pairs count once, so that a log is a little smaller than its name
says. One interaction each of 2,000 users is for validation, and of as many others for test: ranking is not what these
logs are for.

`gowalla-fractal`: the fit graph of Gowalla, grown (see `fractal_expansion`): 239k users, 164k items, 12M interactions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numba import njit

from distgnn import storage
from distgnn.config_reading import load_config
from distgnn.graph import Topology
from distgnn.kernels.rng import hash2
from distgnn.partition.dataset import PreparedDataset
from distgnn.partition.prepare import open_or_prepare
from distgnn.timed_rows import TimedRows

SEED = 0
HELD_OUT = 2_000
YEAR = 365 * 24 * 3600


@dataclass(frozen=True)
class Workload:
    """Size of a log. `zipf`: exponent of the items' popularity; 0: every item has the same degree."""

    users: int
    items: int
    interactions: int
    zipf: float

    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Distinct pairs: users and items, int64 `[e]`, ordered by user."""
        rng = np.random.default_rng(SEED)
        user = np.repeat(np.arange(self.users), self.interactions // self.users)
        if self.zipf:
            weight = np.cumsum(np.arange(1, self.items + 1) ** -self.zipf)
            item = np.searchsorted(weight, rng.random(len(user)) * weight[-1])
            item = rng.permutation(self.items)[item]  # popularity says nothing about the id
        else:
            item = rng.permutation(np.repeat(np.arange(self.items), self.interactions // self.items))
        key = np.unique(user * self.items + item)
        return key // self.items, key % self.items


WORKLOADS = {
    "w1": Workload(100_000, 50_000, 5_000_000, 0.8),
    "w2": Workload(1_000_000, 300_000, 25_000_000, 0.8),
    "flat": Workload(500_000, 500_000, 10_000_000, 0.0),
}


FRACTAL = {"gowalla-fractal": ("gowalla", 8, 4, 0.5)}  # of which graph, times users, times items, share kept


def fractal_expansion(
    user: np.ndarray, item: np.ndarray, n_users: int, n_items: int, times: tuple[int, int], kept: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """A larger graph like a given one: a randomized Kronecker product with a reduced copy of it (Belletti et al. 2019).

    User (a, u) has item (b, i) with probability S[a, b] where u has i, and S says how much the a-th of so many equal
    groups of users, by degree, has of the b-th group of items. Degrees are sums of products of two heavy-tailed ones,
    and who is in a community stays with its own kind in every copy. Unlike in the paper a copy's rows and columns are
    not shuffled, which would take the communities apart.

    Args:
        user, item: distinct edges, int64 `[E]`. times: of the users, and of the items. kept: mean of S, in (0, 1).

    Returns:
        Users and items of distinct edges, int64 `[about times[0] times[1] kept E]`.
    """
    rng = np.random.default_rng(seed)
    groups = []
    for of_edge, n, count in ((user, n_users, times[0]), (item, n_items, times[1])):
        rank = np.empty(n, np.int64)
        rank[np.argsort(-np.bincount(of_edge, minlength=n), kind="stable")] = np.arange(n)
        groups.append(rank[of_edge] * count // n)
    reduced = np.zeros(times)
    np.add.at(reduced, tuple(groups), 1.0)
    reduced /= reduced.max()
    low, high = 0.0, 1.0  # of an exponent that flattens S until its mean is the wanted one
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if (reduced**middle).mean() > kept else (low, middle)
    chance = reduced**low
    users, items = [], []
    for a in range(times[0]):
        for b in range(times[1]):
            there = rng.random(len(user)) < chance[a, b]
            users.append(a * n_users + user[there])
            items.append(b * n_items + item[there])
    return np.concatenate(users), np.concatenate(items)


def logs_of(name: str) -> dict[str, Path]:
    """The workload's parts train, valid and test as Parquet files in the cache, made where they are not there."""
    folder = storage.cache_dir() / "workloads"
    paths = {split: folder / f"{name}-{split}.parquet" for split in ("valid", "test", "train")}
    if not paths["train"].exists():
        folder.mkdir(parents=True, exist_ok=True)
        user, item = WORKLOADS[name].edges()
        first = np.flatnonzero(np.diff(user, prepend=-1))[: 2 * HELD_OUT]
        rows = {"valid": first[:HELD_OUT], "test": first[HELD_OUT:]}
        rows["train"] = np.setdiff1d(np.arange(len(user)), first, assume_unique=True)
        for split, path in paths.items():  # train last: it says that the others are there
            unfinished = path.with_suffix(".part")
            pq.write_table(pa.table({"user": user[rows[split]], "item": item[rows[split]]}), unfinished)
            unfinished.rename(path)
    return paths


def options_of(name: str) -> list[str]:
    """Settings that name a workload, or a dataset of `distgnn datasets`."""
    if name in WORKLOADS:
        logs = logs_of(name)
        return [
            f"data.input={logs['train']}",
            f"data.valid_input={logs['valid']}",
            f"data.test_input={logs['test']}",
            "data.split=given",
        ]
    return [f"data.name={name}"]


def dataset_of(name: str, parts: int, method: str) -> PreparedDataset:
    """A workload, or a dataset of `distgnn datasets`, in so many partitions; prepared in the cache, once."""
    settings = [*options_of(name), f"partition.parts={parts}", f"partition.method={method}"]
    return open_or_prepare(load_config(None, settings))


def csc_of(name: str) -> Path:
    """Folder in the cache with the training graph as plain arrays, users first, then items; made where it is not there.

    indptr.npy int64 `[N + 1]`, indices.npy int32 `[E]` ordered within a row, n_users.npy.
    """
    folder = storage.cache_dir() / "workloads" / f"{name}-csc"
    if not (folder / "n_users.npy").exists():
        if name in WORKLOADS:
            n_users, n_items = WORKLOADS[name].users, WORKLOADS[name].items
            user, item = WORKLOADS[name].edges()
        elif name in FRACTAL:
            source, *times, kept = FRACTAL[name]
            indptr, indices = (np.load(csc_of(source) / f"{part}.npy") for part in ("indptr", "indices"))
            small = int(np.load(csc_of(source) / "n_users.npy"))
            user, item = np.repeat(np.arange(small), np.diff(indptr[: small + 1])), indices[: indptr[small]] - small
            few = len(indptr) - 1 - small
            user, item = fractal_expansion(user, item, small, few, (times[0], times[1]), kept, SEED)
            n_users, n_items = times[0] * small, times[1] * few
        else:
            dataset = dataset_of(name, 1, "random")
            n_users, n_items = dataset.n_users, dataset.n_items
            user, item = dataset.edges("train")
        graph = Topology.from_edges(user, item, n_users, n_items)
        indptr, indices = graph.part_arrays(0)
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "indptr.npy", indptr)
        np.save(folder / "indices.npy", indices)
        np.save(folder / "n_users.npy", n_users)  # last: it says that the others are there
    return folder


def attributed_topology(name: str, weights: str = "") -> Topology:
    """The training graph of `csc_of`, every edge with what a hash of it gives.

    Args:
        weights: "" for timestamps instead, seconds of a year, uniform; "counts": geometric from 1 on, with mean 2;
            "pareto": without a mean, so that few edges hold most of a row's weight.
    """
    folder = csc_of(name)
    indptr, indices = np.load(folder / "indptr.npy"), np.load(folder / "indices.npy")
    n_users, n_nodes = int(np.load(folder / "n_users.npy")), len(indptr) - 1
    bits = np.empty(len(indices), np.uint64)
    _hash_edges(indptr, indices, bits)
    chance = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    stable = np.concatenate([np.arange(n_users), np.arange(n_nodes - n_users)]).astype(np.int32)
    weight = times = None
    if weights == "counts":
        weight = np.floor(1 - np.log2(1 - chance))
    elif weights == "pareto":
        weight = 1 / (1 - chance)
    else:
        times = [TimedRows.of(indptr, indices, (chance * YEAR).astype(np.int64))]
    return Topology(
        np.array([[0, n_users, n_nodes]]),
        stable,
        np.arange(n_nodes, dtype=np.int32),
        [(indptr, indices)],
        indptr[: n_users + 1].copy(),
        times=times,
        weights=None if weight is None else [weight.astype(np.float32)],
    )


@njit(nogil=True, cache=True)
def _hash_edges(indptr, indices, bits):
    for i in range(len(indptr) - 1):
        for e in range(indptr[i], indptr[i + 1]):
            user, item = min(i, indices[e]), max(i, indices[e])
            bits[e] = hash2(np.uint64(user), np.uint64(item))
