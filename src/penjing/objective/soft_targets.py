"""Soft targets: learn the teacher's whole distribution, softened by a temperature."""

import torch.nn.functional as F
from torch import Tensor

from penjing.objective.teachers_answers import check_answers


def soft_target_loss(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """How far the student's softened distribution is from the teacher's.

    T^2 * mean over the batch of sum_c p_c (log p_c - log q_c),  p = softmax(teacher / T),  q = softmax(student / T).
    The factor T^2 keeps the gradient's size independent of T. It is 0 where both are equal.

    Args:
        student: logits, (batch, classes).
        teacher: logits, (batch, classes); no gradient is needed.
        temperature: T > 0.
    Returns: a scalar, in nats times T^2.
    Raises: SettingError: a temperature that is not positive, or shapes that differ.
    Source: Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2, eq. 1; the mean is over the batch, not over
    batch and classes.
    """
    check_answers("soft targets", student, teacher, temperature)
    log_q = F.log_softmax(student / temperature, dim=-1)
    log_p = F.log_softmax(teacher / temperature, dim=-1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2
