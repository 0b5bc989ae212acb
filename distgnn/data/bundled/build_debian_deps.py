"""Build the dataset `debian-deps` from the package index of a Debian release.

    apt-get update
    python -m distgnn.data.bundled.build_debian_deps \
        --packages /var/lib/apt/lists/*_debian_dists_bookworm_main_binary-amd64_Packages* --out DIR

Users are packages; items are the names that they depend on: in Depends, Pre-Depends and Recommends, the first
alternative of each clause, without version, architecture qualifier (`:any`) and restriction. A package never depends on
itself. An item may be a virtual package, which others provide: the name is what the maintainer chose. Users with fewer
than 3 items and items with fewer than 3 users are dropped until none is left (3-core).

The same index and the same version of pyarrow give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from distgnn.data.dataset_folder import write_dataset_folder
from distgnn.data.keyed_split import TEST, TRAIN, VALID, keyed_split
from distgnn.types import UserError

CORE = 3
SEED = 0
_FIELDS = ("Depends", "Pre-Depends", "Recommends")
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]*")
_CODECS = {".lz4": "lz4", ".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
Stanza = dict[str, str]


def read_index(path: Path) -> str:
    """The text of a Packages file, plain or compressed (.lz4, .gz, .bz2, .zst).

    Raises:
        UserError: not readable, not UTF-8.
    """
    try:
        with pa.OSFile(str(path)) as raw:
            codec = _CODECS.get(path.suffix)
            data = pa.CompressedInputStream(raw, codec).read() if codec else raw.read()
        return bytes(data).decode("utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable Packages index: {error}") from error


def stanzas(index: str) -> Iterator[Stanza]:
    """The stanzas of an index; of a field that goes over several lines, the first one."""
    for paragraph in index.split("\n\n"):
        stanza = {}
        for line in paragraph.split("\n"):
            key, colon, value = line.partition(":")
            if colon and not line[0].isspace():
                stanza[key] = value.strip()
        if "Package" in stanza:
            yield stanza


def dependencies(stanza: Stanza) -> set[str]:
    """The names that a package depends on."""
    clauses = (clause for field in _FIELDS for clause in stanza.get(field, "").split(","))
    matches = (_NAME.match(clause.split("|")[0].strip()) for clause in clauses)
    return {match.group() for match in matches if match} - {stanza["Package"]}


def core(edges: Iterable[tuple[str, str]], least: int = CORE) -> list[tuple[str, str]]:
    """The largest set of edges in which every user and every item has at least `least`, sorted."""
    kept = sorted(set(edges))
    while True:
        users, items = Counter(user for user, _ in kept), Counter(item for _, item in kept)
        smaller = [(user, item) for user, item in kept if users[user] >= least and items[item] >= least]
        if len(smaller) == len(kept):
            return kept
        kept = smaller


def _describe(name: str, packages: dict[str, Stanza], providers: dict[str, set[str]]) -> tuple[str, str]:
    """One line on a package, and its section. A virtual package is described by who provides it."""
    if name in packages:
        return packages[name].get("Description", ""), packages[name].get("Section", "unknown")
    known = sorted(providers.get(name, ()))
    if not known:
        return "package that is not in this release", "missing"
    more = f" and {len(known) - 3} more" if len(known) > 3 else ""
    return f"virtual package, provided by {', '.join(known[:3])}{more}", "virtual"


def _providers(packages: dict[str, Stanza]) -> dict[str, set[str]]:
    result = defaultdict(set)
    for name, stanza in packages.items():
        for clause in stanza.get("Provides", "").split(","):
            match = _NAME.match(clause.strip())
            if match:
                result[match.group()].add(name)
    return result


def build(indexes: list[Path], out: Path) -> dict[str, object]:
    """Write the dataset folder `out`; returns its card."""
    packages: dict[str, Stanza] = {}
    edges: set[tuple[str, str]] = set()
    sources = []
    for path in sorted(indexes):
        index = read_index(path)
        sources.append(
            {
                "url": "https://packages.debian.org/bookworm/",
                "file": path.name.removesuffix(path.suffix if path.suffix in _CODECS else "").rsplit("_", 1)[-1],
                "sha256": hashlib.sha256(index.encode()).hexdigest(),  # decompressed, as the Release file lists it
            }
        )
        for stanza in stanzas(index):
            packages[stanza["Package"]] = stanza  # of several versions, the last one describes; all dependencies count
            edges.update((stanza["Package"], item) for item in dependencies(stanza))
    kept = core(edges)
    if not kept:
        raise UserError(f"{', '.join(map(str, indexes))}: no package is left after the {CORE}-core filter")
    users, items = sorted({user for user, _ in kept}), sorted({item for _, item in kept})
    user_id, item_id = ({name: i for i, name in enumerate(names)} for names in (users, items))
    labels = keyed_split([u for u, _ in kept], [i for _, i in kept], valid_ratio=0.1, test_ratio=0.1, seed=SEED)
    pairs = np.array([(user_id[user], item_id[item]) for user, item in kept], dtype=np.int32)
    parts = {"train": TRAIN, "valid": VALID, "test": TEST}
    tables = {
        part: pa.table({"user": pairs[labels == label, 0], "item": pairs[labels == label, 1]})
        for part, label in parts.items()
    }
    providers = _providers(packages)
    described = [_describe(name, packages, providers) for name in items]
    tables["items"] = pa.table(
        {
            "item": np.arange(len(items), dtype=np.int32),
            "name": items,
            "text": [text for text, _ in described],
            "genre": [genre for _, genre in described],
        }
    )
    tables["users"] = pa.table(
        {
            "user": np.arange(len(users), dtype=np.int32),
            "name": users,
            "genre": [packages[name].get("Section", "unknown") for name in users],
        }
    )
    card = {
        "name": "debian-deps",
        "n_users": len(users),
        "n_items": len(items),
        **{f"n_{part}": tables[part].num_rows for part in parts},
        "n_interactions": len(kept),
        "source": sources,
        "split": f"per-user 80/10/10 by a hash of (seed {SEED}, user, item); shares rounded up or down at random",
        "valid_is_subset_of_train": False,
        "checks": _checks(pairs, labels),
        "text": "items.text = the package's one-line description; items.genre and users.genre = its archive section",
    }
    out.mkdir(parents=True, exist_ok=True)
    return write_dataset_folder(out, tables, card)


def _checks(pairs: np.ndarray, labels: np.ndarray) -> dict[str, int]:
    train, test = pairs[labels == TRAIN], pairs[labels == TEST]
    return {
        "least_user_degree": int(np.bincount(pairs[:, 0]).min()),
        "least_item_degree": int(np.bincount(pairs[:, 1]).min()),
        "greatest_item_degree": int(np.bincount(pairs[:, 1]).max()),
        "test_users": len(np.unique(test[:, 0])),
        "test_users_without_train": len(np.setdiff1d(test[:, 0], train[:, 0])),
        "test_items_without_train": len(np.setdiff1d(test[:, 1], train[:, 1])),
    }


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Build the dataset debian-deps from apt's package index.")
    parser.add_argument("--packages", nargs="+", required=True, type=Path, metavar="FILE", help="Packages index files")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write")
    options = parser.parse_args(arguments)
    try:
        card = build(options.packages, options.out)
    except UserError as error:
        parser.exit(2, f"{error}\n")
    for key in ("n_users", "n_items", "n_train", "n_valid", "n_test"):
        print(f"{key:8} {card[key]:>9,}")


if __name__ == "__main__":
    main()
