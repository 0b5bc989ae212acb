"""Published raw files -> the tables of a dataset folder.

A converter takes the folder with the raw files and gives the tables by file stem, and the card's text about the split.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from distgnn.data.keyed_split import TEST, keyed_split
from distgnn.data.readers import read_interactions
from distgnn.types import UserError

_SEED = 0
_TIME_SPLIT = (
    "global time split: the earliest 80% of the ratings train, the rest test (ties by file order);"
    " interactions.parquet is everything in time order; every rating counts as an interaction"
)
ML_100K_GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip


@dataclass(frozen=True)
class Converted:
    """Tables by file stem, and how they were split."""

    tables: dict[str, pa.Table]
    split: str
    n_users: int
    n_items: int


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """An archive; one that is damaged or lacks a member is refused with its name."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, KeyError, pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not the archive that is expected there: {error}; remove it to fetch it again") from (
            error
        )


def _table(data: bytes, names: list[str], delimiter: str, types: dict[str, pa.DataType]) -> pa.Table:
    return pa_csv.read_csv(
        io.BytesIO(data),
        read_options=pa_csv.ReadOptions(column_names=names),
        parse_options=pa_csv.ParseOptions(delimiter=delimiter, quote_char='"' if delimiter == "," else False),
        convert_options=pa_csv.ConvertOptions(column_types=types, strings_can_be_null=False),
    )


