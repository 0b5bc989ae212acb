"""From distinct edges to a partitioned dataset on disk."""
