from __future__ import annotations

import bz2
import gzip
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distgnn.data import csv_log, readers
from distgnn.data.columns import NULL_WORDS
from distgnn.data.readers import estimate_rows, read_interactions
from distgnn.types import UserError


def read(path: Path | str, **options: Any) -> pa.Table:
    return pa.Table.from_batches(list(read_interactions(str(path), **options)))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def complaint(path: Path | str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(path, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


ALL = {"user_column": "u", "item_column": "i", "timestamp_column": "t", "weight_column": "w"}


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".csv.bz2", ".tsv", ".tsv.gz"])
def test_csv_columns_names_and_types(tmp_path: Path, suffix: str) -> None:
    separator = "\t" if ".tsv" in suffix else ","
    lines = ["x,i,t,u,w", "a,apple,100,7,1", "b,pear,101,-8,2.5"]
    data = "\n".join(line.replace(",", separator) for line in lines).encode()
    path = tmp_path / f"log{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else bz2.compress(data) if "bz2" in suffix else data)
    table = read(path, **ALL)
    assert table.schema == pa.schema(
        [("user", pa.int64()), ("item", pa.string()), ("timestamp", pa.int64()), ("weight", pa.float32())]
    )
    assert table.to_pylist() == [
        {"user": 7, "item": "apple", "timestamp": 100, "weight": 1.0},
        {"user": -8, "item": "pear", "timestamp": 101, "weight": 2.5},
    ]


def test_quotes_newlines_in_fields_byte_order_mark_and_crlf(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(b'\xef\xbb\xbfuser,note,item\r\n"a,b","two\r\nlines",1\r\nc,,2\r\n')
    assert read(path).to_pydict() == {"user": ["a,b", "c"], "item": [1, 2]}


@pytest.mark.parametrize("delimiter", [";", "|", "\t"])
def test_delimiter_is_told_by_the_header(tmp_path: Path, delimiter: str) -> None:
    path = write(tmp_path / "log.csv", f"user{delimiter}item\n1{delimiter}2\n")
    assert read(path).to_pydict() == {"user": [1], "item": [2]}


@pytest.mark.parametrize("odd", ["007", "+7", "7.0", "x", "9223372036854775808", "-0", " 7"])
def test_a_key_that_is_no_canonical_integer_makes_the_column_text(tmp_path: Path, odd: str) -> None:
    path = write(tmp_path / "log.csv", f"user,item\n7,1\n{odd},1\n")
    assert read(path)["user"].to_pylist() == ["7", odd]


def test_key_kind_is_decided_over_all_blocks_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_log, "_BLOCK_BYTES", 64)
    write(tmp_path / "log/a.csv", "user,item\n" + "".join(f"{n},1\n" for n in range(200)))
    write(tmp_path / "log/b.csv", "user,item\nlast,1\n")
    batches = list(read_interactions(str(tmp_path / "log")))
    assert len(batches) > 3
    assert {str(batch.schema.field("user").type) for batch in batches} == {"string"}
    assert pa.Table.from_batches(batches)["user"].to_pylist() == [*map(str, range(200)), "last"]


def test_words_for_null_are_names_among_names_but_null_among_numbers(tmp_path: Path) -> None:
    names = write(tmp_path / "names.csv", "user,item\nNA,1\nbob,2\n")
    assert read(names)["user"].to_pylist() == ["NA", "bob"]
    numbers = write(tmp_path / "numbers.csv", "user,item\n1,1\nNA,2\n")
    assert complaint(numbers) == f"{numbers}, row 2, column 'user': the user is null; drop or fill such rows"


@pytest.mark.parametrize("role", ["user", "item"])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_null_key_is_refused_with_its_row(
    tmp_path: Path, role: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_log, "_BLOCK_BYTES", 64)
    values: dict[str, list[str | None]] = {name: [f"{name}{n}" for n in range(50)] for name in ("user", "item")}
    values[role][41] = None
    path = tmp_path / f"log.{kind}"
    if kind == "csv":
        rows = zip(*values.values(), strict=True)
        write(path, "user,item\n" + "".join(f"{u or ''},{i or ''}\n" for u, i in rows))
    else:
        pq.write_table(pa.table(values), path)
    options = {} if kind == "csv" else {"batch_rows": 20}
    assert complaint(path, **options).startswith(f"{path}, row 42, column '{role}': the {role} is null")


