"""Tickets: what goes, what they begin from, what removed weights are held at."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from penjing.errors import SettingError
from penjing.graph import Network, trace
from penjing.pruning.lottery_ticket import (
    Held,
    LotteryTicket,
    all_kept,
    next_masks,
    prunable,
    rates_of,
    start_again_,
)
from penjing.pruning.ticket_actions import KEPT, REMOVED
from penjing.representation import Mask, represent_
from penjing.training import LearnFromLabels, Schedule, Task, fit_


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return trace(nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3)), [torch.randn(2, 6)])


def state_of(network: Network) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@given(rate=st.floats(0.05, 0.6), rounds=st.integers(1, 6))
def test_what_is_left_after_n_rounds_is_the_rates_power(rate: float, rounds: int) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = {"a.weight": torch.rand(40, 50, generator=generator)}
    masks = {"a.weight": torch.ones(40, 50, dtype=torch.bool)}
    for _ in range(rounds):
        smaller = next_masks(scores, masks, {"a.weight": rate})
        assert not (smaller["a.weight"] & ~masks["a.weight"]).any()  # nothing comes back
        kept, gone = (
            scores["a.weight"][smaller["a.weight"]],
            scores["a.weight"][masks["a.weight"] & ~smaller["a.weight"]],
        )
        assert not len(gone) or gone.max() <= kept.min()
        masks = smaller
    assert int(masks["a.weight"].sum()) == pytest.approx(2000 * (1 - rate) ** rounds, abs=rounds)


def test_rates_by_pattern_and_global_ranking(network: Network) -> None:
    assert rates_of(network, 0.2, {"2": 0.1}) == {"0.weight": 0.2, "2.weight": 0.1}
    with pytest.raises(SettingError, match='lottery-ticket: rates: no layer matches "out"'):
        rates_of(network, 0.2, {"out": 0.1})
    scores = {name: w.abs() for name, w in prunable(network).items()}
    masks = next_masks(scores, all_kept(network), dict.fromkeys(scores, 0.5), scope="global")
    flat = torch.cat([s.flatten() for s in scores.values()])
    keep = torch.cat([m.flatten() for m in masks.values()])
    assert int(keep.sum()) == len(flat) // 2 and flat[~keep].max() <= flat[keep].min()


def test_a_ticket_begins_where_it_began(network: Network, task: Task) -> None:
    initial = state_of(network)
    fit_(network, task, Schedule(epochs=2, lr=0.05))
    scores = {name: w.abs() for name, w in prunable(network).items()}
    masks = next_masks(scores, all_kept(network), dict.fromkeys(scores, 0.5))
    for _ in range(2):  # again on top of masks
        start_again_(network, initial, masks)
        for name, keep in masks.items():
            weight = prunable(network)[name]
            assert torch.equal(weight[keep], initial[name][keep]) and not weight[~keep].any()
        assert torch.equal(network.get_submodule("0").bias, initial["0.bias"])
        fit_(network, task, Schedule(epochs=1, lr=0.05))
        assert not any(prunable(network)[name][~keep].any() for name, keep in masks.items())


def test_what_becomes_of_kept_weights() -> None:
    generator = torch.Generator().manual_seed(1)
    initial = torch.randn(60, 80, generator=generator) * 0.1
    keep = torch.rand(60, 80, generator=generator) < 0.3
    found = {name: action(initial, keep, torch.Generator().manual_seed(2)) for name, action in KEPT.items()}
    assert torch.equal(found["rewind"], initial)
    for name in ("signed-reinit", "signed-reshuffle", "signed-constant"):
        assert torch.equal(found[name].sign()[keep], initial.sign()[keep])
    for name in ("reinit", "reshuffle", "constant"):
        assert 0.4 < (found[name].sign() == initial.sign())[keep].float().mean() < 0.6
    for name in ("reshuffle", "signed-reshuffle"):
        assert torch.equal(found[name][keep].sort().values, initial[keep].sort().values)
        assert not torch.equal(found[name][keep], initial[keep])
    assert found["reinit"].std() == pytest.approx((2 / 140) ** 0.5, rel=0.05)  # Glorot: fans 80 and 60
    for name in ("constant", "signed-constant"):
        assert torch.allclose(found[name].abs(), initial.std().expand(60, 80))


def test_where_removed_weights_are_held() -> None:
    initial, final = torch.tensor([0.5, -0.5, 0.2, -0.2]), torch.tensor([0.1, -0.9, 0.3, 0.1])
    assert not REMOVED["zero"](initial, final).any()
    assert torch.equal(REMOVED["freeze-init"](initial, final), initial)
    assert torch.equal(REMOVED["freeze-init-zero-mask"](initial, final), torch.tensor([0.0, -0.5, 0.2, 0.0]))


def test_held_weights_stay_and_the_others_train(network: Network, task: Task) -> None:
    masks = {name: torch.rand(w.shape) < 0.5 for name, w in prunable(network).items()}
    values = {name: torch.randn(w.shape) for name, w in prunable(network).items()}
    before = prunable(copy.deepcopy(network))
    fit_(network, task, Schedule(epochs=1, lr=0.05), [LearnFromLabels(), Held(masks, values)])
    for name, weight in prunable(network).items():
        assert torch.equal(weight[~masks[name]], values[name][~masks[name]])
        assert (weight != before[name])[masks[name]].any()


def test_a_network_that_has_changed_its_shape_has_no_beginning(network: Network) -> None:
    initial = state_of(network)
    with pytest.raises(SettingError, match=r"0\.weight had another shape"):
        start_again_(network, {**initial, "0.weight": torch.zeros(3, 3)}, all_kept(network))


def test_settings_name_what_there_is() -> None:
    with pytest.raises(SettingError, match='kept: there is no "rewound"; did you mean "rewind"'):
        LotteryTicket(kept="rewound")
    with pytest.raises(SettingError, match='criterion: there is no "large-final"; did you mean "large_final"'):
        LotteryTicket(criterion="large-final")
    with pytest.raises(SettingError, match="rates: each fraction must be at least 0 and less than 1"):
        LotteryTicket(rates={"out": 1.0})
    assert LotteryTicket(epochs=3, rounds=4).planned_epochs() == 12
    assert LotteryTicket(epochs=3, rounds=4, control="one-shot").planned_epochs() == 3


def test_masks_that_are_there_are_replaced(network: Network) -> None:
    represent_(network.get_submodule("0"), "weight", Mask(torch.ones(20, 6)))
    sizes = {"0.weight": (20, 6), "0.bias": (20,), "2.weight": (3, 20), "2.bias": (3,)}
    initial = {name: torch.ones(size) for name, size in sizes.items()}
    masks = {"0.weight": torch.rand(20, 6) < 0.5, "2.weight": torch.rand(3, 20) < 0.5}
    start_again_(network, initial, masks)
    assert torch.equal(prunable(network)["0.weight"], masks["0.weight"].float())
