from __future__ import annotations

import dataclasses
import typing
from pathlib import Path

from distgnn.config import Config
from distgnn.option_reference import help_text, markdown, sections

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == markdown(), "run: python -m scripts.write_configuration_page"


def test_every_option_is_there_and_has_a_meaning() -> None:
    found = {f"{o.section}.{o.key}" for _, options in sections().values() for o in options}
    assert found == {
        f"{name}.{field.name}"
        for name, section in typing.get_type_hints(Config).items()
        for field in dataclasses.fields(section)
    }
    silent = [
        f"{o.section}.{o.key}" for _, options in sections().values() for o in options if not o.meaning + o.allowed
    ]
    assert silent == []


def test_what_is_said_of_an_option() -> None:
    options = {f"{o.section}.{o.key}": o for _, section in sections().values() for o in section}
    fanout, split, ratio = (options[key] for key in ("sampler.fanout", "evaluate.split", "data.test_ratio"))
    assert (fanout.kind, fanout.default) == ("list of integer", "[10, 10]")
    assert (split.default, split.allowed) == ('"test"', "one of valid, test")
    assert ratio.allowed == "from 0 to below 1"
    assert options["train.epochs"].allowed == "at least 1"
    assert options["cluster.workers"].kind == "integer or list of integer"


def test_help_has_the_sections_asked_for() -> None:
    text = help_text(["data", "optim"])
    assert 'data.user_column = "user"' in text
    assert "optim.lr = 0.005" in text
    assert "train.epochs" not in text
