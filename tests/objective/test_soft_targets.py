"""Soft targets, against Hinton, Vinyals and Dean 2015, arXiv:1503.02531."""

import pytest
import torch

from penjing import soft_target_loss
from penjing.errors import SettingError


def test_a_high_temperature_softens_a_sure_answer() -> None:
    """softmax((100, 10, 1) / 100): what one class knows of the others becomes visible."""
    logits = torch.tensor([[100.0, 10.0, 1.0]])
    assert logits.softmax(-1).amax() == 1.0
    soft = (logits / 100).softmax(-1)
    torch.testing.assert_close(soft, torch.tensor([[0.56, 0.23, 0.21]]), rtol=0, atol=0.005)
    student = torch.zeros(1, 3, requires_grad=True)
    soft_target_loss(student, logits, temperature=100).backward()
    torch.testing.assert_close(student.grad, 100 * (1 / 3 - soft), rtol=1e-5, atol=1e-5)  # T (q - p)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 50.0])
def test_it_is_zero_exactly_where_both_agree_and_positive_elsewhere(temperature: float) -> None:
    torch.manual_seed(0)
    teacher = torch.randn(5, 4).double()
    student = (teacher + 3.0).requires_grad_()  # softmax does not see a constant
    loss = soft_target_loss(student, teacher, temperature=temperature)
    loss.backward()
    assert loss.detach().abs() < 1e-12 and student.grad.abs().max() < 1e-12
    assert soft_target_loss(torch.randn(5, 4).double(), teacher, temperature=temperature) > 0.01


def test_it_is_t_squared_times_the_divergence_averaged_over_the_batch() -> None:
    torch.manual_seed(1)
    student, teacher, t = torch.randn(6, 5).double(), torch.randn(6, 5).double(), 3.0
    p, q = (teacher / t).softmax(-1), (student / t).softmax(-1)
    expected = t**2 * (p * (p.log() - q.log())).sum() / 6
    torch.testing.assert_close(soft_target_loss(student, teacher, temperature=t), expected)


def test_at_high_temperature_it_matches_logits() -> None:
    """Section 2.1: with zero-mean logits the gradient of one sample tends to (z_student - z_teacher) / N, N classes."""
    torch.manual_seed(2)
    student, teacher = (z - z.mean(-1, keepdim=True) for z in torch.randn(2, 1, 10).double())
    errors = []
    for t in (10.0, 100.0, 1000.0):
        z = student.clone().requires_grad_()
        soft_target_loss(z, teacher, temperature=t).backward()
        errors.append(float((z.grad - (student - teacher) / 10).abs().max()))
    assert errors[2] < 1e-3
    assert errors[0] > 5 * errors[1] > 25 * errors[2]  # the rest falls like 1 / T


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_impossible_temperatures(temperature: float) -> None:
    with pytest.raises(SettingError, match="temperature must be positive"):
        soft_target_loss(torch.zeros(1, 2), torch.zeros(1, 2), temperature=temperature)


def test_other_classes() -> None:
    with pytest.raises(SettingError, match="same shape"):
        soft_target_loss(torch.zeros(2, 3), torch.zeros(2, 4), temperature=1)
