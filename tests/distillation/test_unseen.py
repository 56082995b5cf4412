"""Classes that the transfer set does not have."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from penjing.data import in_memory_loader
from penjing.distillation import CorrectBiases, best_shift, shift_logits, without_classes
from penjing.errors import DataError, SettingError
from penjing.graph import trace
from penjing.training import Task, Workbench


def right(logits: torch.Tensor, labels: torch.Tensor, classes: list[int], shift: float) -> int:
    moved = logits.clone()
    moved[:, classes] += shift
    return int((moved.argmax(1) == labels).sum())


@pytest.mark.parametrize("classes", [[3], [1, 4], [0, 1, 2, 3]])
def test_the_best_shift_is_the_best_of_all(classes: list[int]) -> None:
    generator = torch.Generator().manual_seed(len(classes))
    for _ in range(6):
        logits = torch.randn(60, 5, generator=generator, dtype=torch.float64)
        labels = torch.randint(5, (60,), generator=generator)
        shift, count = best_shift(logits, labels, classes)
        assert right(logits, labels, classes, shift) == count
        assert count >= max(right(logits, labels, classes, s) for s in torch.linspace(-8, 8, 801).tolist())


def test_nothing_is_shifted_where_nothing_is_gained_and_the_sign_is_right() -> None:
    labels = torch.arange(30) % 3
    logits = 5 * nn.functional.one_hot(labels, 3).double()
    assert best_shift(logits, labels, [2])[0] == 0
    low = logits.clone()
    low[:, 2] -= 7
    assert best_shift(low, labels, [2])[0] > 2 and best_shift(low, labels, [2])[1] == 30
    high = logits.clone()
    high[:, [0, 1]] += 7
    assert best_shift(high, labels, [0, 1])[0] < -2


def task(names: tuple[str, ...] = ()) -> Task:
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, torch.arange(60) % 3)
    return Task(DataLoader(data, batch_size=8, shuffle=True), DataLoader(data, batch_size=60), classes=names)


@pytest.mark.parametrize("given", [[2], ["c"]])
def test_a_transfer_set_without_a_class(given: list[Any]) -> None:
    whole = task(("a", "b", "c"))
    part = without_classes(whole, given)
    labels = torch.cat([batch.labels for batch in part.batches(part.train)])
    assert sorted(labels.tolist()) == sorted(i % 3 for i in range(60) if i % 3 != 2)
    assert len(next(part.batches(part.valid)).labels) == 60
    for bad, message in ((["d"], 'no class "d"'), ([7], 'no class "7"'), ([], "at least one class")):
        with pytest.raises(SettingError, match=message):
            without_classes(whole, bad)


def test_samples_keep_their_numbers_when_a_class_is_left_out() -> None:
    loader = in_memory_loader(torch.arange(12.0).view(12, 1, 1, 1), torch.arange(12) % 3, 4, versions=1)
    part = without_classes(Task(loader, loader), [1])
    for batch in part.batches(part.train):
        assert batch.keys is not None and batch.args[0].flatten().tolist() == batch.keys[:, 0].tolist()
    assert part.train.dataset is loader.dataset  # type: ignore[attr-defined]
    unlabelled = Task([torch.zeros(2, 1)], [torch.zeros(2, 1)])
    with pytest.raises(DataError, match="left out only where the batches have labels"):
        list(without_classes(unlabelled, [1]).train)


def test_the_stage_shifts_the_last_bias_by_what_validation_says() -> None:
    torch.manual_seed(0)
    network = trace(nn.Sequential(nn.Linear(4, 3, bias=False)), (torch.randn(2, 4),)).eval()
    bench = Workbench(network, task())
    CorrectBiases(classes=(1,)).apply(bench)
    decided: Any = bench.facts
    batch = next(bench.task.batches(bench.task.valid))
    with torch.no_grad():
        before, after = network(*batch.args), bench.network(*batch.args)
    torch.testing.assert_close(after - before, torch.tensor([0.0, decided["shift"], 0.0]).expand(60, 3))
    assert int((after.argmax(1) == batch.labels).sum()) == decided["right"] >= decided["right before"]
    with pytest.raises(SettingError, match="has 3 classes, there is none of number 7"):
        CorrectBiases(classes=(7,)).apply(Workbench(network, task()))
    softmax = trace(nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)), (torch.randn(2, 4),))
    with pytest.raises(SettingError, match="must end in a linear layer or a convolution"):
        shift_logits(softmax, [1], 1.0)