@pytest.mark.parametrize("value", ["yesterday", "2020-01-01", "12:30", "1e"])
def test_timestamp_that_is_no_number_is_named(tmp_path: Path, value: str) -> None:
    path = write(tmp_path / "log.csv", f"user,item,time\n1,2,5\n1,3,{value}\n")
    text = complaint(path, timestamp_column="time")
    assert text.startswith(f"{path}, row 2, column 'time': timestamp {value!r} is not a number")


@pytest.mark.parametrize("value", ["", "nan", "null"])
def test_missing_timestamp_is_refused(tmp_path: Path, value: str) -> None:
    path = write(tmp_path / "log.csv", f"user,item,time\n1,2,5\n1,3,{value}\n")
    assert complaint(path, timestamp_column="time").startswith(f"{path}, row 2, column 'time': the timestamp is null")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e19])
def test_float_timestamp_out_of_range_is_refused(tmp_path: Path, value: float) -> None:
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"user": [1, 1], "item": [1, 2], "time": [1.0, value]}), path)
    assert f"{path}, row 2, column 'time': timestamp {value} is not" in complaint(path, timestamp_column="time")


def test_fractional_seconds_and_clock_types_become_microseconds(tmp_path: Path) -> None:
    moment = datetime(2020, 5, 17, 12, 30, 0, 250_000, tzinfo=timezone.utc)
    expected = round(moment.timestamp() * 1_000_000)
    csv = write(tmp_path / "log.csv", f"user,item,time\n1,2,{moment.timestamp()!r}\n1,3,100\n")
    assert read(csv, timestamp_column="time")["timestamp"].to_pylist() == [expected, 100_000_000]
    for number, arrow_type in enumerate(
        [pa.timestamp("ns"), pa.timestamp("us", "Europe/Berlin"), pa.timestamp("ms"), pa.float64()]
    ):
        path = tmp_path / f"{number}.parquet"
        seconds = pa.array([moment.timestamp()])
        times = seconds if arrow_type == pa.float64() else pa.array([moment]).cast(arrow_type)
        pq.write_table(pa.table({"user": [1], "item": [2], "time": times}), path)
        assert read(path, timestamp_column="time")["timestamp"].to_pylist() == [expected], arrow_type
    path = tmp_path / "date.parquet"
    pq.write_table(pa.table({"user": [1], "item": [2], "time": pa.array([moment.date()], pa.date32())}), path)
    assert read(path, timestamp_column="time")["timestamp"].to_pylist() == [18399 * 86_400_000_000]


def test_whole_timestamps_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"user": [1], "item": [2], "time": pa.array([881250949], pa.int32())}), path)
    assert read(path, timestamp_column="time")["timestamp"].to_pylist() == [881250949]


@pytest.mark.parametrize(("value", "words"), [("heavy", "'heavy' is not a number"), ("inf", "not finite")])
def test_bad_weight_is_named(tmp_path: Path, value: str, words: str) -> None:
    path = write(tmp_path / "log.csv", f"user,item,w\n1,2,5\n1,3,{value}\n")
    text = complaint(path, weight_column="w")
    assert text.startswith(f"{path}, row 2, column 'w'")
    assert words in text


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_missing_column_lists_those_there(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"log.{kind}"
    if kind == "csv":
        write(path, "userId,movieId\n1,2\n")
    else:
        pq.write_table(pa.table({"userId": [1], "movieId": [2]}), path)
    text = complaint(path)
    assert text.startswith(f"{path}: no column 'user'; columns there: 'userId', 'movieId'")
    assert "data.user_column" in text


def test_doubled_and_reused_columns_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "user,item,user\n1,2,3\n")
    assert "'user' is there 2 times" in complaint(path)
    assert "named for two things" in complaint(path, user_column="item", item_column="item")


@pytest.mark.parametrize(
    ("arrow_type", "kind"),
    [
        (pa.int32(), pa.int64()),
        (pa.uint8(), pa.int64()),
        (pa.decimal128(19, 0), pa.int64()),
        (pa.string(), pa.string()),
        (pa.large_string(), pa.string()),
        (pa.binary(), pa.string()),
        (pa.dictionary(pa.int8(), pa.string()), pa.string()),
    ],
)
def test_parquet_key_types(tmp_path: Path, arrow_type: pa.DataType, kind: pa.DataType) -> None:
    path = tmp_path / "log.parquet"
    keys = pa.array(["3", "1"]).cast(arrow_type) if kind == pa.string() else pa.array([3, 1]).cast(arrow_type)
    pq.write_table(pa.table({"user": keys, "item": [1, 2]}), path)
    table = read(path)
    assert table.schema.field("user").type == kind
    assert [str(key) for key in table["user"].to_pylist()] == ["3", "1"]


