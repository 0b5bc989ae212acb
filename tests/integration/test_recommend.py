"""distgnn recommend, through the command line, against the evaluation and against single requests."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import distgnn
from distgnn import cli, metrics, publishing, storage
from distgnn.export.reader import Export
from distgnn.recommender import batch
from distgnn.types import UserError
from tests.moto_server import s3_bucket, s3_server
from tests.small_exports import small_export

__all__ = ["s3_bucket", "s3_server"]

Row = tuple[Any, int, Any, float]
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module", params=[("float32", False), ("int8", True)], ids=str)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Export]:
    """A run's folder and its export; keys are numbers with float32, text with int8."""
    dtype, text = request.param
    folder = tmp_path_factory.mktemp("run")
    export = small_export(folder, dtype, text=text, dim=8)
    return folder / "run", export


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with integer keys 0, 10, 20, ..."""
    folder = tmp_path_factory.mktemp("numbered")
    small_export(folder)
    return folder / "run"


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Exit code, stdout and stderr of `distgnn recommend` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISTGNN_CACHE", str(tmp_path / ".cache"))

    def call(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = cli.main(["recommend", *arguments])
        return code, *capfd.readouterr()

    return call


def rows_of(path: Path | str) -> list[Row]:
    table = pq.read_table(path)
    assert table.column_names == ["user", "rank", "item", "score"]
    return list(zip(*(table[name].to_pylist() for name in table.column_names), strict=True))


def expected_rows(recommender: distgnn.Recommender, users: list[Any], k: int, **options: Any) -> list[Row]:
    lists = [(user, recommender.recommend(user, k, **options)) for user in users]
    return [(user, rank, item, score) for user, found in lists for rank, (item, score) in enumerate(found, start=1)]


def assert_same(found: list[Row], expected: list[Row]) -> None:
    assert [row[:3] for row in found] == [row[:3] for row in expected]
    np.testing.assert_allclose([row[3] for row in found], [row[3] for row in expected], rtol=1e-5, atol=1e-6)


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".cache")


def test_every_user_by_default(
    made: tuple[Path, Export], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, export = made
    monkeypatch.setattr(batch, "_CHUNK_USERS", 16)
    code, out, err = command("--run", str(run), "--k", "4", "--out", "lists.parquet")
    assert code == 0, err
    users = export.user_keys.to_pylist()
    assert_same(rows_of("lists.parquet"), expected_rows(distgnn.Recommender.load(str(run)), users, 4))
    assert pq.ParquetFile("lists.parquet").num_row_groups == 3
    assert pq.read_schema("lists.parquet").field("user").type == export.user_keys.type
    assert "recommendations for 40 users" in out
    assert "lists.parquet" in out
    assert visible(tmp_path) == ["lists.parquet"]


def test_a_csv_file_says_the_same(made: tuple[Path, Export], command: Command) -> None:
    run, export = made
    for name in ("l.parquet", "deep/l.csv"):
        assert command("--run", str(run / "embeddings"), "--k", "3", "--out", name)[0] == 0
    with open("deep/l.csv", encoding="utf-8") as stream:
        header, *lines = csv.reader(stream)
    assert header == ["user", "rank", "item", "score"]
    kind = type(export.user_keys[0].as_py())
    found = [(kind(user), int(rank), kind(item), float(score)) for user, rank, item, score in lines]
    assert found == rows_of("l.parquet")
    assert Path("deep/l.csv").read_text().startswith("user,rank,item,score\n")


def test_some_users_and_some_items(made: tuple[Path, Export], command: Command, tmp_path: Path) -> None:
    run, export = made
    users, items = export.user_keys.to_pylist(), export.item_keys.to_pylist()
    wanted = [users[5], users[2], users[30]]
    (tmp_path / "users.txt").write_text("".join(f"{key}\n" for key in [*wanted, users[2]]))
    pq.write_table(pa.table({"item": [*items[:12], items[0]]}), tmp_path / "allow.parquet")
    block = ",".join(map(str, [*items[3:5], "nothing", "nowhere"]))
    options = ["--users", "users.txt", "--allow", "allow.parquet", "--block", block]
    code, out, err = command("--run", str(run), *options, "--out", "l.parquet", "--set", "recommend.filter_seen=false")
    assert code == 0, err
    recommender = distgnn.Recommender.load(str(run))
    chosen = {"allow": items[:12], "block": items[3:5], "filter_seen": False}
    assert_same(rows_of("l.parquet"), expected_rows(recommender, wanted, 20, **chosen))
    assert len(rows_of("l.parquet")) == 3 * 10
    assert "recommend.block: 2 items not known to the run: nothing, nowhere\n" in out
    assert "1 keys were given before" in out


def test_users_that_are_not_known(made: tuple[Path, Export], command: Command, tmp_path: Path) -> None:
    run, export = made
    users = export.user_keys.to_pylist()
    # 5 could be a key of either kind, so it can stand in the output; x,y cannot be a number.
    (tmp_path / "users.csv").write_text(f'user\n{users[1]}\n5\n"x,y"\n{users[0]}\n5\nz\nzz\n')
    recommender = distgnn.Recommender.load(str(run))
    known = expected_rows(recommender, [users[1], users[0]], 3)
    for unknown in ("list", "popular"):
        out_file = f"{unknown}.parquet"
        arguments = ["--run", str(run), "--users", "users.csv", "--k", "3", "--unknown", unknown, "--out", out_file]
        code, out, err = command(*arguments)
        assert code == 0, err
        assert "recommend.users: 4 users not known to the run: 5, x,y, z, ..." in out
        assert f"listed in {unknown}.unknown.csv" in out
        with open(f"{unknown}.unknown.csv", encoding="utf-8") as stream:
            assert list(csv.reader(stream)) == [["user"], ["5"], ["x,y"], ["z"], ["zz"]]
        found = rows_of(out_file)
        if unknown == "list":
            assert_same(found, known)
            continue
        assert_same([row for row in found if row[0] in users], known)
        strangers = ["5", "x,y", "z", "zz"] if isinstance(users[0], str) else [5]
        popular = list(enumerate(recommender.popular(3), start=1))
        expected = [(user, rank, item, score) for user in strangers for rank, (item, score) in popular]
        assert [row for row in found if row[0] not in users] == expected


def test_lists_are_those_that_the_evaluation_ranks(tmp_path: Path, command: Command) -> None:
    """Train, recommend by the run, and find the report's own metrics again."""
    rng = np.random.default_rng(3)
    user, item = np.nonzero(rng.random((80, 50)) < 0.3)
    lines = [f"u{u},i{i}" for u, i in zip(user, item, strict=True)]
    (tmp_path / "log.csv").write_text("\n".join(["user,item", *lines]) + "\n")
    options = ["model.dim=8", "train.epochs=2", "train.batch_size=64", "run.tensorboard=false", "run.dtype=float64"]
    overrides = [f"--set={option}" for option in options]
    assert cli.main(["prepare", "--input", "log.csv", "--out", "data", "--parts", "2"]) == 0
    assert cli.main(["train", "--data", "data", "--workers", "2", *overrides, "--out", "run"]) == 0
    assert command("--run", "run", "--out", "l.csv")[0] == 0
    report = storage.read_json("run/report.json")
    dataset = distgnn.load_dataset("data", partition={"parts": 2})
    recommender = distgnn.Recommender.load("run")
    top = np.full((dataset.n_users, 20), -1)
    with open("l.csv", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            top[recommender.users.find(row["user"]), int(row["rank"]) - 1] = recommender.items.find(row["item"])
    test_user, test_item = dataset.edges("test")
    users, count = np.unique(test_user, return_counts=True)
    hits = metrics.hit_matrix(top[users], np.concatenate([[0], np.cumsum(count)]), test_item)
    assert len(users) == report["n_evaluated"]
    assert metrics.ndcg(hits, count, 20).mean() == pytest.approx(report["metrics"]["ndcg@20"], abs=1e-12)
    assert metrics.recall(hits, count, 10).mean() == pytest.approx(report["metrics"]["recall@10"], abs=1e-12)


def test_output_to_object_storage(made: tuple[Path, Export], s3_bucket: str, command: Command) -> None:
    run, export = made
    users = export.user_keys.to_pylist()
    listed = storage.join(s3_bucket, "in", "users.txt")
    storage.write_bytes(listed, f"{users[3]}\n5\n".encode())
    there = storage.join(s3_bucket, "run", "embeddings")
    for file in (run / "embeddings").iterdir():
        storage.write_bytes(storage.join(there, file.name), file.read_bytes())
    out = storage.join(s3_bucket, "out", "l.parquet")
    arguments = ["--run", storage.join(s3_bucket, "run"), "--users", listed, "--k", "2", "--out", out]
    code, _, err = command(*arguments)
    assert code == 0, err
    expected = expected_rows(distgnn.Recommender.load(str(run)), [users[3]], 2)
    assert_same(rows_of(storage.local_copy(out)), expected)  # type: ignore[arg-type]
    assert storage.read_bytes(storage.join(s3_bucket, "out", "l.unknown.csv")) == b"user\n5\n"
    code, _, err = command(*arguments)
    assert (code, err) == (2, f"distgnn: output file {out} is in use: choose another run.out or remove it\n")


def test_the_whole_process(made: tuple[Path, Export], tmp_path: Path) -> None:
    run, export = made
    users = export.user_keys.to_pylist()
    result = subprocess.run(
        [sys.executable, "-m", "distgnn", "recommend", "--run", str(run), "--users", str(users[0]), "--out", "l.csv"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert len((tmp_path / "l.csv").read_text().splitlines()) == 1 + len(
        distgnn.Recommender.load(str(run)).recommend(users[0])
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "l.csv"], "name a run (--run RUN)"),
        (["--run", "RUN"], "name the file to write (--out FILE.parquet or FILE.csv)"),
        (["--run", "RUN", "--out", "l.json"], "run.out = 'l.json' must end in .parquet or .csv"),
        (["--run", "nowhere", "--out", "l.csv"], "nowhere: no export there"),
        (["--run", "RUN", "--out", "l.csv", "--k", "26"], "k = 26 must be a whole number from 1 to 25"),
        (["--run", "RUN", "--out", "l.csv", "--k", "0"], "recommend.k = 0 must be at least 1"),
        (["--run", "RUN", "--out", "l.csv", "--unknown", "drop"], "recommend.unknown = 'drop' is not one of list, pop"),
        (["--run", "RUN", "--out", "l.csv", "--users", "no.csv"], "no.csv: there is no such file"),
        (["--run", "RUN", "--out", "l.csv", "--users", "names.txt"], "names.txt: none of its keys is a whole number"),
        (["--run", "RUN", "--out", "l.csv", "--users", "empty.txt"], "empty.txt: holds no user key"),
        (["--run", "RUN", "--out", "l.csv", "--users", "wide.csv"], "wide.csv: no column 'user' or 'key'"),
        (["--run", "RUN", "--out", "l.csv", "--allow", "names.txt"], "names.txt: holds no item that the run knows"),
        (["--run", "RUN", "--out", "there.csv"], "output file there.csv is in use"),
        (["--run", "RUN", "--out", "old.csv", "--users", "0,5"], "output file old.unknown.csv is in use"),
        (["--run", "RUN", "--out", "there.csv/l.csv"], "there.csv/l.csv: cannot be written"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    numbered: Path, command: Command, tmp_path: Path, arguments: list[str], words: str
) -> None:
    for name, content in (
        ("names.txt", "anna\nbert\n"),
        ("empty.txt", "\n"),
        ("wide.csv", "who,when\na,1\n"),
        ("there.csv", "mine"),
        ("old.unknown.csv", "mine"),
    ):
        (tmp_path / name).write_text(content)
    before = visible(tmp_path)
    code, _, err = command(*(str(numbered) if a == "RUN" else a for a in arguments))
    lines = err.splitlines()
    assert code == 2
    assert lines[-1].startswith("distgnn: ")
    assert words in lines[-1]
    assert "Traceback" not in err
    assert visible(tmp_path) == before
    assert (tmp_path / "there.csv").read_text() == "mine"


def test_a_failure_on_the_way_leaves_nothing(
    numbered: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second file cannot be published: the first one goes as well."""
    publish = publishing._publish_file

    def fail(path: Path, uri: str) -> None:
        if uri.endswith(".unknown.csv"):
            raise UserError("no")
        publish(path, uri)

    monkeypatch.setattr(publishing, "_publish_file", fail)
    code, _, _ = command("--run", str(numbered), "--users", "0,5", "--out", "l.parquet")
    assert code == 2
    assert visible(tmp_path) == []


def test_a_full_disk_is_one_line(numbered: Path, command: Command, tmp_path: Path, monkeypatch: Any) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(batch.ListFile, "write", full)
    code, _, err = command("--run", str(numbered), "--out", "l.csv")
    assert code == 2
    line = (
        r"distgnn: l\.csv: cannot be written: No space left on device \(.* free\); free some space or write elsewhere\n"
    )
    assert re.fullmatch(line, err)
    assert visible(tmp_path) == []
