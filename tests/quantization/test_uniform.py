"""Uniform quantization: least squared error, zeros that stay, ranges, biases, and the bits of each layer under a limit."""

import copy
import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from penjing.artifact import decode, encode
from penjing.errors import SettingError
from penjing.graph import Network, trace
from penjing.quantization import Choice, Quantize, Scheme, allocate, correct_biases_, quantize_, quantized
from penjing.quantization.bias_correction import mean_changes
from penjing.quantization.quantize import FollowGrids, follow_grids_, on_grids
from penjing.representation import Grid, Mask, named_weights, represent_, representations
from penjing.training import Batch, Task, Workbench

EMPTY = torch.empty(0)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("sizes", [(1, 1), (6, 1), (6, 4)])
def test_every_weight_has_the_nearest_point_of_its_grid(bits: int, symmetric: bool, sizes: tuple[int, int]) -> None:
    torch.manual_seed(bits)
    weight = torch.randn(6, 32) + (0.0 if symmetric else 0.4)
    grid = quantized(weight, sizes, Scheme(bits, symmetric=symmetric, range="min-max"))
    value = grid(EMPTY).detach()
    step = torch.nn.functional.interpolate(grid.stored_steps().detach()[None, None], (6, 32), mode="nearest")[0, 0]
    assert bool(((value - weight).abs() <= 0.5001 * step).all())  # nothing is clipped
    assert len(value.unique()) <= 2**bits * grid.steps.numel()
    assert (grid.low, grid.high) == ((-(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1))


@given(st.integers(0, 10**6), st.integers(2, 8))
def test_the_step_of_least_squared_error_is_found_among_all_that_a_file_can_hold(seed: int, bits: int) -> None:
    weight = torch.randn(3, 40, generator=torch.Generator().manual_seed(seed)) ** 3
    scheme = Scheme(bits)
    found = (quantized(weight, (3, 1), scheme)(EMPTY) - weight).square().sum(1)
    high = 2 ** (bits - 1) - 1
    for exponent in range(-120, 80):
        step = 2.0 ** (exponent / 16)
        other = (torch.round(weight / step).clamp(-high, high) * step - weight).square().sum(1)
        assert bool((found <= other * (1 + 1e-5)).all())


def test_a_percentile_leaves_the_outermost_out() -> None:
    weight = torch.cat([torch.linspace(-1, 1, 999), torch.tensor([50.0])]).reshape(1, -1)
    whole = quantized(weight, (1, 1), Scheme(8, range="min-max"))
    cut = quantized(weight, (1, 1), Scheme(8, range="percentile", percentile=99.9))
    assert whole.steps.item() == pytest.approx(50 / 127, rel=0.05)
    assert cut.steps.item() == pytest.approx(1 / 127, rel=0.05)
    assert cut(EMPTY).max().item() == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 8])
def test_zeros_stay_zeros_and_empty_blocks_too(symmetric: bool, bits: int) -> None:
    weight = torch.randn(4, 9) + 3
    weight[0] = 0
    weight[:, 2] = 0
    value = quantized(weight, (4, 1), Scheme(bits, symmetric=symmetric))(EMPTY)
    assert bool((value[weight == 0] == 0).all())


def test_transposed_convolutions_have_their_channels_in_the_second_dimension() -> None:
    layer = nn.ConvTranspose2d(3, 5, 2)
    assert quantize_(layer, "weight", Scheme(4)).steps.shape == (1, 5, 1, 1)
    assert quantize_(nn.Conv2d(3, 5, 2), "weight", Scheme(4, per="group", group_size=2)).steps.shape == (5, 2, 1, 1)
    assert quantize_(nn.Linear(3, 5), "weight", Scheme(4, per="tensor")).steps.shape == (1, 1)
    assert quantize_(nn.Linear(3, 5), "bias", Scheme(8)).steps.shape == (1,)


