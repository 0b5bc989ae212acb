"""The result does not depend on partitions, workers, threads, topology or hot rows.

A pairwise cover of the matrix is run by default, all of it where DISTGNN_TESTS is `all` (`make exactness`).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from distgnn.graph import Topology
from distgnn.partition.dataset import PreparedDataset
from distgnn.sampler import SeedOrder
from tests.exactness.breaks import BREAKS
from tests.exactness.cells import WEIGHTED, Cell, all_cells, pairwise_cover
from tests.exactness.datasets import prepared
from tests.exactness.harness import differences, outcome, run_cells

EVERYTHING = os.environ.get("DISTGNN_TESTS") == "all"
CELLS = [*(all_cells() if EVERYTHING else pairwise_cover()), *WEIGHTED]
MOST_CELLS = 40
TINY = Cell((8, 3), "partitioned", 2, False, "tiny", "lightgcn", "bpr", "sgd")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the datasets are."""
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture(scope="module")
def folder(root: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Outcomes of the chosen tests' cells and of what they are compared with."""
    folder = tmp_path_factory.mktemp("outcomes")
    specs = [getattr(item, "callspec", None) for item in request.session.items]
    chosen = [spec.params["cell"] for spec in specs if spec is not None and "cell" in spec.params]
    cells = list(dict.fromkeys([*(cell.reference for cell in chosen), *chosen, TINY, TINY.reference]))
    run_cells(cells, root, folder, timeout=7200 if EVERYTHING else 600)
    return folder


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_cell_computes_what_one_worker_does(folder: Path, cell: Cell) -> None:
    assert differences(cell, folder) == []


def test_the_cover_is_one() -> None:
    cover = pairwise_cover()
    assert len(cover) <= MOST_CELLS
    names = [f"{a}/{b}" for a in Cell.__dataclass_fields__ for b in Cell.__dataclass_fields__ if a < b]
    for name in names:
        a, b = name.split("/")
        met = {(getattr(cell, a), getattr(cell, b)) for cell in cover}
        assert met == {(getattr(cell, a), getattr(cell, b)) for cell in all_cells()}, name


def test_the_tiny_graph_has_every_extreme(root: Path, folder: Path) -> None:
    """Empty shares and partitions, isolated nodes, a hub of each side, users with one edge, a short last step."""
    dataset = PreparedDataset.open(str(prepared("tiny", 8, root)))
    topology: Topology = dataset.topology("fit", "random", 8)
    degree = topology.degree(np.arange(topology.n_nodes))
    users, items = dataset.user_degree("fit"), dataset.item_degree("fit")
    assert (degree == 0).sum() >= 4
    assert (users == 1).sum() >= 8
    assert items.max() == (users > 0).sum()
    assert users.max() == (items > 0).sum()
    assert topology.n_edges % 7 > 0
    edges = outcome(TINY, folder).edges
    assert len(edges) > -(-topology.n_edges // 7)  # more steps than one epoch has
    assert (edges == 0).any()
    by_partition = SeedOrder(topology, 7, 0, dataset.book("random", 8).worker_bounds(8))
    assert all((by_partition.seeds(step).share_sizes == 0).any() for step in range(len(edges)))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if i else []) for i, name in enumerate(BREAKS)]
)
def test_a_mistake_is_seen(root: Path, tmp_path: Path, name: str) -> None:
    """Each of these passes where it is made by one worker alone."""
    cell = Cell((8, 2), "replicated", 1, False, "tiny", "lightgcn", "bpr", "sgd")
    run_cells([cell, cell.reference], root, tmp_path, break_name=name)
    assert differences(cell, tmp_path) != []
