"""Two bytes a weight: the nearest number, the identity's gradient, the file, and what does not fit."""

import copy

import pytest
import torch
from torch import nn

from penjing.artifact import decode, encode
from penjing.errors import SettingError
from penjing.graph import trace
from penjing.quantization import Scheme, halve_, halve_network, quantize_
from penjing.representation import Half, Mask, represent_, representations


@pytest.mark.parametrize(("format", "dtype"), [("float16", torch.float16), ("bfloat16", torch.bfloat16)])
def test_weights_are_the_nearest_numbers_and_travel(format: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = trace(nn.Sequential(nn.Linear(40, 60), nn.LayerNorm(60), nn.Linear(60, 5)), [torch.randn(2, 40)]).eval()
    whole = copy.deepcopy(network)
    assert halve_network(network, format) == []  # type: ignore[arg-type]
    for name, parameter in whole.named_parameters():
        path, _, key = name.rpartition(".")
        assert torch.equal(getattr(network.get_submodule(path), key), parameter.to(dtype).float())
    content = encode(network)
    assert len(content) < 0.55 * len(encode(whole))  # float32 has its exponents packed
    again = decode(content, for_training=True)
    assert isinstance(representations(again.get_submodule("0"), "weight")[0], Half)
    x = torch.randn(3, 40)
    assert torch.equal(again(x), network(x))
    assert torch.equal(decode(content)(x), network(x))
    assert encode(again) == content


def test_the_gradient_is_the_identitys() -> None:
    layer = nn.Linear(3, 2)
    halve_(layer, "weight")
    upstream = torch.randn(2, 3)
    (layer.weight * upstream).sum().backward()
    assert torch.equal(layer.parametrizations["weight"].original.grad, upstream)  # type: ignore[index, union-attr]


def test_what_is_coded_stays_and_masks_stay() -> None:
    network = trace(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)), [torch.randn(2, 4)])
    keep = torch.rand(6, 4) < 0.5
    represent_(network.get_submodule("0"), "weight", Mask(keep))
    quantize_(network.get_submodule("1"), "weight", Scheme(4))
    assert halve_network(network) == ["1.weight"]
    assert bool((network.get_submodule("0").weight[~keep] == 0).all())
    with pytest.raises(SettingError, match=r"Linear\.weight has a grid already"):
        halve_(network.get_submodule("1"), "weight")


def test_what_does_not_fit_is_said() -> None:
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight[0, 0] = 1e5
    with pytest.raises(SettingError, match="reaches 100000, which float16 does not hold; use bfloat16"):
        halve_(layer, "weight")
    halve_(layer, "weight", "bfloat16")
    with pytest.raises(SettingError, match=r"is torch\.float64 already"):
        halve_(nn.Linear(2, 2).double(), "weight")
