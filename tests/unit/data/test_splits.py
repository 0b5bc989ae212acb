from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distgnn.data.splits import TEST, TRAIN, VALID, hold_out_of_train, split_edges
from distgnn.types import UserError

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered")  # uint64 wraps by intention, also unjitted
pairs = st.sets(st.tuples(st.integers(0, 5), st.integers(0, 30)), min_size=1, max_size=80).map(sorted)
kinds = st.sampled_from(["leave_last_k", "per_user_ratio", "global_time"])


def columns(edges):
    return np.array([u for u, _ in edges], np.int32), np.array([i for _, i in edges], np.int32)


def counts(labels, user, label):
    return np.bincount(user[labels == label], minlength=6).tolist()


@given(edges=pairs, valid=st.sampled_from([0.0, 0.1, 0.3]), test=st.sampled_from([0.0, 0.1, 0.29, 0.5]))
@settings(deadline=None)
def test_per_user_ratio_takes_the_floor_of_each_users_share(edges, valid, test) -> None:
    user, item = columns(edges)
    labels = split_edges(user, item, None, kind="per_user_ratio", valid_ratio=valid, test_ratio=test, seed=3)
    sizes = np.bincount(user, minlength=6)
    hundredths = {ratio: round(100 * ratio) for ratio in (valid, test)}
    assert counts(labels, user, TEST) == [int(n) * hundredths[test] // 100 for n in sizes]
    assert counts(labels, user, VALID) == [int(n) * hundredths[valid] // 100 for n in sizes]


@given(edges=pairs, holdout=st.integers(1, 3), data=st.data())
@settings(deadline=None)
def test_leave_last_k_takes_the_last_by_time(edges, holdout, data) -> None:
    user, item = columns(edges)
    time = np.array(data.draw(st.lists(st.integers(0, 9), min_size=len(edges), max_size=len(edges))))
    labels = split_edges(user, item, time, kind="leave_last_k", holdout=holdout)
    sizes = np.bincount(user, minlength=6)
    held = [holdout if n >= 2 * holdout + 1 else 0 for n in sizes]
    assert counts(labels, user, TEST) == held
    assert counts(labels, user, VALID) == held
    for u in range(6):
        for earlier, later in ((TRAIN, VALID), (VALID, TEST), (TRAIN, TEST)):
            a, b = time[(user == u) & (labels == earlier)], time[(user == u) & (labels == later)]
            assert not len(a) or not len(b) or a.max() <= b.min()


@given(edges=pairs, data=st.data())
@settings(deadline=None)
def test_leave_last_k_without_time_goes_by_position(edges, data) -> None:
    user, item = columns(edges)
    position = np.array(data.draw(st.permutations(range(len(edges)))))
    labels = split_edges(user, item, None, kind="leave_last_k", position=position)
    for u in range(6):
        mine = sorted(np.flatnonzero(user == u), key=position.__getitem__)
        expected = [TRAIN] * (len(mine) - 2) + [VALID, TEST] if len(mine) >= 3 else [TRAIN] * len(mine)
        assert labels[mine].tolist() == expected


@given(
    times=st.lists(st.integers(0, 200), min_size=1, max_size=100),
    valid=st.sampled_from([0.0, 0.1, 0.25]),
    test=st.sampled_from([0.0, 0.2, 0.25]),
)
@settings(deadline=None)
def test_global_time_cuts_between_instants(times, valid, test) -> None:
    time = np.array(times)
    nothing = np.zeros(len(times), np.int32)
    held = round(len(times) * (valid + test))
    if held and sorted(times)[-held] == min(times):
        with pytest.raises(UserError, match="nothing to train on"):
            split_edges(nothing, nothing, time, kind="global_time", valid_ratio=valid, test_ratio=test)
        return
    labels = split_edges(nothing, nothing, time, kind="global_time", valid_ratio=valid, test_ratio=test)
    for label in (VALID, TEST):
        if (labels == label).any() and (labels < label).any():
            assert time[labels < label].max() < time[labels == label].min()
    n_test = round(len(times) * test)
    ordered = sorted(times)
    # The wanted number, and beyond it only what shares the first instant of the test.
    assert (labels == TEST).sum() >= n_test
    if n_test:
        assert (labels == TEST).sum() == sum(t >= ordered[-n_test] for t in times)
    assert (labels != TRAIN).sum() >= held


@given(edges=pairs, kind=kinds, seed=st.integers(0, 2**63 - 1), random=st.randoms())
@settings(deadline=None)
def test_a_label_does_not_depend_on_the_order_of_the_log(edges, kind, seed, random) -> None:
    time = {pair: hash(pair) % 7 for pair in edges}
    shuffled = list(edges)
    random.shuffle(shuffled)

    def label(of):
        instants = np.array([time[pair] for pair in of])
        try:
            return dict(
                zip(of, split_edges(*columns(of), instants, kind=kind, test_ratio=0.3, seed=seed).tolist(), strict=True)
            )
        except UserError as error:
            return str(error)

    assert label(edges) == label(shuffled)


def test_another_seed_gives_another_split_and_items_have_equal_chances() -> None:
    user = np.repeat(np.arange(2000), 10)
    item = np.tile(np.arange(10), 2000)
    first, second = (split_edges(user, item, None, kind="per_user_ratio", seed=s) for s in (0, 1))
    assert (first == TEST).sum() == (second == TEST).sum() == 2000
    # Independent draws agree in one user of ten: 200, standard deviation 13.4.
    assert 130 < ((first == TEST) & (second == TEST)).sum() < 270
    per_item = np.bincount(item[first == TEST], minlength=10)
    assert ((per_item - 200) ** 2 / 200).sum() < 28  # chi-square, 9 degrees of freedom, p = .001


@given(edges=pairs, seed=st.integers(0, 3))
@settings(deadline=None)
def test_hold_out_of_train_takes_a_tenth_of_train_alone(edges, seed) -> None:
    user, item = columns(edges)
    labels = np.where(item % 3 == 0, TEST, TRAIN).astype(np.int8)
    held = hold_out_of_train(user, item, labels, seed)
    assert ((held == TEST) == (labels == TEST)).all()
    train = np.bincount(user[labels == TRAIN], minlength=6)
    assert counts(held, user, VALID) == (train // 10).tolist()


def test_global_time_needs_timestamps() -> None:
    with pytest.raises(UserError, match=r"needs timestamps; name their column in data\.timestamp_column"):
        split_edges(np.array([0]), np.array([0]), None, kind="global_time")