def test_what_a_mask_removed_stays_removed() -> None:
    layer = nn.Linear(20, 10)
    keep = torch.rand(10, 20) < 0.4
    represent_(layer, "weight", Mask(keep))
    quantize_(layer, "weight", Scheme(4, symmetric=False))
    assert bool((layer.weight[~keep] == 0).all())
    with pytest.raises(SettingError, match=r"Linear\.weight has a grid already"):
        quantize_(layer, "weight", Scheme(4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 1}, r"bits must be in 2..15, got 1"),
        ({"bits": 0, "symmetric": False}, r"bits must be in 1..15, got 0"),
        ({"bits": 4, "group_size": 0}, "group_size must be at least 1"),
        ({"bits": 4, "percentile": 0.0}, r"percentile must be in \(0, 100\]"),
    ],
)
def test_impossible_schemes_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Scheme(**settings)  # type: ignore[arg-type]


def test_values_that_are_not_finite_are_refused() -> None:
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight[0, 0] = torch.nan
    with pytest.raises(SettingError, match="not finite"):
        quantize_(layer, "weight", Scheme(4))
    with pytest.raises(SettingError, match=r"torch.float64; grids stand for float32"):
        quantize_(nn.Linear(2, 2).double(), "weight", Scheme(4))


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 8, 3), nn.ReLU()]
    return trace(nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 3)), [torch.randn(2, 2, 6, 6)]).eval()


@pytest.fixture
def task() -> Task:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 2, 6, 6, generator=generator) + 0.5
    data = TensorDataset(x, x.mean((1, 2, 3)).gt(0.5).long())
    return Task(DataLoader(data, batch_size=16, shuffle=True), DataLoader(data, batch_size=64))


def test_corrected_biases_keep_the_mean_of_every_output(network: Network, task: Task) -> None:
    """Of the first layer exactly: it gets the same inputs before and after."""
    batches = list(task.batches(task.train))
    after = copy.deepcopy(network)
    quantize_(after.get_submodule("0"), "weight", Scheme(2))
    changes = mean_changes(network, after, batches)
    x = torch.cat([batch.args[0] for batch in batches])
    means = [one.get_submodule("0")(x).mean((0, 2, 3)) for one in (network, after)]
    torch.testing.assert_close(changes["0"], (means[1] - means[0]).detach(), rtol=1e-4, atol=1e-5)
    assert float(changes["0"].abs().max()) > 1e-3
    assert correct_biases_(network, after, batches) == ["0"]
    torch.testing.assert_close(after.get_submodule("0")(x).mean((0, 2, 3)), means[0], rtol=1e-4, atol=1e-5)


