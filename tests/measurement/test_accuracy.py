"""Metrics of any kind, with intervals, and the difference of two networks on the same samples."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from penjing.errors import DataError
from penjing.graph import Network, trace
from penjing.measurement import Answers, accuracy, answer, drop, metric_value, paired_drop_interval, wilson_interval
from penjing.training import ACCURACY, Metric, Task

LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


def says(*classes: int) -> Answers:
    return Answers(torch.nn.functional.one_hot(torch.tensor(classes), 3).float(), LABELS)


GOOD, BAD = says(0, 1, 2, 0, 1, 2, 0, 0), says(0, 1, 2, 0, 0, 0, 0, 1)


def test_accuracy_is_k_of_n_with_wilsons_interval() -> None:
    found = accuracy(GOOD)
    assert (found.correct, found.total) == (7, 8)
    assert (found.low, found.high) == wilson_interval(7, 8)
    value = metric_value(ACCURACY, GOOD.logits, GOOD.labels)
    assert (value.value, value.low, value.high, value.n) == (7 / 8, found.low, found.high, 8)


def test_the_drop_is_paired() -> None:
    assert vars(drop(ACCURACY, GOOD, BAD)) == dict(
        zip(("value", "low", "high"), paired_drop_interval(2, 1, 8), strict=True)
    )


def test_lower_is_better_turns_the_drop_around() -> None:
    error = Metric("error", lambda a, y: (a.argmax(-1) != y).double(), higher_is_better=False)
    assert drop(error, GOOD, BAD) == drop(ACCURACY, GOOD, BAD)
    assert metric_value(error, GOOD.logits, GOOD.labels).value == 1 / 8


def test_a_number_a_sample() -> None:
    square = Metric("squared error", lambda a, y: (a[:, 0] - y).square(), higher_is_better=False)
    rng = np.random.default_rng(0)
    truth = torch.from_numpy(rng.normal(size=400))
    near, far = truth + 0.1, truth + torch.from_numpy(rng.normal(scale=0.5, size=400))
    first, second = Answers(near[:, None], truth), Answers(far[:, None], truth)
    value = metric_value(square, near[:, None], truth)
    assert value.value == pytest.approx(0.01) and not value.higher_is_better
    worse = drop(square, first, second)
    assert worse.value == pytest.approx(float((far - truth).square().mean()) - 0.01)
    assert 0.15 < worse.low < worse.value < worse.high < 0.35
    assert worse.high - worse.low == pytest.approx(2 * 1.96 * np.std(((far - truth) ** 2).numpy()) / 20, rel=0.01)


def test_one_number_a_set_is_resampled() -> None:
    """The bootstrap of a mean must agree with the normal interval of that mean."""
    scores = torch.from_numpy(np.random.default_rng(1).normal(size=500))
    mean = Metric("mean", lambda a, y: a.mean())
    value = metric_value(mean, scores[:, None], None)
    assert value.value == pytest.approx(float(scores.mean()))
    assert value.high - value.low == pytest.approx(2 * 1.96 / 500**0.5 * float(scores.std()), rel=0.15)
    shifted = drop(mean, Answers(scores[:, None], None), Answers(scores[:, None] - 0.25, None))
    assert (shifted.value, shifted.low, shifted.high) == pytest.approx((0.25, 0.25, 0.25))  # the same resamples in both


def test_a_plain_float_is_a_metric_too_and_lists_are_labels() -> None:
    share = Metric("share of a", lambda a, y: sum(label == "a" for label in y) / len(y))
    value = metric_value(share, torch.zeros(4, 1), ["a", "b", "a", "a"])
    assert value.value == 0.75 and 0 <= value.low < 0.75 < value.high <= 1


def test_a_metric_of_another_shape_is_refused() -> None:
    with pytest.raises(DataError, match=r"metric wide must give one number a sample.*\(8, 3\)"):
        metric_value(Metric("wide", lambda a, y: a), GOOD.logits, LABELS)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (None, "accuracy needs them"),
        (LABELS[:, None], "whole numbers"),
        (LABELS + 1, r"\[0, 3\)"),
        (LABELS[:3], "shape"),
    ],
)
def test_accuracy_of_labels_that_do_not_fit(labels: Tensor | None, words: str) -> None:
    with pytest.raises(DataError, match=words):
        metric_value(ACCURACY, GOOD.logits, labels)


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return trace(nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 3)), (torch.randn(2, 4),)).train()


def test_answers_come_in_evaluation_mode_which_is_then_left(network: Network) -> None:
    x, y = torch.randn(7, 4), torch.zeros(7, dtype=torch.int64)
    found = answer(network, Task([], [(x[:4], y[:4]), (x[4:], y[4:])]), [(x[:4], y[:4]), (x[4:], y[4:])])
    assert network.training
    torch.testing.assert_close(found.logits, network.eval()(x).detach(), rtol=1e-6, atol=1e-6)
    assert torch.equal(found.labels, y) and found.left_at is None and found.n == 7


def test_sets_without_labels_and_with_lists(network: Network) -> None:
    x = torch.randn(4, 4)
    assert answer(network, Task([], []), [x[:2], x[2:]]).labels is None
    assert answer(network, Task([], []), [(x[:2], ["a", "b"]), (x[2:], ["c", "d"])]).labels == ["a", "b", "c", "d"]


def test_a_set_of_another_type_or_without_batches(network: Network) -> None:
    with pytest.raises(DataError, match=r"torch\.float64"):
        answer(network, Task([], []), [torch.randn(2, 4).double()])
    with pytest.raises(DataError, match="yields no batches"):
        answer(network, Task([], []), [])
