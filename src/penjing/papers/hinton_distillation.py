"""A small network learns from a large one's softened answers, even of a digit that it never saw."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from penjing.data import in_memory_loader
from penjing.data.augment import random_affine
from penjing.distillation.unseen import best_shift, without_classes
from penjing.graph import Network
from penjing.measurement.accuracy import answer
from penjing.papers.claim import Arms, Check, Claim, Figures
from penjing.papers.laboratory import Laboratory, cloned
from penjing.papers.pictures import curves, dots, side_by_side
from penjing.settings import Settings
from penjing.training import LearnFromTeacher, Schedule, Task, Teacher

TEACHER, HARD, SOFT, NO_THREES, ONLY_7_8 = "teacher", "hard labels", "soft targets", "without 3s", "only 7s and 8s"
LEFT_OUT: dict[str, tuple[int, ...]] = {NO_THREES: (3,), ONLY_7_8: (0, 1, 2, 3, 4, 5, 6, 9)}
SHIFTED: dict[str, tuple[int, ...]] = {NO_THREES: (3,), ONLY_7_8: (7, 8)}
"""Whose biases are shifted: of what was missing, or of what was all."""
_THREE = 3


class Experiment(Settings):
    """A teacher with two hidden layers of 1,200 units and students with two of 800, on MNIST."""

    label = "hinton-distillation experiment"
    teacher_units: int = Field(default=1200, description="of each hidden layer of the teacher")
    units: int = Field(default=800, description="of each hidden layer of the students")
    teacher_epochs: int = 26
    epochs: int = Field(default=15, description="of the students")
    thin_epochs: int = Field(default=12, description="of the students with 30 units")
    batch_size: int = 128
    lr: float = 1e-3
    dropout: float = Field(default=0.3, description="of the teacher's hidden layers")
    input_dropout: float = Field(default=0.1, description="of its pixels")
    shift: float = Field(default=2.0, description="pixels by which the teacher's images are shifted at most")
    temperature: float = 20.0
    thin: int = Field(default=30, description="units of each hidden layer, for the sweep of temperatures")
    temperatures: tuple[float, ...] = (1.0, 2.5, 4.0, 8.0, 20.0)
    n_valid: int = 5000
    """For the shift of biases."""


def arms(settings: Experiment) -> tuple[str, ...]:
    """Teacher, students of labels and of soft targets, the two that do not see all digits, thin students by temperature."""
    return (TEACHER, HARD, SOFT, *LEFT_OUT, *(_thin(t) for t in settings.temperatures))


def _thin(temperature: float) -> str:
    return f"thin, T = {temperature:g}"


def mlp(*sizes: int, dropout: float = 0.0, input_dropout: float = 0.0) -> nn.Sequential:
    """Linear layers with ReLU between them, and dropout of inputs and hidden units."""
    layers: list[nn.Module] = [nn.Flatten()]
    layers += [nn.Dropout(input_dropout)] if input_dropout else []
    for inputs, outputs in pairwise(sizes[:-1]):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        layers += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


def measure(laboratory: Laboratory, arm: str, settings: Experiment, before: Arms) -> Figures:
    """Train one network; errors among the 10,000 test images."""
    task = laboratory.task("mnist", batch_size=settings.batch_size, n_valid=settings.n_valid, versions=1)
    teacher = laboratory.build(
        lambda: mlp(
            784, *[settings.teacher_units] * 2, 10, dropout=settings.dropout, input_dropout=settings.input_dropout
        ),
        task,
        name=TEACHER,
    )
    if arm == TEACHER:
        schedule = Schedule(epochs=settings.teacher_epochs, lr=settings.lr)
        laboratory.train(teacher, _jittered(task, settings), schedule)
        laboratory.leave(TEACHER, cloned(teacher.state_dict()))
        return _errors(laboratory, teacher, task)
    thin = arm.startswith("thin")
    units = settings.thin if thin else settings.units
    student = laboratory.build(lambda: mlp(784, units, units, 10), task, name="thin" if thin else "student")
    if arm == HARD:
        laboratory.train(student, task, Schedule(epochs=settings.epochs, lr=settings.lr))
        return _errors(laboratory, student, task)
    teacher.load_state_dict(laboratory.left(TEACHER))
    temperature = float(arm.partition("= ")[2]) if thin else settings.temperature
    answers = Teacher(teacher, folder=laboratory.folder / "answers" if laboratory.folder else None)
    seen = without_classes(task, LEFT_OUT[arm]) if arm in LEFT_OUT else task
    schedule = Schedule(epochs=settings.thin_epochs if thin else settings.epochs, lr=settings.lr)
    laboratory.train(student, seen, schedule, [LearnFromTeacher(answers, temperature)])
    found = _errors(laboratory, student, task)
    return found | _shifted(laboratory, student, task, SHIFTED[arm]) if arm in SHIFTED else found


def _jittered(task: Task, settings: Experiment) -> Task:
    """The same training images, each time shifted by up to so many pixels, and by nothing else."""
    data: Any = task.train.dataset  # type: ignore[attr-defined]
    change = random_affine(degrees=0.0, scale=0.0, shear=0.0, shift=settings.shift)
    return replace(
        task, train=in_memory_loader(data.images, data.labels, settings.batch_size, shuffle=True, augment=change)
    )


def _logits(laboratory: Laboratory, network: Network, task: Task, part: str) -> tuple[Tensor, Tensor]:
    found = answer(network, task, getattr(task, part))
    return found.logits, found.labels


def _count(logits: Tensor, labels: Tensor) -> Figures:
    """All errors, and what share of the 3s is right, in percent."""
    right, threes = logits.argmax(1) == labels, labels == _THREE
    return {
        "errors": int((~right).sum()),
        "right of the 3s (%)": 100 * float(right[threes].double().mean()),
        "3s": int(threes.sum()),
    }


def _errors(laboratory: Laboratory, network: Network, task: Task) -> Figures:
    return _count(*_logits(laboratory, network, task, "test"))


def _shifted(laboratory: Laboratory, network: Network, task: Task, classes: Sequence[int]) -> Figures:
    """Errors with the biases of some classes shifted by what is best on validation images, and on test images."""
    logits, labels = _logits(laboratory, network, task, "test")
    found: Figures = {}
    for part in ("valid", "test"):
        shift, _ = best_shift(*_logits(laboratory, network, task, part), classes)
        moved = logits.clone()
        moved[:, list(classes)] += shift
        found |= {f"{name}, shift from {part}": value for name, value in _count(moved, labels).items()}
        found[f"shift from {part}"] = shift
    return found


AFTER = "errors, shift from valid"


def _fewer(found: Arms, than: float) -> float:
    """How many errors fewer at the middling temperatures, in the mean, than at another."""
    return float(found[_thin(than)]["errors"] - statistics.fmean(found[_thin(t)]["errors"] for t in (2.5, 4.0)))


def checks(settings: Experiment) -> tuple[Check, ...]:
    """In errors of 10,000."""
    e = "errors"
    return (
        Check("the teacher has at most 90 errors", "67", lambda arms: 90 - arms[TEACHER][e], unit=e),
        Check(
            "the student of hard labels has 130 to 190",
            "146",
            lambda arms: min(arms[HARD][e] - 130, 190 - arms[HARD][e]),
            unit=e,
        ),
        Check(
            "soft targets at a temperature of 20 leave at most 0.75 times as many",
            "74, which is 0.51 times",
            lambda arms: 0.75 * arms[HARD][e] - arms[SOFT][e],
            unit=e,
        ),
        Check(
            "and at most 30 more than the teacher's",
            "74 against 67",
            lambda arms: arms[TEACHER][e] + 30 - arms[SOFT][e],
            unit=e,
        ),
        Check(
            "without a 3 in the transfer set, at least 95 % of the 3s are right after a shift of their bias",
            "98.6 %",
            lambda arms: arms[NO_THREES]["right of the 3s (%), shift from valid"],
            95.0,
        ),
        Check(
            "and the errors are at most 0.7 times those before the shift",
            "109 against 206",
            lambda arms: 0.7 * arms[NO_THREES][e] - arms[NO_THREES][AFTER],
            unit=e,
        ),
        Check(
            "the best shift of the 3s' bias is above 0",
            "+3.5",
            lambda arms: arms[NO_THREES]["shift from valid"],
            unit="of the logit",
        ),
        Check(
            "with only 7s and 8s in the transfer set, 35 to 60 % are wrong before the shift",
            "47.3 %",
            lambda arms: min(arms[ONLY_7_8][e] / 100 - 35, 60 - arms[ONLY_7_8][e] / 100),
        ),
        Check(
            "and at most 25 % after it",
            "13.2 %",
            lambda arms: 25 - arms[ONLY_7_8][AFTER] / 100,
        ),
        Check(
            "which is at most half as many",
            "0.28 times",
            lambda arms: 0.5 * arms[ONLY_7_8][e] - arms[ONLY_7_8][AFTER],
            unit=e,
        ),
        Check(
            "the best shift of the biases of 7 and 8 is below 0",
            "-7.6",
            lambda arms: -arms[ONLY_7_8]["shift from valid"],
            unit="of the logit",
        ),
        *(
            Check(
                f"students with {settings.thin} units have fewer errors at temperatures of 2.5 and 4 than at {other:g}",
                "2.5 to 4 work significantly better than higher or lower ones",
                partial(_fewer, than=other),
                unit=e,
            )
            for other in (1.0, 20.0)
        ),
    )


def picture(found: Mapping[int, Arms], settings: Experiment) -> Any:
    """Errors of teacher and large students, those that did not see all digits too, and of thin ones by temperature."""
    errors, wrong, t = "errors of 10,000", "wrong (%)", "temperature"
    names = {
        (TEACHER, "errors"): "teacher",
        (HARD, "errors"): "student, hard labels",
        (SOFT, "errors"): "student, soft targets",
        (NO_THREES, "errors"): "no 3s",
        (NO_THREES, AFTER): "no 3s, bias shifted",
        (ONLY_7_8, "errors"): "only 7s and 8s",
        (ONLY_7_8, AFTER): "only 7s and 8s, biases shifted",
    }
    rows = [{"arm": name, wrong: own[arm][key] / 100} for own in found.values() for (arm, key), name in names.items()]
    thin = [
        {"arm": f"{settings.thin} units", t: x, errors: own[_thin(x)]["errors"]}
        for own in found.values()
        for x in settings.temperatures
    ]
    return side_by_side(
        dots(rows, wrong, title="MNIST", order=list(names.values()), log=True),
        curves(thin, t, errors, title="thin students", log_x=True),
        same_arms=False,
    )


CLAIM = Claim(
    name="hinton-distillation",
    paper="Hinton, Vinyals and Dean 2015, Distilling the Knowledge in a Neural Network, arXiv:1503.02531, section 3",
    says="A student learns from a teacher's softened answers what hard labels do not say: it makes half the errors, and knows "
    "digits that it never saw once their biases are shifted. The smaller the student, the lower the best temperature.",
    scaled="MNIST as in the paper, with the paper's layers; dropout and images shifted by up to 2 pixels for the teacher, no "
    "limit on the weights' norm; Adam, a cosine, and fewer epochs; 5,000 of the 60,000 images validate. The shift of biases is "
    "chosen on them, not on the test images as in the paper; what that would give is in the figures. Soft targets only, no "
    "labels beside them. The paper does not say at which temperature digits were left out; it is 20 here too.",
    data=("mnist",),
    settings={
        "full": Experiment(),
        "quick": Experiment(teacher_epochs=3, epochs=2, thin_epochs=3, n_valid=45_000),
    },
    arms=arms,
    measure=measure,
    checks=checks,
    picture=picture,
    judges=(
        "penjing.distillation.unseen",
        "penjing.objective.soft_targets",
        "penjing.training.teacher",
        "penjing.training.teaching",
    ),
)
