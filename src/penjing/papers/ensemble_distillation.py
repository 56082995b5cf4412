"""One network keeps most of what an ensemble of its kind gains."""

import statistics
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from penjing.graph import Network
from penjing.measurement.accuracy import answer
from penjing.models import plain_cnn
from penjing.papers.claim import Arms, Check, Claim, Figures
from penjing.papers.laboratory import Laboratory, cloned
from penjing.papers.pictures import dots, side_by_side
from penjing.settings import Settings
from penjing.training import Agree, LearnFromTeacher, Schedule, Task, Teacher, agreed

LONGER = "single network, as long as a student"
WAYS: tuple[Agree, ...] = ("probabilities", "logits", "votes")


class Experiment(Settings):
    """Small convolutional networks on a part of CIFAR-10 at a quarter of its pixels."""

    label = "ensemble-distillation experiment"
    images: int = Field(default=10_000, description="to learn from, few enough to be learned by heart")
    size: int = Field(default=16, description="pixels of a side")
    members: int = Field(default=5, ge=2)
    widths: tuple[int, ...] = Field(default=(32, 64, 128), description="of the convolutions, members' and student's")
    epochs: int = Field(default=20, description="of the members")
    student_epochs: int = Field(default=36, description="of the students, and of a single network as a control")
    batch_size: int = 128
    lr: float = 3e-3
    temperature: float = 4.0


def arms(settings: Experiment) -> tuple[str, ...]:
    """The members one by one; one trained for longer; a student for each way in which they may agree."""
    return (*(_member(k) for k in range(settings.members)), LONGER, *(_student(way) for way in WAYS))


def _member(number: int) -> str:
    return f"member {number + 1}"


def _student(way: str) -> str:
    return f"student of {way}"


def measure(laboratory: Laboratory, arm: str, settings: Experiment, before: Arms) -> Figures:
    """Train one network; accuracy on the test images, in percent."""
    task = laboratory.task(
        "cifar10-jpeg",
        size=settings.size,
        n_valid=50_000 - settings.images,
        batch_size=settings.batch_size,
        versions=1,
    )
    network = laboratory.build(lambda: _cnn(settings), task, name=arm if arm.startswith("member") else "student")
    epochs = settings.epochs if arm.startswith("member") else settings.student_epochs
    schedule = Schedule(epochs=epochs, lr=settings.lr)
    if not arm.startswith("student"):
        laboratory.train(network, task, schedule)
        laboratory.leave(arm, cloned(network.state_dict()))
        return {"accuracy": laboratory.percent_correct(network, task)}
    members = [laboratory.build(lambda: _cnn(settings), task, name=_member(k)) for k in range(settings.members)]
    for k, member in enumerate(members):
        member.load_state_dict(laboratory.left(_member(k)))
    way = next(way for way in WAYS if arm == _student(way))
    found: Figures = {"ensemble's accuracy": _together(members, task, way)}
    teacher = Teacher(
        *members,
        agree=way,
        temperature=settings.temperature,
        folder=laboratory.folder / "answers" if laboratory.folder else None,
    )
    laboratory.train(network, task, schedule, [LearnFromTeacher(teacher, settings.temperature)])
    return found | {"accuracy": laboratory.percent_correct(network, task)}


def _cnn(settings: Experiment) -> nn.Module:
    """Convolutions of 3 x 3, a maximum of 2 x 2 behind each of the first two."""
    return plain_cnn(settings.widths, channels=3, first_kernel=3, first_stride=1, pool_after=(0, 1))


def _together(members: list[Network], task: Task, way: Agree) -> float:
    """How many of the test images the ensemble gets right, in percent; probabilities are those at temperature 1."""
    found = [answer(member, task, task.test) for member in members]  # type: ignore[arg-type]
    logits: Tensor = agreed(torch.stack([each.logits for each in found]), way)
    return 100 * float((logits.argmax(-1) == found[0].labels).double().mean())


def _single(found: Arms, settings: Experiment) -> float:
    """The members' mean accuracy."""
    return statistics.fmean(found[_member(k)]["accuracy"] for k in range(settings.members))


def _kept(found: Arms, settings: Experiment, way: Agree, share: float) -> float:
    """What the student gains above a single network, less a share of what the ensemble gains."""
    single, student = _single(found, settings), found[_student(way)]
    return float(student["accuracy"] - single - share * (student["ensemble's accuracy"] - single))


def checks(settings: Experiment) -> tuple[Check, ...]:
    """The student of the mean probabilities against a single network and the ensemble."""
    way: Agree = "probabilities"
    return (
        Check(
            "the student of the mean probabilities gains at least half of what the ensemble gains",
            "frames right: single 58.9 %, ensemble of 10 61.1, student 60.8: 86 % of the gain",
            lambda arms: _kept(arms, settings, way, 0.5),
        ),
        Check(
            "the ensemble is better than a single network",
            "61.1 against 58.9 %",
            lambda arms: arms[_student(way)]["ensemble's accuracy"] - _single(arms, settings),
        ),
        Check(
            "the student is better than a single network that learns labels for as many epochs as it",
            "60.8 against 58.9 %",
            lambda arms: arms[_student(way)]["accuracy"] - arms[LONGER]["accuracy"],
        ),
    )


def picture(found: Mapping[int, Arms], settings: Experiment) -> Any:
    """Accuracies, and how much of the gain each student keeps."""
    accuracy, share = "test accuracy (%)", "share of the gain kept (%)"
    rows, kept = [], []
    for own in found.values():
        single = _single(own, settings)
        rows.append({"arm": f"single, mean of {settings.members}", accuracy: single})
        rows.append({"arm": "single, as long as students", accuracy: own[LONGER]["accuracy"]})
        for way in WAYS:
            student = own[_student(way)]
            rows.append({"arm": f"student, {way}", accuracy: student["accuracy"]})
            rows.append({"arm": f"ensemble, {way}", accuracy: student["ensemble's accuracy"]})
            gain = student["ensemble's accuracy"] - single
            kept.append({"arm": way, share: 100 * (student["accuracy"] - single) / gain if gain > 0 else None})
    order = [
        f"single, mean of {settings.members}",
        "single, as long as students",
        *(f"{who}, {way}" for who in ("student", "ensemble") for way in WAYS),
    ]
    return side_by_side(
        dots(rows, accuracy, title="single networks, students, ensembles", order=order),
        dots([row for row in kept if row[share] is not None], share, title="students", order=WAYS),
        same_arms=False,
    )


CLAIM = Claim(
    name="ensemble-distillation",
    paper="Hinton, Vinyals and Dean 2015, Distilling the Knowledge in a Neural Network, arXiv:1503.02531, section 4, table 1",
    says="A single network that learns from the mean answers of an ensemble keeps more than half of what the ensemble gains "
    "over one network of the same kind.",
    scaled="5 small convolutional networks on 10,000 pictures of CIFAR-10 (JPEG) at 16 x 16 pixels, instead of 10 speech "
    "models; the student is of the members' architecture and trained for 36 epochs, members for 20; a single network "
    "that learns labels for 36 is there too. Soft targets only, no labels beside them.",
    data=("cifar10-jpeg",),
    settings={"full": Experiment(), "quick": Experiment(images=3000, members=3, epochs=8, student_epochs=12)},
    arms=arms,
    measure=measure,
    checks=checks,
    picture=picture,
    judges=("penjing.objective.soft_targets", "penjing.training.teacher", "penjing.training.teaching"),
)
