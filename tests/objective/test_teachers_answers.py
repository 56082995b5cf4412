"""Losses on a teacher's answers against their published equations."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from penjing.errors import SettingError
from penjing.objective import decoupled_distillation_loss, dist_loss, logit_regression_loss, soft_target_loss


@pytest.fixture
def pair() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    return student, teacher, torch.tensor([0, 4, 2, 2, 1, 3])


def test_logits_are_matched_as_numbers(pair: tuple[Tensor, Tensor, Tensor]) -> None:
    student, teacher, _ = pair
    by_hand = sum(float((s - z).dot(s - z)) for s, z in zip(student, teacher, strict=True)) / (2 * 6)
    assert float(logit_regression_loss(student, teacher)) == pytest.approx(by_hand)


def test_soft_targets_at_a_high_temperature_have_the_gradient_of_matched_logits(
    pair: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Hinton et al. 2015, eq. 4: (z - v) / (N T^2) for logits whose means are 0, here times T^2."""
    student, teacher, _ = (x - x.mean(1, keepdim=True) if x.is_floating_point() else x for x in pair)
    student.requires_grad_()
    (soft,) = torch.autograd.grad(soft_target_loss(student, teacher, temperature=1e6), student)
    (plain,) = torch.autograd.grad(logit_regression_loss(student, teacher), student)
    torch.testing.assert_close(soft, plain / 5, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_targets_are_the_two_decoupled_parts(pair: tuple[Tensor, Tensor, Tensor], temperature: float) -> None:
    """Zhao et al. 2022, eq. 5: KD = TCKD + (1 - p_t) NCKD, sample by sample."""
    student, teacher, labels = pair
    for i in range(len(labels)):
        s, t, y = student[i : i + 1], teacher[i : i + 1], labels[i : i + 1]
        not_sure = 1 - float(F.softmax(t / temperature, 1)[0, y])
        found = decoupled_distillation_loss(s, t, y, temperature=temperature, target=1, others=not_sure)
        torch.testing.assert_close(found, soft_target_loss(s, t, temperature=temperature))


def test_the_decoupled_parts_see_what_they_are_named_after(pair: tuple[Tensor, Tensor, Tensor]) -> None:
    student, teacher, labels = pair
    at_label = F.one_hot(labels, 5).double()
    only_others = {"temperature": 2.0, "target": 0.0, "others": 1.0}
    moved = decoupled_distillation_loss(student + 2 * at_label, teacher, labels, **only_others)
    torch.testing.assert_close(moved, decoupled_distillation_loss(student, teacher, labels, **only_others))
    student.requires_grad_()
    loss = decoupled_distillation_loss(student, teacher, labels, temperature=2.0, target=1.0, others=0.0)
    (gradient,) = torch.autograd.grad(loss, student)
    rest = gradient[at_label == 0].view(6, 4)
    weights = F.softmax(student.detach()[at_label == 0].view(6, 4) / 2, 1)
    torch.testing.assert_close(rest, rest.sum(1, keepdim=True) * weights)  # the others move together


def test_dist_is_one_minus_pearson_both_ways(pair: tuple[Tensor, Tensor, Tensor]) -> None:
    student, teacher, _ = pair
    q, p = F.softmax(student / 2, 1), F.softmax(teacher / 2, 1)
    rows = sum(1 - torch.corrcoef(torch.stack([a, b]))[0, 1] for a, b in zip(q, p, strict=True)) / 6
    columns = sum(1 - torch.corrcoef(torch.stack([a, b]))[0, 1] for a, b in zip(q.t(), p.t(), strict=True)) / 5
    found = dist_loss(student, teacher, temperature=2.0, inter=2.0, intra=3.0)
    torch.testing.assert_close(found, 4 * (2 * rows + 3 * columns))


def test_dist_lets_a_student_be_less_sure(pair: tuple[Tensor, Tensor, Tensor]) -> None:
    _, teacher, _ = pair
    flatter = (0.3 * F.softmax(teacher, 1) + 0.7 / 5).log()
    assert float(dist_loss(flatter, teacher)) == pytest.approx(0, abs=1e-9)
    assert float(soft_target_loss(flatter, teacher, temperature=1.0)) > 0.1


def test_equal_answers_cost_nothing(pair: tuple[Tensor, Tensor, Tensor]) -> None:
    _, teacher, labels = pair
    assert float(logit_regression_loss(teacher, teacher)) == 0
    assert float(decoupled_distillation_loss(teacher, teacher, labels, temperature=3.0)) == pytest.approx(0, abs=1e-12)
    assert float(dist_loss(teacher, teacher)) == pytest.approx(0, abs=1e-9)


def test_extreme_answers_stay_finite() -> None:
    student, teacher = (
        torch.tensor([[1e4, 0.0, -1e4], [0.0, 0.0, 0.0]]),
        torch.tensor([[0.0, 1e4, 0.0], [0.0, 0.0, 0.0]]),
    )
    student.requires_grad_()
    labels = torch.tensor([1, 0])
    for loss in (
        decoupled_distillation_loss(student, teacher, labels, temperature=1.0),
        dist_loss(student, teacher),
    ):
        (gradient,) = torch.autograd.grad(loss, student)
        assert torch.isfinite(loss) and torch.isfinite(gradient).all()


def test_what_does_not_fit_is_refused(pair: tuple[Tensor, Tensor, Tensor]) -> None:
    student, teacher, labels = pair
    with pytest.raises(SettingError, match=r"logit regression: .* got \(6, 5\) and \(6, 4\)"):
        logit_regression_loss(student, teacher[:, :4])
    with pytest.raises(SettingError, match="temperature must be positive, got 0"):
        decoupled_distillation_loss(student, teacher, labels, temperature=0)
    with pytest.raises(SettingError, match=r"labels \(batch,\); got \(6, 5\) and \(5,\)"):
        decoupled_distillation_loss(student, teacher, labels[:5], temperature=1)
    with pytest.raises(SettingError, match="at least 2 classes"):
        dist_loss(student[:, :1], teacher[:, :1])
    assert float(dist_loss(student[:1], teacher[:1])) == pytest.approx(
        float(dist_loss(student[:1], teacher[:1], intra=9))
    )
