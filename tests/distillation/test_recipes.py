"""Whole runs: assistants, ensembles, hints, teachers from files, and what is wrong with a recipe."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import penjing as pj
from penjing.artifact import encode
from penjing.data import in_memory_loader
from penjing.errors import RunError, SettingError
from penjing.graph import Network, trace
from penjing.models import plain_cnn
from penjing.recipe import read_stage
from penjing.training import Journal, Task, Workbench, new_accelerator
from penjing.training.seeding import seed_everything


def cnn(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return plain_cnn(**{"widths": [8, 8, 8], "first_kernel": 3, "first_stride": 1, "classes": 3, **settings})


@pytest.fixture(scope="module")
def task() -> Task:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(96, 1, 8, 8, generator=generator)
    y = (x[:, 0, :4].mean((1, 2)) > 0).long() + (x[:, 0, 4:].mean((1, 2)) > 0).long()
    return Task(in_memory_loader(x, y, 16, shuffle=True, versions=1), in_memory_loader(x, y, 48))


SMALL = {"model": {"function": "penjing.models:plain_cnn", "widths": [3, 3], "classes": 3}}


def carried_out(task: Task, stages: list[Any], folder: Path | None = None) -> list[Network]:
    """The network after each stage, as in a run, without measuring."""
    accelerator = new_accelerator(torch.device("cpu"))
    teachers: dict[str, nn.Module] = {}
    network, after = trace(cnn(), task.example().args), []
    for position, item in enumerate(stages):
        stage = read_stage(item, position)
        bench = Workbench(
            copy.deepcopy(network), task, key=f"{position}", journal=Journal(folder, accelerator), teachers=teachers
        )
        seed_everything(position)
        stage.apply(bench)
        network = bench.network.eval()
        teachers |= {stage.name or stage.label: network} | ({"baseline": network} if position == 0 else {})
        after.append(network)
    return after


def size(network: Network) -> int:
    return sum(p.numel() for p in network.parameters())


def test_an_assistant_between_teacher_and_student(task: Task, tmp_path: Path) -> None:
    assistant = {"model": {"function": "penjing.models:plain_cnn", "widths": [5, 5], "classes": 3}}
    stages: list[Any] = [
        *({"train": {"epochs": 2}}, {"student": assistant}, {"distill": {"epochs": 2, "name": "assistant"}}),
        *({"student": SMALL}, {"distill": {"epochs": 2, "teacher": "assistant", "soft": 1}}),
    ]
    after = carried_out(task, stages, tmp_path)
    assert size(after[0]) > size(after[1]) == size(after[2]) > size(after[3]) == size(after[4])
    assert len(list((tmp_path / "answers").iterdir())) == 2  # of the teacher, and of the assistant
    (tmp_path / "trainings" / "4.safetensors").unlink()
    again = carried_out(task, stages, tmp_path)
    assert encode(again[-1]) == encode(after[-1])


def test_an_ensemble_of_a_stage_and_a_file_with_hints(task: Task, tmp_path: Path) -> None:
    pj.save(trace(cnn(), task.example().args), tmp_path / "other.pj")
    both = ["baseline", str(tmp_path / "other.pj")]
    hints = {"layers": {"block*": "last"}, "match": "hint", "weight": 0.5}
    student = {"model": {**SMALL["model"], "first_kernel": 3, "first_stride": 1}}
    learning = {"epochs": 1, "teacher": both, "agree": "votes", "hints": hints, "average_epochs": 1}
    after = carried_out(task, [{"train": {"epochs": 1}}, {"student": student}, {"distill": learning}])
    assert size(after[-1]) < size(after[0])
    assert encode(after[-1]) != encode(after[-2])


def test_a_student_must_answer_alike(task: Task) -> None:
    wrong = {"model": {"function": "penjing.models:plain_cnn", "widths": [3]}}
    with pytest.raises(
        SettingError, match=r"it must answer like the network before it, which gives \(3,\).*it gives \(10,\)"
    ):
        pj.compress(cnn(), task, [{"student": wrong}])
    with pytest.raises(SettingError, match='has no function "plain_cn"; did you mean "plain_cnn"'):
        pj.compress(cnn(), task, [{"student": {"model": "penjing.models:plain_cn"}}])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher": ["baseline", "nobody"]}, 'there is no teacher "nobody" before it'),
        ({"teacher": []}, "it must name somebody"),
        ({"temperature": 0}, "temperature: it must be greater than 0"),
        ({"hints": {"layers": {}}}, "layers"),
        ({"hints": {"layer": {"a": "b"}}}, 'no setting "layer"; did you mean "layers"'),
        ({"average": 0.9, "average_epochs": 1}, "choose average or average_epochs"),
        ({"without": ["9"]}, 'no class "9"'),
    ],
)
def test_what_cannot_work(task: Task, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        pj.compress(cnn(), task, [{"distill": settings}])


def test_hints_need_a_teacher(task: Task) -> None:
    with pytest.raises(SettingError, match="hints need a teacher"):
        pj.compress(cnn(), task, [{"train": {"hints": {"layers": {"block0": "block0"}}}}])


def test_everything_works_in_ones_own_loop() -> None:
    """The losses are plain functions of tensors."""
    teacher, student = cnn(), cnn(widths=[4, 8])
    regressor = nn.Conv2d(4, 8, 1)
    optimizer = torch.optim.SGD([*student.parameters(), *regressor.parameters()], lr=0.05)
    x = torch.randn(8, 1, 8, 8)
    seen: dict[str, Tensor] = {}
    student.block0.register_forward_hook(lambda m, i, o: seen.__setitem__("student", o))  # type: ignore[union-attr]
    teacher.block0.register_forward_hook(lambda m, i, o: seen.__setitem__("teacher", o))  # type: ignore[union-attr]
    losses = []
    for _ in range(5):
        with torch.no_grad():
            target = teacher(x)
        answer = student(x)
        loss = pj.soft_target_loss(answer, target, temperature=4.0)
        loss = loss + pj.hint_loss(regressor(seen["student"]), seen["teacher"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_a_teachers_file_is_looked_at_before_anything_is_trained(task: Task, tmp_path: Path) -> None:
    (tmp_path / "wrong.pj").write_bytes(b"not a network")
    for name, message in (("missing.pj", "cannot be read"), ("wrong.pj", r"wrong\.pj")):
        with pytest.raises(pj.PenjingError, match=message):
            pj.compress(cnn(), task, [{"train": {"epochs": 10**6}}, {"distill": {"teacher": str(tmp_path / name)}}])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"match": "logits"}, "only layers are looked at here, so match says nothing"),
        ({"temperature": 4}, "so temperature says nothing"),
        ({"teacher": ["a", "b"]}, "the layers are one teacher's, got 2 teachers"),
    ],
)
def test_the_hint_stage_ignores_nothing_that_is_said(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        read_stage({"hint": {"layers": {"block0": "block0"}, **settings}})


def test_a_run_does_not_go_on_with_another_teacher_in_the_file(task: Task, tmp_path: Path) -> None:
    teacher, out = tmp_path / "teacher.pj", tmp_path / "run"
    pj.save(trace(cnn(), task.example().args), teacher)
    stages: list[Any] = [{"distill": {"teacher": str(teacher), "epochs": 0}}]
    pj.compress(cnn(), task, stages, out=out)
    pj.compress(cnn(), task, stages, out=out, resume=True)
    torch.manual_seed(1)
    pj.save(trace(plain_cnn([8, 8, 8], first_kernel=3, first_stride=1, classes=3), task.example().args), teacher)
    with pytest.raises(RunError, match=r"cannot go on, this is another run \(teachers was"):
        pj.compress(cnn(), task, stages, out=out, resume=True)
