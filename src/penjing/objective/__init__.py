"""What training minimises, as pure functions of tensors; terms add up."""

from penjing.objective.cluster_pull import cluster_pull
from penjing.objective.code_length import code_lengths, expected_code_length
from penjing.objective.features import attention_map, attention_transfer_loss, hint_loss, patient_loss, similarity_loss
from penjing.objective.soft_targets import soft_target_loss
from penjing.objective.teachers_answers import decoupled_distillation_loss, dist_loss, logit_regression_loss

__all__ = [
    "attention_map",
    "attention_transfer_loss",
    "cluster_pull",
    "code_lengths",
    "decoupled_distillation_loss",
    "dist_loss",
    "expected_code_length",
    "hint_loss",
    "logit_regression_loss",
    "patient_loss",
    "similarity_loss",
    "soft_target_loss",
]
