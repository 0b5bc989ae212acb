"""Baselines: one shared known answer for each, dense obvious implementations, and the published figures."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import sparse

from distgnn.baselines import als, gfcf, itemknn, run_baselines, toppop
from distgnn.baselines.base import BaselineScorer, block_bounds, interaction_matrix
from distgnn.baselines.runner import LABELS
from distgnn.config import Config
from distgnn.config_reading import config_from_dict
from distgnn.types import UserError

MODULES = {"toppop": toppop, "itemknn": itemknn, "gfcf": gfcf, "als": als}
SETTINGS = config_from_dict(
    {"baselines": {"alpha": 10.0, "factors": 4, "singular_vectors": 2, "neighbors": 30}, "cluster": {}}
)
SIZE = 40


def checkerboard():
    """User u has every item of the same parity, except item u."""
    user, item = np.nonzero((np.arange(SIZE)[:, None] + np.arange(SIZE)) % 2 == 0)
    kept = user != item
    return user[kept], item[kept]


def all_scores(model, n_users, memory_bytes=1 << 30):
    scorer = BaselineScorer(model, np.arange(n_users), memory_bytes)
    blocks = [(items, scorer.score(0, n_users, payload)) for items, payload in scorer.item_blocks()]
    scores = np.zeros((n_users, model.n_items), np.float32)
    for items, block in blocks:
        scores[:, items] = block
    assert np.concatenate([items for items, _ in blocks]).tolist() == list(range(model.n_items))
    return scores, len(blocks)


def random_edges(seed=0, n_users=50, n_items=70, density=0.1):
    return np.nonzero(np.random.default_rng(seed).random((n_users, n_items)) < density)


@pytest.mark.parametrize("name", list(MODULES))
class TestEveryBaseline:
    def test_checkerboard(self, name):
        """The one item of a user's own colour that the user lacks comes first among the unseen."""
        user, item = checkerboard()
        if name == "toppop":  # it knows no user: make the answers popular instead, all by the same count
            user, item = np.append(user, [SIZE, SIZE + 1] * SIZE), np.append(item, np.repeat(np.arange(SIZE), 2))
        n_users = SIZE + 2 * (name == "toppop")
        scores, _ = all_scores(MODULES[name].fit(user, item, n_users, SIZE, SETTINGS), n_users)
        scores = scores[:SIZE]
        scores[user[user < SIZE], item[user < SIZE]] = -np.inf
        if name == "toppop":
            unseen = np.where(np.isfinite(scores), scores, np.nan)
            assert np.nanmax(unseen) == np.nanmin(unseen)
        else:
            assert scores.argmax(axis=1).tolist() == list(range(SIZE))

    def test_blocks_of_items_change_nothing(self, name):
        edges = random_edges()
        model = MODULES[name].fit(*edges, 50, 70, SETTINGS)
        whole, n_blocks = all_scores(model, 50)
        assert n_blocks == 1
        blocked, n_blocks = all_scores(model, 50, memory_bytes=700)
        assert n_blocks > 1 or name == "toppop"
        np.testing.assert_allclose(blocked, whole, rtol=1e-5, atol=1e-6)

    def test_the_same_fit_twice(self, name):
        edges = random_edges(1)
        first, second = (all_scores(MODULES[name].fit(*edges, 50, 70, SETTINGS), 50)[0] for _ in range(2))
        np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)

    def test_users_and_items_without_edges_get_finite_scores(self, name):
        user, item = random_edges(2, 20, 30)
        scores, _ = all_scores(MODULES[name].fit(user, item, 25, 40, SETTINGS), 25)
        assert np.isfinite(scores).all()
        if name != "als":  # its items start from random factors, which one half-step sets to zero
            assert (scores[:, 30:] == 0).all()

    def test_fewer_items_than_factors_or_neighbours(self, name):
        scores, _ = all_scores(MODULES[name].fit(*random_edges(3, 6, 5, 0.5), 6, 5, Config()), 6)
        assert np.isfinite(scores).all()

    def test_peak_memory_is_stated(self, name):
        small = MODULES[name].fit_bytes(1000, 500, 10_000, SETTINGS)
        assert 0 < small < MODULES[name].fit_bytes(100_000, 50_000, 1_000_000, SETTINGS)


def test_toppop_counts_edges():
    user, item = random_edges()
    scores, _ = all_scores(toppop.fit(user, item, 50, 70, SETTINGS), 50)
    assert (scores == np.bincount(item, minlength=70)).all()


