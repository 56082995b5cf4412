"""What training minimises, as pure functions of tensors; terms add up."""

from penjing.objective.soft_targets import soft_target_loss

__all__ = ["soft_target_loss"]
