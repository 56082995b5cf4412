"""Results as 8-bit integers: the published formula, where it applies, ranges, and biases that integer sums can hold."""

import copy
import math

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from penjing.artifact import decode, encode
from penjing.errors import DataError, SettingError
from penjing.graph import Network, trace
from penjing.graph.ops import fake_quantize
from penjing.quantization import Quantize, quantize_activations, quantize_network, round_biases_
from penjing.quantization.activations import _grid, _Histogram, quantized_places
from penjing.quantization.uniform import Scheme
from penjing.representation import representations
from penjing.training import Batch, Task, Workbench


class Residual(nn.Module):
    """A shortcut that is cut and filled up, a pooling, a concatenation, a mean, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = (
            nn.Conv2d(3, 4, 3, padding=1),
            nn.Conv2d(4, 6, 3, 2, 1),
            nn.Conv2d(6, 6, 3, 1, 1),
        )
        self.pool, self.drop, self.head = nn.MaxPool2d(2), nn.Dropout(), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = self.two(torch.relu(self.one(x)))
        x = torch.relu(y + nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1)))
        x = self.pool(x)
        return self.head(self.drop(torch.cat([x, torch.sigmoid(x)], 1).mean((2, 3))))


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return trace(Residual(), (torch.randn(2, 3, 8, 8),)).eval()


@pytest.fixture
def task() -> Task:
    x = torch.randn(96, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, (x.mean((1, 2, 3)) > 0).long())
    return Task(DataLoader(data, batch_size=32, shuffle=True), DataLoader(data, batch_size=96))


LAYERS = ("stem", "one", "two", "head")


@given(st.floats(1e-3, 10), st.integers(0, 255), st.integers(0, 10**6))
def test_the_formula(step: float, zero: int, seed: int) -> None:
    step = float(torch.tensor(step))
    x = 200 * step * torch.randn(50, generator=torch.Generator().manual_seed(seed))
    found = fake_quantize(x, step, zero)
    for value, one in zip(x.tolist(), found.tolist(), strict=True):
        code = min(max(round(value / step) + zero, 0), 255)  # Python rounds halves to even too
        near = abs(value / step - math.floor(value / step) - 0.5) < 1e-4
        assert near or one == pytest.approx((code - zero) * step, rel=1e-6)
    assert fake_quantize(torch.zeros(1), step, zero) == 0
    torch.testing.assert_close(fake_quantize(found, step, zero), found, rtol=0, atol=0)  # what is on the grid stays


def test_halves_go_to_even_and_gradients_through() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, 300.0, -9.0], requires_grad=True)
    found = fake_quantize(x, 1.0, 4)
    assert found.tolist() == [0, 2, 2, 0, 251, -4]
    found.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1, 1, 1, 1, 0, 0]


def test_where_results_are_quantized(network: Network) -> None:
    places = quantized_places(network, LAYERS)
    names = {node.name: node for node in network.nodes}
    words = [names[name].path or names[name].op for name in places]
    # the sigmoid computes in floats, so what it is joined with does too; the linear layer wants its own input quantized
    assert words == ["input", "relu", "relu", "two", "slice", "slice", "pad", "relu", "mean", "drop"]
    moved = {name: source for name, source in places.items() if source is not None}
    assert all(names[name].op in ("slice", "pad") or names[name].path in ("pool", "drop") for name in moved)
    assert not quantized_places(network, ())
    assert list(quantized_places(network, ("head",)))[-1] == network.node_of("drop").name


def test_what_only_moves_numbers_keeps_their_grid(network: Network) -> None:
    found = quantize_activations(network, LAYERS, [Batch((torch.randn(16, 3, 8, 8),), {}, None)])
    settings = {node.inputs[0]: dict(node.settings) for node in found.nodes if node.op == "fake_quantize"}
    for name, source in quantized_places(network, LAYERS).items():
        assert source is None or settings[name] == settings[source]
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        assert 0 < float((found(x) - network(x)).abs().max()) < 0.05


@pytest.mark.parametrize("low", [0.0, -2.0])
def test_ranges(low: float) -> None:
    torch.manual_seed(0)
    values = torch.rand(20_000) * (3 - low) + low
    values[:2] = torch.tensor([40.0, low])
    own = _Histogram(min(low, 0.0), 40.0)
    own.count(values)
    errors = {}
    for how in ("min-max", "percentile", "mse"):
        step, zero = own.grid(how, 99.9)  # type: ignore[arg-type]
        errors[how] = float((fake_quantize(values, step, zero) - values)[2:].square().mean())
        assert abs(zero * step + low) <= 0.51 * step + 0.05 or how != "min-max"
    assert own.grid("min-max", 100)[0] == pytest.approx((40 - min(low, 0)) / 255)
    assert errors["percentile"] < 0.1 * errors["min-max"]
    centres = torch.linspace(own.low, own.high, 4097, dtype=torch.float64)[1::2]
    whole = {how: own._error(centres, *own.grid(how, 99.9)) for how in errors}  # type: ignore[arg-type]
    assert whole["mse"] == min(whole.values())


def test_a_range_holds_zero_and_a_constant_needs_none() -> None:
    for low, high in ((1.0, 3.0), (-3.0, -1.0), (-1.0, 2.0), (0.0, 0.0)):
        step, zero = _grid(low, high)
        assert 0 <= zero <= 255 and step > 0 and fake_quantize(torch.zeros(1), step, zero) == 0
        for end in (low, high):
            assert abs(float(fake_quantize(torch.tensor([end]), step, zero)) - end) <= step


def test_biases_are_whole_numbers_of_both_steps(network: Network, task: Task) -> None:
    bench = Workbench(copy.deepcopy(network), task, accelerator=Accelerator(cpu=True))
    Quantize(activations=8, samples=64).apply(bench)
    found = bench.network
    steps = {node.name: node.settings["step"] for node in found.nodes if node.op == "fake_quantize"}
    for path in LAYERS:
        layer, node = found.get_submodule(path), found.node_of(path)
        unit = representations(layer, "weight")[-1].stored_steps().detach().double().flatten() * steps[node.inputs[0]]
        codes = layer.bias.detach().double() / unit
        torch.testing.assert_close(codes, codes.round(), rtol=1e-6, atol=1e-6)
    again = decode(encode(found), for_training=True)
    x = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(again(x), found(x))


def test_training_goes_through_quantized_activations(network: Network, task: Task) -> None:
    plain, trained = (Workbench(copy.deepcopy(network), task, accelerator=Accelerator(cpu=True)) for _ in range(2))
    Quantize(bits=3, activations=8).apply(plain)
    Quantize(bits=3, activations=8, epochs=6, lr=0.01).apply(trained)
    batch: Batch = next(iter(task.batches(task.valid)))

    def loss(one: Network) -> float:
        with torch.no_grad():
            return task.loss(one(*batch.args), batch.labels).item()

    assert loss(trained.network) < 0.9 * loss(plain.network)
    round_biases_(trained.network)  # they are whole already
    with torch.no_grad():
        assert torch.equal(decode(encode(trained.network))(*batch.args), trained.network(*batch.args))


def test_what_cannot_be(network: Network, task: Task) -> None:
    with pytest.raises(SettingError, match="need norms: fold"):
        Quantize(activations=8, norms="keep")
    with pytest.raises(DataError, match="no samples to find the ranges"):
        quantize_activations(network, LAYERS, [])
    with pytest.raises(DataError, match='the result of "x" is not finite'):
        quantize_activations(network, LAYERS, [Batch((torch.full((1, 3, 8, 8), math.nan),), {}, None)])
    coded = copy.deepcopy(network)
    quantize_network(coded, Scheme(8), dict.fromkeys(LAYERS, 8), 10)
    with pytest.raises(SettingError, match='bias of "stem" has codes of its own'):
        quantize_activations(coded, LAYERS, list(task.batches(task.train)))
