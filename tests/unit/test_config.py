from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distgnn.config import Config
from distgnn.config_reading import config_from_dict, load_config
from distgnn.types import UserError


def test_defaults_survive_toml(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(Config().to_toml())
    assert load_config(tmp_path / "c.toml") == Config() == load_config() == config_from_dict({})


_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=20)


@given(
    name=_TEXT,
    seed=st.integers(0, 2**63 - 1),
    lr=st.floats(0, 10, allow_nan=False),
    fanout=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    hidden=st.lists(st.integers(1, 512), max_size=3),
    dump=st.booleans(),
    baselines=st.lists(st.sampled_from(["toppop", "itemknn", "gfcf", "als"]), max_size=4),
)
def test_any_values_survive_toml(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    seed: int,
    lr: float,
    fanout: list[int],
    hidden: list[int],
    dump: bool,
    baselines: list[str],
) -> None:
    values = {
        "run": {"seed": seed, "dump_blocks": dump},
        "data": {"name": name},
        "sampler": {"fanout": fanout},
        "model": {"tower_hidden": hidden},
        "optim": {"lr": lr},
        "evaluate": {"baselines": baselines},
    }
    config = config_from_dict(values)
    assert config.sampler.fanout == tuple(fanout)
    assert config.data.name == name
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert load_config(path) == config
    assert config_from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("run.seed=7", "run", "seed", 7),
        ("optim.lr=1", "optim", "lr", 1.0),
        ("optim.lr = 1e-3", "optim", "lr", 1e-3),
        ("data.name=gowalla", "data", "name", "gowalla"),
        ('data.name="two words"', "data", "name", "two words"),
        ("data.name=7", "data", "name", "7"),
        ("data.input=s3://bucket/a=b.csv", "data", "input", "s3://bucket/a=b.csv"),
        ("run.out=", "run", "out", ""),
        ("sampler.fanout=[5,4]", "sampler", "fanout", (5, 4)),
        ("sampler.fanout=5,4,3", "sampler", "fanout", (5, 4, 3)),
        ("sampler.fanout=5", "sampler", "fanout", (5,)),
        ("evaluate.baselines=toppop,als", "evaluate", "baselines", ("toppop", "als")),
        ("evaluate.baselines=", "evaluate", "baselines", ()),
        ("run.tensorboard=false", "run", "tensorboard", False),
        ("cluster.workers=3", "cluster", "workers", 3),
        ("cluster.workers=1,4", "cluster", "workers", (1, 4)),
        ("cluster.workers=[2, 2]", "cluster", "workers", (2, 2)),
        ("sampler.time_respecting=true", "sampler", "time_respecting", True),
        ("sampler.time_respecting=false", "sampler", "time_respecting", False),
        ("sampler.time_respecting=auto", "sampler", "time_respecting", "auto"),
    ],
)
def test_overrides(override: str, section: str, key: str, value: Any) -> None:
    assert getattr(getattr(load_config(None, [override]), section), key) == value


