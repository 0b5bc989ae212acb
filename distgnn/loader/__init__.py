"""The prefetching loader: step numbers in, minibatches out, in order."""

from distgnn.loader.prefetch import PrefetchLoader

__all__ = ["PrefetchLoader"]
