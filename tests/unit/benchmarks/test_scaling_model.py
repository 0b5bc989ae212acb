"""A step's exchanges and seconds, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.remote_bytes import variants
from benchmarks.sampled_steps import StepCount, bytes_by_kind
from benchmarks.scaling_model import Core, Gpu, Link, step_terms

COUNT = StepCount(
    seeds=np.array([3, 1]),
    edges=np.array([50, 20]),
    nodes=np.array([10, 9]),
    wanted=np.array([[6, 4], [7, 2]]),
    asked=np.array([[[5, 2], [1, 3]]]),
    answered=np.array([[[20, 8], [4, 9]]]),
    moved=np.array([11, 6]),
)


def test_bytes_of_a_step() -> None:
    exchanges = COUNT.exchanges(16, partitioned=True, in_batch=True)
    assert bytes_by_kind(exchanges) == {
        # Items of 3 + 1 seeds, a count each way, 2 + 1 nodes asked for, 8 + 4 neighbours answered.
        "topology": 4 * 4 + 2 * 8 + 3 * 4 + 12 * 4,
        "rows": 2 * 8 + 11 * 8 + 11 * 64,
        "gathered": 2 * 4 * 64,
        "gradients": 11 * 64,
    }
    assert COUNT.remote_rows == 11
    # Worker 1 gets the most ids, 0 sends the most neighbours; rows go to who has asked for them.
    assert [one.busiest for one in exchanges] == [12, 8, 8, 32, 8, 56, 448, 192, 192, 448]
    rows = exchanges[6].sent
    assert rows.tolist() == [[0, 7 * 64], [4 * 64, 0]]


def test_seconds_of_a_step() -> None:
    link, core = Link(alpha=1e-3, beta=1000.0), Core(fixed=0.5, per_draw=0.01, draws_per_second=100.0)
    expected = {"latency": 4 * 1e-3, "bandwidth": (8 + 56 + 448 + 448) / 1000, "fixed": 0.5, "compute": 0.5}
    assert step_terms(COUNT, 16, link, core, None) == pytest.approx(expected)
    gpu = Gpu(memory=64e3, fixed=0.1, sampling_threads=1)
    device = step_terms(COUNT, 16, link, core, gpu)
    assert device["compute"] == pytest.approx((4 * 50 + 2 * 10 + 7 * 11) / 1000)
    # 50 draws take .5 s: less than the rest of the step, and all but hidden where the rest is shorter.
    assert device["sampling"] == 0.0
    fast = step_terms(COUNT, 16, Link(0.0, 1e12), core, gpu)
    assert fast["sampling"] + fast["compute"] + fast["fixed"] == pytest.approx(0.5)


def test_bytes_saved() -> None:
    found = variants({"remote": 100.0, "hot": 30.0, "held": 40.0}, workers=2, n_hot=5, gathered=0.0, dim=4, width=8)
    assert {name: value * 1e6 for name, value in found.items()} == pytest.approx(
        {
            "plain": 16 + 100 * (8 + 32),
            "bfloat16": 16 + 100 * (8 + 16),
            "hot rows": 16 + 70 * (8 + 32) + 2 * 5 * 5 * 4,
            "features": 100 * 32,
            "features, hot rows": 70 * 32,
            "features, cache": 60 * 32,
        }
    )
