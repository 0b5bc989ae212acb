"""From interaction logs to a published dataset: read, id maps, deduplicate, split, partition, write.

log -> ids -> distinct edges -> fit | valid | test -> partition -> relabel -> DATASET/
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from distgnn import publishing, resources, storage
from distgnn.config import Config
from distgnn.config_reading import config_from_dict
from distgnn.data.features import FeatureTable
from distgnn.data.interactions import TEST, TRAIN, VALID, Interactions
from distgnn.partition.dataset import PreparedDataset, is_prepared
from distgnn.partition.dataset_files import FORMAT_VERSION, SPLITS, DatasetWriter, edges_file, hash_of_json
from distgnn.partition.features import feature_bytes, with_features, write_features
from distgnn.partition.health import examine
from distgnn.partition.ingest import LabelledEdges, RawLogs, data_hash, label_edges, read_logs
from distgnn.partition.partitioning import check_method, goes_by_sampling, write_partitioning
from distgnn.partition.sources import Sources, find_sources, named_features, open_features
from distgnn.types import UserError

Log = Callable[[str], None]

# Measured peaks, bytes a row read; the figures of METIS are its own and stated when its turn comes.
_ROW_BYTES = 110  # with text keys; integers take less
_TIMESTAMP_BYTES = 48
_WEIGHT_BYTES = 16
_FEATURE_ROW_BYTES = 8  # of a table of features: whose they are
_FEATURE_BATCH_BYTES = 96 << 20  # a batch of its values in all their forms
_BASE_BYTES = 420 << 20  # the interpreter, Arrow's and Numba's code, a batch of text in all its forms


def prepare(config: Config, log: Log = print) -> PreparedDataset:
    """Make a dataset, or open it where it is already made.

    A log (`data.input`) or a dataset by name (`data.name`) is published at `run.out`, or in the cache, by the content
    of the logs and the options, where `run.out` is empty. A prepared dataset (`data.path`) is opened; with `run.out` a
    copy goes there, with the partitioning that the options name added.

    Args:
        config: sections run (out, seed), data, partition, cluster (workers, where partition.parts = 0).
        log: takes one line at a time.

    Raises:
        UserError: bad input, an output folder in use, not enough memory or disk. Nothing is left half-written.
    """
    if config.data.path:
        return _from_prepared(config, log)
    sources = find_sources(config.data)
    check_method(config.partition, config.parts)
    if config.run.out:
        publishing.refuse_used(config.run.out)
        return _publish(config, sources, config.run.out, log)
    out = str(_cached(config, sources))
    if not is_prepared(out):
        try:
            return _publish(config, sources, out, log)
        except UserError:
            if not is_prepared(out):  # else another process was faster
                raise
    log(f"{sources.name}: prepared before, in {out}")
    try:
        return PreparedDataset.open(out)
    except UserError as error:
        raise UserError(f"{error} (a copy in the cache: remove {out} first)") from error


def open_or_prepare(config: Config, log: Log = print) -> PreparedDataset:
    """The dataset of a run: `data.path`, or a log or name prepared in the cache; `run.out` is the run's own."""
    return prepare(dataclasses.replace(config, run=dataclasses.replace(config.run, out="")), log)


def load_dataset(name_or_path: str, log: Log = print, **config: dict[str, Any]) -> PreparedDataset:
    """Open a prepared dataset, or prepare one by name (in the cache, once).

    Args:
        name_or_path: a folder or URI of a prepared dataset, or a name of `distgnn datasets`.
        log: takes progress lines.
        **config: sections of the configuration: `partition={"parts": 4}`, `run={"seed": 1}`.
    """
    key = "path" if is_prepared(str(name_or_path)) else "name"
    data = {**config.get("data", {}), key: str(name_or_path)}
    return open_or_prepare(config_from_dict({**config, "data": data}), log)


