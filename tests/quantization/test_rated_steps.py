"""Steps at a rate: within it, and at least as good as any other choice of the same bits."""

import itertools

import pytest
import torch

from penjing.quantization.rated_steps import _tried, steps_at_rate


def entropy(codes: torch.Tensor) -> float:
    _, counts = codes.unique(return_counts=True)
    p = counts.double() / codes.numel()
    return float(-(p * p.log2()).sum())


@pytest.mark.parametrize("rate", [1.2, 2.0, 3.0])
def test_no_other_steps_of_as_few_bits_have_less_error(rate: float) -> None:
    torch.manual_seed(0)
    weights = {"a": torch.randn(400), "b": torch.distributions.Laplace(0.0, 3.0).sample((200,))}
    ends = {"a": (-7, 7), "b": (-3, 3)}
    found = steps_at_rate(weights, rate, ends)

    def measured(steps: dict[str, torch.Tensor]) -> tuple[float, float]:
        bits = error = 0.0
        for name, w in weights.items():
            codes = torch.round(w / steps[name]).clamp(*ends[name])
            bits += entropy(codes) * len(w) / 600
            error += float((codes * steps[name] - w).square().sum() / w.square().sum()) * len(w)
        return bits, error

    bits, error = measured(found)
    assert 0.85 * rate < bits <= rate
    tried = {name: _tried(w, *ends[name])[0] for name, w in weights.items()}
    for one, other in itertools.product(tried["a"], tried["b"]):
        own = measured({"a": one, "b": other})
        assert own[0] > bits or own[1] >= error - 1e-3  # on the lower convex hull


def test_a_layer_of_zeros_costs_nothing() -> None:
    weights = {"a": torch.randn(100), "zeros": torch.zeros(50)}
    found = steps_at_rate(weights, 1.0, dict.fromkeys(weights, (-3, 3)))
    assert all(float(step) > 0 for step in found.values())
