"""Fractions of channels, parameters, multiply-accumulates and time: reached, and by no more than it takes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from penjing.graph import Network, channel_groups, remove_channels, trace
from penjing.pruning.amounts import COUNTED, Stopwatch, fewest, first_of, in_order, search


class Fake:
    def __init__(self, name: str, n: int) -> None:
        self.name, self.n_channels = name, n


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_fewest_that_are_enough(n: int, first: int) -> None:
    expected = next((k for k in range(n) if k >= first), n)
    assert fewest(n, lambda k: k >= first) == expected


@given(st.integers(1, 60), st.integers(0, 60), st.integers(0, 8))
def test_a_search_ends_on_what_was_found_enough_and_asks_no_more_than_it_may(n: int, first: int, steps: int) -> None:
    asked: dict[int, bool] = {}

    def enough(k: int) -> bool:
        assert 0 <= k < n and k not in asked
        asked[k] = k >= first
        return asked[k]

    found = search(n, enough, steps=steps)
    assert len(asked) <= steps
    assert found == n or asked[found]
    if steps >= 7:
        assert found == min(first, n)


def test_the_order_goes_from_the_least_important_within_limits() -> None:
    groups, scores = [Fake("a", 4), Fake("b", 3)], [torch.tensor([0.9, 0.1, 0.5, 0.8]), torch.tensor([2.0, 3.0, 0.2])]
    assert in_order(groups, scores, keep_at_least=1) == [(0, 1), (1, 2), (0, 2), (0, 3), (1, 0)]  # type: ignore[arg-type]
    assert in_order(groups, scores, keep_at_least=2) == [(0, 1), (1, 2), (0, 2)]  # type: ignore[arg-type]
    uniform = in_order(groups, scores, keep_at_least=1, uniform=True)  # type: ignore[arg-type]
    assert uniform == [(0, 1), (1, 2), (0, 2), (1, 0), (0, 3)]  # at 1/4, 1/3, 1/2, 2/3, 3/4 of their layers


@given(st.integers(1, 24), st.integers(0, 24), st.integers(1, 9))
def test_a_multiple_stays_or_all(n: int, k: int, round_to: int) -> None:
    k = min(k, n - 1)
    group = Fake("g", n)
    gone = len(first_of([group], [(0, c) for c in range(k)], k, round_to=round_to).get("g", ()))  # type: ignore[list-item]
    left = n - gone
    assert left == n or left % round_to == 0
    assert 0 <= gone <= k
    assert gone == max((g for g in range(k + 1) if (n - g) % round_to == 0 or g == 0), default=0)


def network() -> Network:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.ReLU()]
    return trace(nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 5)), (torch.randn(2, 1, 8, 8),)).eval()


@pytest.mark.parametrize("kind", ["parameters", "macs"])
@pytest.mark.parametrize("fraction", [0.1, 0.37, 0.8])
def test_what_was_asked_is_reached_and_one_channel_less_would_not_do(kind: str, fraction: float) -> None:
    whole = network()
    grouping, cost = channel_groups(whole), COUNTED[kind]  # type: ignore[index]
    scores = [torch.rand(g.n_channels) for g in grouping.groups]
    order = in_order(grouping.groups, scores)

    def without(k: int) -> float:
        return cost(remove_channels(whole, grouping.removal(first_of(grouping.groups, order, k))))

    n = fewest(len(order), lambda k: without(k) <= (1 - fraction) * cost(whole))
    assert without(n) <= (1 - fraction) * cost(whole) < without(n - 1)


class Loop(nn.Module):
    """Twenty layers, so that its time is more than the call's own."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(256, 256) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_a_network_of_a_tenth_takes_less_time() -> None:
    x = torch.randn(1, 256)
    with Stopwatch(trace(Loop(40), (x,)).eval()) as watch:
        assert watch.share(trace(Loop(4), (x,)).eval()) < 0.7
        assert len(watch.measured) == 1
