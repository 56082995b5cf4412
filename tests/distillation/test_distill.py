"""Distillation as a stage: what its settings make of the loss."""

import pytest
import torch
from torch import Tensor, nn

from penjing.distillation import Distill
from penjing.errors import DataError, SettingError
from penjing.graph import ExitOutputs
from penjing.objective import decoupled_distillation_loss, dist_loss, logit_regression_loss, soft_target_loss
from penjing.training import Batch, Task
from penjing.training.answers import rounded


class Bench:
    """What `parts` and the parts' losses ask of a workbench and a training."""

    device, step, total_steps, answers_folder = torch.device("cpu"), 0, 1, None

    def __init__(self) -> None:
        self.task, self.network_teacher = Task([], []), nn.Linear(4, 3)
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def teacher(self, name: str, where: str) -> nn.Module:
        assert (name, where) == ("baseline", "distill")
        return self.network_teacher

    def laid_out(self, batch: Batch) -> Batch:
        return batch


@pytest.fixture
def batch() -> Batch:
    torch.manual_seed(0)
    return Batch((torch.randn(5, 4),), {}, torch.arange(5) % 3)


def total(stage: Distill, bench: Bench, batch: Batch, answers: Tensor | ExitOutputs) -> Tensor:
    return torch.stack([part.loss(bench, batch, answers) for part in stage.parts(bench)]).sum().detach()  # type: ignore[arg-type]


def test_the_loss_is_the_weighted_sum_of_teacher_and_labels(batch: Batch) -> None:
    bench, student = Bench(), torch.randn(5, 3)
    soft = soft_target_loss(student, rounded(bench.network_teacher(*batch.args)), temperature=3.0)
    hard = nn.functional.cross_entropy(student, batch.labels)
    found = total(Distill(temperature=3, soft=0.7), bench, batch, student)
    torch.testing.assert_close(found, (0.7 * soft + 0.3 * hard).detach())


def test_the_loss_sums_over_exits(batch: Batch) -> None:
    bench, one, two = Bench(), torch.randn(5, 3), torch.randn(5, 3)
    stage = Distill(soft=0.5)
    both = total(stage, bench, batch, ExitOutputs([one, two]))
    torch.testing.assert_close(both, total(stage, bench, batch, one) + total(stage, bench, batch, two))


@pytest.mark.parametrize("match", ["logits", "decoupled", "dist"])
def test_what_is_matched_is_a_choice(batch: Batch, match: str) -> None:
    bench, student = Bench(), torch.randn(5, 3)
    teacher = rounded(bench.network_teacher(*batch.args))
    expected = {
        "logits": logit_regression_loss(student, teacher),
        "decoupled": decoupled_distillation_loss(student, teacher, batch.labels, temperature=2.0),
        "dist": dist_loss(student, teacher, temperature=2.0),
    }[match]
    found = total(Distill(match=match, temperature=2, soft=1), bench, batch, student)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected.detach())


def test_decoupled_distillation_asks_for_labels(batch: Batch) -> None:
    with pytest.raises(DataError, match="Choose match: soft-targets, logits or dist"):
        total(Distill(match="decoupled", soft=1), Bench(), Batch(batch.args, {}), torch.randn(5, 3))


def test_the_teacher_alone_needs_no_labels(batch: Batch) -> None:
    bench = Bench()
    unlabelled = Batch(batch.args, {})
    same = rounded(bench.network_teacher(*batch.args))
    assert len(Distill(soft=1).parts(bench)) == 1  # type: ignore[arg-type]
    assert float(total(Distill(soft=1), bench, unlabelled, same)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("bad", [{"temperature": 0}, {"temperature": -2}, {"soft": 1.5}, {"epochs": -1}])
def test_impossible_settings(bad: dict[str, float]) -> None:
    with pytest.raises(SettingError, match=f"distill: {next(iter(bad))}"):
        Distill(**bad)
