"""Work, size and memory against their closed forms."""

import pytest
import torch
from torch import Tensor, nn

from penjing.dynamic import attach_exits
from penjing.graph import Network, trace
from penjing.measurement import (
    count_parameters,
    layer_macs,
    macs_by_node,
    macs_to_exits,
    macs_without_exits,
    peak_memory_bytes,
)
from penjing.quantization import cluster_
from penjing.representation import Mask, represent_


@pytest.mark.parametrize(
    ("layer", "before", "after", "macs"),
    [
        (nn.Conv2d(3, 8, 5, padding=2), (1, 3, 9, 7), (1, 8, 9, 7), 3 * 25 * 8 * 9 * 7),
        (nn.Conv2d(3, 8, (3, 1), stride=2), (1, 3, 9, 7), (1, 8, 4, 4), 3 * 3 * 8 * 4 * 4),
        (nn.Conv2d(8, 8, 3, groups=8), (1, 8, 6, 6), (1, 8, 4, 4), 9 * 8 * 4 * 4),  # depthwise
        (nn.Conv2d(8, 12, 1, groups=4), (1, 8, 6, 6), (1, 12, 6, 6), 2 * 12 * 36),
        (nn.Linear(10, 7), (1, 10), (1, 7), 70),
        (nn.Linear(10, 7), (1, 5, 10), (1, 5, 7), 5 * 70),
        (nn.BatchNorm2d(8), (1, 8, 6, 6), (1, 8, 6, 6), 0),
        (nn.ReLU(), (1, 8, 6, 6), (1, 8, 6, 6), 0),
    ],
)
def test_macs_of_a_layer(layer: nn.Module, before: tuple[int, ...], after: tuple[int, ...], macs: int) -> None:
    with torch.no_grad():
        assert tuple(layer.eval()(torch.zeros(before)).shape) == after
    assert layer_macs(layer, before, after) == macs


def chain() -> Network:
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)]
    return trace(nn.Sequential(*layers), (torch.randn(2, 1, 6, 6),))


FIRST, SECOND, LAST, HEAD = 9 * 4 * 36, 4 * 9 * 6 * 16, 96 * 3, 4 * 3


def test_macs_of_a_network_and_to_its_exits() -> None:
    network = chain()
    assert sum(macs_by_node(network).values()) == macs_without_exits(network) == FIRST + SECOND + LAST
    assert macs_to_exits(network) == [FIRST + SECOND + LAST]
    dynamic = attach_exits(network, [network.node_of("1").name])
    assert macs_to_exits(dynamic) == [FIRST + HEAD, FIRST + HEAD + SECOND + LAST]
    assert macs_without_exits(dynamic) == FIRST + SECOND + LAST


def test_peak_memory_of_a_chain() -> None:
    """Two neighbours live at a time; the widest are the first convolution's result and its ReLU's."""
    network = chain()
    weights = 4 * (4 * 9 + 4 + 6 * 36 + 6 + 96 * 3 + 3)
    assert peak_memory_bytes(network) == weights + 4 * (2 * 4 * 36)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.a(x))


def test_peak_memory_of_a_shortcut() -> None:
    """The input lives until the sum: input, a's result and b's result are alive together."""
    network = trace(Residual(), (torch.randn(2, 3, 5, 5),))
    assert peak_memory_bytes(network) == 4 * 2 * (81 + 3) + 4 * (3 * 3 * 25)


def test_parameters_count_as_the_layers_use_them() -> None:
    network = chain()
    total = sum(p.numel() for p in network.parameters())
    assert count_parameters(network) == (total, total)
    keep = torch.ones(6, 4, 3, 3, dtype=torch.bool)
    keep[:3] = False
    represent_(network.get_submodule("2"), "weight", Mask(keep))
    assert count_parameters(network) == (total, total - 3 * 36)
    cluster_(network.get_submodule("2"), "weight", 4)
    assert count_parameters(network) == (total, total - 3 * 36)  # neither originals nor tables count