def test_overrides_go_before_the_file_and_the_last_one_wins(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[train]\nepochs = 3\nbatch_size = 64\n")
    config = load_config(tmp_path / "c.toml", ["train.epochs=4", "train.epochs=5"])
    assert (config.train.epochs, config.train.batch_size) == (5, 64)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampler.fanuot=5", "unknown key sampler.fanuot; did you mean fanout?"),
        ("smapler.fanout=5", r"unknown section \[smapler\]; did you mean sampler?"),
        ("run.zzzzqqq=1", "unknown key run.zzzzqqq; known are out, path, seed"),
        ("train.epochs=2.5", "train.epochs = 2.5 must be of type int"),
        ("train.epochs=many", "train.epochs = 'many' must be of type int"),
        ("train.epochs=true", "train.epochs = True must be of type int"),
        ("optim.lr=false", "optim.lr = False must be of type float"),
        ("run.dump_blocks=1", "run.dump_blocks = 1 must be of type bool"),
        ("sampler.fanout=a,b", "sampler.fanout = 'a' must be of type int"),
        ("sampler.fanout=[]", r"sampler.fanout = \[\] must name at least one hop"),
        ("sampler.fanout=[5,0]", "each at least 1"),
        ("run.seed=-1", r"run.seed = -1 must lie in \[0,"),
        ("loss.temperature=0", "loss.temperature = 0.0 must be positive"),
        ("optim.lr=nan", "optim.lr = nan must be at least 0"),
        ("loss.name=brp", "loss.name = 'brp' is not one of bpr, sampled_softmax"),
        ("data.split=random", "data.split = 'random' is not one of auto, given, leave_last_k"),
        ("model.encoder=lightgnc", "model.encoder = 'lightgnc' is not one of"),
        ("evaluate.baselines=toppop,knn", "evaluate.baselines = 'knn' is not one of"),
        ("sampler.time_respecting=1", "sampler.time_respecting = 1 must be of type bool"),
        ("sampler.time_respecting=yes", "sampler.time_respecting = 'yes' is not one of auto, true, false"),
        ("cluster.max_failures=-1", "at least 0"),
        ("train.batch_size=-1", "train.batch_size = -1 must be at least 0"),
        ("distill.batch_size=-1", "distill.batch_size = -1 must be at least 0"),
        ("distill.dim=0", "distill.dim = 0 must be at least 1"),
        ("distill.negatives=0", "distill.negatives = 0 must be at least 1"),
        ("distill.temperature=0", "distill.temperature = 0.0 must be positive"),
        ("distill.temperature=nan", "distill.temperature = nan must be positive"),
        ("distill.label_weight=-0.1", "distill.label_weight = -0.1 must be at least 0"),
        ("distill.top=31", "distill.listed = 32 is more than distill.top = 31"),
        ("distill.student=mlp", "distill.student = 'mlp' is not one of embedding"),
        ("cluster.hot_rows=-1", "at least 0"),
        ("cluster.hot_rows=2.5", "must be a whole number, or a share below 1"),
        ("cluster.hot_rows=inf", "must be a whole number, or a share below 1"),
        ("cluster.feature_cache=1.5", "must be a whole number, or a share below 1"),
        ("cluster.workers=0", "cluster.workers = 0 must be at least 1"),
        ("cluster.workers=0,2", "cluster.workers = 0 must be at least 1"),
        ("cluster.workers=2,1", r"cluster.workers = \[2, 1\] must be a number or \[min, max\]"),
        ("cluster.workers=[1]", r"cluster.workers = \[1\] must be a number or"),
        ("cluster.workers=1,2,3", r"cluster.workers = \[1, 2, 3\] must be a number or"),
        ("cluster.workers=many", "cluster.workers = 'many' must be of type int"),
        ("cluster.workers=1.5", "cluster.workers = 1.5 must be of type int"),
        ("cluster.workers=true", "cluster.workers = True must be of type int"),
        ("train.epochs", "write it as section.key=value"),
        ("epochs=3", "write it as section.key=value"),
    ],
)
def test_mistakes_in_words(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(None, [override])


def test_options_that_contradict_each_other() -> None:
    for extra in ("loss.negatives=uniform", "loss.score=dot"):
        with pytest.raises(UserError, match="loss.name = 'directau' has no negatives and compares unit vectors"):
            load_config(None, ["loss.name=directau", extra])
    with pytest.raises(UserError, match="cluster.wire = 'bfloat16' keeps 8 bits"):
        load_config(None, ["cluster.wire=bfloat16", "run.dtype=float64"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.encoder=graphsage", "run.dtype=float64"], "model.matmul = 'bfloat16' rounds products"),
        (["model.encoder=lightgcn"], "model.matmul = 'bfloat16' has nothing to act on"),
    ],
)
def test_products_in_bfloat16_are_refused_where_they_make_no_sense(words, said):
    with pytest.raises(UserError, match=said):
        load_config(None, ["model.matmul=bfloat16", *words])
    with pytest.raises(UserError, match="cluster.workers = 3 is more than partition.parts = 2"):
        load_config(None, ["cluster.workers=3", "partition.parts=2"])
    with pytest.raises(UserError, match="must leave something to train on"):
        load_config(None, ["data.valid_ratio=0.5", "data.test_ratio=0.5"])
    with pytest.raises(UserError, match="in_batch"):
        load_config(None, ["loss.name=bpr", "loss.negatives=in_batch"])
    with pytest.raises(UserError, match="logq"):
        load_config(None, ["loss.name=bpr", "loss.logq=true"])


def test_a_range_of_workers() -> None:
    config = load_config(None, ["cluster.workers=2,4"])
    assert (config.cluster.min_workers, config.cluster.max_workers, config.parts) == (2, 4, 4)
    assert [config.cluster.fitting_workers(room) for room in (0, 1, 2, 3, 4, 5)] == [2, 2, 2, 3, 4, 4]
    one = load_config(None, ["cluster.workers=3"])
    assert (one.cluster.min_workers, one.cluster.max_workers, one.cluster.fitting_workers(1)) == (3, 3, 3)
    with pytest.raises(UserError, match="cluster.workers = 4 is more than partition.parts = 3"):
        load_config(None, ["cluster.workers=2,4", "partition.parts=3"])


def test_a_range_of_workers_survives_the_file(tmp_path: Path) -> None:
    config = load_config(None, ["cluster.workers=1,3"])
    (tmp_path / "c.toml").write_text(config.to_toml())
    assert load_config(tmp_path / "c.toml") == config


def test_parts_follow_the_workers_until_given() -> None:
    assert load_config(None, ["cluster.workers=3"]).parts == 3
    assert load_config(None, ["cluster.workers=3", "partition.parts=8"]).parts == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train\n", r"not valid TOML.*line 1"),
        ("[train]\nepochs = 1\nepochs = 2\n", "not valid TOML"),
        ("[trian]\n", r"c.toml: unknown section \[trian\]; did you mean train?"),
        ("epochs = 3\n", r"unknown section \[epochs\]"),
        ("train = 3\n", "train must be a section"),
        ("[train]\nepoch = 3\n", r"c.toml: unknown key train.epoch; did you mean epochs?"),
    ],
)
def test_mistakes_in_a_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(tmp_path / "c.toml")


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read .*nowhere.toml"):
        load_config(tmp_path / "nowhere.toml")
    with pytest.raises(UserError, match="cannot read"):
        load_config(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'[data]\nname = "\xff"\n')
    with pytest.raises(UserError, match="cannot read"):
        load_config(tmp_path / "latin.toml")


