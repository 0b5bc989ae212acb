"""Serving what a run has exported: `Recommender` for requests, `batch` for a file of lists. Needs no torch, no Ray."""

from distgnn.recommender.keys import UnknownKeyError
from distgnn.recommender.recommender import Recommender

__all__ = ["Recommender", "UnknownKeyError"]
