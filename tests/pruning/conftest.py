"""A small classification task of random points."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from penjing.training import Task


@pytest.fixture
def task() -> Task:
    """48 points of 6 numbers; the class is which of the first three is largest."""
    x = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, x[:, :3].argmax(1))
    return Task(DataLoader(data, batch_size=16), DataLoader(data, batch_size=48))
