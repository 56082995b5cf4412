"""Calibrated coding: second moments, the optimality of the feedback, masks, repairs, targets, and what it is worth."""

import copy
import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from penjing.artifact import decode, encode
from penjing.entropy import context_coder, trellis
from penjing.errors import DataError, SettingError
from penjing.graph import Network, settled_batch_norms, trace
from penjing.measurement.divergence import divergence
from penjing.quantization import CalibratedCoding, Quantize, code_layer, layer_statistics
from penjing.quantization.calibrated import with_unseen
from penjing.quantization.error_feedback import conditional_factor, rounded_with_feedback, squared_change
from penjing.representation import Grid, Mask, named_weights, represent_, representations
from penjing.sensitivity import gradient_moments, input_covariances
from penjing.training import Batch, Schedule, Task, Workbench, fit_


def correlated(rows: int, n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rows, n // 3 + 1, generator=generator).double()
        @ torch.randn(n // 3 + 1, n, generator=generator).double()
    )


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(6, 4),
        nn.Conv2d(6, 4, 3, padding=1),
        nn.Conv2d(6, 4, (3, 2), stride=2, padding=(2, 1), dilation=(1, 2), bias=False),
        nn.Conv2d(6, 6, 3, groups=3, padding="same"),
        nn.Conv2d(6, 12, 3, groups=6, padding=1, padding_mode="reflect"),
        nn.Conv1d(6, 4, 3, padding=1, stride=2),
    ],
)
def test_second_moments_are_what_a_changed_row_does_to_the_answers(layer: Any) -> None:
    """d C d^T summed over rows is the squared change of all answers of a sample, for any change d."""
    shape = {nn.Linear: (6,), nn.Conv1d: (6, 9), nn.Conv2d: (6, 9, 8)}[type(layer)]
    x = torch.randn(10, *shape)
    network = trace(nn.Sequential(layer), [x[:2]])
    (found,) = input_covariances(network, [Batch((x[:7],), {}, None), Batch((x[7:],), {}, None)]).values()
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.weight.add_(torch.randn_like(other.weight))
    difference = (other.weight - layer.weight).detach().flatten(1).chunk(len(found))
    expected = float((other(x) - layer(x)).detach().double().square().sum() / 10)
    assert sum(squared_change(d, own) for d, own in zip(difference, found, strict=True)) == pytest.approx(
        expected, rel=1e-4
    )


def test_no_samples_are_an_error() -> None:
    with pytest.raises(DataError, match="there are no samples"):
        input_covariances(trace(nn.Sequential(nn.Linear(2, 2)), [torch.randn(2, 2)]), [])


