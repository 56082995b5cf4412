"""What training minimises, as pure functions of tensors; terms add up."""

from penjing.objective.cluster_pull import cluster_pull
from penjing.objective.code_length import code_lengths, expected_code_length
from penjing.objective.soft_targets import soft_target_loss

__all__ = ["cluster_pull", "code_lengths", "expected_code_length", "soft_target_loss"]
