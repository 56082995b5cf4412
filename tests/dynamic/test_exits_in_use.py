"""Temperatures, anytime answers, networks that bring their exits, and what the stage makes of them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import penjing as pj
from penjing.dynamic import answers_in_time, attach_exits, best_answer, calibrate_exits, temperature
from penjing.errors import SettingError
from penjing.graph import NEVER, ExitOutputs, Network, trace, with_one_answer
from penjing.measurement import answer
from penjing.models import msdnet
from penjing.objective import soft_target_loss
from penjing.quantization.cluster import cluster_network
from penjing.training import Fit, Schedule, Task, Workbench, new_accelerator
from penjing.training.self_teaching import LearnFromLastAnswer

CLASSES = 3


def _task(n: int = 600, seed: int = 0) -> Task:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 1, 6, 6, generator=generator)
    y = (x[:, 0, :3].mean((1, 2)) > 0).long() + (x[:, 0, 3:].mean((1, 2)) > 0).long()
    loader = DataLoader(TensorDataset(x, y), 60)
    return Task(train=loader, valid=loader)


def _network() -> Network:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(216, CLASSES),
    )
    return trace(model, (torch.randn(2, 1, 6, 6),)).eval()


@pytest.mark.parametrize("true", [0.3, 1.0, 4.0])
def test_the_temperature_undoes_what_made_answers_too_sure(true: float) -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(20_000, 5, generator=generator) * 2
    labels = torch.multinomial(z.softmax(1), 1, generator=generator).squeeze(1)
    assert temperature(z * true, labels) == pytest.approx(true, rel=0.05)
    t = torch.tensor(temperature(z * true, labels), dtype=torch.float64, requires_grad=True)
    nn.functional.cross_entropy(z.double() * true / t, labels).backward()
    assert t.grad is not None and abs(float(t.grad)) < 1e-6  # no other one is better


def test_temperature_has_ends() -> None:
    sure = torch.eye(3) * 5
    assert float((sure / temperature(sure, torch.arange(3))).softmax(1).diagonal().min()) == 1
    assert temperature(sure, torch.tensor([1, 2, 0])) == pytest.approx(100.0)


@pytest.mark.parametrize("clustered", [False, True])
def test_calibrated_exits_answer_the_same_divided_by_their_temperature(clustered: bool) -> None:
    task, network = _task(), attach_exits(_network(), [_network().node_of("1").name]).eval()
    if clustered:
        network, _ = cluster_network(network, 4)
    found = answer(network, task, task.valid)
    calibrated, temperatures = calibrate_exits(network, found)
    again = answer(calibrated, task, task.valid)
    assert found.at_exits is not None and again.at_exits is not None and len(temperatures) == 2
    for before, after, t in zip(found.at_exits, again.at_exits, temperatures, strict=True):
        torch.testing.assert_close(after, before / t, rtol=1e-4, atol=1e-5)
        assert temperature(after, again.labels) == pytest.approx(1.0, rel=1e-3)
    extra = len(calibrated.nodes) - len(network.nodes)
    assert extra == (2 if clustered else 0)  # weights that are codes are left alone


def test_answers_come_one_by_one_and_nothing_ahead() -> None:
    network = attach_exits(_network(), [_network().node_of("1").name]).eval()
    calls: list[str] = []
    network.get_submodule("2").register_forward_hook(lambda *_: calls.append("2"))
    x = torch.randn(4, 1, 6, 6)
    stream = answers_in_time(network, x)
    first = next(stream)
    assert not calls
    expected = network.all_answers(x)
    calls.clear()
    torch.testing.assert_close(first, expected[0])
    torch.testing.assert_close(next(stream), expected[1])
    assert calls == ["2"] and next(stream, None) is None


def test_the_best_answer_is_the_last_that_came_in_time() -> None:
    network = attach_exits(_network(), [_network().node_of("1").name]).eval()
    x = torch.randn(4, 1, 6, 6)
    expected = network.all_answers(x)
    found, k = best_answer(network, x)
    assert k == 1 and torch.equal(found, expected[1])
    found, k = best_answer(network, x, seconds=1e-9)
    assert k == 0 and torch.equal(found, expected[0])
    assert best_answer(network, x, stop=lambda: True)[1] == 0
    with pytest.raises(SettingError, match="seconds must be greater than 0"):
        best_answer(network, x, seconds=0)


def _in_place_loss(soft: float, answers: ExitOutputs, labels: Tensor) -> Tensor:
    task = _task()
    fit = Fit(_network(), task, Schedule(), [], new_accelerator(), "test")
    batch = next(task.batches([(torch.zeros(len(labels), 1, 6, 6), labels)]))
    found = LearnFromLastAnswer(soft, 2.0).loss(fit, batch, answers)
    assert found is not None
    return found


def test_in_place_distillation_is_the_sum_of_its_terms() -> None:
    torch.manual_seed(0)
    first, last = torch.randn(5, CLASSES, requires_grad=True), torch.randn(5, CLASSES, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 0, 1])
    entropy = nn.functional.cross_entropy
    for soft in (0.0, 0.3, 1.0):
        found = _in_place_loss(soft, ExitOutputs([first, last]), labels)
        expected = entropy(last, labels) + (1 - soft) * entropy(first, labels)
        expected = expected + soft * soft_target_loss(first, last.detach(), temperature=2.0)
        torch.testing.assert_close(found, expected)
        (gradient,) = torch.autograd.grad(found, last, retain_graph=True)
        torch.testing.assert_close(gradient, torch.autograd.grad(entropy(last, labels), last)[0])  # it is not taught


def test_msdnet_brings_its_exits_and_its_thresholds_come_from_validation() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(48, 3, 32, 32), torch.randint(0, CLASSES, (48,))
    loader = DataLoader(TensorDataset(x, y), 24)
    model = msdnet(3, base=1, step=1, width=4, growth=2, classes=CLASSES)
    network = with_one_answer(trace(model, (x[:2],)))
    bench = Workbench(network, Task(train=loader, valid=loader))
    pj.EarlyExits(
        epochs=1, saving=0.05, thresholds="geometric", confidence="margin", calibrate=True, in_place=0.5
    ).apply(bench)
    assert len(bench.network.exits) == 2 and "exits after" not in bench.facts
    assert all(node.settings["confidence"] == "margin" for node in bench.network.exits)
    assert len(bench.facts["exit temperatures"]) == 3 and len(bench.facts["exit thresholds"]) == 2
    found = answer(bench.network, bench.task, loader)
    from penjing.measurement import macs_of_samples, macs_without_exits

    assert found.left_at is not None
    saved = 1 - float(macs_of_samples(bench.network, found.left_at, {}).double().mean()) / macs_without_exits(
        bench.network
    )
    assert saved >= 0.05
    assert any("validation set is small" in text for text in bench.warnings)


def test_a_drop_that_nothing_meets_is_said() -> None:
    task = _task()
    bench = Workbench(_network(), task)
    pj.EarlyExits(epochs=3, lr=0.01, max_drop="99 pp").apply(bench)
    assert bench.network.thresholds[0] < NEVER
    assert "saved on validation" in bench.facts


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"saving": 0.2, "max_drop": "1 pp"}, "choose saving or max_drop, not both"),
        ({"in_place": 0.5, "teacher": "baseline"}, "choose a teacher or in_place, not both"),
        ({"confidence": "luck"}, "'largest', 'margin' or 'entropy'"),
        ({"max_drop": "1 kB"}, "must be in percentage points or a fraction"),
    ],
)
def test_settings_that_contradict_one_another_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        pj.EarlyExits(**settings)
