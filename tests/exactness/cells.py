"""Cells of the matrix: what a run may be computed by, and what is computed."""

from __future__ import annotations

import itertools
import random
from dataclasses import astuple, dataclass, fields, replace

FACTORS: dict[str, tuple[object, ...]] = {
    "place": tuple((parts, workers) for parts in (1, 2, 4, 8) for workers in (1, 2, 3) if workers <= parts),
    "topology": ("replicated", "partitioned"),
    "threads": (1, 2),
    "hot": (False, True),
    "graph": ("bundled", "tiny", "dated"),
    "model": ("lightgcn", "graphsage"),
    "loss": ("bpr", "softmax", "directau"),
    "optimizer": ("sgd", "adam"),
}


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        place: (P, W). topology, threads, hot: by whom, and how (`hot`: with replicated hot rows).
        graph, model, loss, optimizer: what; the dated graph is sampled with respect to time, the weighted one by
            weight.
    """

    place: tuple[int, int]
    topology: str
    threads: int
    hot: bool
    graph: str
    model: str
    loss: str
    optimizer: str

    @property
    def parts(self) -> int:
        """P."""
        return self.place[0]

    @property
    def workers(self) -> int:
        """W."""
        return self.place[1]

    @property
    def reference(self) -> Cell:
        """The same run of one worker that holds one partition."""
        return replace(self, place=(1, 1), topology="replicated", threads=1, hot=False)

    def __str__(self) -> str:
        hot = "hot" if self.hot else "cold"
        where = f"P{self.parts}-W{self.workers}-{self.topology}-{self.threads}-{hot}"
        return f"{self.graph}-{self.model}-{self.loss}-{self.optimizer}-{where}"

    def overrides(self) -> list[str]:
        """Settings of the run, but for where it is and what it reads."""
        batch, fanout, steps = {
            "bundled": (256, "4,3", 6),
            "tiny": (7, "2,3", 16),
            "dated": (50, "3,2", 8),
            "weighted": (50, "5,3", 8),
        }[self.graph]
        settings = [
            "run.dtype=float64",
            "run.tensorboard=false",
            "run.dump_blocks=true",
            "train.log_every=1",
            f"train.batch_size={batch}",
            f"train.max_steps={steps}",
            f"sampler.fanout={fanout}",
            f"sampler.topology={self.topology}",
            f"sampler.threads={self.threads}",
            f"cluster.workers={self.workers}",
            # Hot rows go by messages in either case.
            f"cluster.exchange={'auto' if self.threads == 1 or self.topology == 'replicated' else 'messages'}",
            f"partition.parts={self.parts}",
            "model.dim=4",
            f"model.encoder={self.model}",
            f"optim.name={self.optimizer}",
            "optim.lr=0.05",
            {
                "bpr": "loss.name=bpr",
                "softmax": "loss.name=sampled_softmax",
                "directau": "loss.name=directau",
            }[self.loss],
        ]
        if self.graph == "dated":
            settings.append("sampler.time_respecting=true")
        if self.graph == "weighted":
            settings.append("sampler.weighted=true")
        if self.hot:
            settings.append("cluster.hot_rows=0.1")
        if self.loss == "bpr":
            settings.append("loss.num_negatives=2")
        if self.model == "graphsage":
            settings += ["model.tower=mlp", "model.dropout=0.2"]
        return settings


# Beside the matrix: neighbours drawn by weight.
WEIGHTED = [
    Cell((4, 2), "partitioned", 2, False, "weighted", "lightgcn", "softmax", "sgd"),
    Cell((8, 3), "replicated", 2, True, "weighted", "graphsage", "bpr", "adam"),
]


def all_cells() -> list[Cell]:
    """Every cell of the matrix."""
    return [Cell(*values) for values in itertools.product(*FACTORS.values())]  # type: ignore[arg-type]


def pairwise_cover() -> list[Cell]:
    """Few cells in which every two values of two factors meet; the same at every call."""
    cells = all_cells()
    random.Random(0).shuffle(cells)
    missing = {pair for cell in cells for pair in _pairs(cell)}
    chosen = []
    while missing:
        best = max(cells, key=lambda cell: len(_pairs(cell) & missing))
        chosen.append(best)
        missing -= _pairs(best)
    return chosen


def _pairs(cell: Cell) -> set[tuple[tuple[str, object], ...]]:
    named = zip((f.name for f in fields(Cell)), astuple(cell), strict=True)
    return set(itertools.combinations(named, 2))
