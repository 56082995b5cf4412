"""A teacher can be too large for a small student; one of middling size between them helps."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field
from scipy import stats  # type: ignore[import-untyped]
from torch import nn

from penjing.errors import SettingError
from penjing.graph import Network
from penjing.papers.claim import Arms, Check, Claim, Figures
from penjing.papers.laboratory import Laboratory, cloned
from penjing.papers.pictures import curves, dots, side_by_side
from penjing.settings import Settings
from penjing.training import LearnFromLabels, LearnFromTeacher, Part, Schedule, Task, Teacher

LAYERS: dict[int, tuple[Sequence[Sequence[int]], tuple[int, ...]]] = {
    2: (((16,), (16,)), ()),
    4: (((16, 16), (32, 32)), ()),
    6: (((16, 16), (32, 32), (64, 64)), ()),
    8: (((16, 16), (32, 32), (64, 64), (128, 128)), (64,)),
    10: (((32, 32), (64, 64), (128, 128), (256, 256, 256, 256)), (128,)),
}
"""By depth: filters of the convolutions, a maximum of 2 x 2 behind each group, and units of a hidden layer."""
STUDENT, ASSISTANT, ALONE, ASSISTED = 2, 4, "student, labels", "student of the assistant"
ASSISTANTS = "assistant"


class Experiment(Settings):
    """Plain networks of 2 to 10 convolutions on small pictures of CIFAR-10."""

    label = "teacher-assistant experiment"
    images: int = Field(default=20_000, description="to learn from")
    size: int = Field(default=16, description="pixels of a side")
    depths: tuple[int, ...] = Field(default=(4, 6, 8, 10), description="of the teachers, the last the largest")
    teacher_epochs: int = 8
    teacher_lr: float = 0.05
    epochs: int = Field(default=20, description="of students and assistant")
    lr: float = 0.05
    weight_decay: float = 1e-4
    batch_size: int = 128
    temperature: float = 5.0
    soft: float = Field(default=0.9, description="share of the soft targets in the loss, the rest is the labels'")


def arms(settings: Experiment) -> tuple[str, ...]:
    """The teachers; the student alone, of each teacher, and of an assistant that learned from the largest."""
    teachers = (_teacher(depth) for depth in settings.depths)
    students = (_student(depth) for depth in settings.depths)
    return (*teachers, ALONE, *students, ASSISTANTS, ASSISTED)


def _teacher(depth: int) -> str:
    return f"teacher {depth}"


def _student(depth: int) -> str:
    return f"student of {depth}"


def plain_by_depth(depth: int, *, side: int = 32, classes: int = 10) -> nn.Sequential:
    """Groups of 3 x 3 convolutions with batch norm and ReLU, a 2 x 2 maximum behind each, one or two linear layers.

    For 32 x 32 pixels it has 13,082, 37,338, 82,778, 327,962 and 2,487,850 parameters with 2, 4, 6, 8 and 10 convolutions.
    Raises: SettingError: another depth.
    Source: Mirzadeh et al. 2020, arXiv:1902.03393, section 4, the plain networks.
    """
    if depth not in LAYERS:
        raise SettingError(f"plain_by_depth: depth must be one of {', '.join(map(str, LAYERS))}, got {depth}.")
    groups, hidden = LAYERS[depth]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for number, group in enumerate(groups):
        for place, filters in enumerate(group):
            name = f"{number}_{place}"
            layers[f"conv{name}"] = nn.Conv2d(channels, filters, 3, padding=1)
            layers[f"norm{name}"] = nn.BatchNorm2d(filters)
            layers[f"relu{name}"] = nn.ReLU()
            channels = filters
        layers[f"pool{number}"] = nn.MaxPool2d(2)
        side //= 2
    layers["flatten"] = nn.Flatten()
    inputs = channels * side**2
    for units in hidden:
        layers |= {"fc": nn.Linear(inputs, units), "relu": nn.ReLU()}
        inputs = units
    layers["out"] = nn.Linear(inputs, classes)
    return nn.Sequential(layers)


def measure(laboratory: Laboratory, arm: str, settings: Experiment, before: Arms) -> Figures:
    """Train one network; accuracy on test and validation images, in percent."""
    task = laboratory.task(
        "cifar10-jpeg",
        size=settings.size,
        n_valid=50_000 - settings.images,
        batch_size=settings.batch_size,
        versions=1,
    )
    largest = max(settings.depths)
    if arm.startswith("teacher"):
        network = _build(laboratory, task, settings, int(arm.split()[-1]), arm)
        _train_(laboratory, network, task, settings, settings.teacher_epochs, settings.teacher_lr, [LearnFromLabels()])
        laboratory.leave(arm, cloned(network.state_dict()))
        return _found(laboratory, network, task)
    depth, teacher, of = {
        ALONE: (STUDENT, "", 0),
        ASSISTANTS: (ASSISTANT, _teacher(largest), largest),
        ASSISTED: (STUDENT, ASSISTANTS, ASSISTANT),
        **{_student(depth): (STUDENT, _teacher(depth), depth) for depth in settings.depths},
    }[arm]
    network = _build(laboratory, task, settings, depth, ASSISTANTS if arm == ASSISTANTS else "student")
    parts: list[Part] = [LearnFromLabels(1 - settings.soft if teacher else 1.0)]
    if teacher:
        known = _build(laboratory, task, settings, of, teacher)
        known.load_state_dict(laboratory.left(teacher))
        answers = Teacher(known, folder=laboratory.folder / "answers" if laboratory.folder else None)
        parts.append(LearnFromTeacher(answers, settings.temperature, settings.soft))
    _train_(laboratory, network, task, settings, settings.epochs, settings.lr, parts)
    if arm == ASSISTANTS:
        laboratory.leave(arm, cloned(network.state_dict()))
    return _found(laboratory, network, task)


def _build(laboratory: Laboratory, task: Task, settings: Experiment, depth: int, name: str) -> Network:
    return laboratory.build(lambda: plain_by_depth(depth, side=settings.size), task, name=name)


def _train_(
    laboratory: Laboratory,
    network: Network,
    task: Task,
    settings: Experiment,
    epochs: int,
    lr: float,
    parts: Sequence[Part],
) -> None:
    schedule = Schedule(epochs=epochs, lr=lr, optimizer="sgd", weight_decay=settings.weight_decay)
    laboratory.train(network, task, schedule, parts)


def _found(laboratory: Laboratory, network: Network, task: Task) -> Figures:
    return {part: laboratory.percent_correct(network, task, part) for part in ("test", "valid")}


def _gain_of_assistant(found: Arms, settings: Experiment) -> float:
    """Against the student that learned from the largest teacher itself."""
    return float(found[ASSISTED]["test"] - found[_student(max(settings.depths))]["test"])


def _gain_of_smaller(found: Arms, settings: Experiment) -> float:
    """The student of a smaller teacher, which validation images choose, against that of the largest, both on test images."""
    smaller = [_student(depth) for depth in settings.depths if depth < max(settings.depths)]
    best = max(smaller, key=lambda arm: found[arm]["valid"])
    return float(found[best]["test"] - found[_student(max(settings.depths))]["test"])


def checks(settings: Experiment) -> tuple[Check, ...]:
    """Distillation against labels, with and without assistant, and by the teacher's size."""
    largest = max(settings.depths)
    return (
        Check(
            f"learning from the teacher with {largest} convolutions, the student is at least 1 pp better than from labels",
            "CIFAR-10: 72.57 against 70.16 % (recalled)",
            lambda arms: arms[_student(largest)]["test"] - arms[ALONE]["test"],
            1.0,
        ),
        Check(
            f"an assistant with {ASSISTANT} convolutions between that teacher and the student makes it better still",
            "73.51 against 72.57 % (recalled)",
            lambda arms: _gain_of_assistant(arms, settings),
        ),
        Check(
            "a smaller teacher, chosen on validation images, is better for the student than the largest",
            "figure 2: the student is best with a teacher of middling size",
            lambda arms: _gain_of_smaller(arms, settings),
        ),
    )