def test_float_keys_and_mixed_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "floats.parquet"
    pq.write_table(pa.table({"user": [1.0], "item": [2]}), path)
    assert "has type double; keys must be integers or text" in complaint(path)
    folder = tmp_path / "mixed"
    folder.mkdir()
    pq.write_table(pa.table({"user": [1], "item": [2]}), folder / "a.parquet")
    pq.write_table(pa.table({"user": ["1"], "item": [2]}), folder / "b.parquet")
    assert complaint(folder).startswith(f"{folder / 'b.parquet'}: column 'user' has type string, another kind than in")


def test_key_beyond_64_bits(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"user": pa.array([2**63], pa.uint64()), "item": [2]}), path)
    assert f"{path}, from row 1 on, column 'user'" in complaint(path)
    text = write(tmp_path / "log.txt", f"1 {2**63}\n")
    assert "beyond 64 bits" in complaint(text)


def test_lightgcn_text(tmp_path: Path) -> None:
    path = write(tmp_path / "train.txt", "0 5 6\n1\n2 7 \n\n9 5")
    assert read(path).to_pydict() == {"user": [0, 0, 2, 9], "item": [5, 6, 7, 5]}


def test_lightgcn_blocks_join_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_LINES_BYTES", 5)
    path = write(tmp_path / "train.txt", "\n".join(f"{u} {u + 100} {u + 200}" for u in range(30)))
    batches = list(read_interactions(str(path), batch_rows=7))
    assert max(batch.num_rows for batch in batches) <= 7
    table = pa.Table.from_batches(batches)
    assert table["user"].to_pylist() == [u for u in range(30) for _ in range(2)]
    assert table["item"].to_pylist() == [i for u in range(30) for i in (u + 100, u + 200)]


def test_lightgcn_refuses_words_and_named_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "train.txt", "0 5 6\n1 x 3\n")
    assert complaint(path).startswith(f"{path}, row 2: 'x' is not an integer")
    assert "no named columns" in complaint(path, timestamp_column="time")


@pytest.mark.parametrize("kind", ["csv", "parquet", "txt"])
@pytest.mark.parametrize("header_only", [True, False])
def test_empty_log_is_refused(tmp_path: Path, kind: str, header_only: bool) -> None:
    path = tmp_path / f"log.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"user": pa.array([], pa.int64()), "item": pa.array([], pa.int64())}), path)
    else:
        write(path, "user,item\n" if header_only and kind == "csv" else "")
    assert "empty" in complaint(path)


@pytest.mark.parametrize("keep", [0, 3, 30, -1])
def test_damaged_parquet(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"user": list(range(100)), "item": list(range(100))}), path)
    path.write_bytes(path.read_bytes()[:keep] if keep >= 0 else b"PAR1" + b"\0" * 200 + b"PAR1")
    assert complaint(path).startswith(f"{path}: cannot be read, it is damaged")


def test_parquet_damaged_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    numbers = np.random.default_rng(0).integers(0, 1 << 40, 5000)
    pq.write_table(pa.table({"user": numbers, "item": numbers}), path, compression="zstd", write_page_checksum=True)
    data = bytearray(path.read_bytes())
    data[200:4000] = b"\xff" * 3800
    path.write_bytes(data)
    assert complaint(path).startswith(f"{path}: cannot be read, it is damaged")


def test_truncated_gzip_and_wrong_suffix(tmp_path: Path) -> None:
    path = tmp_path / "log.csv.gz"
    text = "user,item\n" + "".join(f"{n * 7919 % 10007},{n}\n" for n in range(50_000))
    path.write_bytes(gzip.compress(text.encode())[:-2000])
    assert complaint(path).startswith(f"{path}: cannot be read, it is damaged")
    path.write_bytes(b"user,item\n1,2\n")
    assert complaint(path).startswith(f"{path}: cannot be read, it is damaged")


def test_ragged_csv_row_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "user,item\n1,2\n1,2,3\n")
    text = complaint(path)
    assert text.startswith(f"{path}: cannot be read")
    assert "Expected 2 columns, got 3" in text


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(b"user,item\n1,2\n\xff\xfe,3\n")
    assert complaint(path).startswith(f"{path}: cannot be read")


def test_missing_file_folder_and_pattern(tmp_path: Path) -> None:
    for uri in (tmp_path / "no.csv", tmp_path / "no/where"):
        assert complaint(uri).startswith(f"{uri}: there is no such file")
    assert "no file with a known extension" in complaint(tmp_path / "*.csv")
    write(tmp_path / "log.dat", "user,item\n1,2\n")
    assert "set data.format" in complaint(tmp_path / "log.dat")
    assert read(tmp_path / "log.dat", format="csv").num_rows == 1


