"""Whether a checkpoint's steps would be the steps of this run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distgnn.config import Config
from distgnn.training.checkpoint import CheckpointInfo
from distgnn.types import UserError


def step_settings(config: Config) -> dict[str, Any]:
    """What says which edges a step holds and which neighbours it draws, as in a manifest."""
    return {
        "run.seed": config.run.seed,
        "train.batch_size": config.train.batch_size,
        "sampler.fanout": list(config.sampler.fanout),
        "sampler.time_respecting": config.sampler.respects_time,
        "sampler.weighted": config.sampler.weighted,
    }


def refuse_other_steps(info: CheckpointInfo, config: Config, feature_widths: Mapping[str, int]) -> None:
    """Refuse a checkpoint of other steps, or of a model of other features.

    Args:
        feature_widths: of the features that the model takes now, by role.
    """
    older = {"sampler.time_respecting": False, "sampler.weighted": False}  # checkpoints that do not say
    known = {**older, **info.manifest["steps"]}
    for key, value in step_settings(config).items():
        if known[key] != value:
            raise UserError(
                f"{info.uri}: was trained with {key} = {known[key]}, now {value}; its steps would be other steps: "
                f"set {key} back, or choose another run.out"
            )
    trained = info.manifest.get("features", {})
    if trained != feature_widths:
        raise UserError(
            f"{info.uri}: was trained with {_features_in_words(trained)}, now {_features_in_words(feature_widths)}: "
            f"set model.features back, or choose another run.out"
        )


def _features_in_words(widths: Mapping[str, int]) -> str:
    parts = [f"{width} features of {role}s" for role, width in widths.items()]
    return " and ".join(parts) or "no features"