def test_moments_of_gradients_are_blocks_of_the_squared_jacobian() -> None:
    """For answers that are no classes E g g^T is J^T J; rows and columns are its diagonal blocks."""
    torch.manual_seed(0)
    network = trace(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), [torch.randn(2, 3)])
    x = torch.randn(6, 3)
    generator = torch.Generator().manual_seed(0)
    found = gradient_moments(network, [Batch((x.repeat(3000, 1),), {}, None)], classes=False, generator=generator)
    weight = network.get_submodule("0").weight

    def answers(w: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(F.linear(x, w, network.get_submodule("0").bias))
        return F.linear(hidden, network.get_submodule("2").weight, network.get_submodule("2").bias)

    jacobian = torch.autograd.functional.jacobian(answers, weight.detach()).flatten(0, 1).double()
    rows = jacobian.square().sum((0, 2)) / 6 / 3
    columns = torch.einsum("ari,arj->ij", jacobian, jacobian) / 6 / 4
    torch.testing.assert_close(found["0.weight"].rows, rows, rtol=0.1, atol=0.03 * float(rows.max()))
    torch.testing.assert_close(found["0.weight"].columns[0], columns, rtol=0.1, atol=0.03 * float(columns.max()))


def test_dependent_rounding_is_the_best_way_through_the_states() -> None:
    """Against every row of numbers that the machine can reach, with feedback: found here by trying all of them."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(100, 4, generator=generator).double() @ torch.randn(4, 4, generator=generator).double()
    factor = conditional_factor(x.T @ x / 100, damping=0.0)
    moments = torch.linalg.inv(factor.T @ factor)
    weight = 1.5 * torch.randn(3, 4, generator=generator).double()
    ways = np.array(list(itertools.product(range(-5, 6), repeat=4)))
    reachable = torch.from_numpy(np.array([way for way in ways if trellis.indices(way[None]) is not None]))
    found = rounded_with_feedback(weight, torch.ones(1), torch.eye(4), dependent=True)
    best = (reachable[None].double() - weight[:, None]).square().sum(2).min(1)
    assert torch.equal((found.double() - weight).square().sum(1), best.values)
    fed = rounded_with_feedback(weight, torch.ones(1), factor, dependent=True)
    assert trellis.indices(fed.numpy()) is not None
    assert squared_change(fed - weight, moments) <= squared_change(found - weight, moments)


def test_dependent_rounding_gains_a_decibel_on_uniform_numbers() -> None:
    weight = 40 * torch.rand(16, 500, generator=torch.Generator().manual_seed(0)).double() - 20
    found = rounded_with_feedback(weight, torch.ones(1), torch.eye(500), dependent=True)
    error = float((found - weight).square().mean())
    assert 1.1 < 10 * math.log10(4 / 12 / error) < 1.3


def test_a_price_for_bits_makes_the_file_smaller_and_the_error_larger() -> None:
    weight = 1.5 * torch.randn(64, 200, generator=torch.Generator().manual_seed(0)).double()
    for dependent in (False, True):
        sizes, errors = [], []
        for price in (0.0, 0.1, 0.4):
            prices = torch.full((64,), price)
            found = rounded_with_feedback(weight, torch.ones(1), torch.eye(200), dependent=dependent, price=prices)
            sizes.append(len(context_coder.encode(found.numpy(), dependent=dependent)))
            errors.append(float((found - weight).square().sum()))
        assert sizes[0] > sizes[1] > sizes[2] and errors[0] < errors[1] < errors[2]


def test_without_samples_and_norms_nothing_is_calibrated_and_it_is_said(task: Task) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 3))
    bench = carried_out(trace(model, [torch.randn(2, 2, 8, 8)]).eval(), task, CalibratedCoding(samples=0, noise=0.1))
    assert len(bench.warnings) == 1 and "without feedback" in bench.warnings[0]
    assert not bench.facts["change of each layer against no feedback"]


def test_noise_under_the_norms_statistics_stands_in_for_samples(network: Network, task: Task) -> None:
    bench = carried_out(network, task, CalibratedCoding(samples=0, noise=0.1))
    assert "goes by noise" in bench.warnings[0] and "scales and shifts" in bench.warnings[1]
    changes = bench.facts["change of each layer against no feedback"]
    assert set(changes) == {"0.weight", "3.weight", "6.weight"} and max(changes.values()) < 1
    assert moved(network, bench.network, task) < 0.02
    settled, found = settled_batch_norms(network)
    assert found == ["1"]
    x = torch.randn(4, 2, 8, 8)
    torch.testing.assert_close(settled.eval()(x), network(x), rtol=1e-4, atol=1e-5)


def test_words_that_were_not_seen_get_the_share_that_held_out_sentences_give_them() -> None:
    """Drawn from a Zipf law: the estimate for unseen rows is right to half an octave, where none of them was counted."""
    generator = torch.Generator().manual_seed(0)
    p = 1 / torch.arange(1, 3001).double()
    p /= p.sum()
    seen, held = (
        torch.multinomial(p, n, replacement=True, generator=generator).bincount(minlength=3000) for n in (900, 300)
    )
    found = with_unseen(seen / 900, held / 300)
    unseen = seen == 0
    assert float(found[unseen].sum()) == pytest.approx(float(p[unseen].sum()), rel=0.4)
    assert len(found[unseen].unique()) == 1 and float(found.min()) == float(found[unseen][0])
    assert torch.equal(with_unseen(p, p), p)  # all were seen


def test_what_is_left_of_a_row_is_the_least_squares_answer_to_the_rounding_so_far() -> None:
    """After k columns are rounded the others stand where (w - q) C (w - q)^T is least: found here by solving for it."""
    x = torch.randn(200, 7, dtype=torch.float64) @ torch.randn(7, 7, dtype=torch.float64)
    moments = x.T @ x / 200
    weight = torch.randn(3, 7, dtype=torch.float64)
    factor = conditional_factor(moments, damping=0.0)
    step = torch.tensor(0.7)
    codes = rounded_with_feedback(weight, step, factor)
    for k in range(1, 7):
        error = weight[:, :k] - codes[:, :k] * step
        best = weight[:, k:] + error @ moments[:k, k:] @ torch.linalg.inv(moments[k:, k:])
        assert torch.equal(codes[:, k], torch.round(best[:, 0] / step).long())


def test_variances_are_those_that_later_inputs_do_not_explain() -> None:
    moments = correlated(50, 6, 1).T @ correlated(50, 6, 1) / 50 + torch.eye(6).double()
    factor = conditional_factor(moments, damping=0.0)
    assert torch.equal(factor, factor.triu())
    for j in range(6):
        rest = moments[j + 1 :, j + 1 :]
        explained = moments[j, j + 1 :] @ torch.linalg.inv(rest) @ moments[j + 1 :, j] if j < 5 else 0.0
        assert float(factor[j, j] ** -2) == pytest.approx(float(moments[j, j] - explained))


def test_blocks_of_columns_change_nothing_and_uncorrelated_inputs_mean_plain_rounding() -> None:
    weight = torch.randn(5, 150, dtype=torch.float64)
    step = torch.tensor(0.4)
    assert torch.equal(
        rounded_with_feedback(weight, step, conditional_factor(torch.eye(150))), torch.round(weight / step).long()
    )
    x = correlated(400, 150)
    factor = conditional_factor(x.T @ x / 400)
    one_by_one = weight.clone()
    expected = torch.zeros(5, 150, dtype=torch.int64)
    for j in range(150):
        expected[:, j] = torch.round(one_by_one[:, j] / step).long()
        error = (one_by_one[:, j] - expected[:, j] * step) / factor[j, j]
        one_by_one[:, j + 1 :] -= error[:, None] * factor[j, j + 1 :]
    assert torch.equal(rounded_with_feedback(weight, step, factor), expected)


def test_removed_weights_stay_removed_and_others_make_up_for_them() -> None:
    x = correlated(300, 24)
    moments = x.T @ x / 300
    weight = torch.randn(8, 24, dtype=torch.float64)
    keep = torch.rand(8, 24) < 0.6
    step = torch.tensor(0.05)
    codes = rounded_with_feedback(weight, step, conditional_factor(moments), keep)
    assert bool((codes[~keep] == 0).all())
    with_feedback = squared_change(codes * step - weight, moments)
    assert with_feedback < 0.6 * squared_change(weight * keep - weight, moments)


@pytest.mark.parametrize(
    ("moments", "message"),
    [(torch.full((3, 3), torch.nan), "not finite"), (-torch.eye(3), "not positive")],
)
def test_moments_that_are_none_are_refused(moments: torch.Tensor, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        conditional_factor(moments)


@pytest.fixture(scope="module")
def task() -> Task:
    """Classes that depend on correlated inputs."""
    generator = torch.Generator().manual_seed(0)
    x = F.interpolate(torch.randn(600, 2, 4, 4, generator=generator), size=8, mode="bilinear")
    x = x + 0.1 * torch.randn(x.shape, generator=generator)
    y = (x[:, 0, :4].mean((1, 2)) > 0).long() + 2 * (x[:, 1, 4:].mean((1, 2)) > 0).long()
    parts = [TensorDataset(x[part], y[part]) for part in (slice(0, 400), slice(400, 500), slice(500, 600))]
    return Task(
        DataLoader(parts[0], batch_size=50, shuffle=True), DataLoader(parts[1], batch_size=50), DataLoader(parts[2], 50)
    )


@pytest.fixture(scope="module")
def network(task: Task) -> Network:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU()]
    layers += [nn.Conv2d(12, 16, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(256, 4)]
    found = trace(nn.Sequential(*layers), [torch.randn(2, 2, 8, 8)])
    fit_(found, task, Schedule(epochs=6, lr=0.01))
    return found.eval()


def carried_out(network: Network, task: Task, stage: Any) -> Workbench:
    bench = Workbench(copy.deepcopy(network), task, accelerator=Accelerator(cpu=True))
    stage.apply(bench)
    return bench


def moved(network: Network, other: Network, task: Task) -> float:
    """The divergence on the test part, which nothing looked at."""
    assert task.test is not None
    x = torch.cat([batch.args[0] for batch in task.batches(task.test)])
    with torch.no_grad():
        return divergence(task, network(x), other(x))


def test_for_as_many_bytes_it_diverges_less_than_plain_grids(network: Network, task: Task) -> None:
    plainly = carried_out(network, task, Quantize(bits=3, per="tensor"))
    limit = len(encode(plainly.network))
    calibrated = carried_out(network, task, CalibratedCoding(max_bytes=limit))
    assert 0.95 * limit < len(encode(calibrated.network)) <= limit
    assert moved(network, calibrated.network, task) < 0.5 * moved(network, plainly.network, task)
    ratios = calibrated.facts["change of each layer against no feedback"]
    assert set(ratios) == {"0.weight", "3.weight", "6.weight"}
    assert all(0 < ratio <= 1 for ratio in ratios.values())


def test_the_divergence_asked_for_is_reached_and_not_passed(network: Network, task: Task) -> None:
    sizes = []
    for target in (0.03, 0.003):
        bench = carried_out(network, task, CalibratedCoding(divergence=target))
        x = torch.cat([batch.args[0] for batch in task.batches(task.valid)])
        with torch.no_grad():
            reached = divergence(task, network(x), bench.network(x))
        assert 0.5 * target < reached <= target
        sizes.append(len(encode(bench.network)))
    assert sizes[0] < sizes[1]


def test_everything_is_on_grids_and_travels(network: Network, task: Task) -> None:
    bench = carried_out(network, task, CalibratedCoding(noise=0.01))
    for _, owner, key in named_weights(bench.network):
        assert isinstance(representations(owner, key)[-1], Grid)
    x = torch.randn(3, 2, 8, 8)
    assert torch.equal(decode(encode(bench.network))(x), bench.network(x))
    assert bench.warnings == []


def test_masks_stay(network: Network, task: Task) -> None:
    masked = copy.deepcopy(network)
    keep = torch.rand(16, 12, 3, 3) < 0.5
    represent_(masked.get_submodule("3"), "weight", Mask(keep))
    bench = carried_out(masked, task, CalibratedCoding(noise=0.01))
    assert bool((bench.network.get_submodule("3").weight[~keep] == 0).all())


def test_a_layer_that_went_wrong_is_rounded_plainly(network: Network, task: Task) -> None:
    """Moments that the held-out samples contradict: feedback does harm, and is seen to."""
    batches = list(task.batches(task.train))
    statistics = layer_statistics(network, batches, classes=True, generator=torch.Generator().manual_seed(0))[
        "6.weight"
    ]
    weight = network.get_submodule("6").weight.detach()
    assert not code_layer(weight, statistics, 0.01).repaired
    x = correlated(500, 256, seed=5)
    wrong = replace(statistics, factors=conditional_factor(x.T @ x / 500)[None])
    found = code_layer(weight, wrong, 0.01, dependent=False)
    assert found.repaired
    step = found.grid.stored_steps().double() * found.grid.columns.double()
    assert torch.equal(found.grid.codes.long(), torch.round(weight.double() / step).long())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"divergence": 0.1, "max_bytes": 100}, "divergence and max_bytes are given; only one can decide"),
        ({"samples": 1}, "samples must be 0, for none, or at least 2"),
        ({"noise": 0.0}, "noise"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        CalibratedCoding(**settings)


def test_a_size_that_cannot_be_reached_is_said(network: Network, task: Task) -> None:
    with pytest.raises(SettingError, match=r"the file takes \d+, more than the 100 asked for"):
        carried_out(network, task, CalibratedCoding(max_bytes=100))
