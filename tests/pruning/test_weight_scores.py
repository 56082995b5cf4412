"""Scores of single weights against their closed forms, brute force and published orders."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penjing.errors import SettingError
from penjing.graph import Network, trace
from penjing.pruning.weight_scores import WEIGHT_SCORES, weight_score
from penjing.representation import Mask, represent_
from penjing.sensitivity import Evidence, fisher_information, layer_weights
from penjing.training import Batch


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    ]
    return trace(nn.Sequential(*layers), (torch.randn(2, 2, 4, 4),)).eval()


def loss(network: Network, batch: Batch) -> Tensor:
    return F.cross_entropy(network(*batch.args), batch.labels)


@pytest.fixture
def evidence(network: Network) -> Evidence:
    x = torch.randn(30, 2, 4, 4)
    batches = [Batch((x[:13],), {}, torch.arange(13) % 3), Batch((x[13:],), {}, torch.arange(17) % 3)]
    initial = {name: torch.randn_like(t) for name, t in network.state_dict().items() if t.is_floating_point()}
    path = {name: torch.rand_like(w) for name, w in layer_weights(network).items()}
    return Evidence(batches=lambda: batches, loss=loss, initial=initial, path=path)


@pytest.mark.parametrize("name", WEIGHT_SCORES)
def test_every_score_keeps_the_contract(name: str, network: Network, evidence: Evidence) -> None:
    """One finite number a weight of a layer, looked at as it is used, with only the evidence that the table names."""
    score = WEIGHT_SCORES[name]
    needed = Evidence(
        batches=evidence.batches if score.samples else None,
        loss=evidence.loss if score.labels else None,
        initial=evidence.initial if score.initial else None,
        path=evidence.path if score.path else None,
    )
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    found = score(network, needed)
    assert {key: value.shape for key, value in found.items()} == {
        "0.weight": (4, 2, 3, 3),
        "4.weight": (5, 16),
        "6.weight": (3, 5),
    }
    assert all(value.isfinite().all() and not value.requires_grad for value in found.values())
    assert all(torch.equal(before[key], tensor) for key, tensor in network.state_dict().items())

    keep = torch.rand(5, 16) < 0.5
    masked, dense = copy.deepcopy(network), copy.deepcopy(network)
    represent_(masked.get_submodule("4"), "weight", Mask(keep))
    with torch.no_grad():
        dense.get_submodule("4").weight.mul_(keep)
    needed.generator.manual_seed(5)
    first = score(masked, needed)
    needed.generator.manual_seed(5)
    second = score(dense, needed)
    assert all(torch.equal(first[key], second[key]) for key in found)


def test_what_is_missing_is_named(network: Network, evidence: Evidence) -> None:
    for name, score in WEIGHT_SCORES.items():
        if score.samples or score.initial or score.path:
            with pytest.raises(SettingError, match=r"give Evidence\(|gives? Evidence"):
                score(network, Evidence())
        else:
            assert score(network, Evidence()), name
        if score.labels:
            with pytest.raises(SettingError, match=r"give Evidence\(loss="):
                score(network, Evidence(batches=evidence.batches))
    with pytest.raises(SettingError, match='there is no score "magnitud"; did you mean "magnitude"'):
        weight_score("magnitud")
    smaller = {**(evidence.initial or {}), "6.weight": torch.zeros(3, 6)}
    with pytest.raises(SettingError, match=r"6.weight has shape \(3, 5\), and before training it had shape \(3, 6\)"):
        WEIGHT_SCORES["movement"](network, Evidence(initial=smaller))
    with pytest.raises(SettingError, match=r"for 0.weight is missing"):
        WEIGHT_SCORES["synaptic_intelligence"](network, Evidence(path={}))


def linear(weight: Tensor) -> Network:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return trace(nn.Sequential(layer), (torch.randn(2, weight.shape[1]),)).eval()


def test_lamp_is_a_weights_share_of_those_not_smaller() -> None:
    weight = torch.tensor([[3.0, -1.0], [2.0, 0.0]])
    (found,) = WEIGHT_SCORES["lamp"](linear(weight), Evidence()).values()
    torch.testing.assert_close(found, torch.tensor([[1.0, 1 / 14], [4 / 13, 0.0]]))
    tied = torch.tensor([[1.0, -1.0, 1.0]])
    (found,) = WEIGHT_SCORES["lamp"](linear(tied), Evidence()).values()
    torch.testing.assert_close(found, torch.tensor([[1 / 3, 1 / 2, 1.0]]))


def test_lamp_orders_a_layer_by_magnitude(network: Network) -> None:
    for name, found in WEIGHT_SCORES["lamp"](network, Evidence()).items():
        size = layer_weights(network)[name].abs().flatten()
        assert torch.equal(found.flatten().argsort(), size.argsort())
        assert found.max() == 1


def test_wanda_is_the_error_of_the_output_without_the_weight() -> None:
    """For a linear layer the squared score is E[(y - y')^2], y' without that weight."""
    network, x = linear(torch.randn(3, 4)), torch.randn(50, 4)
    given = Evidence(batches=lambda: [Batch((x[:20],), {}), Batch((x[20:],), {})])
    (found,) = WEIGHT_SCORES["wanda"](network, given).values()
    for row in range(3):
        for column in range(4):
            less = copy.deepcopy(network)
            with torch.no_grad():
                less.get_submodule("0").weight[row, column] = 0
                error = (network(x) - less(x)).square().mean(0)[row]
            torch.testing.assert_close(found[row, column] ** 2, error)


def test_obd_is_the_exact_change_of_a_quadratic_loss() -> None:
    """At the minimum of a quadratic loss nothing but the second order is there, so the saliency is what the removal costs."""
    torch.manual_seed(0)
    x, target = torch.randn(60, 4), torch.randn(60, 3)
    best = torch.linalg.lstsq(x, target).solution.T

    def squared(network: Network, batch: Batch) -> Tensor:
        return (network(*batch.args) - batch.labels).square().sum(-1).mean()

    network, batch = linear(best), Batch((x,), {}, target)
    given = Evidence(batches=lambda: [batch], loss=squared)
    with torch.no_grad():
        base = squared(network, batch)
        for name in ("obd", "obd_exact"):
            (found,) = WEIGHT_SCORES[name](network, given).values()
            for row in range(3):
                for column in range(4):
                    less = copy.deepcopy(network)
                    less.get_submodule("0").weight[row, column] = 0
                    torch.testing.assert_close(found[row, column], squared(less, batch) - base, rtol=1e-3, atol=1e-5)


def test_taylor_is_the_limit_of_small_shrinking(network: Network, evidence: Evidence) -> None:
    (first, second) = evidence.batches()  # type: ignore[misc]
    batch = Batch((torch.cat([first.args[0], second.args[0]]).double(),), {}, torch.cat([first.labels, second.labels]))
    exact = copy.deepcopy(network).double()
    found = WEIGHT_SCORES["taylor"](network, evidence)["6.weight"]
    with torch.no_grad():
        base = loss(exact, batch)
        for row in range(3):
            for column in range(5):
                less = copy.deepcopy(exact)
                less.get_submodule("6").weight[row, column] *= 1 - 1e-6
                change = (loss(less, batch) - base).abs() / 1e-6
                torch.testing.assert_close(found[row, column].double(), change, rtol=1e-3, atol=1e-6)


def test_fisher_importance_uses_the_square_of_the_weight(network: Network, evidence: Evidence) -> None:
    evidence.generator.manual_seed(1)
    omega = fisher_information(network, evidence)
    for name, power in (("fisher", 2), ("fisher_alone", 0)):
        evidence.generator.manual_seed(1)
        for key, value in WEIGHT_SCORES[name](network, evidence).items():
            torch.testing.assert_close(value, omega[key] * layer_weights(network)[key].abs() ** power)


def test_criteria_of_deconstructing_lottery_tickets() -> None:
    final = torch.tensor([[4.0, -1.0], [0.5, -2.0]])
    initial = torch.tensor([[1.0, 2.0], [-0.5, -1.0]])
    given = Evidence(initial={"0.weight": initial})
    expected = {
        "large_final": [4, 1, 0.5, 2],
        "small_final": [-4, -1, -0.5, -2],
        "large_init": [1, 2, 0.5, 1],
        "small_init": [-1, -2, -0.5, -1],
        "large_init_large_final": [0.5, 0.25, 0.125, 0.5],
        "small_init_small_final": [-1, -1, -0.25, -0.5],
        "magnitude_increase": [3, -1, 0, 1],
        "movement": [3, 3, 1, 1],
        "large_final_same_sign": [4, 0, 0, 2],
        "large_final_diff_sign": [0, 1, 0.5, 0],
    }
    for name, values in expected.items():
        (found,) = WEIGHT_SCORES[name](linear(final), given).values()
        assert found.flatten().tolist() == pytest.approx(values), name
    assert {name for name, score in WEIGHT_SCORES.items() if score.initial} == set(expected) - {
        "large_final",
        "small_final",
    }


def test_random_scores_come_from_the_generator(network: Network) -> None:
    def found(seed: int) -> Tensor:
        return WEIGHT_SCORES["random"](network, Evidence(generator=torch.Generator().manual_seed(seed)))["4.weight"]

    assert torch.equal(found(3), found(3))
    assert not torch.equal(found(3), found(4))
    assert math.isclose(float(found(3).mean()), 0.5, abs_tol=0.1)
