"""Tracing: the network computes what the user's module computes, or the reason why it cannot be read is given."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penjing.errors import DataError, TraceError
from penjing.graph import Network, trace


class Block(nn.Module):
    """A residual block whose ReLU works in place on what the shortcut also reads."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        y += x
        z = self.relu(y)  # y is z from here on
        return z + y


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False)
        self.blocks = nn.ModuleList([Block(6), Block(6)])
        self.head = nn.Linear(6 * 2 * 2, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        x = F.max_pool2d(x, 2)
        x = F.dropout(x, 0.0, self.training)
        return self.head(x.view(x.size(0), -1))


class Names(nn.Module):
    """Children that are called like what a `Network` has itself, and like nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.exits = nn.ModuleList([nn.Conv2d(4, 4, 1)])
        self.nodes = nn.BatchNorm2d(4)
        self._program = nn.Identity()
        self.x = nn.Conv2d(4, 4, 1)
        self.relu = nn.ReLU()
        self.output = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.nodes(self.exits[0](self.layers(x))))
        return self.output(self.relu(self.x(self._program(x))).mean((2, 3)))


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 5, 1)
        self.mirror = nn.Conv2d(9, 6, 3, padding=1, padding_mode="reflect")

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([torch.sigmoid(self.left(x)), torch.tanh(self.right(x)) * 2.0], 1)
        y = F.avg_pool2d(self.mirror(y), 2) + 1
        return F.log_softmax(F.adaptive_avg_pool2d(F.gelu(y), 1).flatten(1), -1)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(inplace=True))

    def forward(self, *images: Tensor) -> Tensor:
        return self.step(self.step(images[0])) - self.step[0](images[1])


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(5, 4)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.first(left) * self.second(right)


class Apply(nn.Module):
    """A layer and whatever a function does with it."""

    def __init__(self, function: Callable[[nn.Module, Tensor], object], layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(self.layer, x)


IMAGE = (3, 8, 8)
MODELS = [
    (Residual, [IMAGE]),
    (Names, [IMAGE]),
    (Branches, [IMAGE]),
    (Shared, [IMAGE, IMAGE]),
    (Pair, [(3,), (5,)]),
]


def _shaken(model: nn.Module) -> nn.Module:
    """Statistics that are not 0 and 1."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize(("cls", "shapes"), MODELS)
def test_network_computes_what_the_module_computes(
    cls: type[nn.Module], shapes: list[tuple[int, ...]], batch: int
) -> None:
    model = _shaken(cls())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    network = trace(model, [torch.randn(2, *shape) for shape in shapes])
    assert network.training
    assert list(network.state_dict()) == list(before)
    for training in (False, True):
        model.train(training)
        network.train(training)
        inputs = [torch.randn(batch, *shape) for shape in shapes]
        torch.testing.assert_close(network(*inputs), model(*(x.clone() for x in inputs)))
    after = network.state_dict()  # training moved the statistics of both alike
    for name, value in model.state_dict().items():
        torch.testing.assert_close(after[name], value)


def test_module_is_not_touched_and_shares_nothing() -> None:
    model = _shaken(Residual()).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    network = trace(model, [torch.randn(1, *IMAGE)])
    assert not network.training
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.inplace for module in model.modules() if isinstance(module, nn.ReLU))


def test_gradients_are_those_of_the_module() -> None:
    model = Residual()
    network = trace(model, [torch.randn(2, *IMAGE)])
    x = torch.randn(4, *IMAGE)
    model(x).square().sum().backward()
    network(x).square().sum().backward()
    found = dict(network.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name].grad, parameter.grad)


def test_state_dict_loads_into_a_network_with_awkward_names() -> None:
    network, other = (trace(Names(), [torch.randn(2, *IMAGE)]) for _ in range(2))
    other.load_state_dict(network.state_dict())
    x = torch.randn(2, *IMAGE)
    assert torch.equal(network.eval()(x), other.eval()(x))
    assert set(network.layers()) == {"layers.0", "layers.1", "exits.0", "nodes", "x", "relu", "output"}
    assert network.exits == []


def test_frozen_layers_stay_frozen() -> None:
    model = Names().train()
    model.nodes.eval()
    network = trace(model, [torch.randn(2, *IMAGE)])
    assert network.training
    assert not network.get_submodule("nodes").training
    assert network.get_submodule("layers.0").training


@pytest.mark.parametrize("order", [("left", "right"), ("right", "left")])
def test_inputs_by_name_in_any_order(order: tuple[str, str]) -> None:
    model = Pair()
    inputs = {"left": torch.randn(2, 3), "right": torch.randn(2, 5)}
    network = trace(model, {name: inputs[name] for name in order})
    torch.testing.assert_close(network(**inputs), model(**inputs))
    torch.testing.assert_close(network(right=inputs["right"], left=inputs["left"]), model(**inputs))


