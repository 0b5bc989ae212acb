"""What training exchanges with other workers, by kind."""

from __future__ import annotations

from distgnn.distributed.process_group import WorkerGroup

# topology: items of seed edges, frontiers and drawn neighbours, between partitions that workers hold alone.
# rows: ids asked for and embedding rows that come back. gradients: of rows, on their way to the owners.
# features: rows of features that come with the embedding rows, by the ids asked for those.
# gathered: outputs that a loss on the global batch takes from everybody, and their gradients.
KINDS = ("topology", "rows", "features", "gradients", "gathered")


class Traffic:
    """Bytes between this worker and others, and the exchanges that moved them.

    A byte is counted at one of its two ends, so that the sum over the workers is what went between them. An exchange
    is one collective: every worker has taken part in as many.

    Attributes:
        bytes, exchanges: by kind.
    """

    def __init__(self) -> None:
        self.bytes = dict.fromkeys(KINDS, 0)
        self.exchanges = dict.fromkeys(KINDS, 0)

    def add(self, kind: str, n_bytes: int, exchanges: int) -> None:
        """Count what a worker of a group of two or more has exchanged."""
        self.bytes[kind] += n_bytes
        self.exchanges[kind] += exchanges

    def take(self, other: Traffic) -> None:
        """Add all of another count."""
        for kind in KINDS:
            self.add(kind, other.bytes[kind], other.exchanges[kind])

    def over_workers(self, group: WorkerGroup) -> dict[str, int]:
        """Bytes by kind, summed over the workers; a collective."""
        total = group.sum_floats([float(self.bytes[kind]) for kind in KINDS])
        return dict(zip(KINDS, map(int, total), strict=True))
