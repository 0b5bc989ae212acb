from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distgnn import cli, storage
from distgnn.comparison import compare_runs, default_tolerance
from distgnn.config_reading import load_config
from distgnn.types import UserError
from tests.moto_server import s3_bucket, s3_server

__all__ = ["s3_bucket", "s3_server"]

LOSSES = [0.7, 0.6, 0.55, 0.5, 0.48, 0.47]


def dump(seed: int, **changes: Any) -> bytes:
    rng = np.random.default_rng(seed)
    arrays = {name: rng.integers(0, 9, (4, 3)) for name in ("seeds", "negatives", "hop0", "hop1")}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{**arrays, **changes})
    return buffer.getvalue()


def write_run(
    root: str,
    *overrides: str,
    losses: list[float] | None = None,
    every: int = 1,
    blocks: dict[str, bytes] | None = None,
    metrics: dict[str, float] | None = None,
    dataset: str = "hash",
) -> str:
    """A run directory as a training leaves it; `losses` of the steps, recorded `every` so many."""
    config = load_config(None, [f"run.out={root}", *overrides])
    storage.write_bytes(f"{root}/config.toml", config.to_toml().encode())
    storage.write_json(f"{root}/dataset.json", {"name": "shop", "path": "/data", "dataset_hash": dataset})
    losses = LOSSES if losses is None else losses
    records = [
        {"phase": "fit", "step": step, "epoch": 1, "loss": float(np.mean(losses[step - every : step]))}
        for step in range(every, len(losses) + 1, every)
    ]
    records.append({"phase": "fit", "step": len(losses), "epoch": 1, "ndcg@20": 0.1})
    storage.write_bytes(f"{root}/metrics.jsonl", "".join(json.dumps(r) + "\n" for r in records).encode())
    found = {"ndcg@20": 0.25, "recall@20": 0.5} if metrics is None else metrics
    if found:
        storage.write_json(f"{root}/report.json", {"metrics": found})
    for name, content in (blocks or {}).items():
        storage.write_bytes(f"{root}/blocks/fit/{name}", content)
    return root


def states(a: str, b: str, **tolerances: float) -> dict[str, bool | None]:
    return {f.what: f.same for f in compare_runs(a, b, **tolerances).findings}


def test_the_same_run(tmp_path: Path) -> None:
    blocks = {f"step-{n:08d}.npz": dump(n) for n in range(3)}
    a = write_run(f"{tmp_path}/a", blocks=blocks)
    free = ["cluster.workers=2", "partition.parts=4", "sampler.threads=2", "train.checkpoint_every=3", "data.path=/x"]
    b = write_run(f"{tmp_path}/b", *free, blocks=blocks, losses=[loss * (1 + 5e-7) for loss in LOSSES])
    found = compare_runs(a, b)
    assert found.same
    assert [f.same for f in found.findings] == [True] * 5
    assert found.verdict == "the same run"
    text = found.table()
    assert "apart from partition.parts (0 | 4), sampler.threads (1 | 2), cluster.workers (1 | 2)" in text
    assert "3 steps, to the byte" in text
    assert "6 records, at most 5.0e-07 apart" in text


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["optim.lr=0.01"], "first in options: optim.lr (0.005 | 0.01)"),
        (
            ["sampler.fanout=3,3", "run.seed=1"],
            "first in options: run.seed (0 | 1), sampler.fanout ([10, 10] | [3, 3])",
        ),
        (["sampler.expand=new"], "first in options: sampler.expand ('all' | 'new')"),
    ],
)
def test_other_options(tmp_path: Path, overrides: list[str], words: str) -> None:
    found = compare_runs(write_run(f"{tmp_path}/a"), write_run(f"{tmp_path}/b", *overrides))
    assert found.verdict == f"different, {words}"


def test_another_dataset(tmp_path: Path) -> None:
    found = compare_runs(write_run(f"{tmp_path}/a"), write_run(f"{tmp_path}/b", dataset="other"))
    assert found.verdict == "different, first in dataset: shop, hash | shop, other"


def test_the_first_block_and_array_that_differ(tmp_path: Path) -> None:
    names = [f"step-{n:08d}.npz" for n in range(4)]
    first = dict.fromkeys(names, dump(0))
    a = write_run(f"{tmp_path}/a", blocks=first)
    hop0, seeds = (dump(0, **{name: np.full((4, 3), 11)}) for name in ("hop0", "seeds"))
    b = write_run(f"{tmp_path}/b", blocks={**first, names[3]: seeds, names[2]: hop0})
    found = compare_runs(a, b)
    assert found.verdict.startswith(
        "different, first in blocks: blocks/fit/step-00000002.npz: hop0: 4 rows in A alone, 1"
    )
    del first[names[1]]
    assert (
        "blocks/fit/step-00000001.npz is in A alone"
        in compare_runs(a, write_run(f"{tmp_path}/c", blocks=first)).verdict
    )
    broken = compare_runs(a, write_run(f"{tmp_path}/d", blocks={**first, names[0]: b"no archive"}))
    assert "blocks/fit/step-00000000.npz: damaged" in broken.verdict


