"""Training a pruned shape from scratch: fresh weights, the masks of the old, and the budgets of the paper."""

import pytest
import torch
from torch import nn

from penjing.errors import SettingError
from penjing.graph import trace
from penjing.pruning.scratch import draw_weights_, scratch_epochs
from penjing.representation import Codebook, Mask, represent_


def test_budgets_are_the_papers() -> None:
    assert scratch_epochs("epochs", 160, 1000, 300) == 160
    assert scratch_epochs("macs", 160, 1000, 300) == int(160 * 1000 / 300) == 533


def test_weights_are_fresh_of_the_right_size_and_masks_stay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 16, 50))
    network = trace(model, [torch.randn(2, 3, 6, 6)])
    keep = torch.rand(50, 1024) < 0.2
    represent_(network.get_submodule("4"), "weight", Mask(keep))
    network.get_submodule("1").running_mean.fill_(3.0)
    with torch.no_grad():
        network.get_submodule("1").weight.fill_(7.0)
    draw_weights_(network, torch.Generator().manual_seed(0))
    first = network.get_submodule("0").weight.detach().clone()
    assert first.std() == pytest.approx((2 / 27) ** 0.5, rel=0.05)
    assert not network.get_submodule("0").bias.any() and not network.get_submodule("1").bias.any()
    assert torch.equal(network.get_submodule("1").weight, torch.ones(64))
    assert not network.get_submodule("1").running_mean.any()
    assert not network.get_submodule("4").weight[~keep].any()
    assert network.get_submodule("4").weight.detach()[keep].std() == pytest.approx((2 / 1024) ** 0.5, rel=0.05)
    draw_weights_(network, torch.Generator().manual_seed(0))
    assert torch.equal(first, network.get_submodule("0").weight)


def test_codebooks_have_no_weights_of_their_own_to_draw() -> None:
    network = trace(nn.Sequential(nn.Linear(4, 3)), [torch.randn(2, 4)])
    represent_(network.get_submodule("0"), "weight", Codebook(torch.zeros(3, 4), torch.ones(2)))
    with pytest.raises(SettingError, match=r"0\.weight has a codebook, so its values are not its own"):
        draw_weights_(network)
