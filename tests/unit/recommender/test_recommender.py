"""Lists against a naive full sort, on scores with many ties; and what a request may not be."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distgnn
from distgnn.export.reader import Export
from distgnn.export.table import Table, quantize_rows
from distgnn.recommender import Recommender, UnknownKeyError, ranking
from distgnn.recommender.ranking import ItemFilter
from distgnn.types import UserError
from tests import naive_metrics
from tests.small_exports import export_with_ties, small_export

DTYPES = ["float32", "float64", "int8"]


@pytest.fixture(params=[(dtype, text) for dtype in DTYPES for text in (False, True)], ids=str)
def export(request: pytest.FixtureRequest) -> Export:
    dtype, text = request.param
    return export_with_ties(dtype, text=text)


def keys_of(export: Export) -> tuple[list[Any], list[Any]]:
    return export.user_keys.to_pylist(), export.item_keys.to_pylist()


def seen_of(export: Export, user: int) -> set[int]:
    return set(export.seen_items[export.seen_indptr[user] : export.seen_indptr[user + 1]].tolist())


def naive(export: Export, scores: np.ndarray, user: int, left_out: set[int], k: int) -> list[tuple[Any, float]]:
    """The first k items of a full sort, with their keys."""
    items = export.item_keys.to_pylist()
    return [(items[i], float(scores[i])) for i in naive_metrics.ranking(scores, user, left_out)[:k]]


def scores_of(export: Export, user: int) -> np.ndarray:
    return export.items.dequantize().astype(float) @ export.users.dequantize()[user].astype(float)


@pytest.mark.parametrize("k", [1, 7, 40])
@pytest.mark.parametrize("filter_seen", [True, False])
def test_lists_equal_a_full_sort(export: Export, k: int, filter_seen: bool) -> None:
    recommender = Recommender(export)
    users, _ = keys_of(export)
    expected = [
        naive(export, scores_of(export, user), user, seen_of(export, user) if filter_seen else set(), k)
        for user in range(len(users))
    ]
    assert len(expected[1]) == min(k, 3 if filter_seen else 40)
    for key, wanted in zip(users, expected, strict=True):
        assert recommender.recommend(key, k, filter_seen=filter_seen) == wanted
    assert recommender.recommend_many(users, k, filter_seen=filter_seen) == expected
    assert recommender.recommend_many(users[::-1], k, filter_seen=filter_seen) == expected[::-1]


@pytest.mark.parametrize("threads", [1, 3])
def test_blocks_and_chunks_do_not_matter(export: Export, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    users, items = keys_of(export)
    allow, block = items[3:33], items[10:14]
    expected = Recommender(export, 1).recommend_many(users, 9, allow=allow, block=block)
    monkeypatch.setattr(ranking, "_BLOCK_ITEMS", 7)
    monkeypatch.setattr(ranking, "_MIN_ROWS", 2)
    monkeypatch.setattr(ranking, "_CHUNK_BYTES", 1)
    assert Recommender(export, threads).recommend_many(users, 9, allow=allow, block=block) == expected


def test_allowed_and_blocked_items(export: Export) -> None:
    recommender = Recommender(export)
    users, items = keys_of(export)
    allowed, blocked = {2, 5, 11, 12, 30, 31}, {5, 30, 7}
    allow, block = [items[i] for i in allowed], [items[i] for i in blocked]
    everything = set(range(len(items)))
    for user, key in enumerate(users):
        scores, seen = scores_of(export, user), seen_of(export, user)
        for chosen, left_out in (
            ({"allow": allow}, everything - allowed),
            ({"block": block}, blocked),
            ({"allow": allow, "block": block}, (everything - allowed) | blocked),
            ({"allow": [*allow, *allow, "nobody"], "block": ["nobody"]}, everything - allowed),
            ({"block": []}, set()),
        ):
            assert recommender.recommend(key, 10, **chosen) == naive(export, scores, user, seen | left_out, 10)
            found = recommender.recommend(key, 10, filter_seen=False, **chosen)
            assert found == naive(export, scores, user, left_out, 10)


def test_a_history_that_training_never_saw(export: Export) -> None:
    recommender = Recommender(export)
    _, items = keys_of(export)
    nobody = len(export.user_keys)
    vectors = export.items.dequantize().astype(float)
    for history in ([1], [4, 1], [1, 4, 6]):
        vector = export.fold_in.T.astype(float) @ vectors[history].mean(axis=0)
        if export.users.scale is not None:
            vector = quantize_rows(vector[None].astype(np.float32)).dequantize()[0].astype(float)
        found = recommender.recommend_for_history([items[i] for i in history], 12)
        expected = naive(export, vectors @ vector, nobody, set(history), 12)
        np.testing.assert_allclose([s for _, s in found], [s for _, s in expected], rtol=1e-5)
        if export.users.scale is None and len(history) < 3:  # whole numbers and their halves: ties are exact
            assert found == expected
    assert not {items[i] for i in history} & {key for key, _ in found}
    once = recommender.recommend_for_history([items[1], items[4]], 5)
    assert recommender.recommend_for_history([items[4], items[1], items[4], "nobody"], 5) == once
    kept = recommender.recommend_for_history([items[1]], 5, allow=items[:4], block=[items[2]])
    assert {key for key, _ in kept} == {items[0], items[3]}
    with pytest.raises(UnknownKeyError, match=r"^item 'x', 'y' not known to the run"):
        recommender.recommend_for_history(["x", "y"])
    with pytest.raises(UserError, match="history is empty"):
        recommender.recommend_for_history([])


def test_similar_items_go_by_cosine(export: Export) -> None:
    recommender = Recommender(export)
    _, items = keys_of(export)
    vectors = export.items.dequantize().astype(float)
    norm = np.linalg.norm(vectors, axis=1)
    assert norm[9] == 0
    for item in range(len(items)):
        product = vectors @ vectors[item] / np.where(norm * norm[item] > 0, norm * norm[item], 1)
        found = recommender.similar_items(items[item], 39)
        assert items[item] not in [key for key, _ in found]
        assert len({key for key, _ in found}) == 39
        index = [items.index(key) for key, _ in found]
        np.testing.assert_allclose([s for _, s in found], product[index], atol=1e-6)
        np.testing.assert_allclose(sorted(product[index])[::-1], [s for _, s in found], atol=1e-6)
    with pytest.raises(UnknownKeyError, match="item 'x' not known"):
        recommender.similar_items("x")


def test_popular_items(export: Export) -> None:
    recommender = Recommender(export)
    _, items = keys_of(export)
    degree, nobody = export.item_degree, len(export.user_keys)
    assert recommender.popular(9) == naive(export, degree, nobody, set(), 9)
    some = recommender.popular(9, allow=items[:8], block=items[6:9])
    assert some == naive(export, degree, nobody, set(range(6, 40)), 9)


def test_who_is_not_known(export: Export) -> None:
    recommender = Recommender(export)
    users, _ = keys_of(export)
    for call in (recommender.recommend, recommender.recommend_many):
        with pytest.raises(UnknownKeyError) as caught:
            call("nobody")
        assert isinstance(caught.value, UserError)
        assert isinstance(caught.value, KeyError)
        assert str(caught.value) == "user 'nobody' not known to the run: it is in none of its edges"
    with pytest.raises(UnknownKeyError, match=r"user 'a', 'b', 'c', \.\.\. not known"):
        recommender.recommend_many([users[0], "a", "b", "c", "d"])
    assert recommender.recommend_many([]) == []


@pytest.mark.parametrize("k", [0, -1, 41, 2.5, True, "5"])
def test_a_length_that_no_list_can_have(k: Any) -> None:
    recommender = Recommender(export_with_ties())
    calls: list[Callable[[], Any]] = [
        lambda: recommender.recommend(0, k),
        lambda: recommender.recommend_many([0], k),
        lambda: recommender.recommend_for_history([0], k),
        lambda: recommender.similar_items(0, k),
        lambda: recommender.popular(k),
    ]
    for call in calls:
        with pytest.raises(UserError, match=r"k = .* must be a whole number from 1 to 40, the run's number of items"):
            call()


def test_what_allows_nothing_is_refused() -> None:
    recommender = Recommender(export_with_ties())
    with pytest.raises(UserError, match="allow holds no item"):
        recommender.recommend(0, allow=[])
    with pytest.raises(UnknownKeyError, match="item 1, 2 not known"):
        recommender.recommend(0, allow=[1, 2])


def test_scores_beyond_floating_point_are_refused() -> None:
    export = export_with_ties()
    export.users.values[:] = 1e30
    export.items.values[:] = 1e30
    with pytest.raises(UserError, match="not finite"):
        Recommender(export).recommend(0)


def test_tables_stay_as_they_are() -> None:
    export = export_with_ties("int8")
    recommender = Recommender(export)
    assert recommender._catalogue.items.values is export.items.values
    assert recommender._vectors is export.users


def test_requests_from_several_threads() -> None:
    export = export_with_ties("int8")
    recommender = Recommender(export)
    users, _ = keys_of(export)
    expected = [recommender.recommend(user) for user in users]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            assert list(pool.map(recommender.recommend, users)) == expected


def test_int8_lists_are_nearly_those_of_the_floats(tmp_path: Path) -> None:
    """Scales differ from row to row here: leaving one out would change the order."""
    export = small_export(tmp_path, "int8", dim=16)
    exact = Table(export.users.dequantize().astype(np.float64)), Table(export.items.dequantize().astype(np.float64))
    recommender = Recommender(export)
    for user in range(len(export.users)):
        scores = exact[1].values @ exact[0].values[user]
        items, found = recommender.top_k(np.array([user]), 5, filter_seen=False, chosen=ItemFilter())
        np.testing.assert_allclose(found[0], scores[items[0]], rtol=1e-5)
        assert items[0].tolist() == naive_metrics.ranking(scores, user, set())[:5]


def test_loading_a_run_or_its_export(tmp_path: Path) -> None:
    export = small_export(tmp_path, text=True)
    for path in (tmp_path / "run", str(tmp_path / "run" / "embeddings")):
        recommender = distgnn.Recommender.load(path)  # type: ignore[arg-type]
        assert recommender.manifest == export.manifest
        assert len(recommender.recommend(export.user_keys[0].as_py(), 3)) == 3


ONE_REQUEST = """
import sys
import distgnn
r = distgnn.Recommender.load(sys.argv[1])
user, item = r.users.keys[0].as_py(), r.items.keys[0].as_py()
assert len(r.recommend(user, 3)) == 3 and len(r.recommend_many([user], 3)[0]) == 3
assert r.recommend_for_history([item], 3) and r.similar_items(item, 3) and r.popular(3)
print([name for name in ("torch", "ray", "torch_geometric", "implicit") if name in sys.modules])
"""


def test_serving_needs_a_plain_process(tmp_path: Path) -> None:
    small_export(tmp_path, "int8")
    result = subprocess.run(
        [sys.executable, "-c", ONE_REQUEST, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env=dict(os.environ),
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "[]\n"
