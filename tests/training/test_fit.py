"""The loop itself: its rate, its errors, and that a seed decides everything, also across an interruption."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from penjing.errors import DataError, SettingError, TrainingError
from penjing.graph import Network, trace
from penjing.representation import Mask, represent_
from penjing.training import AverageWeights, Fit, LearnFromLabels, LearnFromTeacher, Part, Schedule, Task, device_named
from penjing.training import fit as fit_module
from penjing.training.fit import fit_


def same(a: Network, b: Network) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_the_rate_is_its_closed_form() -> None:
    schedule = Schedule(lr=0.4, warmup=0.25)
    assert schedule.rate(0.0) == pytest.approx(0.004)
    assert schedule.rate(0.125) == pytest.approx(0.2)
    assert schedule.rate(0.25) == pytest.approx(0.4)
    assert schedule.rate(0.625) == pytest.approx(0.2)
    assert schedule.rate(0.4) == pytest.approx(0.2 * (1 + math.cos(math.pi * 0.2)))
    assert schedule.rate(1.0) == pytest.approx(0.0, abs=1e-12)
    assert Schedule(lr=0.4, decay="constant", warmup=0.0).rate(0.99) == 0.4


@pytest.mark.parametrize("bad", [{"epochs": -1}, {"lr": 0}, {"warmup": 1}, {"keep_steps": (-1,)}, {"decay": "linear"}])
def test_impossible_schedules_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(SettingError, match=f"schedule: {next(iter(bad))}"):
        Schedule(**bad)


def test_training_learns_and_leaves_evaluation_mode(network: Network, task: Task) -> None:
    history = fit_(network, task, Schedule(epochs=30, lr=0.02))
    assert history.losses[-1] < 0.2 * history.losses[0] and len(history.seconds) == 30
    assert not network.training


# --- what cannot go on ------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_stage_and_epoch_and_spares_the_weights(network: Network, task: Task) -> None:
    bad = Task(task.train, task.valid, loss=lambda answers, y: answers.sum() * float("inf"))
    before = copy.deepcopy(network)
    with pytest.raises(
        TrainingError, match=r"03-distill: the loss became \S+ in epoch 1, step 1.*smaller lr.*clip_norm"
    ):
        fit_(network, bad, Schedule(epochs=2), where="03-distill")
    assert same(network, before)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.tensor([0, 1, 7]), r"\[0, 3\).*got 0 to 7"),
        (torch.tensor([0, -1, 2]), "got -1 to 2"),
        (torch.tensor([0.0, 1.0, 2.0]), "whole numbers.*float32"),
        (torch.tensor([[0], [1], [2]]), r"shape \(3,\).*\(3, 1\)"),
        (torch.tensor([0, 1]), r"shape \(3,\)"),
        ([0, 1, 2], "a tensor, got a list"),
        (None, "no labels"),
    ],
)
def test_labels_that_do_not_fit(network: Network, labels: object, words: str) -> None:
    batches = [(torch.randn(3, 6), labels)]
    with pytest.raises(DataError, match=words):
        fit_(network, Task(batches, batches), Schedule(epochs=1))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_labels_of_any_whole_type_train_alike(network: Network, dtype: torch.dtype) -> None:
    x, y = torch.randn(6, 6), torch.arange(6) % 3
    twin = copy.deepcopy(network)
    fit_(network, Task([(x, y.to(dtype))], []), Schedule(epochs=2))
    fit_(twin, Task([(x, y)], []), Schedule(epochs=2))
    assert same(network, twin)


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([], "yields no batches"),
        ([(torch.randn(3, 5), torch.zeros(3, dtype=torch.int64))], "shape"),
        ([(torch.randn(3, 6).double(), torch.zeros(3, dtype=torch.int64))], "6 of torch.float64.*6 of torch.float32"),
        ([(1, 2, 3)], "a tuple of 3"),
        ([("text", torch.zeros(3))], "not tensors but str"),
        ([{"x": [1, 2], "label": torch.zeros(2)}], 'input "x" is a list'),
        ([7], "a int"),
    ],
)
def test_loaders_that_yield_something_else(network: Network, batches: list[object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        fit_(network, Task(batches, batches), Schedule(epochs=1))


def test_pictures_of_another_size_are_told_from_what_torch_says(conv_network: Network) -> None:
    batches = [(torch.randn(4, 2, 7, 7), torch.zeros(4, dtype=torch.int64))]
    with pytest.raises(DataError, match=r"2x7x7.*takes 2x6x6"):
        fit_(conv_network, Task(batches, batches), Schedule(epochs=1))


def test_a_generator_is_told_from_a_loader(network: Network, task: Task) -> None:
    with pytest.raises(DataError, match="not a generator"):
        fit_(network, Task((b for b in task.train), task.valid), Schedule(epochs=2))
    with pytest.raises(DataError, match="train must be a loader"):
        Task(None, task.valid)  # type: ignore[arg-type]


def test_a_teacher_with_other_classes(network: Network, task: Task) -> None:
    with pytest.raises(DataError, match=r"the teacher gives \(16, 4\) and the student \(16, 3\)"):
        fit_(network, task, Schedule(epochs=1), [LearnFromTeacher(nn.Linear(6, 4))])


def test_nothing_to_learn_from(network: Network, task: Task) -> None:
    with pytest.raises(SettingError, match="nothing to learn from"):
        fit_(network, task, Schedule(epochs=1), [AverageWeights()])


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(SettingError, match=r'no "cuda:99" on this machine.*cpu'):
        device_named("cuda:99")
    assert device_named("cpu") == torch.device("cpu")


# --- batches ----------------------------------------------------------------------------------------------------------


def test_tuples_dicts_and_batches_train_alike(network: Network, task: Task) -> None:
    nets = [copy.deepcopy(network) for _ in range(4)]
    pairs = list(task.train)
    forms = [
        pairs,
        [{"input": x, "labels": y} for x, y in pairs],
        [({"input": x}, y) for x, y in pairs],
        [((x,), y) for x, y in pairs],
    ]
    for net, batches in zip(nets, forms, strict=True):
        fit_(net, Task(batches, batches), Schedule(epochs=2))
    assert all(same(nets[0], net) for net in nets[1:])


def test_without_labels_a_teacher_is_enough(network: Network, task: Task) -> None:
    torch.manual_seed(5)
    teacher = trace(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), (torch.randn(2, 6),)).eval()
    unlabelled = [x for x, _ in task.train]
    history = fit_(
        network, Task(unlabelled, unlabelled), Schedule(epochs=40, lr=0.02), [LearnFromTeacher(teacher, 2.0)]
    )
    assert history.losses[-1] < 0.15 * history.losses[0]


# --- a seed decides everything ----------------------------------------------------------------------------------------


def loader(kind: str, data: TensorDataset) -> DataLoader:
    generator = torch.Generator()
    if kind == "own generator":
        return DataLoader(data, batch_size=8, shuffle=True, generator=generator)
    if kind == "batches by a sampler":
        sampler = BatchSampler(RandomSampler(data, generator=generator), 8, drop_last=False)
        return DataLoader(data, sampler=sampler, batch_size=None)
    return DataLoader(data, batch_size=8, shuffle=True)


KINDS = ["torch's generator", "own generator", "batches by a sampler"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_bits_whatever_was_drawn_before(
    conv_network: Network, conv_task: Task, kind: str
) -> None:
    data = conv_task.train.dataset
    twin, other = copy.deepcopy(conv_network), copy.deepcopy(conv_network)
    mine = loader(kind, data)
    fit_(conv_network, Task(mine, mine), Schedule(epochs=2), seed=7)
    torch.rand(5)
    next(iter(mine))
    fit_(twin, Task(mine, mine), Schedule(epochs=2), seed=7)
    fit_(other, Task(mine, mine), Schedule(epochs=2), seed=8)
    assert same(conv_network, twin) and not same(conv_network, other)


class StopError(Exception):
    pass


class Interrupt(Part):
    """As a kill between two epochs would: nothing after epoch `at` happens."""

    def __init__(self, at: int) -> None:
        self.at = at

    def epoch_start(self, fit: Fit) -> None:
        if fit.epoch == self.at:
            raise StopError


@pytest.mark.parametrize(("kind", "optimizer"), [*((kind, "adamw") for kind in KINDS), (KINDS[0], "sgd")])
def test_an_interrupted_training_goes_on_bit_for_bit(
    conv_network: Network,
    conv_task: Task,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    optimizer: str,
) -> None:
    monkeypatch.setattr(fit_module, "SAVE_EVERY_SECONDS", -1.0)
    data = conv_task.train.dataset
    schedule = Schedule(epochs=4, lr=0.01, optimizer=optimizer, weight_decay=0.01, clip_norm=1.0, keep_steps=(0, 7))

    def train(net: Network, parts: list[Part], keep: Path | None) -> fit_module.History:
        mine = loader(kind, data)
        average = AverageWeights(0.5)  # its mean is state that must survive
        return fit_(net, Task(mine, mine), schedule, [LearnFromLabels(), average, *parts], seed=3, keep=keep)

    broken, resumed = copy.deepcopy(conv_network), copy.deepcopy(conv_network)
    whole = train(conv_network, [Interrupt(99)], None)
    with pytest.raises(StopError):
        train(broken, [Interrupt(2)], tmp_path / "t")
    assert (tmp_path / "t.unfinished.safetensors").exists()
    again = train(resumed, [Interrupt(99)], tmp_path / "t")
    assert same(conv_network, resumed)
    assert whole.losses == again.losses
    assert sorted(again.weights) == [0, 7]
    assert all(torch.equal(whole.weights[7][name], t) for name, t in again.weights[7].items())
    assert [path.name for path in tmp_path.iterdir()] == ["t.safetensors"]


def test_a_finished_training_is_only_read_and_randomness_goes_on_alike(
    network: Network, task: Task, tmp_path: Path
) -> None:
    twin = copy.deepcopy(network)
    first = fit_(network, task, Schedule(epochs=2), keep=tmp_path / "t", seed=1)
    drawn = torch.rand(3)
    second = fit_(twin, Task([], []), Schedule(epochs=2), keep=tmp_path / "t", seed=1)  # it could not train on nothing
    assert same(network, twin) and first.losses == second.losses
    assert torch.equal(drawn, torch.rand(3))


def test_a_masked_weight_learns_like_one_without_a_mask(network: Network, task: Task) -> None:
    """Not at the rate in proportion to its size that a codebook learns at, and with weight decay."""
    plain, masked = copy.deepcopy(network), copy.deepcopy(network)
    represent_(masked.get_submodule("0"), "weight", Mask(torch.ones(8, 6)))
    for one in (plain, masked):
        fit_(one, task, Schedule(epochs=2, lr=0.1, optimizer="sgd", weight_decay=0.1, warmup=0.0))
    torch.testing.assert_close(masked.get_submodule("0").weight, plain.get_submodule("0").weight)
