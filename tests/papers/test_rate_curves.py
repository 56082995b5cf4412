"""Curves of size against loss: the frontier, interpolation where the law is known, and smoothing."""

import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from penjing.errors import DataError
from penjing.graph import trace
from penjing.papers.calibrated_coding import (
    BEST,
    DATA_FREE,
    OURS,
    PEERS,
    saved_at_accuracy,
    saved_at_divergence,
    with_tensors,
)
from penjing.papers.rate_curves import bytes_at, bytes_at_accuracy, frontier, smoothed


def test_the_frontier_has_what_nothing_beats() -> None:
    points = [(10.0, 5.0), (12.0, 6.0), (20.0, 3.0), (20.0, 2.0), (30.0, 2.0), (15.0, 4.0)]
    assert frontier(points) == [(10.0, 5.0), (15.0, 4.0), (20.0, 2.0)]
    shuffled = points[:]
    random.Random(0).shuffle(shuffled)
    assert frontier(shuffled) == frontier(points)


def test_a_power_law_is_interpolated_exactly_and_nothing_is_extrapolated() -> None:
    points = [(100 * 2.0**k, 3.0 * (100 * 2.0**k) ** -2.5) for k in range(5)]
    for size in (100.0, 333.0, 1599.0):
        assert bytes_at(points, 3.0 * size**-2.5) == pytest.approx(size)
    assert math.isnan(bytes_at(points, points[0][1] * 1.01)) and math.isnan(bytes_at(points, points[-1][1] * 0.99))


def test_smoothing_is_least_squares_among_curves_that_never_fall() -> None:
    points = [(1.0, 10.0), (2.0, 14.0), (4.0, 12.0), (8.0, 20.0)]
    assert smoothed(points) == [(1.0, 10.0), (pytest.approx(math.sqrt(8)), 13.0), (pytest.approx(8.0), 20.0)]
    # half of the way from 13 to 20, in logarithms from sqrt(8) to 8
    assert bytes_at_accuracy(points, 16.5) == pytest.approx(math.sqrt(math.sqrt(8) * 8))
    assert math.isnan(bytes_at_accuracy(points, 21.0))


def test_savings_are_against_the_best_of_all_ways() -> None:
    def arm(scale: float) -> dict[str, object]:
        sizes = [scale * 1000 * 1.2**k for k in range(12)]
        points = [
            {"bytes": s, "divergence": (s / scale / 2000) ** -3, "correct": round(8000 + 40 * k)}
            for k, s in enumerate(sizes)
        ]
        return {"points": points, "dense": {"correct": 8400, "total": 10_000}}

    of_seed = {peer: arm(2.0) for peer in PEERS} | {BEST: arm(1.0), OURS: arm(0.6), DATA_FREE: arm(0.9)}
    assert saved_at_divergence(of_seed, OURS, 0.1) == pytest.approx(40)  # type: ignore[arg-type]
    assert saved_at_divergence(of_seed, DATA_FREE, 0.06) == pytest.approx(10)  # type: ignore[arg-type]
    assert saved_at_accuracy(of_seed, OURS, 1.0) == pytest.approx(40)  # type: ignore[arg-type]


def test_what_nncodec_gives_back_is_put_into_the_network_folded_or_not() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 2)).eval()
    with torch.no_grad():
        model[1].running_mean.normal_()
        model[1].running_var.uniform_(0.5, 2)
        model[1].weight.normal_()
    x = torch.randn(4, 2, 6, 6)
    network = trace(model, (x,)).eval()
    tensors = {name: value.numpy() for name, value in model.state_dict().items() if value.dim()}
    torch.testing.assert_close(with_tensors(network, tensors)(x), model(x))
    norm = model[1]
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
    folded = {
        "0.weight": tensors["0.weight"],
        "0.weight_scaling": scale.numpy(),
        "0.weight.bias": (norm.bias - norm.running_mean * scale).detach().numpy(),
        "3.weight": tensors["3.weight"],
        "3.bias": tensors["3.bias"],
    }
    torch.testing.assert_close(with_tensors(trace(model, (x,)).eval(), folded)(x), model(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(DataError, match="do not fit"):
        with_tensors(trace(model, (x,)).eval(), {"5.weight": np.zeros(3)})