def test_a_mistake_is_one_line() -> None:
    assert str(UserError("what\n  where\twhat to do")) == "what where what to do"


def test_sections_are_frozen_and_keyword_only() -> None:
    for name, section in typing.get_type_hints(Config).items():
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(getattr(Config(), name), dataclasses.fields(section)[0].name, None)
        with pytest.raises(TypeError):
            section("positional")


@pytest.mark.parametrize(("n_fit", "expected"), [(10**6, 2048), (2048 * 32, 2048), (3200, 100), (5, 1)])
def test_an_open_batch_size_follows_the_graph(n_fit: int, expected: int) -> None:
    assert Config().for_edges(n_fit).train.batch_size == expected
    assert load_config(None, ["train.batch_size=7"]).for_edges(n_fit).train.batch_size == 7


@pytest.mark.parametrize(
    ("written", "split", "timestamps", "respects"),
    [
        ('"auto"', "global_time", True, True),
        ('"auto"', "leave_last_k", True, False),
        ('"auto"', "given", False, False),
        ("true", "per_user_ratio", True, True),
        ("false", "global_time", True, False),
    ],
)
def test_time_respecting_is_resolved_by_the_log(
    tmp_path: Path, written: str, split: str, timestamps: bool, respects: bool
) -> None:
    (tmp_path / "c.toml").write_text(f"[sampler]\ntime_respecting = {written}\n")
    config = load_config(tmp_path / "c.toml").for_log(split, timestamps)
    assert config.sampler.respects_time is respects
    (tmp_path / "resolved.toml").write_text(config.to_toml())
    assert load_config(tmp_path / "resolved.toml") == config
    assert config.for_log("per_user_ratio", False) == config


def test_what_does_not_go_with_time_respecting() -> None:
    on = "sampler.time_respecting=true"
    with pytest.raises(UserError, match="'shared' has one row for all cut-offs .*; use uniform"):
        load_config(None, [on, "loss.name=bpr", "loss.negatives=shared"])
    with pytest.raises(UserError, match="name their column in data.timestamp_column"):
        load_config(None, [on, "data.input=log.csv"])
    assert load_config(None, [on, "data.input=log.csv", "data.timestamp_column=t"]).sampler.respects_time
    shared = load_config(None, ["loss.name=bpr", "loss.negatives=shared"])
    with pytest.raises(UserError, match=r"or set sampler.time_respecting = false"):
        shared.for_log("global_time", True)


def test_what_does_not_go_with_weighted_sampling() -> None:
    on = "sampler.weighted=true"
    assert not load_config(None).sampler.weighted
    with pytest.raises(
        UserError, match=r"does not go with sampler.time_respecting = true .*; set one of them to false"
    ):
        load_config(None, [on, "sampler.time_respecting=true"])
    with pytest.raises(UserError, match=r"does not go with sampler.time_respecting = true"):
        load_config(None, [on]).for_log("global_time", True)
    assert load_config(None, [on, "sampler.time_respecting=false"]).for_log("global_time", True).sampler.weighted
    with pytest.raises(UserError, match="name their column in data.weight_column"):
        load_config(None, [on, "data.input=log.csv"])
    assert load_config(None, [on, "data.input=log.csv", "data.weight_column=w"]).sampler.weighted