def test_wrong_inputs_are_refused() -> None:
    network = trace(Pair(), {"left": torch.randn(2, 3), "right": torch.randn(2, 5)})
    left, right = torch.randn(2, 3), torch.randn(2, 5)
    with pytest.raises(DataError, match="takes the inputs left, right, got 1 in order"):
        network(left)
    with pytest.raises(DataError, match="and middle by name"):
        network(left, middle=right)
    with pytest.raises(DataError, match=r'"right" must have the shape \(batch, 5\), got \(2, 3\)'):
        network(left, left)


def test_functional_dropout_drops_in_training_only() -> None:
    for function, whole_channels in ((F.dropout, False), (F.dropout2d, True)):
        model = Apply(lambda layer, x, f=function: f(layer(x), 0.5, layer.training), nn.Conv2d(3, 8, 1))
        network = trace(model, [torch.randn(2, *IMAGE)])
        x = torch.randn(4, *IMAGE)
        torch.testing.assert_close(network.eval()(x), model.eval()(x))
        dropped = network.train()(x) == 0
        assert 0.2 < float(dropped.double().mean()) < 0.8
        alike = (dropped.flatten(2).all(-1) | ~dropped.flatten(2).any(-1)).all()
        assert bool(alike) == whole_channels


def test_network_is_copied() -> None:
    network = trace(Pair(), [torch.randn(2, 3), torch.randn(2, 5)])
    again = trace(network, [])
    assert again is not network
    assert again.nodes == network.nodes
    assert not {id(p) for p in again.parameters()} & {id(p) for p in network.parameters()}


class Unknown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


class Choosing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.mean() > 0 else -x


@pytest.mark.parametrize("child", [Unknown(), Choosing()])
def test_what_cannot_be_read_is_named(child: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.ReLU(), child))
    with pytest.raises(TraceError, match=rf'layer "1\.1" \({type(child).__name__}\)'):
        trace(model, [torch.randn(2, *IMAGE)])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda layer, x: layer(x).mean(), "mean .* runs along the batch dimension"),
        (lambda layer, x: layer(x).softmax(0), "softmax .* runs along the batch dimension"),
        (lambda layer, x: layer(x).flip(0), "flip .* runs along the batch dimension"),
        (lambda layer, x: F.dropout(layer(x)), "draws random numbers"),
        (lambda layer, x: (layer(x), "a word"), "must return tensors, it returns a str"),
        (lambda layer, x: [], "returns no tensor"),
    ],
)
def test_what_is_no_function_of_each_sample_is_refused(
    function: Callable[[nn.Module, Tensor], object], message: str
) -> None:
    with pytest.raises(TraceError, match=message):
        trace(Apply(function, nn.Conv2d(3, 3, 1)).eval(), [torch.randn(2, *IMAGE)])


@pytest.mark.parametrize(
    "function",
    [
        lambda layer, x: (layer(x), x),
        lambda layer, x: (layer(x),),
        lambda layer, x: [layer(x), {"x": x, "more": (x + 1, None)}],
        lambda layer, x: {"logits": layer(x)},
        lambda layer, x: {"same": x, "again": x},
        lambda layer, x: torch.cat([layer(x), layer(x)]),
        lambda layer, x: layer(x) * layer(x).mean((2, 3), keepdim=True),
        lambda layer, x: layer(x).reshape(x.shape[0], 3, 4, 16),
        lambda layer, x: F.max_pool2d(layer(x), 3, ceil_mode=True),
        lambda layer, x: layer(x).softmax(1, dtype=torch.float64),
        lambda layer, x: F.relu_(layer(x).view(len(x), -1)) + layer(x).view(len(x), -1),
        lambda layer, x: layer(x).cumsum(1),
    ],
)
def test_answers_and_their_structure_are_those_of_the_module(function: Callable[[nn.Module, Tensor], object]) -> None:
    model = Apply(function, nn.Conv2d(3, 3, 1)).eval()
    network = trace(model, [torch.randn(2, *IMAGE)])
    for n in (1, 5):
        x = torch.randn(n, *IMAGE)
        found, expected = network(x), model(x)
        torch.testing.assert_close(found, expected)
        assert isinstance(found, type(expected))


def test_a_single_layer_is_a_network() -> None:
    layer = nn.Linear(3, 2)
    network = trace(layer, [torch.randn(2, 3)])
    x = torch.randn(5, 3)
    assert torch.equal(network(x), layer(x))
    assert list(network.state_dict()) == list(layer.state_dict())
    assert isinstance(trace(nn.Sequential(layer), [x]), Network)
