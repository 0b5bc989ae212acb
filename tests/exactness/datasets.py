"""The matrix's graphs, prepared for every number of partitions, and a copy of each worker's own files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distgnn.config_reading import load_config
from distgnn.partition.dataset import PreparedDataset
from distgnn.partition.prepare import prepare


def adversarial_log(folder: Path) -> list[str]:
    """Settings of a tiny log of extremes.

    Item 0 has every user of the graph and user 23 every item of it; users 0-7 have that one item alone; users 24 and 25
    and items 12-15 are in validation or test alone, so that no edge is theirs.
    """
    rng = np.random.default_rng(5)
    hub = [(user, 0) for user in range(24)]
    rest = [(int(u), int(i)) for u, i in zip(rng.integers(8, 24, 60), rng.integers(1, 12, 60), strict=True)]
    splits = {
        "train": sorted({*hub, *rest, *((23, i) for i in range(12))}),
        "valid": [(9, 12), (10, 13), (24, 1), (11, 12)],
        "test": [(12, 14), (13, 15), (25, 2), (14, 14)],
    }
    for name, edges in splits.items():
        user, item = zip(*edges, strict=True)
        pq.write_table(pa.table({"user": user, "item": item}), folder / f"{name}.parquet")
    return [
        f"data.input={folder}/train.parquet",
        f"data.valid_input={folder}/valid.parquet",
        f"data.test_input={folder}/test.parquet",
        "data.split=given",
        "partition.method=random",
    ]


def dated_log(folder: Path) -> list[str]:
    """Settings of a log with few distinct timestamps, popular items and users with few edges, split by time."""
    rng = np.random.default_rng(6)
    user, item = rng.integers(0, 60, 1500), (40 * rng.random(1500) ** 2).astype(np.int64)
    table = {"user": user, "item": item, "timestamp": rng.integers(-10, 50, 1500)}
    pq.write_table(pa.table(table), folder / "log.parquet")
    return [
        f"data.input={folder}/log.parquet",
        "data.timestamp_column=timestamp",
        "data.split=global_time",
        "partition.method=random",
    ]


def weighted_log(folder: Path) -> list[str]:
    """Settings of a log with heavy and light edges, some of no weight, and many events of one edge."""
    rng = np.random.default_rng(7)
    user, item = rng.integers(0, 60, 2000), (40 * rng.random(2000) ** 2).astype(np.int64)
    weight = rng.pareto(1.0, 2000) * (rng.random(2000) < 0.8)
    pq.write_table(pa.table({"user": user, "item": item, "weight": weight}), folder / "log.parquet")
    return [f"data.input={folder}/log.parquet", "data.weight_column=weight", "partition.method=random"]


def source(graph: str, folder: Path) -> list[str]:
    """Settings that name a graph; a log of it goes into the folder."""
    if graph == "bundled":
        return ["data.name=debian-deps"]
    folder.mkdir(parents=True, exist_ok=True)
    return {"tiny": adversarial_log, "dated": dated_log, "weighted": weighted_log}[graph](folder)


def prepared(graph: str, parts: int, root: Path) -> Path:
    """The graph's dataset in so many partitions, made where it is not there."""
    folder = root / f"{graph}-{parts}"
    if not folder.exists():
        settings = [f"run.out={folder}", f"partition.parts={parts}", *source(graph, root / f"{graph}-log")]
        prepare(load_config(None, settings), log=lambda _: None)
    return folder


def own_copy(folder: Path, rank: int, workers: int) -> Path:
    """The dataset as a worker of the partitioned topology needs it: the files of the others' partitions are gone."""
    dataset = PreparedDataset.open(str(folder), verify=False)
    method, _, parts = dataset.partitionings()[0].rpartition("-")
    keep = dataset.book(method, int(parts)).worker_parts(rank, workers)
    copy = folder.with_name(f"{folder.name}-of-{workers}-{rank}")
    if not copy.exists():
        shutil.copytree(folder, copy, copy_function=os.link)
        for part in copy.rglob("part-*"):
            if int(part.name[5:]) not in keep:
                shutil.rmtree(part)
    return copy
