"""The pull to clusters: its value, its gradient, and where there is none."""

import pytest
import torch

from penjing.errors import SettingError
from penjing.objective import cluster_pull


def test_it_is_the_squared_distance_relative_to_the_values() -> None:
    weights = torch.tensor([[1.0, -2.0], [0.5, 0.0]], requires_grad=True)
    values = torch.tensor([[1.5, -2.0], [0.0, 0.0]], requires_grad=True)
    loss = cluster_pull(weights, values)
    assert float(loss.detach()) == pytest.approx((0.25 + 0.25) / (2.25 + 4))
    loss.backward()
    torch.testing.assert_close(weights.grad, 2 * (weights - values).detach() / 6.25)
    assert values.grad is None


def test_the_gradient_is_that_of_finite_differences_and_the_size_does_not_matter() -> None:
    weights = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    values = torch.randn(3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda w: cluster_pull(w, values), weights)
    torch.testing.assert_close(cluster_pull(7 * weights, 7 * values), cluster_pull(weights, values))
    assert float(cluster_pull(values, values)) == 0
    assert float(cluster_pull(torch.zeros(3), torch.zeros(3))) == 0


def test_shapes_must_agree() -> None:
    with pytest.raises(SettingError, match=r"each weight needs its value; got \(3,\) and \(1,\)"):
        cluster_pull(torch.zeros(3), torch.zeros(1))
