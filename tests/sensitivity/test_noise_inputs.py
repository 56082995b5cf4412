"""Noise that stands in for inputs: its size, its spectrum, and what norms make of it."""

import pytest
import torch
from torch import nn

from penjing.graph import trace
from penjing.quantization import refresh_norms_
from penjing.quantization.calibrated import moments_of_noise
from penjing.sensitivity import input_covariances, noise_inputs, smooth_noise


def test_pictures_have_the_spectrum_of_photographs_and_channels_that_agree() -> None:
    x = smooth_noise((3, 32, 32), 400, torch.Generator().manual_seed(0))
    assert x.shape == (400, 3, 32, 32) and x.dtype == torch.float32
    assert float(x.mean()) == pytest.approx(0, abs=0.05) and float(x.square().mean()) == pytest.approx(1, abs=0.05)
    power = torch.fft.fft2(x.double()).abs().square().mean((0, 1))
    # amplitude 1 / f: twice the frequency, a quarter of the power
    assert float(power[0, 2] / power[0, 4]) == pytest.approx(4, rel=0.2)
    assert float(power[3, 4] / power[6, 8]) == pytest.approx(4, rel=0.2)
    flat = x.transpose(0, 1).flatten(1)
    assert float(torch.corrcoef(flat)[0, 1]) == pytest.approx(0.64, abs=0.04)


def test_features_are_white_and_sequences_of_whole_numbers_have_none() -> None:
    x = smooth_noise((5,), 4000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(x.T @ x / 4000, torch.eye(5), atol=0.07, rtol=0)
    words = trace(
        nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2)), [torch.zeros(2, 3, dtype=torch.long)]
    )
    assert noise_inputs(words, 8, torch.Generator()) is None


def test_behind_a_norm_the_second_moments_are_those_of_its_scale_and_shift() -> None:
    """Whatever goes into the norm, E x^2 = gamma^2 + beta^2 behind it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1), nn.Flatten(), nn.Linear(2 * 36, 2))
    norm = model[1]
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 0.5, 1.0]))
        norm.bias.copy_(torch.tensor([0.0, 1.0, -1.0, 0.2]))
        norm.running_mean.fill_(7)
    network = trace(model, [torch.randn(2, 3, 8, 8)]).eval()
    batches = noise_inputs(network, 256, torch.Generator().manual_seed(0))
    assert batches is not None and [batch.size for batch in batches] == [64] * 4
    refresh_norms_(network, batches)
    found = input_covariances(network, batches)["2.weight"][0].diagonal() / 36
    torch.testing.assert_close(found.float(), (norm.weight**2 + norm.bias**2).detach(), rtol=0.1, atol=0.02)


def test_without_norms_nothing_is_known() -> None:
    network = trace(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), [torch.randn(2, 4)])
    assert moments_of_noise(network, classes=True, generator=torch.Generator().manual_seed(0)) is None
