"""What layers give, looked at from outside, by the names that users know."""

import copy

import pytest
import torch
from torch import nn

from penjing.errors import SettingError
from penjing.graph import features, layer_names, layers_like, trace
from penjing.models import resnet_cifar


class Own(nn.Module):
    """A block in which the last operation is no layer, and one layer works in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.relu = nn.ReLU(inplace=True)
        self.blocks = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.first(x))
        for block in self.blocks:
            x = torch.tanh(block(x)) + x
        return x


@pytest.mark.parametrize("traced", [False, True])
def test_layers_of_a_module_and_of_its_network_are_the_same(traced: bool) -> None:
    torch.manual_seed(0)
    model, x = Own(), torch.randn(3, 4)
    before = copy.deepcopy(model.state_dict())
    module = trace(model, (x,)) if traced else model
    with features(module, ["first", "blocks.1", "relu"]) as found:
        answer = module(x)
    assert torch.equal(found["first"], model.first(x))  # not what the layer behind it made of it in place
    assert torch.equal(found["relu"], model.first(x).relu())
    expected = model.blocks[0](found["relu"])
    assert torch.allclose(found["blocks.1"], model.blocks[1](torch.tanh(expected) + found["relu"]))
    found["first"].sum().backward()
    assert module.get_submodule("first").weight.grad is not None
    assert torch.equal(answer, model(x)) and found.keys() == {"first", "blocks.1", "relu"}
    module(x)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    if not traced:
        assert not any(layer._forward_hooks for layer in model.modules())


def test_a_block_is_what_its_last_operation_gives() -> None:
    model = resnet_cifar(8).eval()
    x = torch.randn(2, 3, 32, 32)
    network = trace(model, (x,)).eval()
    with features(network, ["layer2.0", "layer2"]) as found, torch.no_grad():
        network(x)
    with features(model, ["layer2.0"]) as expected, torch.no_grad():
        model(x)
    assert torch.allclose(found["layer2.0"], expected["layer2.0"], atol=1e-5) and (found["layer2.0"] >= 0).all()
    assert torch.equal(found["layer2"], found["layer2.0"])
    assert layers_like(network, "layer*") == ["layer1", "layer2", "layer3"] == layers_like(model, "layer*")
    assert layers_like(network, "layer*.*.conv1") == [f"layer{i}.0.conv1" for i in (1, 2, 3)]
    assert layer_names(network)[0] == "conv1" and layer_names(network)[-1] == "linear"


@pytest.mark.parametrize("traced", [False, True])
def test_a_name_that_is_not_there(traced: bool) -> None:
    model = Own()
    module = trace(model, (torch.randn(2, 4),)) if traced else model
    with (
        pytest.raises(SettingError, match='hints: there is no layer "frist"; did you mean "first"'),
        features(module, ["frist"], "hints"),
    ):
        pass
    with pytest.raises(SettingError, match=r'no layer is like "blocks\.\*\.conv"'):
        layers_like(module, "blocks.*.conv")