def test_folder_and_glob_in_order_without_hidden_files(tmp_path: Path) -> None:
    for day in (2, 1, 3):
        write(tmp_path / f"log/day={day}/part.csv", f"user,item\n{day},{day}\n")
    write(tmp_path / "log/_SUCCESS", "")
    write(tmp_path / "log/.part.csv.crc", "x")
    write(tmp_path / "log/_temporary/part.csv", "user,item\n99,99\n")
    assert read(tmp_path / "log")["user"].to_pylist() == [1, 2, 3]
    assert read(f"{tmp_path}/log/day=[12]/*.csv")["user"].to_pylist() == [1, 2]


def test_several_formats_in_one_folder_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "user,item\n1,2\n")
    write(tmp_path / "b.txt", "1 2\n")
    assert "several formats (csv, lightgcn)" in complaint(tmp_path)


def test_any_filesystem(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe_file("/readers/log.csv", b"user,item\n1,2\n")
    try:
        assert read("memory://readers/log.csv").to_pydict() == {"user": [1], "item": [2]}
        memory.pipe_file("/readers/log.csv", b"user,item\n,2\n")
        assert complaint("memory://readers/log.csv").startswith("memory:///readers/log.csv, row 1")
    finally:
        memory.rm("/readers", recursive=True)


def test_refusal_of_a_remote_store_is_put_into_words(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe_file("/readers/log.csv", b"user,item\n1,2\n")

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no credentials\nat all")

    monkeypatch.setattr(type(memory), "_open", refuse)
    try:
        assert complaint("memory://readers/log.csv") == "memory:///readers/log.csv: cannot be read: no credentials"
    finally:
        memory.rm("/readers", recursive=True)


def test_batches_are_bounded_and_the_file_is_streamed(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"user": list(range(1000)), "item": list(range(1000))}), path)
    stream = read_interactions(str(path), batch_rows=64)
    assert next(stream).num_rows == 64
    assert sum(batch.num_rows for batch in stream) == 1000 - 64


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(
            # Beside numbers alone, a word for null is a null: see the test above.
            st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=6).filter(
                lambda text: text not in NULL_WORDS
            )
            | st.integers(-(2**63), 2**63 - 1).map(str),
            st.integers(-(2**63), 2**63 - 1),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_csv_and_parquet_give_back_what_was_written(tmp_path: Path, rows: list[tuple[str, int]]) -> None:
    import csv

    users, items = [user for user, _ in rows], [item for _, item in rows]
    with open(tmp_path / "log.csv", "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, quoting=csv.QUOTE_ALL).writerows([("user", "item"), *rows])
    pq.write_table(pa.table({"user": users, "item": items}), tmp_path / "log.parquet")
    for suffix in ("csv", "parquet"):
        table = read(tmp_path / f"log.{suffix}")
        assert [str(user) for user in table["user"].to_pylist()] == users
        assert table["item"].to_pylist() == items


def test_estimate_is_exact_for_parquet_and_near_for_text(tmp_path: Path) -> None:
    rows = 20_000
    users = np.random.default_rng(1).integers(0, 10**6, rows)
    pq.write_table(pa.table({"user": users, "item": users}), tmp_path / "log.parquet")
    assert estimate_rows(str(tmp_path / "log.parquet")) == rows
    text = "user,item\n" + "".join(f"{user},{user}\n" for user in users)
    write(tmp_path / "log.csv", text)
    assert estimate_rows(str(tmp_path / "log.csv")) == rows
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(text.encode()))
    assert estimate_rows(str(tmp_path / "log.csv.gz")) == pytest.approx(rows, rel=0.05)
    (tmp_path / "log.csv.bz2").write_bytes(bz2.compress(text.encode()))
    assert estimate_rows(str(tmp_path / "log.csv.bz2")) == pytest.approx(rows, rel=0.05)
    write(tmp_path / "train.txt", "".join(f"{n} 1 2 3\n" for n in range(500)))
    assert estimate_rows(str(tmp_path / "train.txt")) == 1500


def test_estimate_goes_by_the_head_of_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_SAMPLE_BYTES", 1000)
    write(tmp_path / "log.csv", "user,item\n" + "123,456\n" * 10_000)
    assert estimate_rows(str(tmp_path / "log.csv")) == pytest.approx(10_000, rel=0.02)
