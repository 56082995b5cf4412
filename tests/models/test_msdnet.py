"""MSDNet has the parameters and multiply-accumulates of the authors' code, and computes fewer on the way to its exits."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from penjing.errors import SettingError
from penjing.graph import NEVER, trace, with_one_answer
from penjing.measurement import macs_of_answers, macs_to_exits
from penjing.measurement.macs import layer_macs
from penjing.models import msdnet


def _macs_of_blocks(model: nn.Module) -> list[float]:
    """Of all layers of the blocks and classifiers up to each one, in millions."""
    found: dict[str, int] = {}

    def count(path: str) -> object:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found[path] = layer_macs(layer, inputs[0].shape[1:], output.shape[1:])

        return hook

    for path, layer in model.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(count(path))  # type: ignore[arg-type]
    with torch.device("meta"), torch.no_grad():
        model.eval().to("meta")(torch.empty(1, 3, 32, 32))
    by_block = [
        sum(macs for path, macs in found.items() if path.split(".")[1] == str(k))
        for k in range(len(model.get_submodule("blocks")._modules))
    ]
    return [round(total / 1e6, 2) for total in itertools.accumulate(by_block)]


@pytest.mark.parametrize(
    ("settings", "n_parameters", "millions"),
    [
        ({"blocks": 10}, 4_839_544, [14.96, 25.24, 37.43, 51.62, 61.69, 73.52, 87.13, 99.39, 109.44, 120.97]),
        ({"blocks": 7}, 2_986_690, [14.96, None, None, None, None, None, 75.41]),
        (
            {"blocks": 7, "base": 1, "step": 1, "grow": "linear"},
            3_885_394,
            [6.78, 14.19, 27.01, 48.01, 75.84, 108.12, 136.48],
        ),
        ({"blocks": 5, "base": 1, "step": 1, "grow": "linear"}, 2_020_874, [6.78, 14.19, 27.24, 41.33, 58.03]),
        ({"blocks": 5, "base": 2, "step": 1}, 1_348_526, [9.25, 14.05, 18.13, 21.23, 24.27]),
    ],
)
def test_figures_of_the_authors_code(
    settings: dict[str, object], n_parameters: int, millions: list[float | None]
) -> None:
    model = msdnet(**settings)  # type: ignore[arg-type]
    assert sum(p.numel() for p in model.parameters()) == n_parameters
    found = _macs_of_blocks(model)
    assert [f for f, m in zip(found, millions, strict=True) if m is not None] == [m for m in millions if m is not None]


def test_a_list_of_answers_becomes_exits_that_compute_what_they_need() -> None:
    torch.manual_seed(0)
    model = msdnet(3, base=1, step=1, width=4, growth=2, classes=5).eval()
    x = torch.randn(4, 3, 32, 32)
    network = with_one_answer(trace(model, (x[:2],))).eval()
    assert network.thresholds == [NEVER, NEVER]
    with torch.no_grad():
        for own, expected in zip(network.all_answers(x), model(x), strict=True):
            torch.testing.assert_close(own, expected)
        torch.testing.assert_close(network(x), model(x)[-1])
    passed, alone, blocks = macs_to_exits(network), macs_of_answers(network), _macs_of_blocks(model)
    assert passed[-1] / 1e6 == pytest.approx(blocks[-1], abs=0.01)
    assert all(p / 1e6 < b for p, b in zip(passed[:-1], blocks[:-1], strict=True))  # finer scales wait
    assert all(a <= p for a, p in zip(alone, passed, strict=True)) and alone[0] == passed[0]


def test_other_lists_stay_what_they_are() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 5)

        def forward(self, x: Tensor) -> list[Tensor]:
            return [self.a(x), self.b(x)]

    from penjing.errors import TraceError

    with pytest.raises(TraceError, match="answers with 2 tensors"):
        with_one_answer(trace(Two(), (torch.randn(2, 3),)))


def test_odd_growth_is_refused() -> None:
    with pytest.raises(SettingError, match=r"growth even, got 7, 4, 2, 16 and 5"):
        msdnet(growth=5)
