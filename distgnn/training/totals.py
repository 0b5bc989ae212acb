"""What a phase sums up on one worker."""

from __future__ import annotations

from dataclasses import dataclass, field

from distgnn.distributed.traffic import Traffic
from distgnn.timing import Spread

STEP_STAGES = ("fetch", "forward", "backward", "optimizer")  # of the trainer
STAGES = ("sampling", *STEP_STAGES, "evaluation")


@dataclass
class Totals:
    """Sums over a phase on one worker."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    collectives: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))  # of which in collectives
    blocked: float = 0.0
    blocked_by_others: float = 0.0  # of which the sampler waited for other workers
    own: Spread = field(default_factory=Spread)  # seconds of a step without those in collectives and for others
    training: float = 0.0
    steps: int = 0
    positives: int = 0
    sampled_edges: int = 0
    traffic: Traffic = field(default_factory=Traffic)
    users_with_every_item: int = 0
    without_negatives: int = 0
