"""Synaptic intelligence: what is added up along the path is the decrease of the loss, whatever the optimizer."""

from typing import Literal

import pytest
import torch
from torch import nn

from penjing.errors import SettingError
from penjing.graph import Network, trace
from penjing.sensitivity import SynapticIntelligence, path_importance
from penjing.training import LearnFromLabels, Schedule, Task, fit_


@pytest.fixture
def task() -> Task:
    """One batch, so that every step sees the whole loss."""
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    batch = (x, x[:, :3].argmax(1))
    return Task([batch], [batch])


@pytest.fixture
def network() -> Network:
    """Without biases: all that learns is a weight of a layer."""
    torch.manual_seed(0)
    layers = [nn.Linear(6, 12, bias=False), nn.Tanh(), nn.Linear(12, 3, bias=False)]
    return trace(nn.Sequential(*layers), [torch.randn(2, 6)])


def loss_of(network: Network, task: Task) -> float:
    x, y = task.train[0]  # type: ignore[index]
    with torch.no_grad():
        return float(task.loss(network(x), y))


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 1e-3), ("adamw", 2e-4)])
def test_the_sum_over_the_path_is_the_decrease_of_the_loss(
    network: Network, task: Task, optimizer: Literal["sgd", "adamw"], lr: float
) -> None:
    before, part = loss_of(network, task), SynapticIntelligence()
    schedule = Schedule(epochs=200, lr=lr, optimizer=optimizer, decay="constant", warmup=0.0)
    fit_(network, task, schedule, [LearnFromLabels(), part])
    decrease = before - loss_of(network, task)
    assert decrease > 0.02
    assert float(sum(w.sum() for w in part.path.values())) == pytest.approx(decrease, rel=0.03)


def test_the_importance_is_its_formula(network: Network, task: Task) -> None:
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    part = SynapticIntelligence(xi=0.05)
    fit_(network, task, Schedule(epochs=20, lr=0.01), [LearnFromLabels(), part])
    for name, importance in part.importance().items():
        moved = network.state_dict()[name] - start[name]
        torch.testing.assert_close(importance, (part.path[name] / (moved.square() + 0.05)).clamp_min(0))
        torch.testing.assert_close(importance, path_importance(part.path[name], moved, 0.05))
        assert (importance >= 0).all() and (importance > 0).any()


def test_what_cannot_be() -> None:
    with pytest.raises(SettingError, match="xi must be above 0, got 0"):
        SynapticIntelligence(xi=0)
    with pytest.raises(SettingError, match="no training with this part has ended yet"):
        SynapticIntelligence().importance()
