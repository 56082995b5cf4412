"""Pruning: what a network can do without."""

from penjing.pruning.blocks import Block, PruneBlocks, find_blocks, remove_block
from penjing.pruning.channel_scores import CHANNEL_SCORES, ChannelScore, channel_scores
from penjing.pruning.channels import PruneChannels, choose_channels
from penjing.pruning.group_lasso import ProximalGroupLasso, block_soft_threshold
from penjing.pruning.heads import PruneHeads, head_groups
from penjing.pruning.lottery_ticket import LotteryTicket
from penjing.pruning.magnitude import magnitude_scores
from penjing.pruning.masks import apply_masks_, choose_masks, sparsity_of
from penjing.pruning.model import Pruned, prune_channels
from penjing.pruning.scan import SensitivityScan, sensitivity_scan
from penjing.pruning.scratch import TrainFromScratch
from penjing.pruning.structured_sparsity import GroupLasso
from penjing.pruning.supermask import Supermask
from penjing.pruning.taylor import taylor_scores
from penjing.pruning.weight_scores import WEIGHT_SCORES, WeightScore
from penjing.pruning.weights import PruneWeights
from penjing.training import Stage

STAGES: dict[str, type[Stage]] = {
    stage.label: stage
    for stage in (
        PruneChannels,
        PruneWeights,
        PruneBlocks,
        GroupLasso,
        LotteryTicket,
        Supermask,
        TrainFromScratch,
        PruneHeads,
    )
}

__all__ = [
    "CHANNEL_SCORES",
    "STAGES",
    "WEIGHT_SCORES",
    "Block",
    "ChannelScore",
    "GroupLasso",
    "LotteryTicket",
    "ProximalGroupLasso",
    "PruneBlocks",
    "PruneChannels",
    "PruneHeads",
    "PruneWeights",
    "Pruned",
    "SensitivityScan",
    "Supermask",
    "TrainFromScratch",
    "WeightScore",
    "apply_masks_",
    "block_soft_threshold",
    "channel_scores",
    "choose_channels",
    "choose_masks",
    "find_blocks",
    "head_groups",
    "magnitude_scores",
    "prune_channels",
    "remove_block",
    "sensitivity_scan",
    "sparsity_of",
    "taylor_scores",
]
