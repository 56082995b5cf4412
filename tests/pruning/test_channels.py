"""The stage that removes channels: by every score, by every amount."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from penjing.artifact import encode
from penjing.errors import SettingError
from penjing.graph import Network, channel_groups, trace
from penjing.pruning import PruneChannels
from penjing.pruning import channels as module
from penjing.pruning.amounts import COUNTED
from penjing.pruning.apoz import average_zeros, often_zero
from penjing.pruning.channel_scores import CHANNEL_SCORES
from penjing.training import BASELINE, Journal, Stage, Task, Workbench


@pytest.fixture(scope="module")
def task() -> Task:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 1, 8, 8, generator=generator)
    data = TensorDataset(x, (x.mean((1, 2, 3)) > 0).long())
    return Task(DataLoader(data, batch_size=16, shuffle=True), DataLoader(data, batch_size=32))


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3)]
    layers += [nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 2)]
    return trace(nn.Sequential(*layers), (torch.randn(2, 1, 8, 8),)).eval()


def applied(stage: Stage, network: Network, task: Task, folder: Path | None = None) -> Workbench:
    accelerator = Accelerator(cpu=True)
    journal, teachers = Journal(folder, accelerator), {BASELINE: network}
    bench = Workbench(copy.deepcopy(network), task, journal=journal, accelerator=accelerator, teachers=teachers)
    stage.apply(bench)
    return bench


def widths(network: Network) -> list[int]:
    return [g.n_channels for g in channel_groups(network).groups]


@pytest.mark.parametrize("score", [*CHANNEL_SCORES, "weights:magnitude", "weights:obd"])
def test_every_score_prunes(score: str, network: Network, task: Task) -> None:
    bench = applied(PruneChannels(score=score, rounds=1, epochs=0, sparsity=0.25), network, task)
    assert sum(widths(bench.network)) == 21 and bench.facts["removed in each round"]


@pytest.mark.parametrize("kind", ["parameters", "macs"])
def test_a_fraction_is_reached_over_rounds(kind: str, network: Network, task: Task) -> None:
    bench = applied(PruneChannels(**{kind: 0.4}, rounds=2, epochs=0), network, task)
    cost = COUNTED[kind]  # type: ignore[index]
    whole = cost(network)
    largest = whole / 12 + whole / 16  # what one channel of either layer takes with it, at most
    assert 0.6 * whole - largest < cost(bench.network) <= 0.6 * whole
    left: Any = bench.facts[f"{kind} left after each round"]
    assert left[0] <= 0.6**0.5 and left[1] == pytest.approx(cost(bench.network) / whole, abs=1e-6)
    assert not bench.warnings


def test_what_cannot_be_reached_is_told_with_the_groups_in_the_way(network: Network, task: Task) -> None:
    bench = applied(PruneChannels(macs=0.99, rounds=1, epochs=0, keep_at_least=5), network, task)
    assert widths(bench.network) == [5, 5]
    assert any(
        "of the macs instead of 99.0%" in text and "every layer keeps 5 (0, 3)" in text for text in bench.warnings
    )


def test_a_sparsity_that_would_empty_a_layer_leaves_its_last_and_names_it(network: Network, task: Task) -> None:
    bench = applied(PruneChannels(sparsity=0.95, uniform=True, rounds=1, epochs=0, keep_at_least=3), network, task)
    assert widths(bench.network) == [3, 3]
    assert any("every layer keeps 3 (0, 3)" in text for text in bench.warnings)


@pytest.mark.parametrize("settings", [{}, {"uniform": True}, {"macs": 0.5}, {"rule": "apoz", "score": "apoz"}])
def test_multiples_stay(settings: dict[str, Any], network: Network, task: Task) -> None:
    bench = applied(PruneChannels(rounds=2, epochs=0, round_to=4, **settings), network, task)
    assert all(n % 4 == 0 for n in widths(bench.network))
    if settings != {"rule": "apoz", "score": "apoz"}:
        assert sum(widths(bench.network)) < 28


def test_the_rule_of_zeros_removes_what_is_far_over_the_mean(network: Network, task: Task) -> None:
    dead = copy.deepcopy(network)
    with torch.no_grad():
        dead.get_submodule("1").bias[[2, 7]] = -100
    bench = applied(PruneChannels(rule="apoz", rounds=1, epochs=0), dead, task)
    shares = average_zeros(dead, channel_groups(dead).groups, task.batches(task.train))
    assert often_zero(shares[0]) == [2, 7]
    assert widths(bench.network) == [10, 16 - len(often_zero(shares[1]))]


class Clock:
    """A watch that counts MACs in the place of time."""

    def __init__(self, before: Network) -> None:
        self.whole = COUNTED["macs"](before)

    def share(self, network: Network) -> float:
        return COUNTED["macs"](network) / self.whole

    def __enter__(self) -> "Clock":
        return self

    def __exit__(self, *exception: object) -> None:
        pass


def test_time_is_searched_for_and_remembered(
    network: Network, task: Task, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stage = PruneChannels(latency=0.5, rounds=2, epochs=0)
    with monkeypatch.context() as patch:
        patch.setattr(module, "Stopwatch", Clock)
        bench = applied(stage, network, task, tmp_path)
        left: Any = bench.facts["latency left after each round"]
        assert 0.3 < left[-1] <= 0.5 and COUNTED["macs"](bench.network) <= 0.5 * COUNTED["macs"](network)
    again = applied(stage, network, task, tmp_path)  # would measure another time, but reads
    assert encode(again.network) == encode(bench.network) and again.facts == bench.facts


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"macs": 0.5, "parameters": 0.5}, "prune-channels: parameters and macs say how much goes; give one of them"),
        ({"macs": 0.5, "sparsity": 0.2}, "macs and sparsity say how much goes"),
        ({"rule": "apoz", "latency": 0.2}, "latency and rule say how much goes"),
        ({"macs": 1.5}, "prune-channels: macs: it must be less than 1"),
        ({"score": "tailor"}, 'prune-channels: score: there is no score "tailor"; did you mean "taylor"'),
        ({"score": "weights:obs"}, 'did you mean "weights:obd"'),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        PruneChannels(**settings)
