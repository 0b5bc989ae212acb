"""Lists of keys in files of each kind, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distgnn import storage
from distgnn.recommender import key_list
from distgnn.recommender.key_list import read_key_list
from distgnn.types import UserError


def read(source: Path | str, what: str = "user") -> list[Any]:
    return [key for chunk in read_key_list(str(source), what) for key in chunk.to_pylist()]


def test_keys_in_the_option_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read("a, b c,,7 ") == ["a", "b c", "7"]
    assert read("alone") == ["alone"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("l.txt", "a\n\n  b \r\nc,d", ["a", "b", "c,d"]),
        ("l.TXT", "\ufeffa\n", ["a"]),
        ("l.csv", "a\nb\n\nc\n", ["a", "b", "c"]),
        ("l.csv", "user\na\n", ["a"]),
        ("l.csv", "key\na\n", ["a"]),
        ("l.csv", 'score,user\n1,"a,b"\r\n2,"c ""d"""\n', ["a,b", 'c "d"']),
        ("l.csv", "", []),
        ("l.txt", "", []),
    ],
)
def test_text_files(tmp_path: Path, name: str, content: str, expected: list[str]) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert read(tmp_path / name) == expected


@pytest.mark.parametrize("names", [["user"], ["anything"], ["score", "key"], ["key", "user"]])
@pytest.mark.parametrize("values", [pa.array([3, 1]), pa.array(["b", "a"]), pa.array(["b", "a"]).dictionary_encode()])
def test_parquet_files(tmp_path: Path, names: list[str], values: pa.Array) -> None:
    other = pa.array([0.5, 0.25])
    wanted = "user" if "user" in names else "key" if "key" in names else names[0]
    pq.write_table(pa.table({n: values if n == wanted else other for n in names}), tmp_path / "l.parquet")
    assert read(tmp_path / "l.parquet") == values.to_pylist()


def test_long_lists_come_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_list, "_CHUNK", 4)
    keys = [str(n) for n in range(10)]
    (tmp_path / "l.txt").write_text("\n".join(keys))
    pq.write_table(pa.table({"user": keys}), tmp_path / "l.parquet")
    for name in ("l.txt", "l.parquet"):
        chunks = [len(chunk) for chunk in read_key_list(str(tmp_path / name), "user")]
        assert chunks == [4, 4, 2]
        assert read(tmp_path / name) == keys


def test_lists_in_other_stores() -> None:
    storage.write_bytes("memory://lists/l.csv", b"item,x\n5,1\n")
    assert read("memory://lists/l.csv", "item") == ["5"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("l.txt", None, "no such file"),
        ("l.json", b"[1]", r"a list of user keys must end in \.txt, \.csv, \.parquet"),
        ("l.csv", b"customer,at\na,1\n", "no column 'user' or 'key'; columns there: 'customer', 'at'"),
        ("l.csv", b"at,user\n1,a\n2\n", "row 2: no user key"),
        ("l.csv", b"at,user\n1, \n", "row 1: no user key"),
        ("l.csv", b"\xff\xfe\n", "not UTF-8"),
        ("l.txt", b"\xff\xfe\n", "not UTF-8"),
        ("l.parquet", b"no parquet", "cannot be read, it is damaged"),
    ],
)
def test_lists_that_cannot_be_read(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}.*{words}"):
        read(tmp_path / name)


def test_parquet_columns_that_hold_no_keys(tmp_path: Path) -> None:
    path = tmp_path / "l.parquet"
    pq.write_table(pa.table({"user": [1.0]}), path)
    with pytest.raises(UserError, match="column 'user' is of type double; keys are whole numbers or text"):
        read(path)
    pq.write_table(pa.table({"a": [1], "b": [1]}), path)
    with pytest.raises(UserError, match="no column 'user' or 'key'; columns there: 'a', 'b'"):
        read(path)
    pq.write_table(pa.table({"user": [1, None]}), path)
    with pytest.raises(UserError, match=r"l\.parquet, row 2, column 'user': the user is null"):
        read(path)
