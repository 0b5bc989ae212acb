"""Which logs and tables a dataset is prepared from, and how it is to be split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from distgnn import storage
from distgnn.config import DataConfig
from distgnn.data.features import FeatureTable
from distgnn.data.log_files import find_log_files
from distgnn.data.readers import estimate_rows
from distgnn.data.registry import find_dataset
from distgnn.types import UserError

DEFAULT_DATASET = "debian-deps"


@dataclass(frozen=True)
class Log:
    """One interaction log.

    Attributes:
        role: train, valid or test; `all` where the split is ours to make.
        uri: file, folder or pattern.
    """

    role: str
    uri: str


@dataclass(frozen=True)
class Sources:
    """All that goes into a dataset.

    Attributes:
        name: of the dataset.
        logs: an edge that stands in several belongs to the first of them.
        split: given, leave_last_k, per_user_ratio or global_time.
        format: of the logs.
        user_column, item_column, timestamp_column, weight_column: of the logs; the last two may be empty.
        users, items: Parquet tables of what is known of users and items, by the key columns, or None.
        features: role, `user` or `item`, to a table of features by the role's key column.
    """

    name: str
    logs: tuple[Log, ...]
    split: str
    format: str
    user_column: str
    item_column: str
    timestamp_column: str
    weight_column: str
    users: str | None = None
    items: str | None = None
    features: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_valid(self) -> bool:
        """Whether a validation log is given."""
        return any(log.role == "valid" for log in self.logs)

    def estimate_rows(self) -> int:
        """Interactions of all logs, about."""
        return sum(estimate_rows(log.uri, format=self.format) for log in self.logs)

    def fingerprint(self) -> list[list[str]]:
        """Role and content hash of every file (of a remote one: of its version mark)."""
        tables = [(role, uri) for role, uri in (("users", self.users), ("items", self.items)) if uri is not None]
        marks = []
        for role, uri in [(log.role, log.uri) for log in self.logs]:
            marks += [[role, _mark(file.name)] for file in find_log_files(uri, self.format)]
        for role, uri in self.features.items():
            marks += [[f"{role} features", _mark(file.name)] for file in find_log_files(uri, "parquet")]
        return marks + [[role, _mark(uri)] for role, uri in tables]

    def open_features(self) -> dict[str, FeatureTable]:
        """The tables of features by role.

        Raises:
            UserError: one that cannot be used, by its schema.
        """
        return open_features(self.features, {"user": self.user_column, "item": self.item_column})


def named_features(data: DataConfig) -> dict[str, str]:
    """`data.user_features` and `data.item_features`, by role, where they are given."""
    named = {"user": data.user_features, "item": data.item_features}
    return {role: uri for role, uri in named.items() if uri}


def open_features(features: Mapping[str, str], key_columns: Mapping[str, str]) -> dict[str, FeatureTable]:
    """Tables of features by role, from their URIs and their columns of keys by role."""
    return {role: FeatureTable(uri, key_columns[role], role) for role, uri in features.items()}


def _mark(uri: str) -> str:
    return storage.sha256_of(uri) if storage.is_local(uri) else storage.version_mark(uri)


def find_sources(data: DataConfig) -> Sources:
    """Resolve `data.input` or `data.name` (the bundled dataset where neither is set).

    Raises:
        UserError: an unknown dataset, or a split that the logs can't give.
    """
    sources = _raw_logs(data) if data.input else _registered(data)
    if sources.split == "global_time" and not sources.timestamp_column:
        raise UserError(
            f"data.split = 'global_time' needs timestamps, and {sources.name} has none: "
            + ("name their column in data.timestamp_column" if data.input else "choose per_user_ratio")
        )
    if sources.split == "leave_last_k" and not sources.timestamp_column and len(sources.logs) > 1:
        raise UserError(
            f"data.split = 'leave_last_k' needs timestamps where several logs are joined, and {sources.name} has none:"
            f" there is no last edge; choose per_user_ratio or given"
        )
    return sources


def _raw_logs(data: DataConfig) -> Sources:
    split = data.split
    if split == "auto":
        split = "given" if data.test_input else "per_user_ratio"
    if split == "given" and not data.test_input:
        raise UserError("data.split = 'given' needs the test log: set data.test_input")
    if data.valid_input and not data.test_input:
        raise UserError("data.valid_input goes with data.test_input: set that too, or leave both out")
    logs = [Log("train", data.input), Log("valid", data.valid_input), Log("test", data.test_input)]
    logs = [log for log in logs if log.uri]
    if split != "given":
        logs = [Log("all", log.uri) for log in logs]
    return Sources(
        name=data.name or _stem(data.input),
        logs=tuple(logs),
        split=split,
        format=data.format,
        user_column=data.user_column,
        item_column=data.item_column,
        timestamp_column=data.timestamp_column,
        weight_column=data.weight_column,
        features=named_features(data),
    )


def _stem(uri: str) -> str:
    """A name from a URI: its last component up to the first dot."""
    last = PurePosixPath(uri.rstrip("/")).name
    return last.split(".", 1)[0].strip("*?[]") or "interactions"


def _registered(data: DataConfig) -> Sources:
    for key in ("valid_input", "test_input"):
        if getattr(data, key):
            raise UserError(f"data.{key} goes with data.input; {data.name or DEFAULT_DATASET} brings its own logs")
    raw = find_dataset(data.name or DEFAULT_DATASET)
    split = "given" if data.split == "auto" else data.split
    train, valid, test = Log("train", raw.train), Log("valid", raw.valid or ""), Log("test", raw.test or "")
    # Validation edges that also stand in train are held out of it: there the validation log has precedence.
    logs = [valid, train, test] if raw.valid_is_subset_of_train else [train, valid, test]
    logs = [log for log in logs if log.uri]
    if split == "given" and test not in logs:
        raise UserError(f"dataset {raw.name} has no test split; set data.split = per_user_ratio, say")
    if split != "given":
        logs = [Log("all", log.uri) for log in logs if log is not valid or not raw.valid_is_subset_of_train]
    return Sources(
        name=raw.name,
        logs=tuple(logs),
        split=split,
        format="parquet",
        user_column=raw.columns["user"],
        item_column=raw.columns["item"],
        timestamp_column=data.timestamp_column or raw.columns["timestamp"],
        weight_column=data.weight_column,
        users=raw.users,
        items=raw.items,
        features=named_features(data),
    )
