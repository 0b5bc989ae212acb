"""Tables go to the GPU where everything fits there, else to the host; what fits nowhere is refused."""

from __future__ import annotations

import socket
import zlib

import numpy as np
import pytest
import torch

from distgnn import resources
from distgnn.config import Config
from distgnn.config_reading import load_config
from distgnn.distributed.process_group import WorkerGroup
from distgnn.training.memory import FeatureNeed, Placement, choose_topology, needs, place_tables, weight_table_bytes
from distgnn.types import UserError

GPU = torch.device("cuda", 0)
N_NODES, N_OWN = 10_000_000, 5_000_000
GIB = 1 << 30
NONE = FeatureNeed()
HOT = "cluster.hot_rows=0.25"


def config(*overrides: str) -> Config:
    return load_config(None, ["cluster.use_gpu=true", "train.batch_size=1024", *overrides])


def placed(made: Config, free: int | None, device: torch.device = GPU, n_own: int = N_OWN) -> Placement:
    group = WorkerGroup(0, 1, device, None, None, None)
    return place_tables(made, N_NODES, n_own, "fit", group, free)


@pytest.fixture(autouse=True)
def plenty_of_host_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "available_memory", lambda: 1 << 40)


def test_auto_takes_the_gpu_up_to_its_last_byte() -> None:
    made = config()
    _, gpu = needs(made, N_NODES, N_OWN, 1, gpu=True, tables_on_gpu=True)
    assert gpu.tables == N_OWN * 64 * 4 * 3
    assert gpu.total >= gpu.tables + N_OWN * 64 * 4 * 3 + 2 * GIB  # with a layer's states and the scores of evaluation
    assert placed(made, gpu.total).device == GPU
    assert placed(made, gpu.total - 1).device == torch.device("cpu")


def test_what_was_chosen_is_said() -> None:
    assert "in GPU memory" in placed(config(), 80 * GIB).statement
    host = placed(config(), 8 * GIB).statement
    assert "in host memory" in host
    assert "of which 8.00 GiB is free" in host
    assert "GPU" not in placed(load_config(None), None, torch.device("cpu")).statement


def test_an_order_is_kept_or_refused() -> None:
    assert placed(config("cluster.tables=host"), 80 * GIB).device == torch.device("cpu")
    assert placed(config("cluster.tables=device"), 80 * GIB).device == GPU
    with pytest.raises(UserError, match=r"more than is free on its GPU; set cluster.tables = auto or host, or lower"):
        placed(config("cluster.tables=device"), 8 * GIB)


@pytest.mark.parametrize("tables", ["auto", "host"])
def test_a_step_that_no_gpu_memory_holds_is_refused(tables: str) -> None:
    with pytest.raises(UserError, match=r"more than is free on its GPU; lower model.dim"):
        placed(config(f"cluster.tables={tables}", "train.batch_size=65536"), 8 * GIB)


def test_host_memory_is_refused_with_and_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "available_memory", lambda: GIB)
    with pytest.raises(UserError, match="over the workers, 1.00 GiB is free"):
        placed(load_config(None), None, torch.device("cpu"))
    with pytest.raises(UserError, match="over the workers, 1.00 GiB is free"):
        placed(config(), 8 * GIB)


