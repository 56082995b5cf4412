"""How far what a layer of the student gives is from what a layer of the teacher gives."""

import torch
import torch.nn.functional as F
from torch import Tensor

from penjing.errors import SettingError


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """1/2 mean (s - t)^2 over samples and features.

    FitNets sums over the features; the mean lets one weight serve layers of any size. Where the student's layer is smaller,
    what is compared is r(s) with a learned regressor r, see `training.LearnFromLayers`.

    Args:
        student, teacher: (batch, ...) of one shape.
    Raises: SettingError: shapes that differ.
    Source: Romero et al. 2015 (FitNets), arXiv:1412.6550, section 2.2, eq. 3.
    """
    _alike("hint", student, teacher)
    return F.mse_loss(student, teacher) / 2


def attention_map(features: Tensor) -> Tensor:
    """Where a layer looks: the mean square over channels at each place, brought to length 1, (batch, places).

    Args:
        features: (batch, channels, height, width), or (batch, tokens, channels).
    Source: Zagoruyko and Komodakis 2017, arXiv:1612.03928, section 3.1, F_sum^2; the factor falls out.
    """
    squares = features.square()
    places = squares.mean(1).flatten(1) if features.dim() == 4 else squares.mean(-1)
    return F.normalize(places, dim=1)


def attention_transfer_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """mean_i || Q(s_i) - Q(t_i) ||_2^2,  Q the `attention_map`. The numbers of channels may differ, the places may not.

    Args:
        student, teacher: (batch, channels, height, width), or (batch, tokens, channels).
    Returns: a scalar, between 0 and 2.
    Raises: SettingError: other shapes, or places that differ.
    Source: Zagoruyko and Komodakis 2017, arXiv:1612.03928, section 3.1, eq. 2, squared as in the authors' experiments.
    """
    if student.dim() not in (3, 4) or student.dim() != teacher.dim():
        raise SettingError(
            "attention transfer: layers must give (batch, channels, height, width) or (batch, tokens, channels), got "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}."
        )
    ours, theirs = attention_map(student), attention_map(teacher)
    if ours.shape != theirs.shape:
        raise SettingError(
            f"attention transfer: student and teacher must look at the same places, got {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}. Choose layers of the same resolution."
        )
    return (ours - theirs).square().sum(1).mean()


def patient_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """mean || s / |s| - t / |t| ||_2^2 over everything but the last dimension: directions, not lengths.

    Args:
        student, teacher: (batch, ..., width) of one shape; Sun et al. take the first token's (batch, width).
    Returns: a scalar, 2 - 2 cos on average, between 0 and 4.
    Raises: SettingError: shapes that differ.
    Source: Sun et al. 2019 (patient knowledge distillation), arXiv:1908.09355, section 3.2, eq. 7.
    """
    _alike("patient", student, teacher)
    return (F.normalize(student, dim=-1) - F.normalize(teacher, dim=-1)).square().sum(-1).mean()


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """How like which samples are: mean over pairs of (cos(s_i, s_j) - cos(t_i, t_j))^2. Widths may differ.

    Args:
        student, teacher: (batch, ...), at least 2 samples.
    Returns: a scalar, between 0 and 4; 0 for a single sample.
    Raises: SettingError: another number of samples.
    Source: Tung and Mori 2019 (similarity-preserving distillation), arXiv:1907.09682, section 3, with rows of length 1 as in
    Park et al. 2019 (relational distillation), arXiv:1904.05068.
    """
    if len(student) != len(teacher):
        raise SettingError(f"similarity: both must have the same samples, got {len(student)} and {len(teacher)}.")
    if len(student) < 2:
        return student.sum() * 0
    ours, theirs = (F.normalize(x.flatten(1), dim=1) for x in (student, teacher))
    apart = ~torch.eye(len(ours), dtype=torch.bool, device=ours.device)
    return (ours @ ours.T - theirs @ theirs.T)[apart].square().mean()


def _alike(where: str, student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise SettingError(
            f"{where}: student and teacher must have the same shape, got {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}. Put a learned regressor between them."
        )
