"""Work, size and memory against their closed forms."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

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


FIRST, SECOND, LAST, HEAD = 9 * 4 * 36, 4 * 9 * 6 * 16, 96 * 3, 4 * 16 * 3


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


class Step(nn.Module):
    """Layers and parameters by name, and a forward method."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.step = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.step(self, x)


def _shuffled(m: nn.Module, x: Tensor) -> Tensor:
    y = m.a(x).view(x.shape[0], 2, 4, 6, 6).transpose(1, 2).reshape(x.shape[0], 8, 6, 6)
    return m.b(y) + y


def _windows(m: nn.Module, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    x = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, c)
    return m.attend(*[m.a(x)] * 3, need_weights=False)[0].reshape(n, -1, 8)


def _attention(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = m.qkv(x).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
    return ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2)


def _grouped(m: nn.Module, x: Tensor) -> Tensor:
    q, k = m.q(x).view(*x.shape[:2], 4, 3).transpose(1, 2), m.k(x).view(*x.shape[:2], 2, 3).transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, k, enable_gqa=True).flatten(1)


IMAGE, WORDS = (2, 3, 6, 6), (2, 5, 8)
MODELS = [
    (IMAGE, Step(lambda m, x: m.b(m.a(x)), a=nn.Conv2d(3, 8, 3, 2, 1), b=nn.Conv2d(8, 4, (3, 1), groups=4))),
    (IMAGE, Step(lambda m, x: m.b(m.a(x)), a=nn.ConvTranspose2d(3, 4, 3, 2), b=nn.ConvTranspose2d(4, 6, 2, groups=2))),
    (IMAGE, Step(_shuffled, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 8, 3, padding=1, groups=8))),
    (IMAGE, Step(_windows, a=nn.Linear(3, 8), attend=nn.MultiheadAttention(8, 2, batch_first=True))),
    ((2, 3, 9), Step(lambda m, x: m.a(x), a=nn.Conv1d(3, 4, 3, dilation=2))),
    ((2, 3, 4, 4, 4), Step(lambda m, x: m.a(x), a=nn.Conv3d(3, 4, 3, padding=1))),
    (WORDS, Step(_attention, qkv=nn.Linear(8, 24))),
    (WORDS, Step(_grouped, q=nn.Linear(8, 12), k=nn.Linear(8, 6))),
    (WORDS, nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)),
    (WORDS, Step(lambda m, x: F.linear(x, m.w) @ m.w, w=nn.Parameter(torch.randn(3, 8)))),
    (WORDS, Step(lambda m, x: torch.einsum("ntd,dhk->nthk", x, m.w), w=nn.Parameter(torch.randn(8, 2, 3)))),
    (IMAGE, Step(lambda m, x: F.conv2d(x, m.w.tanh(), padding=1), w=nn.Parameter(torch.randn(4, 3, 3, 3)))),
    (IMAGE, Step(lambda m, x: F.conv_transpose2d(x, m.w, stride=2), w=nn.Parameter(torch.randn(3, 4, 3, 3)))),
]


@pytest.mark.parametrize(("shape", "model"), MODELS)
def test_macs_are_those_that_torch_counts(shape: tuple[int, ...], model: nn.Module) -> None:
    network = trace(model, [torch.randn(shape)]).eval()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        network(torch.randn(1, *shape[1:]))
    assert sum(macs_by_node(network).values()) == counter.get_total_flops() / 2


def _measured(network: Network, x: Tensor) -> int:
    """The most bytes of results that are held at one time, views counted once."""
    own = {t.untyped_storage().data_ptr() for t in [*network.parameters(), *network.buffers()]}
    values, peak = {network.nodes[0].name: x}, 0
    with torch.no_grad():
        for _ in network.steps(values, {**network.hints, "batch": len(x)}):
            held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in values.values()}
            peak = max(peak, sum(size for place, size in held.items() if place not in own))
    return peak


@pytest.mark.parametrize(("shape", "model"), MODELS)
def test_peak_memory_is_what_is_held(shape: tuple[int, ...], model: nn.Module) -> None:
    network = trace(model, [torch.randn(shape)]).eval()
    weights = 4 * count_parameters(network)[0]
    assert peak_memory_bytes(network) == weights + _measured(network, torch.randn(1, *shape[1:]))