def _cached(config: Config, sources: Sources) -> Path:
    """Place in the cache, by the logs' content and the options that matter."""
    options = {
        **dataclasses.asdict(config.partition),
        "parts": config.parts,
        **_split_options(config, sources),
    }
    if goes_by_sampling(config.partition):
        options |= {"fanout": config.sampler.fanout, "expand": config.sampler.expand, "batch": config.train.batch_size}
    if sources.features:
        options["standardize_features"] = config.data.standardize_features
    columns = {k: v for k, v in dataclasses.asdict(sources).items() if k.endswith("_column") or k == "format"}
    if sources.timestamp_column:
        columns["by_time"] = "2"  # a copy from before these files were written is made again
    digest = hash_of_json([FORMAT_VERSION, sources.fingerprint(), columns, options])
    return storage.cache_dir() / "prepared" / f"{_as_file_name(sources.name)}-{digest[:16]}"


def _as_file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)


def _split_options(config: Config, sources: Sources) -> dict[str, Any]:
    """The options that the split depends on: a given one has none but the seed of a missing validation part."""
    data = config.data
    options: dict[str, Any] = {"split": sources.split}
    if sources.split == "leave_last_k":
        options["holdout"] = data.holdout
    elif sources.split != "given":
        options |= {"valid_ratio": data.valid_ratio, "test_ratio": data.test_ratio}
    if not (sources.split == "global_time" or (sources.split == "given" and sources.has_valid)):
        options["seed"] = config.run.seed
    return options


class _Stages:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - start

    def line(self) -> str:
        """Times and peak memory in words."""
        times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())
        return f"{times}; peak memory {resources.gib(resources.peak_memory())}"


def estimate_bytes(rows: int, timestamps: bool, weights: bool) -> int:
    """Estimated peak memory of preparing a log without METIS, in bytes."""
    return _BASE_BYTES + rows * (_ROW_BYTES + _TIMESTAMP_BYTES * timestamps + _WEIGHT_BYTES * weights)


def _disk_bytes(rows: int, timestamps: bool, weights: bool) -> int:
    """Estimated size of a dataset: two topologies in both directions, and the edges."""
    return rows * (2 * 2 * (4 + 17 * timestamps + 4 * weights) + 12 + 8 * timestamps)


def _state_needs(sources: Sources, tables: dict[str, FeatureTable], out: str, log: Log) -> None:
    """Say what preparing will take, and refuse what can't fit."""
    rows = sources.estimate_rows()
    columns = (bool(sources.timestamp_column), bool(sources.weight_column))
    need, disk, left = estimate_bytes(rows, *columns), _disk_bytes(rows, *columns), resources.available_memory()
    for table in tables.values():
        need += _FEATURE_ROW_BYTES * table.rows + _FEATURE_BATCH_BYTES
        disk += feature_bytes(min(table.rows, rows), table.width)  # no more nodes than rows of the log
    log(
        f"{sources.name}: about {rows:,} rows; estimated peak memory {resources.gib(need)} (available"
        f" {resources.gib(left)}), disk {resources.gib(disk)}"
    )
    if need > left:
        raise UserError(
            f"{sources.name}: preparing about {rows:,} rows needs about {resources.gib(need)} of memory,"
            f" {resources.gib(left)} are available; use a larger machine or a part of the log"
        )
    storage.require_free_space(out, disk, f"the dataset {sources.name}")


def _publish(config: Config, sources: Sources, out: str, log: Log) -> PreparedDataset:
    tables = sources.open_features()
    _state_needs(sources, tables, out, log)
    stages = _Stages()
    with publishing.publish_directory(out) as staging:
        _build(config, sources, tables, DatasetWriter(staging), stages, log)
    log(stages.line())
    log(f"dataset {sources.name}: {out}")
    return _just_written(out)


def _just_written(out: str) -> PreparedDataset:
    """A dataset whose hashes were taken a moment ago."""
    dataset = PreparedDataset.open(out, verify=False)
    dataset.remember()
    return dataset


