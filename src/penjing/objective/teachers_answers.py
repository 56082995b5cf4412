"""Other ways than soft targets to learn from a teacher's answers: its logits, its classes apart, its relations."""

import torch
import torch.nn.functional as F
from torch import Tensor

from penjing.errors import SettingError


def check_answers(where: str, student: Tensor, teacher: Tensor, temperature: float = 1.0) -> None:
    """Raises: SettingError: a temperature that is not positive, or shapes that differ."""
    if not temperature > 0:
        raise SettingError(f"{where}: the temperature must be positive, got {temperature}.")
    if student.shape != teacher.shape:
        raise SettingError(
            f"{where}: student and teacher must have the same shape, "
            f"got {tuple(student.shape)} and {tuple(teacher.shape)}."
        )


def logit_regression_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """How far the student's logits are from the teacher's, as numbers.

    1 / (2 n) sum_i ||s_i - z_i||^2 over n samples. Softmax hides what a teacher thinks of improbable classes; logits do not.

    Args:
        student, teacher: logits, (batch, ...).
    Returns: a scalar.
    Raises: SettingError: shapes that differ.
    Source: Ba and Caruana 2014, arXiv:1312.6184, section 2.2, eq. 1.
    """
    check_answers("logit regression", student, teacher)
    return (student - teacher).square().sum() / (2 * max(len(student), 1))


def decoupled_distillation_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float, target: float = 1.0, others: float = 8.0
) -> Tensor:
    """Decoupled knowledge distillation (DKD): how sure of the right class, and what is thought of the others, weighted apart.

    T^2 mean_i (target KL(b^t || b^s) + others KL(r^t || r^s)),   b = (p_y, 1 - p_y),   r = p without y, summing to 1,
    p = softmax(logits / T), y the label. Soft targets weight the second term by the teacher's 1 - p_y, so that it nearly
    vanishes where the teacher is sure: with target = 1 and others = 1 - p_y^t for each sample this is `soft_target_loss`.

    Args:
        student, teacher: logits, (batch, classes), at least 2 classes.
        labels: class numbers, (batch,).
        temperature: T > 0.
        target, others: alpha and beta of the paper, which takes 1 and 1 to 10; 8 for most pairs of networks.
    Returns: a scalar, in nats times T^2.
    Raises: SettingError: shapes that do not fit, a temperature that is not positive.
    Source: Zhao et al. 2022, arXiv:2203.08679, section 3, eq. 7.
    """
    check_answers("decoupled distillation", student, teacher, temperature)
    if student.dim() != 2 or student.shape[1] < 2 or labels.shape != student.shape[:1]:
        raise SettingError(
            "decoupled distillation: logits must be (batch, classes), at least 2 classes, and labels (batch,); "
            f"got {tuple(student.shape)} and {tuple(labels.shape)}."
        )
    is_other = torch.ones_like(student, dtype=torch.bool).scatter_(1, labels[:, None], False)

    def parts(logits: Tensor) -> tuple[Tensor, Tensor]:
        """log b (batch, 2) and log r (batch, classes - 1)."""
        scaled = logits / temperature
        rest = scaled[is_other].view(len(scaled), -1)
        both = torch.stack([scaled.gather(1, labels[:, None])[:, 0], torch.logsumexp(rest, 1)], 1)
        return F.log_softmax(both, 1), F.log_softmax(rest, 1)

    (sure, among), (teachers_sure, teachers_among) = parts(student), parts(teacher)
    first = F.kl_div(sure, teachers_sure, reduction="batchmean", log_target=True)
    second = F.kl_div(among, teachers_among, reduction="batchmean", log_target=True)
    return (target * first + others * second) * temperature**2


def dist_loss(
    student: Tensor, teacher: Tensor, *, temperature: float = 1.0, inter: float = 1.0, intra: float = 1.0
) -> Tensor:
    """Distillation from a stronger teacher (DIST): keep the teacher's relations, not its numbers.

    T^2 (inter mean_i (1 - r(q_i, p_i)) + intra mean_c (1 - r(q_:c, p_:c))),   r Pearson's correlation, q and p student's and
    the teacher's softmax(logits / T): between the classes of a sample, and between the samples of a class. Scaling and shifting
    a row or a column changes nothing, so that a small student need not be as sure as its teacher.

    Args:
        student, teacher: logits, (batch, classes), at least 2 classes. A single sample has no second term.
        temperature: T > 0.
        inter, intra: weights of both terms.
    Returns: a scalar, between 0 and 2 T^2 (inter + intra).
    Raises: SettingError: shapes that do not fit, a temperature that is not positive.
    Source: Huang et al. 2022, arXiv:2205.10536, section 3, eq. 9 to 11.
    """
    check_answers("DIST", student, teacher, temperature)
    if student.dim() != 2 or student.shape[1] < 2:
        raise SettingError(f"DIST: logits must be (batch, classes), at least 2 classes; got {tuple(student.shape)}.")
    q, p = (F.softmax(logits / temperature, 1) for logits in (student, teacher))

    def distance(dim: int) -> Tensor:
        a, b = q - q.mean(dim, keepdim=True), p - p.mean(dim, keepdim=True)
        return 1 - F.cosine_similarity(a, b, dim).mean()

    between_samples = intra * distance(0) if len(student) > 1 else 0.0
    return (inter * distance(1) + between_samples) * temperature**2
