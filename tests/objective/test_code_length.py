"""Code lengths as a loss: Shannon's bound, exactness on whole positions, the mean of random rounding, and its gradient."""

import math

import pytest
import torch

from penjing.objective import code_lengths, expected_code_length


def test_lengths_sum_to_one_in_kraft_and_meet_the_entropy_of_long_sequences() -> None:
    torch.manual_seed(0)
    p = torch.tensor([0.05, 0.2, 0.5, 0.25])
    codes = torch.multinomial(p, 100_000, replacement=True) - 1  # codes -1 .. 2
    lengths = code_lengths(codes, -1, 3)  # 3 does not occur
    assert float((2.0**-lengths).sum()) == pytest.approx(1)
    assert torch.isfinite(lengths).all() and int(lengths.argmax()) == 4
    entropy = float(-(p * p.log2()).sum())
    assert float(lengths[codes + 1].mean()) == pytest.approx(entropy, abs=0.01)


def test_whole_positions_cost_their_codes_length_and_others_the_mean_of_random_rounding() -> None:
    lengths = torch.tensor([4.0, 1.0, 2.5])
    whole = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    assert float(expected_code_length(whole, lengths, -1)) == pytest.approx(4 + 1 + 2.5 + 1)
    torch.manual_seed(0)
    position = torch.tensor(0.3)
    rounded = (torch.rand(200_000) < 0.3).long()  # up with the chance that keeps the mean
    drawn = float(lengths[rounded + 1].mean())
    assert float(expected_code_length(position, lengths, -1)) == pytest.approx(drawn, abs=0.01)


def test_the_slope_leads_to_frequent_codes_and_clipped_positions_have_none() -> None:
    lengths = torch.tensor([4.0, 1.0, 2.5])
    positions = torch.tensor([-0.5, 0.25, 5.0, -3.0], requires_grad=True)
    expected_code_length(positions, lengths, -1).backward()
    assert positions.grad is not None
    torch.testing.assert_close(positions.grad, torch.tensor([-3.0, 1.5, 0.0, 0.0]))
    double = torch.tensor([-0.4, 0.3, 0.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda u: expected_code_length(u, lengths.double(), -1), double)


def test_a_single_code_costs_what_it_costs() -> None:
    positions = torch.randn(5, requires_grad=True)
    found = expected_code_length(positions, code_lengths(torch.zeros(7), 0, 0), 0)
    assert float(found.detach()) == 0 and math.isfinite(float(found.detach()))
    found.backward()
    assert positions.grad is not None and not positions.grad.any()