def test_every_worker_chooses_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows travel over NCCL or over gloo: the worker that has least decides."""
    monkeypatch.setattr(WorkerGroup, "max_floats", lambda self, values: [max(1.0, v) for v in values])
    with pytest.raises(UserError, match="GPU memory more than is free"):
        placed(config("cluster.tables=device"), 80 * GIB)
    shortage = iter([1.0, 0.0])  # of another worker: with tables on the GPU, and without
    monkeypatch.setattr(WorkerGroup, "max_floats", lambda self, values: [max(next(shortage), v) for v in values])
    assert placed(config(), 80 * GIB).device == torch.device("cpu")


def test_the_tables_are_counted_once_and_where_they_are() -> None:
    made = config()
    cpu, none = needs(made, N_NODES, N_OWN, 2, gpu=False, tables_on_gpu=False)
    on_host = needs(made, N_NODES, N_OWN, 2, gpu=True, tables_on_gpu=False)
    on_gpu = needs(made, N_NODES, N_OWN, 2, gpu=True, tables_on_gpu=True)
    assert none.total == 0
    assert cpu.tables == on_host[0].tables == on_gpu[1].tables > 0
    assert on_host[1].tables == on_gpu[0].tables == 0
    assert on_gpu[0].sampler == on_host[0].sampler == cpu.sampler > 0


def test_replicas_of_hot_rows_are_counted_where_there_are_several_workers() -> None:
    plain, hot = (needs(c, N_NODES, N_OWN, 2, gpu=False, tables_on_gpu=False)[0] for c in (config(), config(HOT)))
    assert hot.tables - plain.tables == N_NODES // 4 * 64 * 4 * 3
    assert hot.step > plain.step
    assert needs(config(HOT), N_NODES, N_OWN, 1, gpu=False, tables_on_gpu=False)[0].tables == plain.tables


@pytest.mark.parametrize("gpu", [False, True])
def test_features_are_counted_with_the_tables(gpu: bool) -> None:
    widths, own = {"user": 8, "item": 300}, {"user": 4_000_000, "item": 1_000_000}
    features = FeatureNeed.of(widths, own, 1000)
    stored = 4 * (8 * 4_000_000 + 300 * 1_000_000 + 300 * 1000)
    assert stored < features.store < 1.1 * stored
    assert FeatureNeed.of({}, own, 1000) == FeatureNeed()
    host, device = (
        needs(config(), N_NODES, N_OWN, 2, gpu=gpu, tables_on_gpu=gpu, features=f) for f in (features, FeatureNeed())
    )
    with_them, without = (found[1] if gpu else found[0] for found in (host, device))
    assert with_them.tables - without.tables == features.store
    frontier = min(N_NODES, 4 * 1024 * 11 * 11)
    assert with_them.step - without.step == frontier * (300 * 16 + 2 * 64 * 4)
    assert with_them.evaluation - without.evaluation == N_OWN * 64 * 4
    free = with_them.total - 1
    if gpu:
        group = WorkerGroup(0, 1, GPU, None, None, None)
        assert place_tables(config(), N_NODES, N_OWN, "fit", group, free + 1, features).device == GPU
        assert place_tables(config(), N_NODES, N_OWN, "fit", group, free, features).device == torch.device("cpu")
        said = place_tables(config(), N_NODES, N_OWN, "fit", group, free + 1, features).statement
        assert "rows, moments and features" in said


def test_entries_of_a_time_respecting_step_are_no_fewer_than_the_nodes() -> None:
    """A small graph bounds the nodes of a step, not its (node, cut-off) entries."""
    plain, timed = (
        needs(config(*on), 10_000, 10_000, 1, gpu=False, tables_on_gpu=False)[0]
        for on in ((), ("sampler.time_respecting=true",))
    )
    entries = 4 * 1024 * 11 * 11
    assert timed.step > entries * 64 * 4 * 3 > 10 * plain.step / 2
    assert (timed.tables, timed.sampler, timed.evaluation) == (plain.tables, plain.sampler, plain.evaluation)


def test_tables_by_weight_are_counted_with_the_sampler() -> None:
    made = config()
    with_them, without = (
        needs(made, N_NODES, N_OWN, 2, gpu=False, tables_on_gpu=False, weight_tables=n)[0] for n in (7 * GIB, 0)
    )
    assert with_them.sampler - without.sampler == with_them.total - without.total == 7 * GIB
    group = WorkerGroup(0, 1, torch.device("cpu"), None, None, None)
    plain, told = (place_tables(load_config(None), N_NODES, N_OWN, "fit", group, None, NONE, n) for n in (0, 7 * GIB))
    assert plain.statement != told.statement
    for options, expected in (([], 2 * 24_000), (["sampler.topology=partitioned"], 8_000)):
        weighted = load_config(None, ["sampler.weighted=true", *options])
        assert weight_table_bytes(weighted, 1000, 6) == expected
    assert weight_table_bytes(load_config(None), 1000, 6) == 0


def test_tables_on_a_device_that_is_not_used_are_refused() -> None:
    with pytest.raises(UserError, match="cluster.tables = 'device' goes with cluster.use_gpu = true"):
        load_config(None, ["cluster.tables=device"])
    with pytest.raises(UserError, match="cluster.tables = 'gpu' is not one of auto, device, host"):
        load_config(None, ["cluster.tables=gpu"])


def workers_at(monkeypatch: pytest.MonkeyPatch, hosts: list[float], free: list[float]) -> None:
    """Make rank 0 meet peers on other hosts: those at index 1... add to what it tells."""

    def told(self: WorkerGroup, values: list[float]) -> list[float]:
        table = np.reshape(values, (3, -1))
        table[0, 1:], table[1, 1:], table[2, 1:] = hosts[1:], table[1, 0], free[1:]
        return table.reshape(-1).tolist()

    monkeypatch.setattr(WorkerGroup, "sum_floats", told)
    monkeypatch.setattr(resources, "available_memory", lambda: free[0])


@pytest.mark.parametrize(
    ("override", "same_host", "free", "expected"),
    [
        ("sampler.topology=auto", False, [900 * GIB, 900 * GIB], "replicated"),
        ("sampler.topology=auto", False, [900 * GIB, 90 * GIB], "partitioned"),  # the smallest host decides
        ("sampler.topology=auto", True, [90 * GIB, 90 * GIB], "replicated"),  # one host maps all partitions either way
        ("sampler.topology=replicated", False, [90 * GIB, 90 * GIB], "replicated"),
        ("sampler.topology=partitioned", True, [900 * GIB, 900 * GIB], "partitioned"),
    ],
)
def test_the_topology_is_replicated_where_it_fits(
    monkeypatch: pytest.MonkeyPatch, override: str, same_host: bool, free: list[float], expected: str
) -> None:
    own = float(zlib.crc32(socket.gethostname().encode()))
    workers_at(monkeypatch, [own, own if same_host else own + 1], free)
    group = WorkerGroup(0, 2, torch.device("cpu"), None, None, None)
    assert choose_topology(load_config(None, [override]), N_NODES, N_OWN, 100 * GIB, group) == expected
