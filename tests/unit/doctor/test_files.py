from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from distgnn import storage
from distgnn.config_reading import load_config
from distgnn.doctor import files
from distgnn.doctor.finding import FAIL, OK, Examination, Finding
from distgnn.partition.prepare import load_dataset
from tests.moto_server import s3_bucket, s3_server

__all__ = ["s3_bucket", "s3_server"]

LOG = "user,item\n" + "".join(f"{user},{item}\n" for user in range(20) for item in range(10))


def examination(*overrides: str) -> Examination:
    return Examination(load_config(None, list(overrides)))


def data(*overrides: str) -> list[Finding]:
    return files.check_data(examination(*overrides))


def output(*overrides: str) -> Finding:
    (finding,) = files.check_output(examination(*overrides))
    return finding


@pytest.fixture
def secured(s3_server: str, s3_bucket: str) -> Iterator[str]:
    """A bucket that only known credentials open, which those in the environment are not."""

    def expect(actions: str) -> None:
        request = urllib.request.Request(f"{s3_server}/moto-api/reset-auth", data=actions.encode(), method="POST")
        request.add_header("Content-Type", "text/plain")
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10).close()

    expect("0")
    yield s3_bucket
    expect("inf")


def test_a_log(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(LOG)
    examined = examination(f"data.input={tmp_path}/log.csv", "data.timestamp_column=at")
    (finding,) = files.check_data(examined)
    assert finding.status == OK
    assert finding.figure == f"{tmp_path}/log.csv: 1 csv file, about 200 interactions"
    assert (examined.n_rows, examined.timestamps, examined.weights) == (200, True, False)


def test_logs_of_a_given_split(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(LOG)
    found = data(f"data.input={tmp_path}/log.csv", f"data.test_input={tmp_path}/gone.csv")
    assert [(finding.what, finding.status) for finding in found] == [("data.input", OK), ("data.test_input", FAIL)]
    assert "gone.csv: there is no such file" in found[1].figure
    assert found[1].advice.startswith("check the path")


def test_a_prepared_dataset(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(LOG)
    dataset = load_dataset("debian-deps", partition={"method": "random"})
    examined = examination(f"data.path={dataset.path}")
    (finding,) = files.check_data(examined)
    assert finding.status == OK
    assert examined.n_nodes == dataset.n_users + dataset.n_items
    (missing,) = data(f"data.path={tmp_path}")
    assert missing.status == FAIL


def test_features(tmp_path: Path) -> None:
    keys = load_dataset("debian-deps", partition={"method": "random"}).item_keys()
    pq.write_table(
        pa.table({"item": keys, "x": range(len(keys)), "v": [[0.5] * 4] * len(keys)}), tmp_path / "f.parquet"
    )
    examined = examination(f"data.item_features={tmp_path}/f.parquet", f"data.user_features={tmp_path}/gone.parquet")
    name, users, items = files.check_data(examined)
    assert (users.what, users.status, items.what) == ("data.user_features", FAIL, "data.item_features")
    assert items.figure == f"{tmp_path}/f.parquet: {len(keys):,} rows, 2 columns, 5 values a row"
    assert examined.feature_widths == {"item": 5}
    assert examined.n_by_role["item"] == len(keys)
    (wrong,) = [f for f in data(f"data.user_features={tmp_path}/f.parquet") if f.what == "data.user_features"]
    assert (wrong.status, "no column 'user'" in wrong.figure) == (FAIL, True)


def test_names() -> None:
    examined = examination()
    (finding,) = files.check_data(examined)
    assert (finding.status, finding.figure) == (OK, "debian-deps, bundled")
    assert examined.n_nodes is not None
    assert examined.n_rows > 0
    (unknown,) = data("data.name=gowala")
    assert unknown.status == FAIL
    assert "distgnn datasets" in unknown.advice


def test_a_dataset_that_would_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISTGNN_DATA", raising=False)
    monkeypatch.setenv("DISTGNN_CACHE", str(tmp_path))
    (finding,) = data("data.name=gowalla")
    assert finding.status == OK
    assert "downloadable" in finding.figure


def test_a_dataset_folder_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTGNN_DATA", str(tmp_path))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "dataset.json").write_text("{")
    (finding,) = data("data.name=mine")
    assert finding.status == FAIL
    assert str(tmp_path / "mine") in finding.advice


def test_a_run_to_evaluate(tmp_path: Path) -> None:
    (tmp_path / "config.toml").touch()
    assert [f.status for f in data(f"run.path={tmp_path}")] == [OK]
    assert [f.status for f in data(f"run.path={tmp_path}/none")] == [FAIL]


def test_an_output_folder_leaves_nothing(tmp_path: Path) -> None:
    finding = output(f"run.out={tmp_path}/deep/down/run")
    assert finding.status == OK
    assert finding.figure.startswith(f"{tmp_path}: ")
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    finding = output(f"run.out={tmp_path}/file/run")
    assert finding.status == FAIL
    assert "File exists" in finding.figure
    assert "permissions" in finding.advice


def test_an_output_folder_in_use(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert output(f"run.out={tmp_path}/run").status == OK
    (tmp_path / "run" / "report.json").touch()
    finding = output(f"run.out={tmp_path}/run")
    assert finding.status == FAIL
    assert "--resume" in finding.advice
    assert output(f"run.out={tmp_path}/run", "run.resume=true").status == OK


def test_a_store(s3_bucket: str) -> None:
    assert output(f"run.out={s3_bucket}/runs/first").status == OK
    assert output(f"run.out={s3_bucket}").status == OK
    assert s3fs.S3FileSystem().find(s3_bucket) == []
    storage.write_bytes(f"{s3_bucket}/log.csv", LOG.encode())
    (finding,) = data(f"data.input={s3_bucket}/log.csv")
    assert (finding.status, "about 200 interactions" in finding.figure) == (OK, True)


def test_a_bucket_that_is_not_there(s3_bucket: str) -> None:
    finding = output(f"run.out={s3_bucket}-not/runs/first")
    assert finding.status == FAIL
    assert "AWS_ENDPOINT_URL (set)" in finding.advice


def test_wrong_credentials(secured: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA0000000000000000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-to-be-shown")
    s3fs.S3FileSystem.clear_instance_cache()
    (log,) = data(f"data.input={secured}/log.csv")
    assert "no permission" in log.figure
    out = output(f"run.out={secured}/run")
    assert "AWS Access Key Id you provided does not exist" in out.figure
    for finding in (log, out):
        assert finding.status == FAIL
        assert "AWS_ACCESS_KEY_ID (set), AWS_SECRET_ACCESS_KEY (set), AWS_SESSION_TOKEN (not set)" in finding.advice
        assert "not-to-be-shown" not in str(finding)


def test_a_store_that_keeps_or_alters_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = fsspec.implementations.local.LocalFileSystem
    with monkeypatch.context() as patch:
        patch.setattr(local, "rm_file", lambda *_: None)
        assert "cannot be removed" in output(f"run.out={tmp_path}/run").figure
    with monkeypatch.context() as patch:
        patch.setattr(storage, "read_bytes", lambda _: b"other")
        assert "comes back altered" in output(f"run.out={tmp_path}/run").figure


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("/data/x", "permissions"),
        ("gs://b/x", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("abfs://b/x", "AZURE_STORAGE_ACCOUNT_NAME"),
        ("https://h/x", "HTTPS_PROXY"),
        ("hdfs://h/x", "fsspec's hdfs"),
    ],
)
def test_advice_names_what_a_store_reads(uri: str, words: str) -> None:
    assert words in files.access_advice(uri)
