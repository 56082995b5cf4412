"""Pruning: what a network can do without."""

from penjing.pruning.blocks import PruneBlocks
from penjing.pruning.channels import PruneChannels, choose_channels
from penjing.pruning.magnitude import magnitude_scores
from penjing.pruning.masks import apply_masks_, choose_masks, sparsity_of
from penjing.pruning.model import Pruned, prune_channels
from penjing.pruning.scan import SensitivityScan, sensitivity_scan
from penjing.pruning.structured_sparsity import GroupLasso
from penjing.pruning.taylor import taylor_scores
from penjing.pruning.weight_scores import WEIGHT_SCORES, WeightScore
from penjing.pruning.weights import PruneWeights
from penjing.training import Stage

STAGES: dict[str, type[Stage]] = {
    stage.label: stage for stage in (PruneChannels, PruneWeights, PruneBlocks, GroupLasso)
}

__all__ = [
    "STAGES",
    "WEIGHT_SCORES",
    "GroupLasso",
    "PruneBlocks",
    "PruneChannels",
    "PruneWeights",
    "Pruned",
    "SensitivityScan",
    "WeightScore",
    "apply_masks_",
    "choose_channels",
    "choose_masks",
    "magnitude_scores",
    "prune_channels",
    "sensitivity_scan",
    "sparsity_of",
    "taylor_scores",
]
