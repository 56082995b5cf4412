"""A small classification task of random points, and networks for it."""

import copy
import gc

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from penjing.graph import Network, trace
from penjing.training import Task

N_INPUTS, N_CLASSES = 6, 3

gc.freeze()  # the loop collects garbage after each training; what is there already need not be looked at each time


def points(n: int = 48, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, N_INPUTS, generator=generator)
    return TensorDataset(x, x[:, :N_CLASSES].argmax(1))


@pytest.fixture
def task() -> Task:
    """Unshuffled, so that a test can follow it by hand."""
    return Task(DataLoader(points(), batch_size=16), DataLoader(points(32, seed=1), batch_size=16))


@pytest.fixture
def network(_linears: Network) -> Network:
    """Two linear layers."""
    return copy.deepcopy(_linears)


@pytest.fixture(scope="session")
def _linears() -> Network:
    torch.manual_seed(0)
    return trace(nn.Sequential(nn.Linear(N_INPUTS, 8), nn.ReLU(), nn.Linear(8, N_CLASSES)), (torch.randn(2, N_INPUTS),))


@pytest.fixture
def conv_task() -> Task:
    """Pictures of 2 x 6 x 6, shuffled with torch's generator."""
    generator = torch.Generator().manual_seed(3)
    data = TensorDataset(torch.randn(40, 2, 6, 6, generator=generator), torch.arange(40) % N_CLASSES)
    return Task(DataLoader(data, batch_size=8, shuffle=True), DataLoader(data, batch_size=20))


@pytest.fixture
def conv_network(_convs: Network) -> Network:
    """Convolutions with batch norm: the memory layout and the statistics matter for bit-identity."""
    return copy.deepcopy(_convs)


@pytest.fixture(scope="session")
def _convs() -> Network:
    torch.manual_seed(1)
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Flatten()]
    return trace(nn.Sequential(*layers, nn.Linear(80, N_CLASSES)), (torch.randn(2, 2, 6, 6),))
