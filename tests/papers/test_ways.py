"""What an agent is compared with."""

import torch

from penjing.data import in_memory_loader
from penjing.graph import trace
from penjing.models import resnet_cifar
from penjing.papers.runtime_neural_pruning import fix_, split
from penjing.training import Schedule, Task, fit_


def test_fixed_channels_stay_fixed_while_the_network_learns() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(32, 1, 8, 8), torch.arange(32) % 10
    network = split(trace(resnet_cifar(14, width=8, channels=1), (x[:2],)), 4)
    fix_(network, 4, 1)
    before = {name: value.clone() for name, value in network.named_parameters()}
    loader = in_memory_loader(x, y, 16)
    fit_(network, Task(loader, loader), Schedule(epochs=4, lr=0.5, optimizer="sgd", weight_decay=1e-2))
    with torch.no_grad():
        opened = network.route(x).opened
    for node in network.gates:
        assert bool((opened[node.name] == (node.settings["column"] == 1)).all()), node.name
    changed = {name for name, value in network.named_parameters() if not torch.equal(value, before[name])}
    assert changed and not any(name.startswith("routing.") for name in changed)