def picture(found: Mapping[int, Arms], settings: Experiment) -> Any:
    """The student by way of learning, and by the size of its teacher."""
    accuracy, depth = "test accuracy (%)", "convolutions of the teacher"
    largest = max(settings.depths)
    names = {ALONE: "labels", _student(largest): f"teacher with {largest}", ASSISTED: f"assistant with {ASSISTANT}"}
    rows = [{"arm": name, accuracy: own[arm]["test"]} for own in found.values() for arm, name in names.items()]
    by_size = [
        {"arm": who, depth: n, accuracy: own[name(n)]["test"]}
        for own in found.values()
        for n in settings.depths
        for who, name in (("student", _student), ("the teacher itself", _teacher))
    ]
    title = f"the student, {STUDENT} convolutions"
    gains = [_gain_of_assistant(own, settings) for own in found.values()]
    if len(set(gains)) > 2:
        p = stats.ttest_1samp(gains, 0.0, alternative="greater").pvalue
        title += f"; assistant above teacher: p = {p:.2g}, one-sided"
    return side_by_side(
        dots(rows, accuracy, title=title, order=list(names.values())),
        curves(by_size, depth, accuracy, title="by the size of the teacher"),
        same_arms=False,
    )


CLAIM = Claim(
    name="teacher-assistant",
    paper="Mirzadeh, Farajtabar, Li, Levine, Matsukawa and Ghasemzadeh 2020, Improved Knowledge Distillation via Teacher "
    "Assistant, arXiv:1902.03393",
    says="Distillation suffers when the teacher is much larger than the student: the largest teacher is not the best, and an "
    "assistant of middling size between them helps.",
    scaled="The paper's plain networks on 20,000 pictures of CIFAR-10 (JPEG) at 16 x 16 pixels, 20 epochs instead of 160, the "
    "teachers fewer; SGD with a cosine. The divergence is a mean over samples, not over samples and classes; temperature and "
    "share of soft targets are fixed beforehand, and no figure is the best of several epochs.",
    data=("cifar10-jpeg",),
    settings={
        "full": Experiment(),
        "quick": Experiment(images=4000, depths=(4, 10), teacher_epochs=3, epochs=6),
    },
    arms=arms,
    measure=measure,
    checks=checks,
    picture=picture,
    judges=("penjing.objective.soft_targets", "penjing.training.teacher", "penjing.training.teaching"),
    seeds=5,
)