@pytest.mark.parametrize("k", [1, 5, 200])
def test_itemknn_equals_a_dense_one(k):
    """Random degrees give few ties, and these only at the threshold: sums of the kept similarities are compared."""
    config = config_from_dict({"baselines": {"neighbors": k}})
    rng = np.random.default_rng(3)
    dense = (rng.random((60, 30)) < rng.random(30) * 0.5).astype(float)
    norm = np.sqrt(dense.sum(axis=0))
    cosine = dense.T @ dense / np.outer(norm, norm)
    np.fill_diagonal(cosine, 0.0)
    model = itemknn.fit(*np.nonzero(dense), 60, 30, config)
    similarity = itemknn.nearest_items(interaction_matrix(*np.nonzero(dense), 60, 30), k).toarray()
    for j in range(30):
        kept = np.sort(cosine[:, j])[::-1][:k]
        np.testing.assert_allclose(np.sort(similarity[:, j])[::-1][: len(kept)], kept, rtol=1e-5)
        nonzero = similarity[:, j] > 0
        np.testing.assert_allclose(similarity[nonzero, j], cosine[nonzero, j], rtol=1e-5)
    np.testing.assert_allclose(all_scores(model, 60)[0], dense @ similarity, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("r", [3, 25])
def test_gfcf_equals_a_dense_one(r):
    config = config_from_dict({"baselines": {"singular_vectors": r, "low_pass_weight": 0.4}})
    dense = (np.random.default_rng(4).random((80, 75)) < 0.12).astype(float)
    user_degree, item_degree = dense.sum(axis=1), dense.sum(axis=0)
    normalized = dense / np.sqrt(np.outer(user_degree, item_degree))
    vectors = np.linalg.svd(normalized)[2][:r]
    low_pass = np.diag(item_degree**-0.5) @ vectors.T @ vectors @ np.diag(item_degree**0.5)
    expected = dense @ (normalized.T @ normalized + 0.4 * low_pass)
    scores, _ = all_scores(gfcf.fit(*np.nonzero(dense), 80, 75, config), 80)
    np.testing.assert_allclose(scores, expected, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(300, 200), (40, 30)])  # by Lanczos, and dense
def test_right_singular_vectors(shape):
    matrix = sparse.random(*shape, density=0.1, format="csr", random_state=np.random.default_rng(0))
    vectors = gfcf.right_singular_vectors(matrix, 10)
    exact = np.linalg.svd(matrix.toarray())[2][:10].T
    np.testing.assert_allclose(vectors @ vectors.T, exact @ exact.T, atol=1e-3)


def test_block_bounds():
    sizes = np.array([5, 5, 5, 100, 1, 1])
    assert list(block_bounds(sizes, 10)) == [(0, 2), (2, 3), (3, 4), (4, 6)]
    assert list(block_bounds(sizes, 1000)) == [(0, 6)]


# --- runner ----------------------------------------------------------------------------------------------------------


class Edges:
    """The part of a prepared dataset that the runner uses."""

    name = "toy"

    def __init__(self, train, valid, test, n_users, n_items):
        self._edges = {"train": train, "valid": valid, "test": test}
        self.n_users, self.n_items = n_users, n_items
        self.asked = []

    def edges(self, split):
        self.asked.append(split)
        return self._edges[split]


@pytest.fixture
def toy():
    """Two groups of users and items; train, validation and test edges within the groups."""
    rng = np.random.default_rng(9)
    label = rng.random((60, 50))
    label[(np.arange(60)[:, None] < 30) != (np.arange(50) < 25)] = 1.0
    return Edges(
        np.nonzero(label < 0.4), np.nonzero((label > 0.4) & (label < 0.5)), np.nonzero((label > 0.5) & (label < 0.6)),
        60, 50,
    )  # fmt: skip


def test_rows_of_all_baselines(toy):
    lines = []
    rows = run_baselines(toy, list(MODULES), "test", SETTINGS, lines.append)
    assert [row["model"] for row in rows] == list(LABELS.values())
    for row in rows:
        assert {"recall@20", "ndcg@20", "mrr", "coverage@20", "gini@20", "fit_seconds"} <= row.keys()
    held = {row["model"]: row["bytes"] for row in rows}
    assert held["TopPop"] == 4 * 50
    assert held["ALS"] == 4 * SETTINGS.baselines.factors * (60 + 50)
    assert held["ItemKNN"] > 50 * 8  # at least a neighbour an item, its index and its similarity
    assert held["GF-CF"] > held["ItemKNN"]
    assert all(row["latency_ms"] > 0 for row in rows)
    scores = {row["model"]: row["recall@20"] for row in rows}
    assert min(scores["ItemKNN"], scores["GF-CF"], scores["ALS"]) > scores["TopPop"] + 0.2  # they know the groups
    assert len([line for line in lines if "recall@20" in line]) == 4


