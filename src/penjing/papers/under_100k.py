"""A classifier of pictures with at most 100,000 parameters, and what architecture and distillation add to plain training."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from penjing.graph import trace
from penjing.measurement.macs import macs_by_node
from penjing.models import resnet_cifar
from penjing.papers.claim import Arms, Check, Claim, Figures
from penjing.papers.laboratory import Laboratory, cloned
from penjing.papers.pictures import dots, side_by_side
from penjing.settings import Settings
from penjing.training import LearnFromLabels, LearnFromTeacher, Part, Schedule, Teacher, load_model

TEACHER, PLAIN, ARCHITECTURE, DISTILLATION, ALL = "teacher", "plain", "architecture", "distillation", "all"
STUDENTS = (PLAIN, ARCHITECTURE, DISTILLATION, ALL)
MOST = 100_000
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the pictures that the given weights were trained on."""


class Experiment(Settings):
    """ResNets on CIFAR-10, with the settings of recipes/under-100k.yaml, fewer epochs."""

    label = "under-100k experiment"
    images: int = Field(default=48_000, description="to learn from")
    versions: int = Field(default=8, description="in which each of them is seen")
    teacher_epochs: int = Field(default=6, description="in which a given ResNet-20 gets used to these pictures")
    teacher_lr: float = 0.03
    teacher_weight_decay: float = 5e-4
    plain: tuple[int, int] = Field(default=(20, 9), description="depth and width: the teacher, made thin")
    architecture: tuple[int, int] = Field(default=(14, 12), description="those that were chosen, see small-networks.md")
    epochs: int = Field(default=15, description="of each student")
    lr: float = Field(default=0.1, description="SGD, cosine")
    weight_decay: float = 2e-4
    batch_size: int = 128
    temperature: float = 4.0
    soft: float = Field(default=0.9, description="share of the soft targets in the loss, the rest is the labels'")


def arms(settings: Experiment) -> tuple[str, ...]:
    """The teacher; four students, with and without it, of both architectures."""
    return (TEACHER, *STUDENTS)


def measure(laboratory: Laboratory, arm: str, settings: Experiment, before: Arms) -> Figures:
    """Train one network; accuracy on the test images in percent, and its size."""
    task = laboratory.task(
        "cifar10-jpeg",
        n_valid=50_000 - settings.images,
        batch_size=settings.batch_size,
        augment=True,
        versions=settings.versions,
        mean=MEAN,
        deviation=DEVIATION,
    )
    weights = str(laboratory.weights("resnet20_cifar10"))
    teacher = laboratory.build(
        lambda: load_model({"function": "penjing.models:resnet_cifar", "depth": 20, "weights": weights}), task
    )
    parts: list[Part] = [LearnFromLabels()]
    if arm == TEACHER:
        network, epochs, lr, decay = (
            teacher,
            settings.teacher_epochs,
            settings.teacher_lr,
            settings.teacher_weight_decay,
        )
    else:
        depth, width = settings.plain if arm in (PLAIN, DISTILLATION) else settings.architecture
        network = laboratory.build(lambda: resnet_cifar(depth, width=width), task)
        epochs, lr, decay = settings.epochs, settings.lr, settings.weight_decay
    if arm in (DISTILLATION, ALL):
        teacher.load_state_dict(laboratory.left(TEACHER))
        answers = Teacher(teacher, folder=laboratory.folder / "answers" if laboratory.folder else None)
        parts = [
            LearnFromTeacher(answers, settings.temperature, settings.soft),
            LearnFromLabels(1 - settings.soft),
        ]
    schedule = Schedule(epochs=epochs, lr=lr, optimizer="sgd", weight_decay=decay, warmup=0.05)
    history = laboratory.train(network, task, schedule, parts)
    if arm == TEACHER:
        laboratory.leave(TEACHER, cloned(network.state_dict()))
    return {
        "accuracy": laboratory.percent_correct(network, task),
        "valid": laboratory.percent_correct(network, task, "valid"),
        "parameters": sum(p.numel() for p in network.parameters()),
        "MACs": sum(macs_by_node(trace(network.cpu(), task.example().args)).values()),
        "seconds": sum(history.seconds),
    }


def _gain(arm: str, over: str) -> Any:
    return lambda arms: arms[arm]["accuracy"] - arms[over]["accuracy"]


def checks(settings: Experiment) -> tuple[Check, ...]:
    """The size, the accuracy, and what each means is good for."""
    return (
        Check(
            "no student has more than 100,000 parameters",
            "the homework's limit",
            lambda arms: MOST - max(arms[arm]["parameters"] for arm in STUDENTS),
            unit="parameters",
        ),
        Check("with both, at least 82 % are right", "our own aim: 85 %", lambda arms: arms[ALL]["accuracy"], 82.0, "%"),
        Check("architecture is worth something", "the lecture's fourth part", _gain(ARCHITECTURE, PLAIN)),
        Check("distillation is worth something", "the lecture's second part", _gain(DISTILLATION, PLAIN)),
        Check(
            "both together are better than either",
            "the lecture: the parts are meant to be combined",
            lambda arms: min(_gain(ALL, ARCHITECTURE)(arms), _gain(ALL, DISTILLATION)(arms)),
        ),
    )


def picture(found: Mapping[int, Arms], settings: Experiment) -> Any:
    """Accuracy, and the time that training takes."""
    rows = [
        {"arm": arm, "right (%)": own[arm]["accuracy"], "minutes of training": own[arm]["seconds"] / 60}
        for own in found.values()
        for arm in (*STUDENTS, TEACHER)
    ]
    return side_by_side(
        dots(rows, "right (%)", title="10,000 test pictures", order=(*STUDENTS, TEACHER)),
        dots(rows, "minutes of training", title="training", order=(*STUDENTS, TEACHER)),
    )


CLAIM = Claim(
    name="under-100k",
    paper="the lecture on network compression that penjing starts from: its homework, at most 100,000 parameters",
    says="A classifier of pictures with at most 100,000 parameters becomes better by a suited architecture, better by learning "
    "from a larger network, and best by both.",
    scaled="CIFAR-10 (JPEG) at 32 x 32 instead of the homework's pictures; the teacher is a ResNet-20 that was trained "
    "on CIFAR-10 before and gets used to JPEG; architectures were chosen on validation pictures; 15 epochs for each student, "
    "where the recipe has 40.",
    data=("cifar10-jpeg",),
    settings={
        "full": Experiment(),
        "quick": Experiment(images=4000, versions=2, teacher_epochs=1, epochs=2),
    },
    arms=arms,
    measure=measure,
    checks=checks,
    picture=picture,
    judges=("penjing.objective.soft_targets", "penjing.training.teacher", "penjing.training.teaching"),
)
