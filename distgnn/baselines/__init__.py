"""Reference recommenders, judged by the same evaluation as the models: TopPop, ItemKNN, GF-CF and ALS."""

from distgnn.baselines.runner import run_baselines

__all__ = ["run_baselines"]