def test_blocks_that_one_run_lacks_are_not_compared(tmp_path: Path) -> None:
    a = write_run(f"{tmp_path}/a", blocks={"step-00000000.npz": dump(0)})
    found = compare_runs(a, write_run(f"{tmp_path}/b"))
    assert found.same
    assert "blocks   -          B has none" in found.table()


def test_the_first_loss_above_the_tolerance(tmp_path: Path) -> None:
    a = write_run(f"{tmp_path}/a")
    b = write_run(f"{tmp_path}/b", losses=[*LOSSES[:3], LOSSES[3] * (1 + 3e-6), LOSSES[4] * (1 + 1e-3), LOSSES[5]])
    found = compare_runs(a, b)
    assert found.verdict.startswith("different, first in losses: fit step 4: 0.5 | 0.5000015, 3.0e-06 apart")
    assert compare_runs(a, b, 1e-5).verdict.startswith("different, first in losses: fit step 5: ")
    assert compare_runs(a, b, 2e-3).same


def test_tolerances_by_dtype_and_step(tmp_path: Path) -> None:
    assert [default_tolerance(step, False) for step in (1, 60, 61, 200, 201)] == [1e-6, 1e-6, 1e-5, 1e-5, 1e-3]
    assert default_tolerance(1000, True) == 1e-9
    near = [loss * (1 + 1e-7) for loss in LOSSES]
    a = write_run(f"{tmp_path}/a", "run.dtype=float64")
    assert not compare_runs(a, write_run(f"{tmp_path}/b", "run.dtype=float64", losses=near)).same
    assert compare_runs(write_run(f"{tmp_path}/c"), write_run(f"{tmp_path}/d", losses=near)).same


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_differs(tmp_path: Path, loss: float) -> None:
    a = write_run(f"{tmp_path}/a")
    assert states(a, write_run(f"{tmp_path}/b", losses=[*LOSSES[:5], loss]))["losses"] is False


def test_records_of_different_windows_are_brought_together(tmp_path: Path) -> None:
    a = write_run(f"{tmp_path}/a")
    b = write_run(f"{tmp_path}/b", "train.log_every=3", every=3)
    found = compare_runs(a, b)
    assert found.same
    assert "2 records" in found.table()
    other = [*LOSSES[:4], LOSSES[4] + 0.01, LOSSES[5]]
    assert "fit step 6" in compare_runs(a, write_run(f"{tmp_path}/c", losses=other, every=3)).verdict


def test_a_run_that_is_shorter(tmp_path: Path) -> None:
    found = compare_runs(write_run(f"{tmp_path}/a"), write_run(f"{tmp_path}/b", losses=LOSSES[:4]))
    assert found.verdict == "different, first in losses: fit ends at step 6 | 4, alike so far"


def test_metrics(tmp_path: Path) -> None:
    a = write_run(f"{tmp_path}/a")
    b = write_run(f"{tmp_path}/b", metrics={"ndcg@20": 0.2495, "recall@20": 0.5})
    assert compare_runs(a, b).same
    found = compare_runs(a, b, metric_tolerance=1e-4)
    assert found.verdict.startswith("different, first in metrics: ndcg@20 0.25 | 0.2495, 5.0e-04 apart")
    unfinished = write_run(f"{tmp_path}/c", metrics={})
    assert states(a, unfinished) == {"options": True, "dataset": True, "blocks": None, "losses": True, "metrics": None}


def test_mistakes(tmp_path: Path) -> None:
    a = write_run(f"{tmp_path}/a")
    with pytest.raises(UserError, match=r"nowhere: no config\.toml there"):
        compare_runs(a, f"{tmp_path}/nowhere")
    with pytest.raises(UserError, match="--loss-tolerance -1.0: must be at least 0"):
        compare_runs(a, a, -1.0)
    with pytest.raises(UserError, match="--metric-tolerance nan: must"):
        compare_runs(a, a, metric_tolerance=float("nan"))
    empty = write_run(f"{tmp_path}/b", metrics={}, losses=[])
    with pytest.raises(UserError, match="nothing to compare"):
        compare_runs(a, empty)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write_run(f"{tmp_path}/a"), write_run(f"{tmp_path}/b", losses=[loss * 1.01 for loss in LOSSES])
    assert cli.main(["compare", a, a]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "the same run"
    assert cli.main(["compare", a, b]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("different, first in losses: fit step 1")
    assert cli.main(["compare", a, b, "--loss-tolerance", "0.1"]) == 0
    capsys.readouterr()
    for wrong in ([a], [a, b, "--loss-tolerance", "little"], [a, f"{tmp_path}/no"], [a, b, "--metric-tolerance=-1"]):
        assert cli.main(["compare", *wrong]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_on_an_object_store(tmp_path: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTGNN_CACHE", str(tmp_path / "cache"))
    blocks = {"step-00000000.npz": dump(0)}
    a = write_run(f"{s3_bucket}/runs/a", blocks=blocks)
    assert states(a, write_run(f"{tmp_path}/b", blocks=blocks)) == dict.fromkeys(
        ("options", "dataset", "blocks", "losses", "metrics"), True
    )
