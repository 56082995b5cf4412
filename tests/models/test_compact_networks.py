"""The compact networks have the parameters and multiply-accumulates of the papers, travel in a file, and train."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import penjing as pj
from penjing.errors import SettingError
from penjing.graph import trace
from penjing.measurement.macs import layer_macs, macs_by_node
from penjing.models import ghostnet, mobilenet, shufflenet, squeezenet, xception
from penjing.models.mobilenet import Block
from penjing.models.shufflenet import shuffle_channels

SMALL = {
    "squeezenet-1.0": lambda **of: squeezenet("1.0", small_images=True, **of),
    "squeezenet-1.1": lambda **of: squeezenet("1.1", small_images=True, bypass=True, **of),
    "mobilenet": lambda **of: mobilenet(0.5, small_images=True, **of),
    "shufflenet": lambda **of: shufflenet(8, width=0.25, small_images=True, **of),
    "xception": lambda **of: xception(small_images=True, **of),
    "ghostnet": lambda **of: ghostnet(0.5, small_images=True, **of),
}


def _size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _macs(model: nn.Module, *shape: int) -> int:
    """Without reading the graph, so that it can be done on the meta device."""
    found: list[int] = []

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found.append(layer_macs(layer, inputs[0].shape[1:], output.shape[1:]))

    handles = [layer.register_forward_hook(count) for layer in model.modules()]
    with torch.no_grad():
        model.eval()(torch.empty(1, *shape))
    for handle in handles:
        handle.remove()
    return sum(found)


@pytest.mark.parametrize(
    ("build", "side", "n_parameters", "n_macs"),
    [
        (lambda: squeezenet("1.0"), 224, 1_248_424, 818_924_576),
        (lambda: squeezenet("1.1"), 224, 1_235_496, 349_151_936),
        (lambda: squeezenet("1.0", classes=100, small_images=True), 32, 781_156, 53_280_768),
        (lambda: mobilenet(1.0), 224, 4_231_976, 568_740_352),
        (lambda: mobilenet(0.75), 224, 2_585_560, 325_400_448),
        (lambda: mobilenet(0.5), 224, 1_331_592, 149_497_088),
        (lambda: mobilenet(0.25), 224, 470_072, 41_030_272),
        (lambda: mobilenet(classes=10, small_images=True), 32, 3_217_226, 46_354_432),
        (lambda: shufflenet(1), 224, 1_531_936, 143_078_976),
        (lambda: shufflenet(2), 224, 1_733_848, 140_836_512),
        (lambda: shufflenet(3), 224, 1_865_728, 137_460_672),
        (lambda: shufflenet(4), 224, 1_968_344, 134_339_776),
        (lambda: shufflenet(8), 224, 2_434_768, 138_365_952),
        (lambda: shufflenet(1, width=0.75), 224, 975_214, 82_542_672),
        (lambda: shufflenet(3, width=0.75), 224, 1_238_266, 79_740_144),
        (lambda: shufflenet(1, width=0.5), 224, 534_484, 38_517_408),
        (lambda: shufflenet(3, width=0.5), 224, 718_324, 37_589_856),
        (lambda: shufflenet(1, width=0.25), 224, 209_746, 11_003_184),
        (lambda: shufflenet(3, width=0.25), 224, 305_902, 11_009_808),
        (lambda: shufflenet(2, classes=10, small_images=True), 32, 887_582, 39_614_080),
        (lambda: shufflenet(3, classes=10, small_images=True), 32, 862_768, 38_605_056),
        (lambda: xception(), 299, 22_855_952, 8_357_403_496),
        (lambda: xception(classes=100, small_images=True), 32, 21_013_988, 1_129_865_728),
        (lambda: ghostnet(0.5), 224, 2_587_292, 42_328_152),
        (lambda: ghostnet(1.0), 224, 5_182_508, 141_150_512),
        (lambda: ghostnet(1.3), 224, 7_358_820, 227_003_256),
        (lambda: ghostnet(1.0, classes=10, small_images=True), 32, 3_913_790, 42_680_384),
    ],
)
def test_sizes(build: Callable[[], nn.Module], side: int, n_parameters: int, n_macs: int) -> None:
    with torch.device("meta"):
        model = build()
        assert _size(model) == n_parameters
        assert _macs(model, 3, side, side) == n_macs


@pytest.mark.parametrize("name", SMALL)
def test_through_a_file_to_another_batch(name: str, tmp_path: Path) -> None:
    model = SMALL[name](classes=10, channels=1).eval()
    network = trace(model, [torch.randn(2, 1, 28, 28)]).eval()
    assert sum(macs_by_node(network).values()) == _macs(model, 1, 28, 28)
    pj.save(network, tmp_path / "network.pj")
    loaded = pj.load(tmp_path / "network.pj").eval()
    x = torch.randn(3, 1, 28, 28)
    with torch.no_grad():
        expected = model(x)
        assert expected.shape == (3, 10)
        torch.testing.assert_close(network(x), expected, rtol=0, atol=0)
        torch.testing.assert_close(loaded(x), expected, rtol=0, atol=0)
    assert set(network.state_dict()) == set(loaded.state_dict()) == set(model.state_dict())


@pytest.mark.parametrize(
    "model", [squeezenet("1.0"), squeezenet("1.1"), mobilenet(0.25), shufflenet(2, width=0.25), ghostnet(0.5)]
)
def test_the_graph_of_the_large_forms(model: nn.Module) -> None:
    network = trace(model, [torch.randn(1, 3, 64, 64)])
    assert sum(macs_by_node(network).values()) == _macs(model, 3, 64, 64)
    assert set(network.state_dict()) == set(model.state_dict())


@pytest.mark.parametrize(("name", "steps"), [(name, 3 if name == "xception" else 12) for name in SMALL])
def test_the_small_forms_learn(name: str, steps: int) -> None:
    model = SMALL[name](classes=10)
    x, labels = torch.randn(8, 3, 32, 32), torch.randint(10, (8,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    ("width", "small_images"),
    [(0.01, False), (0.25, False), (0.5, False), (0.75, False), (0.25, True), (0.75, True)],
)
def test_every_width_and_number_of_groups_answers(width: float, small_images: bool) -> None:
    with torch.device("meta"):
        models = [shufflenet(groups, width=width, small_images=small_images) for groups in (1, 2, 3, 4, 8)]
        models += [net(width, small_images=small_images) for net in (mobilenet, ghostnet)]
        for model in models:
            assert model.eval()(torch.empty(2, 3, 32, 32)).shape == (2, 1000)


def test_a_shuffle_transposes_groups_and_places() -> None:
    x = torch.randn(2, 12, 3, 5)
    shuffled = shuffle_channels(x, 3)
    for group in range(3):
        for place in range(4):
            assert torch.equal(shuffled[:, 3 * place + group], x[:, 4 * group + place])
    assert torch.equal(shuffle_channels(shuffled, 4), x)


def test_settings_that_cannot_be() -> None:
    with pytest.raises(SettingError, match=r'no version "1.2"; did you mean "1.\d"\? Known: 1.0, 1.1'):
        squeezenet("1.2")
    with pytest.raises(SettingError, match="one of 1, 2, 3, 4, 8, got 5"):
        shufflenet(5)
    for network in (mobilenet, ghostnet, lambda width: shufflenet(width=width)):
        with pytest.raises(SettingError, match=r"width must be positive, such as 1\.0 or .*, got 0"):
            network(0)


def test_a_separable_convolution_of_2_into_4_channels() -> None:
    block = Block(2, 4, 1)
    assert _size(nn.Conv2d(2, 4, 3, bias=False)) == 72
    assert (_size(block.depthwise), _size(block.pointwise)) == (18, 8)


@pytest.mark.parametrize(("inputs", "outputs"), [(2, 4), (32, 64), (512, 512)])
def test_the_share_of_a_separable_convolution(inputs: int, outputs: int) -> None:
    """1/O + 1/k^2 of the weights and of the multiply-accumulates."""
    dense, block = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), Block(inputs, outputs, 1)
    share = 1 / outputs + 1 / 9
    assert math.isclose((_size(block.depthwise) + _size(block.pointwise)) / _size(dense), share)
    x = torch.randn(1, inputs, 6, 6)
    dense_macs, macs = (sum(macs_by_node(trace(net, [x])).values()) for net in (nn.Sequential(dense), block))
    assert math.isclose(macs / dense_macs, share)


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 5), (8, 8), (12, 4), (20, 30)])
def test_low_rank_pays_below_mn_over_m_plus_n(inputs: int, outputs: int) -> None:
    dense = nn.Linear(inputs, outputs, bias=False)
    for rank in range(1, min(inputs, outputs) + 1):
        factors = nn.Sequential(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=False))
        assert (_size(factors) < _size(dense)) == (rank * (inputs + outputs) < inputs * outputs)