def _build(
    config: Config,
    sources: Sources,
    tables: dict[str, FeatureTable],
    writer: DatasetWriter,
    stages: _Stages,
    log: Log,
) -> None:
    with stages("read"):
        raw = read_logs(sources)
    n_users, n_items = len(raw.user_keys), len(raw.item_keys)
    with stages("split"):
        labelled, counts = label_edges(raw, sources, config.data, config.run.seed)
        health = examine(counts, np.bincount(raw.user, minlength=n_users), raw.user_keys, labelled, n_items)
        identity = data_hash(raw, labelled)
        raw = dataclasses.replace(raw, user=_NOTHING, item=_NOTHING, timestamp=None, weight=None)  # free the rows
    sizes = _count(labelled, n_users, n_items)
    log(
        f"{n_users:,} users, {n_items:,} items; edges: {sizes['n_fit']:,} fit, {sizes['n_valid']:,} validation,"
        f" {sizes['n_test']:,} test"
    )
    for line in health.lines():
        log(f"health: {line}")
    _warn_of_empty(sizes, sources, log)
    with stages("write edges"):
        _write_edges(writer, labelled)
        _write_nodes(writer, labelled, raw)
    features: dict[str, Any] = {}
    if tables:
        with stages("features"):
            keys = {"user": raw.user_keys, "item": raw.item_keys}
            features = write_features(writer, tables, keys, config.data.standardize_features, log)
    with stages("partition"):
        name, facts = write_partitioning(writer, labelled, n_users, n_items, config, log)
    writer.manifest(
        {
            "name": sources.name,
            "counts": sizes,
            "keys": {"user": _key_kind(raw.user_keys), "item": _key_kind(raw.item_keys)},
            "columns": _columns(labelled),
            "config": _split_options(config, sources),
            "health": dataclasses.asdict(health),
            "partitions": {name: facts},
            **with_features(identity, features, writer.files),
        }
    )


_NOTHING = np.empty(0, np.int32)


def _key_kind(keys: pa.Array) -> str:
    return "integer" if pa.types.is_integer(keys.type) else "text"


def _columns(labelled: LabelledEdges) -> list[str]:
    """The columns that the edges have besides user and item."""
    return [name for name in ("timestamp", "weight") if getattr(labelled.edges, name) is not None]


def _count(labelled: LabelledEdges, n_users: int, n_items: int) -> dict[str, int]:
    fit, valid, test = (int((labelled.labels == label).sum()) for label in (TRAIN, VALID, TEST))
    return {
        "n_users": n_users,
        "n_items": n_items,
        "n_fit": fit,
        "n_valid": valid,
        "n_test": test,
        "n_train": fit + valid,
    }


def _warn_of_empty(sizes: dict[str, int], sources: Sources, log: Log) -> None:
    for key, what in (("n_valid", "validation"), ("n_test", "test")):
        if not sizes[key]:
            why = "" if sources.split == "given" else f" (data.split = {sources.split}; too few edges a user?)"
            log(f"warning: no {what} edges{why}: nothing can be measured on them")


def _write_edges(writer: DatasetWriter, labelled: LabelledEdges) -> None:
    for label, split in zip((TRAIN, VALID, TEST), SPLITS, strict=True):
        edges = labelled.of(label)
        columns = {"user": edges.user.astype(np.int64), "item": edges.item.astype(np.int64)}
        columns |= {name: getattr(edges, name) for name in _columns(labelled)}
        writer.table(edges_file(split), pa.table(columns))


def _write_nodes(writer: DatasetWriter, labelled: LabelledEdges, raw: RawLogs) -> None:
    for file, side, keys, extra in (
        ("users.parquet", "user", raw.user_keys, raw.users),
        ("items.parquet", "item", raw.item_keys, raw.items),
    ):
        ids = getattr(labelled.edges, side)
        degree_fit, valid = (
            np.bincount(ids[labelled.labels == label], minlength=len(keys)) for label in (TRAIN, VALID)
        )
        columns = {
            "stable_id": np.arange(len(keys)),
            "key": keys,
            "degree": degree_fit + valid,
            "degree_fit": degree_fit,
        }
        writer.table(file, pa.table({**columns, **dict(zip(extra.column_names, extra.columns, strict=True))}))