def test_the_chosen_bits_are_the_best_for_what_they_take() -> None:
    """Against all combinations of three layers with random convex-ish trade-offs."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        choices = {
            name: [
                Choice(bits, 100.0 * bits * (1 + int(n)), float(torch.rand((), generator=generator)) * 4.0**-bits)
                for bits in (8, 6, 4, 3, 2)
            ]
            for n, name in enumerate("abc")
        }
        limit = float(torch.rand((), generator=generator)) * 3000 + 1500
        found = allocate(choices, limit)
        size, cost = sum(c.size for c in found.values()), sum(c.divergence for c in found.values())
        assert size <= limit
        for other in itertools.product(*choices.values()):
            assert sum(c.size for c in other) > size or sum(c.divergence for c in other) >= cost - 1e-15
    with pytest.raises(SettingError, match=r"still take 1200 bytes, more than the 1000 that max_bytes leaves"):
        allocate(choices, 1000)


def _bench(network: Network, task: Task) -> Workbench:
    return Workbench(copy.deepcopy(network), task, accelerator=Accelerator(cpu=True))


def test_every_layer_gets_its_bits_and_norms_are_folded(network: Network, task: Task) -> None:
    bench = _bench(network, task)
    Quantize(bits=5, layers={"type:Linear": 3, "0": 16}).apply(bench)
    assert bench.facts["bits"] == {"3": 5, "6": 3}
    grids = {name: representations(owner, key) for name, owner, key in named_weights(bench.network)}
    assert grids.pop("0.weight") == []
    assert all(isinstance(stack[-1], Grid) for stack in grids.values())
    assert "1" not in bench.network.layers()
    x = torch.randn(8, 2, 6, 6)
    expected = network(x).detach()
    assert float((bench.network(x).detach() - expected).norm() / expected.norm()) < 0.3


def test_training_goes_through_the_rounding(network: Network, task: Task) -> None:
    plain, trained = _bench(network, task), _bench(network, task)
    Quantize(bits=2).apply(plain)
    Quantize(bits=2, epochs=12, lr=0.02).apply(trained)

    def loss(one: Network) -> float:
        batch: Batch = next(task.batches(task.valid))
        return task.loss(one(*batch.args), batch.labels).item()

    assert loss(trained.network) < 0.8 * loss(plain.network)
    for _, owner, key in named_weights(trained.network):
        grid = representations(owner, key)[-1]
        assert isinstance(grid, Grid)
        assert not grid.reads_original
    assert len(trained.network.get_submodule("3").weight[0].unique()) <= 3


def test_a_rate_is_reached_and_kept_norms_become_scales_and_shifts(network: Network, task: Task) -> None:
    sizes = []
    for rate in (None, 1.5):
        bench = _bench(network, task)
        Quantize(bits=4, per="tensor", norms="keep", epochs=6, lr=0.02, rate=rate).apply(bench)
        sizes.append(len(encode(bench.network)))
        norm = bench.network.get_submodule("1")
        assert not norm.running_mean.any() and float((norm.running_var + norm.eps - 1).abs().max()) < 1e-6
        again = decode(encode(bench.network)).eval()
        x = torch.randn(8, 2, 6, 6)
        torch.testing.assert_close(again(x), bench.network.eval()(x), rtol=1e-5, atol=1e-5)
    assert sizes[1] < 0.9 * sizes[0]  # heads and vectors do not shrink


def test_the_price_is_of_the_bits_a_weight_of_the_codes_as_they_are(network: Network, task: Task) -> None:
    bench = _bench(network, task)
    Quantize(bits=3, correct_biases=False).apply(bench)
    follow_grids_(bench.network)
    for _, grid, original, _ in on_grids(bench.network):  # put every original on its grid
        original.data.copy_(grid.values())
    fit = SimpleNamespace(network=bench.network)
    loss = FollowGrids(rate=1.0, price=2.0).loss(fit, None, None)  # type: ignore[arg-type]
    bits, n = 0.0, 0
    for _, grid, original, _ in on_grids(bench.network):
        if original.dim() > 1:
            _, counts = grid.codes.unique(return_counts=True)
            p = (counts + 0.5) / (grid.codes.numel() + 0.5 * 7)
            bits, n = bits - float((counts * p.log2()).sum()), n + grid.codes.numel()
    assert loss is not None and float(loss.detach()) == pytest.approx(2 * bits / n, rel=1e-4)


def test_a_file_is_as_small_as_it_was_asked_to_be(network: Network, task: Task) -> None:
    sizes = {}
    for bits in (8, 4, 2):
        bench = _bench(network, task)
        Quantize(bits=bits).apply(bench)
        sizes[bits] = len(encode(bench.network))
    limit = (sizes[8] + sizes[4]) // 2
    bench = _bench(network, task)
    Quantize(max_bytes=limit, samples=64).apply(bench)
    assert 0.9 * limit < len(encode(bench.network)) <= limit
    assert len(set(bench.facts["bits"].values())) > 1 or 4 in bench.facts["bits"].values()
    with pytest.raises(SettingError, match="fewest bits everywhere"):
        Quantize(max_bytes=sizes[2] // 2, samples=64).apply(_bench(network, task))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 1}, "a symmetric grid of 1 bit holds nothing but 0"),
        ({"layers": {"0": 1}}, "a symmetric grid of 1 bit holds nothing but 0"),
        ({"layers": {"0": 9}}, "each number must be 1 to 8, or 16"),
        ({"rate": 0.1}, "rate needs epochs to reach it in, per: tensor"),
        ({"rate": 1, "epochs": 1, "per": "tensor", "max_bytes": 9}, "only one can decide"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Quantize(**settings)  # type: ignore[arg-type]


def test_a_layer_that_is_not_there_is_named(network: Network, task: Task) -> None:
    with pytest.raises(SettingError, match='no layer matches "nothing"'):
        Quantize(layers={"nothing": 4}).apply(_bench(network, task))


def test_schemes_differ_only_in_bits_when_asked() -> None:
    assert replace(Scheme(8, per="tensor"), bits=3) == Scheme(3, per="tensor")