def test_validation_sees_neither_test_edges_nor_validation_edges(toy):
    """With the validation edges fitted or masked TopPop's figures would move."""
    row = run_baselines(toy, ["toppop"], "valid", SETTINGS, str)[0]
    assert "test" not in toy.asked
    bare = Edges(toy.edges("train"), (np.empty(0, np.int64),) * 2, toy.edges("valid"), 60, 50)
    same = run_baselines(bare, ["toppop"], "test", SETTINGS, str)[0]
    assert row["ndcg@20"] == same["ndcg@20"]
    assert run_baselines(toy, ["toppop"], "test", SETTINGS, str)[0]["ndcg@20"] != row["ndcg@20"]


def test_als_confidence_is_chosen_on_validation(toy):
    open_config = config_from_dict({"baselines": {"factors": 4}})
    lines = []
    row = run_baselines(toy, ["als"], "test", open_config, lines.append)[0]
    trials = {
        alpha: run_baselines(
            toy, ["als"], "valid", config_from_dict({"baselines": {"factors": 4, "alpha": alpha}}), str
        )
        for alpha in (1.0, 10.0, 40.0, 160.0)
    }
    assert row["alpha"] == max(trials, key=lambda alpha: trials[alpha][0]["ndcg@20"])
    assert any("by validation ndcg@20" in line for line in lines)


def test_als_without_validation_edges_takes_the_usual_confidence(toy):
    bare = Edges(toy.edges("train"), (np.empty(0, np.int64),) * 2, toy.edges("test"), 60, 50)
    row = run_baselines(bare, ["als"], "test", config_from_dict({"baselines": {"factors": 4}}), str)[0]
    assert row["alpha"] == 40.0


def test_what_cannot_fit_is_refused(toy, monkeypatch):
    monkeypatch.setattr("distgnn.baselines.runner.available_memory", lambda: 1000)
    with pytest.raises(UserError, match="gfcf needs about .* to fit"):
        run_baselines(toy, ["gfcf"], "test", SETTINGS, str)


def test_unknown_names(toy):
    with pytest.raises(UserError, match="unknown baseline 'pop'; known are toppop"):
        run_baselines(toy, ["pop"], "test", SETTINGS, str)
    with pytest.raises(UserError, match=r"evaluate.split = 'train'"):
        run_baselines(toy, ["toppop"], "train", SETTINGS, str)


# --- published figures -----------------------------------------------------------------------------------------------


def published(name):
    root = os.environ.get("DISTGNN_DATA", "")
    if not (Path(root) / name / "dataset.json").is_file():
        pytest.skip(f"DISTGNN_DATA names no folder with {name}")

    def edges(split):
        table = pq.read_table(Path(root) / name / f"{split}.parquet", columns=["user", "item"])
        return table["user"].to_numpy().astype(np.int64), table["item"].to_numpy().astype(np.int64)

    card = json.loads((Path(root) / name / "dataset.json").read_text())
    none = np.empty(0, np.int64)
    return Edges(edges("train"), (none, none), edges("test"), card["n_users"], card["n_items"])


@pytest.mark.parametrize(
    ("data", "model", "recall", "ndcg"),
    [
        ("gowalla", "toppop", 0.0416, 0.0317),
        pytest.param("gowalla", "gfcf", 0.1850, 0.1518, marks=pytest.mark.slow),  # BARS: .1849 / .1518
        ("lastfm-hetrec", "toppop", 0.1040, 0.0964),
        ("lastfm-hetrec", "gfcf", 0.2455, 0.2494),
    ],
)
def test_published_figures(data, model, recall, ndcg):
    row = run_baselines(published(data), [model], "test", Config(), str)[0]
    # Order of equal scores is all that may differ: it weighs with few users.
    tolerance = 1e-4 if data == "gowalla" else 4e-4
    assert row["recall@20"] == pytest.approx(recall, abs=tolerance)
    assert row["ndcg@20"] == pytest.approx(ndcg, abs=tolerance)