def _ranks(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct ids in ascending order, and each one's position among them."""
    distinct, position = np.unique(ids, return_inverse=True)
    return distinct, position.reshape(-1).astype(np.int32)


def _time_split(user: np.ndarray, item: np.ndarray, timestamp: np.ndarray, rating: np.ndarray) -> dict[str, pa.Table]:
    order = np.argsort(timestamp, kind="stable")
    everything = pa.table(
        {
            "user": user[order].astype(np.int32),
            "item": item[order].astype(np.int32),
            "timestamp": timestamp[order].astype(np.int64),
            "rating": rating[order].astype(np.float32),
        }
    )
    cut = everything.num_rows * 4 // 5
    return {
        "interactions": everything,
        "train": everything.slice(0, cut).sort_by([("user", "ascending"), ("item", "ascending")]),
        "test": everything.slice(cut).sort_by([("user", "ascending"), ("item", "ascending")]),
    }


def _title_and_year(text: str) -> tuple[str, str]:
    """`Toy Story (1995)` -> `Toy Story`, `1995`."""
    match = re.fullmatch(r"(.*?)\s*\((\d{4})\)\s*", text)
    return (match.group(1), match.group(2)) if match else (text.strip(), "")


def _movie_table(ids: np.ndarray, movies: dict[int, tuple[str, str]]) -> pa.Table:
    """Items in id order; `movies` maps an original id to its title with the year, and its genres."""
    named = [(*_title_and_year(movies[i][0]), movies[i][1]) if i in movies else ("", "", "") for i in ids.tolist()]
    return pa.table(
        {
            "item": np.arange(len(ids), dtype=np.int32),
            "title": [title for title, _, _ in named],
            "year": [year for _, year, _ in named],
            "genres": [genres for _, _, genres in named],
            "original_id": ids.astype(np.int32),
        }
    )


def movielens_100k(folder: Path) -> Converted:
    """ml-100k.zip: u.data, u.item, u.user. Ids are the original ones minus 1."""
    with _archive(folder / "ml-100k.zip") as archive:
        names = ["user", "item", "rating", "timestamp"]
        log = _table(archive.read("ml-100k/u.data"), names, "\t", {"rating": pa.float32()})
        movie_lines = archive.read("ml-100k/u.item").decode("latin-1").splitlines()
        user_lines = archive.read("ml-100k/u.user").decode("latin-1").splitlines()
    movies = {}
    for fields in (line.split("|") for line in movie_lines if line):
        flags = zip(ML_100K_GENRES, fields[-len(ML_100K_GENRES) :], strict=True)
        movies[int(fields[0])] = (fields[1], " ".join(genre for genre, flag in flags if flag == "1"))
    people = [line.split("|") for line in user_lines if line]
    item_ids = np.arange(1, max(movies) + 1)
    tables = _time_split(
        log["user"].to_numpy() - 1, log["item"].to_numpy() - 1, log["timestamp"].to_numpy(), log["rating"].to_numpy()
    )
    tables["items"] = _movie_table(item_ids, movies)
    tables["users"] = pa.table(
        {
            "user": pa.array([int(p[0]) - 1 for p in people], pa.int32()),
            "original_id": pa.array([int(p[0]) for p in people], pa.int32()),
            "age": pa.array([int(p[1]) for p in people], pa.int32()),
            "gender": [p[2] for p in people],
            "occupation": [p[3] for p in people],
        }
    )
    return Converted(tables, f"{_TIME_SPLIT}; ids = original id - 1", len(people), len(item_ids))


def movielens_1m(folder: Path) -> Converted:
    """ml-1m.zip: ratings.dat, movies.dat, users.dat. Items are the rated movies, ids in ascending original order."""
    with _archive(folder / "ml-1m.zip") as archive:
        ratings = archive.read("ml-1m/ratings.dat").replace(b"::", b"\t")
        log = _table(ratings, ["user", "item", "rating", "timestamp"], "\t", {"rating": pa.float32()})
        movie_lines = archive.read("ml-1m/movies.dat").decode("latin-1").splitlines()
        user_lines = archive.read("ml-1m/users.dat").decode("latin-1").splitlines()
    movies = {int(f[0]): (f[1], f[2].replace("|", " ")) for f in (line.split("::") for line in movie_lines if line)}
    people = {int(f[0]): f for f in (line.split("::") for line in user_lines if line)}
    converted = _movielens_ranked(log, movies)
    original = converted.tables["users"]["original_id"].to_pylist()
    users = converted.tables["users"]
    users = users.append_column("age", pa.array([int(people[i][2]) for i in original], pa.int32()))
    users = users.append_column("gender", pa.array([people[i][1] for i in original]))
    users = users.append_column("occupation", pa.array([int(people[i][3]) for i in original], pa.int32()))
    converted.tables["users"] = users
    return converted


def movielens_20m(folder: Path) -> Converted:
    """ml-20m.zip: ratings.csv, movies.csv. Items are the rated movies, ids in ascending original order."""
    with _archive(folder / "ml-20m.zip") as archive:
        log = pa_csv.read_csv(
            io.BytesIO(archive.read("ml-20m/ratings.csv")),
            convert_options=pa_csv.ConvertOptions(column_types={"rating": pa.float32()}),
        ).rename_columns(["user", "item", "rating", "timestamp"])
        titles = pa_csv.read_csv(
            io.BytesIO(archive.read("ml-20m/movies.csv")),
            parse_options=pa_csv.ParseOptions(newlines_in_values=True),
            convert_options=pa_csv.ConvertOptions(column_types={"title": pa.string(), "genres": pa.string()}),
        )
    movies = {
        movie: (title, "" if genres == "(no genres listed)" else genres.replace("|", " "))
        for movie, title, genres in zip(*(titles[c].to_pylist() for c in ("movieId", "title", "genres")), strict=True)
    }
    return _movielens_ranked(log, movies)


def _movielens_ranked(log: pa.Table, movies: dict[int, tuple[str, str]]) -> Converted:
    user_ids, user = _ranks(log["user"].to_numpy())
    item_ids, item = _ranks(log["item"].to_numpy())
    tables = _time_split(user, item, log["timestamp"].to_numpy(), log["rating"].to_numpy())
    tables["items"] = _movie_table(item_ids, movies)
    tables["users"] = pa.table(
        {"user": np.arange(len(user_ids), dtype=np.int32), "original_id": user_ids.astype(np.int32)}
    )
    split = f"{_TIME_SPLIT}; items are the rated movies; ids in ascending order of the original ones"
    return Converted(tables, split, len(user_ids), len(item_ids))


def lastfm_hetrec(folder: Path) -> Converted:
    """hetrec2011-lastfm-2k.zip: listening counts, artist names, mutual friendships."""
    with _archive(folder / "hetrec2011-lastfm-2k.zip") as archive:
        skip = lambda name: archive.read(name).split(b"\n", 1)[1]  # noqa: E731 - the header line
        log = _table(skip("user_artists.dat"), ["user", "item", "rating"], "\t", {"rating": pa.float32()})
        friends = _table(skip("user_friends.dat"), ["user", "friend"], "\t", {})
        artist_lines = skip("artists.dat").decode("utf-8").splitlines()
    artists = {int(f[0]): f[1] for f in (line.split("\t") for line in artist_lines if line)}
    user_ids = np.unique(np.concatenate([log["user"].to_numpy(), friends["user"].to_numpy()]))
    item_ids = np.unique(np.concatenate([log["item"].to_numpy(), np.array(list(artists), dtype=np.int64)]))
    user = np.searchsorted(user_ids, log["user"].to_numpy()).astype(np.int32)
    item = np.searchsorted(item_ids, log["item"].to_numpy()).astype(np.int32)
    labels = keyed_split(user.tolist(), item.tolist(), valid_ratio=0.0, test_ratio=0.2, seed=_SEED)
    edges = pa.table({"user": user, "item": item, "rating": log["rating"].to_numpy().astype(np.float32)})
    edges = edges.append_column("test", pa.array(labels == TEST))
    edges = edges.sort_by([("user", "ascending"), ("item", "ascending")])
    social = pa.table(
        {
            "user": np.searchsorted(user_ids, friends["user"].to_numpy()).astype(np.int32),
            "friend": np.searchsorted(user_ids, friends["friend"].to_numpy()).astype(np.int32),
        }
    )
    tables = {
        "train": edges.filter(pc.invert(edges["test"])).drop_columns("test"),
        "test": edges.filter(edges["test"]).drop_columns("test"),
        "items": pa.table(
            {
                "item": np.arange(len(item_ids), dtype=np.int32),
                "title": [artists.get(i, "") for i in item_ids.tolist()],
                "original_id": item_ids.astype(np.int32),
            }
        ),
        "users": pa.table({"user": np.arange(len(user_ids), dtype=np.int32), "original_id": user_ids.astype(np.int32)}),
        "social": social,
    }
    split = (
        f"20% of each user's artists test, by a hash of (seed {_SEED}, user, artist); rating = listening count;"
        " ids in ascending order of the original ones"
    )
    return Converted(tables, split, len(user_ids), len(item_ids))


def lightgcn_split(folder: Path) -> Converted:
    """train.txt and test.txt, one user and its items a line; the ids stay."""
    tables = {stem: _adjacency(folder / f"{stem}.txt") for stem in ("train", "test")}
    n_users, n_items = (
        1 + max(pc.max(table[column]).as_py() for table in tables.values()) for column in ("user", "item")
    )
    split = "the 80/20 per-user split published with NGCF and LightGCN; ids as published"
    return Converted(tables, split, n_users, n_items)


def _adjacency(path: Path) -> pa.Table:
    table = pa.Table.from_batches(read_interactions(str(path), format="lightgcn"))
    return table.cast(pa.schema([("user", pa.int32()), ("item", pa.int32())]))
