"""A shallow network with a linear bottleneck: its size, and that it is a network without one."""

import pytest
import torch

from penjing.errors import SettingError
from penjing.graph import trace
from penjing.measurement.macs import macs_by_node
from penjing.models import shallow_net


@pytest.mark.parametrize(("d", "h", "k"), [(784, 2000, 100), (12, 7, 3), (3, 5, 8)])
def test_a_bottleneck_makes_h_times_d_weights_k_times_their_sum(d: int, h: int, k: int) -> None:
    full, thin = shallow_net(d, h), shallow_net(d, h, k)
    sizes = [sum(p.numel() for p in model.parameters()) for model in (full, thin)]
    others = h + 10 * h + 10
    assert sizes == [h * d + others, k * (h + d) + others]
    network = trace(thin, (torch.randn(2, 1, d),))
    assert sum(macs_by_node(network).values()) == k * (h + d) + 10 * h


def test_with_a_bottleneck_it_is_a_network_without_one_whose_matrix_has_rank_k() -> None:
    torch.manual_seed(0)
    full, thin = shallow_net(20, 15), shallow_net(20, 15, 4)
    product = thin.hidden.weight @ thin.bottleneck.weight
    assert int(torch.linalg.matrix_rank(product)) == 4
    state = {name: value for name, value in thin.state_dict().items() if not name.startswith("bottleneck")}
    full.load_state_dict(state | {"hidden.weight": product.detach()})
    x = torch.randn(6, 4, 5)
    torch.testing.assert_close(full(x), thin(x))


def test_as_wide_as_the_input_the_bottleneck_takes_nothing_away() -> None:
    torch.manual_seed(0)
    full, thin = shallow_net(6, 9), shallow_net(6, 9, 6)
    state = full.state_dict() | {"bottleneck.weight": torch.eye(6)}
    thin.load_state_dict(state)
    x = torch.randn(3, 6)
    torch.testing.assert_close(thin(x), full(x))


def test_hidden_units_begin_with_and_without_a_bottleneck_alike() -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 300)
    spreads = []
    for model in (shallow_net(300, 500), shallow_net(300, 500, 200)):
        spreads.append(float(model[:-2](x).detach().std()))  # before the ReLU
    assert spreads[0] == pytest.approx(spreads[1], rel=0.05)


def test_sizes_must_be_positive() -> None:
    with pytest.raises(SettingError, match="bottleneck must be at least 1, got 0"):
        shallow_net(bottleneck=0)
    with pytest.raises(SettingError, match="hidden must be at least 1, got -3"):
        shallow_net(hidden=-3)
