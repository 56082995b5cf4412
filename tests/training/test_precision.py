"""Mixed precision that a processor has to imitate is measured and said."""

import time

import pytest
import torch

from penjing.graph import Network
from penjing.recipe import compress
from penjing.training import Task, precision
from penjing.training.progress import Silent

CPU = torch.device("cpu")


class Heard(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_float32_and_other_devices_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "perf_counter", lambda: pytest.fail("nothing to measure"))
    assert precision.times_as_long("no", CPU) == 1
    assert precision.times_as_long("bf16", torch.device("cuda")) == 1


def test_the_ratio_is_of_the_fastest_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of 1 s in float32 and 3 s in bfloat16, the first of each slowed by 10 s."""
    seconds = iter([11.0, 13.0, *[1.0, 3.0] * precision._ROUNDS])
    now = [0.0, False]

    def clock() -> float:
        if now[1]:
            now[0] += next(seconds)
        now[1] = not now[1]
        return now[0]

    monkeypatch.setattr(time, "perf_counter", clock)
    assert precision.times_as_long("bf16", CPU) == 3


def test_randomness_is_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    assert precision.times_as_long("bf16", CPU) > 0
    torch.testing.assert_close(torch.rand(2), expected)


@pytest.mark.parametrize(("ratio", "n_lines"), [(17.5, 1), (1.05, 0), (0.6, 0)])
def test_a_run_says_so(
    monkeypatch: pytest.MonkeyPatch, task: Task, network: Network, ratio: float, n_lines: int
) -> None:
    monkeypatch.setattr(precision, "times_as_long", lambda precision, device: ratio)
    heard = Heard()
    compress(network, task, ["half-precision"], reporter=heard)
    assert sum("17.5 times as long as in float32" in line for line in heard.lines) == n_lines
