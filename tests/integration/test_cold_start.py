"""What features are for: items that no training edge has, ranked by what is known of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distgnn.config_reading import load_config
from distgnn.training.launch import run_training

N_USERS, N_ITEMS, N_TASTES = 300, 240, 12
WARM = 160  # items from here on are new


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A log of users who like items of one taste each; all validation is of new items; vectors tell the tastes."""
    folder = tmp_path_factory.mktemp("log")
    rng = np.random.default_rng(0)
    taste_of_user, taste_of_item = rng.integers(0, N_TASTES, N_USERS), np.arange(N_ITEMS) % N_TASTES
    likes = taste_of_user[:, None] == taste_of_item[None, :]
    user, item = np.nonzero(likes)
    new = item >= WARM
    vectors = rng.normal(size=(N_TASTES, 8))[taste_of_item] + 0.2 * rng.normal(size=(N_ITEMS, 8))
    kept = rng.random(len(user)) < 0.5
    for name, chosen in (("train", ~new), ("valid", new & kept), ("test", new & ~kept)):
        pq.write_table(pa.table({"user": user[chosen], "item": item[chosen]}), folder / f"{name}.parquet")
    table = pa.table({"item": np.arange(N_ITEMS), "text": pa.array(list(vectors), pa.list_(pa.float64()))})
    pq.write_table(table, folder / "items.parquet")
    return [
        *(f"data.{key}={folder}/{name}.parquet" for key, name in (("input", "train"), ("item_features", "items"))),
        *(f"data.{name}_input={folder}/{name}.parquet" for name in ("valid", "test")),
        "model.dim=16",
        "train.phase=fit",
        "train.epochs=4",
        "train.batch_size=128",
        "optim.lr=0.02",
        "run.tensorboard=false",
    ]


def validated(settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> dict[str, float]:
    monkeypatch.setenv("DISTGNN_CACHE", str(tmp_path / "cache"))
    report = run_training(load_config(None, [*settings, f"run.out={tmp_path}/run{len(more)}", *more]))
    metrics: dict[str, float] = report["metrics"]
    return metrics


@pytest.mark.parametrize("encoder", ["lightgcn", "graphsage"])
def test_new_items_are_found_by_their_features(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: str
) -> None:
    model = f"model.encoder={encoder}"
    with_features = validated(settings, tmp_path, monkeypatch, model)
    without = validated(settings, tmp_path, monkeypatch, model, "model.features=false")
    assert without["recall@20"] < 0.3  # 20 of the 80 new items: what chance finds among them
    assert with_features["recall@20"] > 0.7
    assert with_features["ndcg@20"] > without["ndcg@20"] + 0.3
