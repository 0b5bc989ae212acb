"""The prefetching loader: step numbers in, minibatches out, in order; and their tensors on the device, one ahead."""

from distgnn.loader.device_feed import DeviceFeed
from distgnn.loader.prefetch import PrefetchLoader

__all__ = ["DeviceFeed", "PrefetchLoader"]
