from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from distgnn.data.bundled import build_debian_deps
from distgnn.data.dataset_folder import check_hashes, check_sizes, read_card
from distgnn.data.registry import BUNDLED
from distgnn.types import UserError

FOLDER = BUNDLED / "debian-deps"


@pytest.fixture(scope="module")
def edges() -> dict[str, np.ndarray]:
    """Each split's pairs, int64 `[n, 2]`."""
    tables = {part: pq.read_table(FOLDER / f"{part}.parquet") for part in ("train", "valid", "test")}
    return {part: np.stack([t["user"].to_numpy(), t["item"].to_numpy()], axis=1) for part, t in tables.items()}


def test_files_are_the_ones_of_the_card() -> None:
    card = read_card(str(FOLDER))
    check_sizes(str(FOLDER), card)
    check_hashes(str(FOLDER), card, [str(FOLDER / file) for file in card["files"]])
    assert sorted(card["files"]) == sorted(path.name for path in FOLDER.glob("*.parquet"))
    for file, facts in card["files"].items():
        assert pq.read_metadata(FOLDER / file).num_rows == facts["rows"]
    assert sum(facts["bytes"] for facts in card["files"].values()) < 2_000_000


def test_counts(edges: dict[str, np.ndarray]) -> None:
    card = read_card(str(FOLDER))
    everything = np.concatenate(list(edges.values()))
    assert (card["n_users"], card["n_items"], len(everything)) == (32_098, 11_745, 231_586)
    for part, pairs in edges.items():
        assert len(pairs) == card[f"n_{part}"]
    for part in ("valid", "test"):
        assert len(edges[part]) / len(everything) == pytest.approx(0.1, abs=0.001)


def test_three_core_without_duplicates_or_gaps(edges: dict[str, np.ndarray]) -> None:
    everything = np.concatenate(list(edges.values()))
    assert len(np.unique(everything, axis=0)) == len(everything), "a pair stands in two splits, or twice"
    for column, count in ((0, 32_098), (1, 11_745)):
        degrees = np.bincount(everything[:, column])
        assert len(degrees) == count
        assert degrees.min() >= 3
    assert np.bincount(everything[:, 1]).max() == 17_605
    assert len(np.unique(edges["train"][:, 0])) == 32_098, "a user has nothing to train on"


def test_names_are_readable(edges: dict[str, np.ndarray]) -> None:
    items, users = (pq.read_table(FOLDER / f"{side}.parquet") for side in ("items", "users"))
    assert items.column_names == ["item", "name", "text", "genre"]
    assert users.column_names == ["user", "name", "genre"]
    for table, column in ((items, "item"), (users, "user")):
        assert table[column].to_pylist() == list(range(table.num_rows))
        names = table["name"].to_pylist()
        assert names == sorted(set(names))
        assert table["genre"].null_count == 0
    by_name = {row["name"]: row for row in items.to_pylist()}
    assert by_name["libc6"]["text"] == "GNU C Library: Shared libraries"
    assert by_name["libc6"]["genre"] == "libs"
    assert by_name["default-mta"]["genre"] in ("mail", "virtual")
    assert all(items["text"].to_pylist())
    hub = np.bincount(np.concatenate(list(edges.values()))[:, 1]).argmax()
    assert items["name"][int(hub)].as_py() == "libc6"


def test_card_for_people_has_the_same_counts() -> None:
    text = (FOLDER / "CARD.md").read_text(encoding="utf-8")
    card = read_card(str(FOLDER))
    for key in ("n_users", "n_items", "n_interactions", "n_train", "n_valid", "n_test"):
        assert f"{card[key]:,}" in text, key
    assert f"{card['checks']['test_users']:,}" in text
    genres = pq.read_table(FOLDER / "items.parquet")["genre"].to_pylist()
    assert f"{genres.count('virtual'):,} of them virtual, {genres.count('missing')} not in the release" in text


PACKAGES = """\
Package: app-a
Version: 1
Depends: libx (>= 1.0), liby:any | libz, libv <!nocheck>, app-a
Pre-Depends: libw [amd64]
Section: utils
Description: the first app
 A long text: that is left out.

Package: app-b
Depends: libx,liby, libv,
Recommends: libw
Suggests: app-a
Section: games
Description: the second app

Package: app-c
Recommends: libx, liby, libv, libw
Section: games
Description: the third app

Package: app-d
Depends: libx, rare
Section: games
Description: too few dependencies that others share

Package: libx
Section: libs
Description: library x

Package: liby
Section: libs
Description: library y

Package: impl2
Provides: libv (= 2)
Section: libs
Description: one provider

Package: impl1
Provides: other, libv
Section: libs
Description: another provider
"""


@pytest.fixture
def index(tmp_path: Path) -> Path:
    path = tmp_path / "deb.example_main_binary-amd64_Packages"
    path.write_text(PACKAGES, encoding="utf-8")
    return path


def test_rules_of_the_build_on_a_small_index(index: Path, tmp_path: Path) -> None:
    build_debian_deps.build([index], tmp_path / "out")
    users = pq.read_table(tmp_path / "out/users.parquet")
    items = pq.read_table(tmp_path / "out/items.parquet")
    assert users.to_pydict() == {
        "user": [0, 1, 2],
        "name": ["app-a", "app-b", "app-c"],
        "genre": ["utils", "games", "games"],
    }
    assert items.to_pydict() == {
        "item": [0, 1, 2, 3],
        "name": ["libv", "libw", "libx", "liby"],
        "text": [
            "virtual package, provided by impl1, impl2",
            "package that is not in this release",
            "library x",
            "library y",
        ],
        "genre": ["virtual", "missing", "libs", "libs"],
    }
    parts = [pq.read_table(tmp_path / f"out/{part}.parquet") for part in ("train", "valid", "test")]
    pairs = sorted(pair for t in parts for pair in zip(t["user"].to_pylist(), t["item"].to_pylist(), strict=True))
    assert pairs == [(user, item) for user in range(3) for item in range(4)]


def test_same_index_gives_the_same_bytes(index: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed_Packages.gz"
    packed.write_bytes(gzip.compress(PACKAGES.encode()))
    build_debian_deps.main(["--packages", str(index), "--out", str(tmp_path / "a")])
    build_debian_deps.main(["--packages", str(packed), "--out", str(tmp_path / "b")])
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert len(list((tmp_path / "a").iterdir())) == 6


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"Package: lonely\nDepends: nothing\n"])
def test_useless_index_is_one_line(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "Packages"
    path.write_bytes(content)
    with pytest.raises(SystemExit) as caught:
        build_debian_deps.main(["--packages", str(path), "--out", str(tmp_path / "out")])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(f"{path}: ")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="not a readable Packages index"):
        build_debian_deps.read_index(tmp_path / "nowhere")


def test_core_is_the_largest_one() -> None:
    square = [(user, item) for user in "abc" for item in "xyz"]
    chain = [("d", "x"), ("d", "y"), ("d", "p"), ("e", "p"), ("f", "p")]  # d leaves only after p does
    assert build_debian_deps.core([*square, *chain, *square]) == square
