"""What a run leaves to be served: user and item vectors, keys, seen items. Needs neither torch nor ray."""
