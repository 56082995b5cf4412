"""A small network that has learned digits, to quantize and write."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from penjing.data import digits
from penjing.graph import Network, trace
from penjing.quantization import Quantize
from penjing.training import Batch, Task, Train, Workbench


@pytest.fixture(scope="session")
def trained() -> tuple[Network, Task]:
    torch.manual_seed(0)
    layers = [
        *(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10)),
    ]
    found = digits()
    task = Task(found.train, found.valid, found.test)
    network = trace(nn.Sequential(*layers), (torch.randn(2, 1, 8, 8),))
    bench = Workbench(network, task, accelerator=Accelerator(cpu=True))
    Train(epochs=6, lr=0.01).apply(bench)
    return bench.network.eval(), task


@pytest.fixture
def tokens() -> Network:
    """Linear layers between a norm and GELU, weights and activations in 8 bits; takes (batch, 7, 16)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16, bias=False))
    x = torch.randn(64, 7, 16)
    task = Task([Batch((x,), {}, x)], [Batch((x,), {}, x)], loss=nn.functional.mse_loss)  # type: ignore[arg-type]
    bench = Workbench(trace(model, (x[:2],)), task, accelerator=Accelerator(cpu=True))
    Quantize(activations=8).apply(bench)
    return bench.network
