"""The downloadable datasets: where they are, what is published about them, and how they are converted.

A checksum stands here only where one is published: GroupLens has an .md5 file beside each MovieLens archive; the sha256
of the HetRec archive is the one that other public projects pin. The LightGCN repository publishes none: there the first
download's sha256 is kept and compared from then on. Whatever the source, the counts must be the published ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from distgnn.data.converters import (
    Converted,
    lastfm_hetrec,
    lightgcn_split,
    movielens_1m,
    movielens_20m,
    movielens_100k,
)


@dataclass(frozen=True)
class RemoteFile:
    """A file to fetch; `checksum` is `md5:<hex>`, `sha256:<hex>`, or empty."""

    name: str
    url: str
    checksum: str = ""


@dataclass(frozen=True)
class Downloadable:
    """A dataset that can be fetched; the counts are the published ones."""

    name: str
    files: tuple[RemoteFile, ...]
    convert: Callable[[Path], Converted]
    n_users: int
    n_items: int
    n_train: int
    n_test: int
    homepage: str
    licence: str


_GROUPLENS = "https://files.grouplens.org/datasets"
_LIGHTGCN = "https://raw.githubusercontent.com/gusye1234/LightGCN-PyTorch/master/data"


def _lightgcn(name: str, n_users: int, n_items: int, n_train: int, n_test: int) -> Downloadable:
    files = tuple(RemoteFile(f"{part}.txt", f"{_LIGHTGCN}/{name}/{part}.txt") for part in ("train", "test"))
    return Downloadable(
        name=name,
        files=files,
        convert=lightgcn_split,
        n_users=n_users,
        n_items=n_items,
        n_train=n_train,
        n_test=n_test,
        homepage="https://github.com/gusye1234/LightGCN-PyTorch",
        licence="not stated by the publishers; for research",
    )


def _movielens(
    name: str, md5: str, convert: Callable[[Path], Converted], n_users: int, n_items: int, n_ratings: int
) -> Downloadable:
    n_train = n_ratings * 4 // 5
    return Downloadable(
        name=name,
        files=(RemoteFile(f"{name}.zip", f"{_GROUPLENS}/movielens/{name}.zip", f"md5:{md5}"),),
        convert=convert,
        n_users=n_users,
        n_items=n_items,
        n_train=n_train,
        n_test=n_ratings - n_train,
        homepage="https://grouplens.org/datasets/movielens/",
        licence="GroupLens: research use, no redistribution without permission; see the README in the archive",
    )


DOWNLOADABLE: dict[str, Downloadable] = {
    entry.name: entry
    for entry in (
        _lightgcn("gowalla", 29_858, 40_981, 810_128, 217_242),
        _lightgcn("yelp2018", 31_668, 38_048, 1_237_259, 324_147),
        _lightgcn("amazon-book", 52_643, 91_599, 2_380_730, 603_378),
        _movielens("ml-100k", "0e33842e24a9c977be4e0107933c0723", movielens_100k, 943, 1_682, 100_000),
        _movielens("ml-1m", "c4d9eecfca2ab87c1945afe126590906", movielens_1m, 6_040, 3_706, 1_000_209),
        _movielens("ml-20m", "cd245b17a1ae2cc31bb14903e1204af3", movielens_20m, 138_493, 26_744, 20_000_263),
        Downloadable(
            name="lastfm-hetrec",
            files=(
                RemoteFile(
                    "hetrec2011-lastfm-2k.zip",
                    f"{_GROUPLENS}/hetrec2011/hetrec2011-lastfm-2k.zip",
                    "sha256:6738f48195667ff03caaab4d32ca9a3133d8cc026b7c3cdaf6ce1010e913c59c",
                ),
            ),
            convert=lastfm_hetrec,
            n_users=1_892,
            n_items=17_632,
            n_train=74_266,  # 92,834 in all, as published
            n_test=18_568,
            homepage="https://grouplens.org/datasets/hetrec-2011/",
            licence="Last.fm data, non-commercial use; see the readme in the archive",
        ),
    )
}
