from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distgnn.data import converters
from distgnn.data.converters import ML_100K_GENRES
from distgnn.types import UserError


def archive(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as target:
        for name, data in members.items():
            target.writestr(name, data)


def flags(*genres: str) -> str:
    return "|".join(str(int(genre in genres)) for genre in ML_100K_GENRES)


def test_movielens_100k(tmp_path: Path) -> None:
    log = "2\t1\t5\t300\n1\t3\t4\t100\n1\t1\t3\t100\n2\t3\t1\t50\n1\t2\t2\t400\n"
    movies = [
        f"1|Toy Story (1995)|01-Jan-1995||url|{flags('Animation', 'Comedy')}",
        f"2|Misérables, Les (1995)|||url|{flags('Drama')}",
        f"3|unknown||||{flags('unknown')}",
    ]
    archive(
        tmp_path / "ml-100k.zip",
        {
            "ml-100k/u.data": log.encode(),
            "ml-100k/u.item": "\n".join(movies).encode("latin-1"),
            "ml-100k/u.user": b"1|24|M|technician|85711\n2|53|F|other|94043\n",
        },
    )
    converted = converters.movielens_100k(tmp_path)
    tables = converted.tables
    assert (converted.n_users, converted.n_items) == (2, 3)
    assert tables["interactions"].to_pydict() == {
        "user": [1, 0, 0, 1, 0],
        "item": [2, 2, 0, 0, 1],
        "timestamp": [50, 100, 100, 300, 400],
        "rating": [1.0, 4.0, 3.0, 5.0, 2.0],
    }
    assert tables["train"].select(["user", "item"]).to_pydict() == {"user": [0, 0, 1, 1], "item": [0, 2, 0, 2]}
    assert tables["test"].select(["user", "item"]).to_pydict() == {"user": [0], "item": [1]}
    assert tables["items"].to_pydict() == {
        "item": [0, 1, 2],
        "title": ["Toy Story", "Misérables, Les", "unknown"],
        "year": ["1995", "1995", ""],
        "genres": ["Animation Comedy", "Drama", "unknown"],
        "original_id": [1, 2, 3],
    }
    assert tables["users"].to_pydict() == {
        "user": [0, 1],
        "original_id": [1, 2],
        "age": [24, 53],
        "gender": ["M", "F"],
        "occupation": ["technician", "other"],
    }


def test_movielens_1m_and_20m_keep_rated_movies(tmp_path: Path) -> None:
    archive(
        tmp_path / "ml-1m.zip",
        {
            "ml-1m/ratings.dat": b"5::30::4::20\n2::10::3::10\n5::10::5::30\n",
            "ml-1m/movies.dat": b"10::Caf\xe9 (1999)::Comedy|Drama\n20::Unseen (2000)::War\n30::Heat (1995)::Crime\n",
            "ml-1m/users.dat": b"2::M::25::7::55117\n5::F::56::16::70072\n",
        },
    )
    archive(
        tmp_path / "ml-20m.zip",
        {
            "ml-20m/ratings.csv": b"userId,movieId,rating,timestamp\n5,30,4.5,20\n2,10,3.0,10\n5,10,5.0,30\n",
            "ml-20m/movies.csv": (
                'movieId,title,genres\n10,"Café, or not (1999)",Comedy|Drama\n20,Unseen,War\n30,Heat (1995),'
                "(no genres listed)\n"
            ).encode(),
        },
    )
    for name, title, genres in (("1m", "Café", "Crime"), ("20m", "Café, or not", "")):
        converted = getattr(converters, f"movielens_{name}")(tmp_path)
        tables = converted.tables
        assert (converted.n_users, converted.n_items) == (2, 2)
        assert tables["interactions"]["user"].to_pylist() == [0, 1, 1]
        assert tables["interactions"]["item"].to_pylist() == [0, 1, 0]
        assert tables["items"].to_pydict() == {
            "item": [0, 1],
            "title": [title, "Heat"],
            "year": ["1999", "1995"],
            "genres": ["Comedy Drama", genres],
            "original_id": [10, 30],
        }
        assert tables["users"]["original_id"].to_pylist() == [2, 5]
        assert tables["train"].num_rows == 2
    users = converters.movielens_1m(tmp_path).tables["users"].to_pydict()
    assert (users["age"], users["gender"], users["occupation"]) == ([25, 56], ["M", "F"], [7, 16])


def test_lastfm_hetrec(tmp_path: Path) -> None:
    plays = "userID\tartistID\tweight\r\n" + "".join(f"{u}\t{a}\t{u * a}\r\n" for u in (2, 7) for a in range(10, 20))
    archive(
        tmp_path / "hetrec2011-lastfm-2k.zip",
        {
            "user_artists.dat": plays.encode(),
            "artists.dat": ("id\tname\turl\tpictureURL\r\n" + '10\tSigur "Rós\turl\tpic\r\n15\tAir\turl\r\n').encode(),
            "user_friends.dat": b"userID\tfriendID\r\n2\t7\r\n7\t2\r\n",
        },
    )
    converted = converters.lastfm_hetrec(tmp_path)
    tables = converted.tables
    assert (converted.n_users, converted.n_items) == (2, 10)
    assert (tables["train"].num_rows, tables["test"].num_rows) == (16, 4)
    everything = pa.concat_tables([tables["train"], tables["test"]])
    assert everything.column_names == ["user", "item", "rating"]
    assert sorted(zip(*everything.to_pydict().values(), strict=True)) == [
        (user, artist - 10, float(original * artist)) for user, original in ((0, 2), (1, 7)) for artist in range(10, 20)
    ]
    assert tables["items"]["title"].to_pylist()[:6] == ['Sigur "Rós', "", "", "", "", "Air"]
    assert tables["social"].to_pydict() == {"user": [0, 1], "friend": [1, 0]}


@pytest.mark.parametrize("content", [b"<html>please log in</html>", None])
def test_what_is_no_such_archive_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ml-100k.zip"
    if content is None:
        archive(path, {"other/file": b"x"})
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match="not the archive that is expected there") as caught:
        converters.movielens_100k(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")


def test_movielens_100k_is_split_as_the_copy_at_hand(tmp_path: Path, data_root: Path) -> None:
    folder = data_root / "ml-100k"
    log, movies = pq.read_table(folder / "interactions.parquet"), pq.read_table(folder / "items.parquet").to_pylist()
    columns = [log["user"].to_numpy() + 1, log["item"].to_numpy() + 1, log["rating"].to_numpy(), log["timestamp"]]
    lines = ["\t".join(str(int(value)) for value in row) for row in zip(*map(np.asarray, columns), strict=True)]
    archive(
        tmp_path / "ml-100k.zip",
        {
            "ml-100k/u.data": "\n".join(lines).encode(),
            "ml-100k/u.item": "\n".join(
                f"{m['original_id']}|{m['title']} ({m['year']})||||{flags(*m['genres'].split())}" for m in movies
            ).encode("latin-1"),
            "ml-100k/u.user": "\n".join(
                f"{u['original_id']}|{u['age']}|{u['gender']}|{u['occupation']}|0"
                for u in pq.read_table(folder / "users.parquet").to_pylist()
            ).encode(),
        },
    )
    converted = converters.movielens_100k(tmp_path)
    assert (converted.n_users, converted.n_items) == (943, 1682)
    for stem in ("train", "test", "interactions", "users"):
        assert converted.tables[stem].to_pydict() == pq.read_table(folder / f"{stem}.parquet").to_pydict(), stem


def test_gowalla_text_gives_the_copy_at_hand(tmp_path: Path, data_root: Path) -> None:
    folder = data_root / "gowalla"
    for stem in ("train", "test"):
        rows: dict[int, list[int]] = {}
        table = pq.read_table(folder / f"{stem}.parquet")
        for user, item in zip(table["user"].to_pylist(), table["item"].to_pylist(), strict=True):
            rows.setdefault(user, []).append(item)
        (tmp_path / f"{stem}.txt").write_text("".join(f"{u} {' '.join(map(str, row))}\n" for u, row in rows.items()))
    converted = converters.lightgcn_split(tmp_path)
    assert (converted.n_users, converted.n_items) == (29_858, 40_981)
    for stem in ("train", "test"):
        assert converted.tables[stem].equals(pq.read_table(folder / f"{stem}.parquet"))
