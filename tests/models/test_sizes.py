"""Parameters and multiply-accumulates are those of the papers."""

import pytest
import torch
from torch import nn

from penjing.errors import SettingError
from penjing.graph import trace
from penjing.measurement.macs import macs_by_node
from penjing.models import conv_n, lenet5, lenet_300_100, resnet_cifar


@pytest.mark.parametrize(
    ("model", "shape", "n_parameters", "n_macs"),
    [
        (lenet_300_100(), (1, 28, 28), 266_610, 266_200),
        (lenet5(), (1, 28, 28), 431_080, 2_293_000),
        (conv_n(2), (3, 32, 32), 4_301_642, None),
        (conv_n(4), (3, 32, 32), 2_425_930, None),
        (conv_n(6), (3, 32, 32), 2_262_602, None),
        (resnet_cifar(20), (3, 32, 32), 269_722, None),
        (resnet_cifar(56), (3, 32, 32), 853_018, None),
    ],
)
def test_sizes(model: nn.Module, shape: tuple[int, ...], n_parameters: int, n_macs: int | None) -> None:
    assert sum(p.numel() for p in model.parameters()) == n_parameters
    network = trace(model, [torch.randn(2, *shape)])
    assert set(network.state_dict()) == set(model.state_dict())
    if n_macs is not None:
        assert sum(macs_by_node(network).values()) == n_macs


def test_depths_that_are_none() -> None:
    with pytest.raises(SettingError, match="2, 4 or 6, got 3"):
        conv_n(3)
    with pytest.raises(SettingError, match="6 n \\+ 2, such as 20"):
        resnet_cifar(18)
