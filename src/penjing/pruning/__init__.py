"""Pruning: what a network can do without."""

from penjing.pruning.channels import PruneChannels, choose_channels
from penjing.pruning.magnitude import magnitude_scores
from penjing.pruning.model import Pruned, prune_channels
from penjing.pruning.taylor import taylor_scores
from penjing.training import Stage

STAGES: dict[str, type[Stage]] = {stage.label: stage for stage in (PruneChannels,)}

__all__ = [
    "STAGES",
    "PruneChannels",
    "Pruned",
    "choose_channels",
    "magnitude_scores",
    "prune_channels",
    "taylor_scores",
]
