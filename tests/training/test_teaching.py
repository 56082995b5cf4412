"""Learning from teachers: one, several, their layers, their answers kept; and averages of weights."""

import copy
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from penjing.data import Versions, in_memory_loader
from penjing.data.augment import random_affine
from penjing.errors import DataError, SettingError
from penjing.graph import Network
from penjing.objective import soft_target_loss
from penjing.training import (
    AverageEpochs,
    Batch,
    Fit,
    LearnFromLabels,
    LearnFromLayers,
    LearnFromTeacher,
    Part,
    Schedule,
    Task,
    Teacher,
    agreed,
    fit_,
    mean_of_weights,
    measure_batch_norms_,
    patient_mapping,
    regressor_between,
)
from penjing.training.answers import KeptAnswers, rounded
from penjing.training.progress import Silent


class Loud(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


class Counted(nn.Module):
    """A teacher that counts the samples that it answers."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.n = network, 0

    def forward(self, x: Tensor) -> Tensor:
        self.n += len(x)
        answer: Tensor = self.network(x)
        return answer


def pictures(versions: int | None, *, shuffle: bool = True, n: int = 40) -> Task:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n, 2, 6, 6, generator=generator)
    loader = in_memory_loader(x, torch.arange(n) % 3, 8, shuffle=shuffle, augment=random_affine(), versions=versions)
    return Task(loader, in_memory_loader(x, torch.arange(n) % 3, 20))


@pytest.fixture
def teacher(conv_network: Network) -> Network:
    return copy.deepcopy(conv_network)


# --- answers, kept and not ----------------------------------------------------------------------------------------------


def test_answers_are_computed_once_for_each_version(conv_network: Network, teacher: Network) -> None:
    counted, loud = Counted(teacher), Loud()
    parts: list[Part] = [LearnFromTeacher(counted)]
    fit_(conv_network, pictures(2), Schedule(epochs=12), parts, reporter=loud)
    assert 60 < counted.n <= 2 * 40 + 1  # one to see the shape; 12 epochs meet nearly all of 80
    assert not loud.said


def test_training_from_kept_answers_is_training_from_the_teacher(conv_network: Network, teacher: Network) -> None:
    """The same batches: once the data set tells which sample is which, once nobody keeps anything."""

    def trained(limit: int) -> tuple[dict[str, Tensor], list[str]]:
        student, loud = copy.deepcopy(conv_network), Loud()
        part = LearnFromTeacher(Teacher(teacher, limit_bytes=limit))
        fit_(student, pictures(3), Schedule(epochs=5, lr=0.01), [part], reporter=loud)
        return student.state_dict(), loud.said

    kept, nothing_said = trained(10**6)
    fresh, said = trained(0)
    assert not nothing_said and len(said) == 1 and "Fewer versions take less" in said[0]
    for name, tensor in kept.items():
        torch.testing.assert_close(tensor, fresh[name], rtol=1e-2, atol=1e-3)


def test_a_plain_loader_works_and_says_that_nothing_is_kept(conv_network: Network, teacher: Network) -> None:
    counted, loud = Counted(teacher), Loud()
    fit_(conv_network, pictures(None), Schedule(epochs=3), [LearnFromTeacher(counted)], reporter=loud)
    assert counted.n == 3 * 40
    assert len(loud.said) == 1 and "does not tell which sample is which" in loud.said[0]


def test_answers_lie_in_a_file_and_serve_the_next_training(
    conv_network: Network, teacher: Network, tmp_path: Path
) -> None:
    def trained(whose: nn.Module, task: Task) -> int:
        counted = Counted(whose)
        part = LearnFromTeacher(Teacher(counted, folder=tmp_path / "answers"))
        fit_(copy.deepcopy(conv_network), task, Schedule(epochs=12), [part])
        return counted.n

    first = trained(teacher, pictures(2))
    files = list((tmp_path / "answers").iterdir())
    assert len(files) == 1 and files[0].stat().st_size == KeptAnswers.size_bytes((2, 40, 3)) == 4096 + 80 + 480
    assert trained(teacher, pictures(2)) == 1 + 2 * 40 - (
        first - 1
    )  # what was met the first time is not computed again
    other = copy.deepcopy(teacher)
    with torch.no_grad():
        other.get_submodule("0").weight[0, 0, 0, 0] += 1e-3
    assert trained(other, pictures(2)) > 60 and len(list((tmp_path / "answers").iterdir())) == 2
    assert trained(teacher, pictures(3)) > 60 and len(list((tmp_path / "answers").iterdir())) == 3


def test_answers_of_another_teacher_or_order_are_refused(
    conv_network: Network, teacher: Network, tmp_path: Path
) -> None:
    KeptAnswers((1, 4, 3), 64 * "a", tmp_path)
    (tmp_path / f"answers-{16 * 'a'}.f16").rename(tmp_path / f"answers-{16 * 'b'}.f16")
    with pytest.raises(DataError, match="another teacher, of other data or another order"):
        KeptAnswers((1, 4, 3), 64 * "b", tmp_path)
    one, two = pictures(2).train.dataset, pictures(2).train.dataset  # type: ignore[attr-defined]
    assert one.fingerprint() == two.fingerprint()
    two.images, two.labels = two.images.flip(0), two.labels.flip(0)
    assert one.fingerprint() != two.fingerprint()


def test_a_disk_without_room_costs_time_and_nothing_else(
    conv_network: Network, teacher: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    loud = Loud()
    part = LearnFromTeacher(Teacher(teacher, folder=tmp_path))
    fit_(conv_network, pictures(2), Schedule(epochs=1), [part], reporter=loud)
    assert "no room for its answers (No space left on device)" in loud.said[0] and not list(tmp_path.iterdir())


def test_kept_answers_are_float16_and_clipped() -> None:
    kept = KeptAnswers((2, 3, 2), "k")
    keys = torch.tensor([[2, 1], [0, 0]])
    values = torch.tensor([[1 / 3, -1e6], [torch.pi, 0.0]])
    assert not kept.has(keys).any()
    kept.write(keys, values)
    assert kept.has(keys).all() and int(kept.known.sum()) == 2
    assert torch.equal(kept.read(keys), rounded(values)) and float(kept.read(keys)[0, 1]) == -65504


class Drawing(Dataset[tuple[Tensor, int]]):
    """Samples that draw from all three generators."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.tensor([float(index), float(torch.rand(())), float(np.random.rand())]), index % 3


def test_versions_of_a_users_data_set() -> None:
    data = Versions(Drawing(), 2)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert torch.equal(data.version(3, 1)[0], data.version(3, 1)[0])
    assert torch.equal(torch.get_rng_state(), state)  # nobody outside notices
    assert len({tuple(data.version(i, v)[0].tolist()) for i in range(6) for v in range(2)}) == 12
    task = Task(DataLoader(data, batch_size=4), DataLoader(Drawing(), batch_size=4))
    batch = next(task.batches(task.train))
    assert batch.keys is not None and batch.keys.shape == (4, 2) and batch.keys[:, 0].tolist() == [0, 1, 2, 3]
    for x, (index, version) in zip(batch.args[0], batch.keys.tolist(), strict=True):
        assert torch.equal(x, data.version(index, version)[0])
    part = batch.chosen(torch.tensor([True, False, True, False]))
    assert (
        part.size == 2
        and part.keys is not None
        and part.keys[:, 0].tolist() == [0, 2]
        and part.labels.tolist() == [0, 2]
    )
    assert data.fingerprint() == Versions(Drawing(), 2).fingerprint() != Versions(Drawing(), 3).fingerprint()
    with pytest.raises(SettingError, match="at least 1 version of each sample, got 0"):
        Versions(Drawing(), 0)
    with pytest.raises(SettingError, match=r"must be a penjing\.data\.Augment"):
        in_memory_loader(torch.zeros(2, 1, 2, 2), torch.zeros(2), 1, augment=lambda x: x, versions=2)


# --- ensembles ------------------------------------------------------------------------------------------------------------


def test_what_several_say_together() -> None:
    answers = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    for T in (1.0, 4.0):
        mean = (answers / T).softmax(-1).mean(0)
        torch.testing.assert_close((agreed(answers, "probabilities", T) / T).softmax(-1), mean)
    product = answers.softmax(-1).log().mean(0).exp()
    torch.testing.assert_close(agreed(answers, "logits").softmax(-1), product / product.sum(-1, keepdim=True))
    votes = torch.tensor([[[3.0, 0, 0]], [[2.0, 1, 0]], [[0.0, 1, 2]]])
    found = (agreed(votes, "votes", 2.0) / 2).softmax(-1)
    torch.testing.assert_close(found, torch.tensor([[2 / 3, 1e-4, 1 / 3]]) / (1 + 1e-4))
    torch.testing.assert_close(agreed(answers[:1], "probabilities").softmax(-1), answers[0].softmax(-1))


def test_an_ensemble_teaches_its_mean(network: Network, task: Task) -> None:
    others = [nn.Linear(6, 3), nn.Linear(6, 3)]
    part = LearnFromTeacher(Teacher(*others, temperature=2.0), temperature=2.0)
    losses: list[float] = []

    class Watch(Part):
        def loss(self, fit: Fit, batch: Batch, answers: object) -> None:
            x = batch.args[0]
            with torch.no_grad():
                target = agreed(torch.stack([other(x) for other in others]), "probabilities", 2.0)
                expected = soft_target_loss(answers, target, temperature=2.0)  # type: ignore[arg-type]
                losses.append(float(expected - part.loss(fit, batch, answers)))  # type: ignore[arg-type, operator]

    fit_(network, task, Schedule(epochs=1), [part, Watch()])
    assert max(map(abs, losses)) < 1e-3
    with pytest.raises(
        DataError, match=r"all teachers must answer with the same shape, they give \(16, 3\), \(16, 4\)"
    ):
        fit_(network, task, Schedule(epochs=1), [LearnFromTeacher(Teacher(others[0], nn.Linear(6, 4)))])
    with pytest.raises(SettingError, match="at least one network"):
        Teacher()


def test_the_teachers_weight_may_fall(network: Network, task: Task) -> None:
    teacher, found = nn.Linear(6, 3), []
    falling = LearnFromTeacher(teacher, weight=4.0, last_weight=1.0)
    steady = LearnFromTeacher(teacher)

    class Watch(Part):
        def loss(self, fit: Fit, batch: Batch, answers: object) -> None:
            with torch.no_grad():
                one, other = falling.loss(fit, batch, answers), steady.loss(fit, batch, answers)  # type: ignore[arg-type]
            found.append(float(one / other))  # type: ignore[operator]

    fit_(network, task, Schedule(epochs=2), [falling, steady, Watch()])
    assert found == pytest.approx([4 - 3 * k / 5 for k in range(6)], rel=1e-4)


# --- layers -----------------------------------------------------------------------------------------------------------------


def test_twelve_layers_into_six() -> None:
    assert [k + 1 for k in patient_mapping(6, 12, "skip")] == [2, 4, 6, 8, 10, 12]  # the third from the sixth
    assert [k + 1 for k in patient_mapping(6, 12, "last")] == [7, 8, 9, 10, 11, 12]
    assert [k + 1 for k in patient_mapping(3, 7, "skip")] == [2, 5, 7]
    assert patient_mapping(4, 4, "skip") == [0, 1, 2, 3] == patient_mapping(4, 4, "last")
    with pytest.raises(SettingError, match="the student has 5 such layers, more than the teacher's 4"):
        patient_mapping(5, 4, "skip")


def test_the_lower_part_learns_the_hint_and_the_rest_stays(conv_network: Network, conv_task: Task) -> None:
    torch.manual_seed(5)
    wide = nn.Sequential(nn.Conv2d(2, 9, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(9 * 36, 3))
    before = {name: tensor.clone() for name, tensor in conv_network.state_dict().items()}
    part = LearnFromLayers(wide, {"2": "1"})
    history = fit_(conv_network, conv_task, Schedule(epochs=8, lr=0.02), [part])
    assert history.losses[-1] < 0.7 * history.losses[0]
    changed = {name for name, tensor in conv_network.state_dict().items() if not torch.equal(before[name], tensor)}
    assert {"0.weight", "0.bias"} <= changed and not any(name.startswith(("3", "5")) for name in changed)
    regressor = part.regressors["2"]
    assert isinstance(regressor, nn.Conv2d) and regressor.weight.shape == (9, 4, 1, 1)
    assert not any("regressor" in name for name in conv_network.state_dict())


def test_regressors_bring_places_together_with_few_weights() -> None:
    x = torch.randn(2, 4, 8, 8)
    for side, kernel, stride in ((8, 1, 1), (4, 2, 2), (6, 3, 1), (5, 4, 1)):
        layer = regressor_between(x.shape, torch.Size([2, 7, side, side]))
        assert isinstance(layer, nn.Conv2d)
        assert layer(x).shape == (2, 7, side, side) and layer.kernel_size == (kernel, kernel)
        assert layer.stride == (stride, stride)
    assert regressor_between(torch.Size([2, 5, 8]), torch.Size([2, 5, 6]))(torch.randn(2, 5, 8)).shape == (2, 5, 6)
    for wrong in ([2, 7, 9, 9], [2, 7], [2, 7, 4]):
        with pytest.raises(SettingError, match="no regressor leads from"):
            regressor_between(x.shape, torch.Size(wrong))


def test_layers_that_do_not_fit_and_layers_that_are_not_there(conv_network: Network, conv_task: Task) -> None:
    teacher = nn.Sequential(nn.Conv2d(2, 9, 3), nn.Flatten(), nn.Linear(144, 3))

    def train(layers: dict[str, str], **more: object) -> None:
        fit_(conv_network, conv_task, Schedule(epochs=1), [LearnFromLayers(teacher, layers, **more)])  # type: ignore[arg-type]

    with pytest.raises(SettingError, match='the teacher has no layer "9"; '):
        train({"2": "9"})
    with pytest.raises(SettingError, match='the student has no layer "9"; '):
        train({"9": "0"})
    with pytest.raises(SettingError, match=r"2 gives \(4, 6, 6\) and the teacher's 0 \(9, 4, 4\)"):
        train({"2": "0"}, regressor="never")
    with pytest.raises(SettingError, match="must look at the same places"):
        train({"2": "0"}, match="attention")
    with pytest.raises(SettingError, match="layers must name at least one pair"):
        train({})


def test_a_training_with_regressors_goes_on_after_a_stop(
    conv_network: Network, conv_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penjing.training.fit.SAVE_EVERY_SECONDS", -1.0)
    torch.manual_seed(5)
    wide = nn.Sequential(nn.Conv2d(2, 9, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(9 * 36, 3))

    class Stop(Part):
        def epoch_start(self, fit: Fit) -> None:
            if fit.epoch == 2 and stopping:
                raise KeyboardInterrupt

    def train(student: Network, keep: Path | None) -> None:
        hints = LearnFromLayers(copy.deepcopy(wide), {"2": "1"})
        fit_(student, conv_task, Schedule(epochs=4, lr=0.02), [hints, LearnFromLabels(), Stop()], keep=keep)

    stopping = False
    whole, student = copy.deepcopy(conv_network), copy.deepcopy(conv_network)
    train(whole, None)
    stopping = True
    with pytest.raises(KeyboardInterrupt):
        train(student, tmp_path / "t")
    stopping = False
    train(conv_network, tmp_path / "t")
    assert all(torch.equal(whole.state_dict()[name], tensor) for name, tensor in conv_network.state_dict().items())


# --- averages ---------------------------------------------------------------------------------------------------------------


def test_the_average_of_the_last_epochs_and_its_statistics(conv_network: Network, conv_task: Task) -> None:
    seen: list[dict[str, Tensor]] = []

    class Watch(Part):
        def epoch_end(self, fit: Fit) -> None:
            seen.append({name: tensor.clone() for name, tensor in fit.network.state_dict().items()})

    fit_(conv_network, conv_task, Schedule(epochs=5, lr=0.05), [LearnFromLabels(), Watch(), AverageEpochs(3)])
    found = conv_network.state_dict()
    for name in ("0.weight", "3.bias", "5.weight"):
        torch.testing.assert_close(found[name], torch.stack([s[name] for s in seen[-3:]]).mean(0))
    x = torch.cat([b.args[0] for b in conv_task.batches(conv_task.valid)])
    first = nn.functional.conv2d(x, found["0.weight"], found["0.bias"], padding=1)
    torch.testing.assert_close(found["1.running_mean"], first.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_statistics_measured_anew_are_the_mean_over_batches(conv_network: Network, conv_task: Task) -> None:
    batches = list(conv_task.batches(conv_task.valid))
    with torch.no_grad():
        conv_network.get_submodule("0").weight.mul_(3)
        before = [conv_network.get_submodule("0")(b.args[0]) for b in batches]
    norm = conv_network.get_submodule("1")
    momentum = norm.momentum
    assert measure_batch_norms_(conv_network.eval(), batches) == 1
    variances = torch.stack([x.var((0, 2, 3)) for x in before]).mean(0)
    torch.testing.assert_close(norm.running_var, variances)
    assert norm.momentum == momentum and not norm.training and not conv_network.training
    assert measure_batch_norms_(nn.Linear(2, 2), iter(())) == 0


def test_the_mean_of_networks(network: Network) -> None:
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.get_submodule("0").weight.add_(2)
    mean = mean_of_weights([network, other])
    torch.testing.assert_close(mean.get_submodule("0").weight, network.get_submodule("0").weight + 1)


def test_a_rate_that_is_held() -> None:
    schedule = Schedule(lr=1.0, warmup=0, hold=0.75)
    assert schedule.rate(0.5) == pytest.approx(0.5)
    assert schedule.rate(0.75) == schedule.rate(0.9) == schedule.rate(1.0) == pytest.approx(0.5 * (1 - 0.5**0.5))