def _from_prepared(config: Config, log: Log) -> PreparedDataset:
    """Open `data.path`; with `run.out`, publish a copy of it there that has the wanted partitioning too."""
    dataset = PreparedDataset.open(config.data.path)
    named = named_features(config.data)
    _refuse_features(dataset, named, published=bool(config.run.out))
    if not config.run.out:
        dataset.partitioning(config.partition.method, config.parts)
        return dataset
    tables = open_features(named, {"user": config.data.user_column, "item": config.data.item_column})
    check_method(config.partition, config.parts)
    out = config.run.out
    publishing.refuse_used(out)
    stored = sum(facts["bytes"] for facts in dataset.manifest["files"].values())
    n_nodes = {"user": dataset.n_users, "item": dataset.n_items}
    stored += sum(feature_bytes(n_nodes[role], table.width) for role, table in tables.items())
    storage.require_free_space(out, 2 * stored, f"the dataset {dataset.name}")
    stages = _Stages()
    with publishing.publish_directory(out) as staging:
        writer = DatasetWriter(staging)
        with stages("copy"):
            for file, facts in dataset.manifest["files"].items():
                writer.copy(file, dataset.local_file(file), facts)
        features = dict(dataset.manifest.get("features", {}))
        if tables:
            with stages("features"):
                keys = {"user": dataset.user_keys(), "item": dataset.item_keys()}
                features |= write_features(writer, tables, keys, config.data.standardize_features, log)
        with stages("partition"):
            partitions = _with_partitioning(dataset, config, writer, log)
        kept = ("name", "counts", "keys", "columns", "config", "health")
        identity = dataset.manifest.get("log_hash", dataset.data_hash)
        writer.manifest(
            {
                **{key: dataset.manifest[key] for key in kept},
                "partitions": partitions,
                **with_features(identity, features, writer.files),
            }
        )
    log(stages.line())
    log(f"dataset {dataset.name}: {out}")
    return _just_written(out)


def _refuse_features(dataset: PreparedDataset, named: dict[str, str], *, published: bool) -> None:
    """A prepared dataset gets features in a copy of it, and never others than it has."""
    for role, uri in named.items():
        if role in dataset.manifest.get("features", {}):
            raise UserError(
                f"{dataset.path}: has {role} features already; leave data.{role}_features out, or prepare the log again"
            )
        if not published:
            raise UserError(
                f"{dataset.path}: has no {role} features; make a dataset with them by: distgnn prepare --set "
                f"data.path={dataset.path} --set data.{role}_features={uri} --set run.out=NEW_FOLDER"
            )


def _with_partitioning(dataset: PreparedDataset, config: Config, writer: DatasetWriter, log: Log) -> dict[str, Any]:
    """The manifest's partitionings with the wanted one, written if it is not there."""
    partitions = dict(dataset.manifest["partitions"])
    try:
        dataset.partitioning(config.partition.method, config.parts)
    except UserError:
        labelled = _stored_edges(dataset)
        name, facts = write_partitioning(writer, labelled, dataset.n_users, dataset.n_items, config, log)
        partitions[name] = facts
    return dict(sorted(partitions.items()))


def _stored_edges(dataset: PreparedDataset) -> LabelledEdges:
    """All edges of a dataset, by (user, item), with their labels."""
    tables = [dataset.edge_table(split) for split in SPLITS]
    labels = np.repeat(np.array([TRAIN, VALID, TEST], np.int8), [table.num_rows for table in tables])
    joined = pa.concat_tables(tables)
    user, item = (joined[name].to_numpy().astype(np.int32) for name in ("user", "item"))
    order = np.lexsort((item, user))
    extra = {n: joined[n].to_numpy()[order] for n in ("timestamp", "weight") if n in joined.column_names}
    return LabelledEdges(Interactions(user[order], item[order], **extra), labels[order])
