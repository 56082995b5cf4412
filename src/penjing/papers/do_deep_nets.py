"""A network with one hidden layer learns from the logits of deep ones what it does not learn from labels."""

import statistics
from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import nn

from penjing.graph import Network
from penjing.models import lenet5, shallow_net
from penjing.papers.claim import Arms, Check, Claim, Figures
from penjing.papers.laboratory import Laboratory, cloned
from penjing.papers.pictures import curves, dots, side_by_side
from penjing.settings import Settings
from penjing.training import LearnFromLabels, LearnFromTeacher, Part, Schedule, Task, Teacher

HARD, SINGLE, ENSEMBLE, THIN, SLOW = (
    "labels",
    "logits of one",
    "logits of all",
    "logits of all, bottleneck",
    "gradient descent",
)
_EARLY = 3
"""The epoch whose training losses are compared."""


class Experiment(Settings):
    """Networks of one hidden layer, and LeNet-5, on MNIST, each image in a few versions."""

    label = "do-deep-nets experiment"
    images: int = Field(default=20_000, description="to learn from")
    versions: int = Field(default=8, description="of each image: what the logits are learned on, the same in all arms")
    members: int = Field(default=3, ge=2, description="convolutional networks in the ensemble")
    deep_epochs: int = 8
    deep_lr: float = 1e-3
    hidden: int = Field(default=2000, description="units of the hidden layer")
    bottleneck: int = Field(default=180, le=200, description="linear units before it")
    epochs: int = Field(default=25, description="of the shallow networks")
    lr: float = 1e-3
    batch_size: int = 128
    slow_lr: float = Field(default=1e-4, description="of the gradient descent whose times are compared")
    slow_epochs: int = Field(default=3, description="of it")


def arms(settings: Experiment) -> tuple[str, ...]:
    """The convolutional networks; the shallow one from labels, of one's logits, of all's; with a bottleneck; losses, times."""
    return (*(_deep(k) for k in range(settings.members)), HARD, SINGLE, ENSEMBLE, THIN, SLOW)


def _deep(number: int) -> str:
    return f"deep {number + 1}"


def measure(laboratory: Laboratory, arm: str, settings: Experiment, before: Arms) -> Figures:
    """Train one network; errors among the 10,000 test images, parameters, and losses of its epochs."""
    task = laboratory.task(
        "mnist",
        batch_size=settings.batch_size,
        n_valid=60_000 - settings.images,
        augment=True,
        versions=settings.versions,
    )
    if arm.startswith("deep"):
        network = laboratory.build(lenet5, task, name=arm)
        laboratory.train(network, task, Schedule(epochs=settings.deep_epochs, lr=settings.deep_lr))
        laboratory.leave(arm, cloned(network.state_dict()))
        return _found(laboratory, network, task)
    if arm == SLOW:
        return _descents(laboratory, task, settings)
    network = _shallow(laboratory, task, settings, settings.bottleneck if arm == THIN else None)
    parts: list[Part] = [LearnFromLabels()] if arm == HARD else [_logits(laboratory, task, settings, arm)]
    history = laboratory.train(network, task, Schedule(epochs=settings.epochs, lr=settings.lr), parts)
    return _found(laboratory, network, task) | {"losses": history.losses}


def _shallow(laboratory: Laboratory, task: Task, settings: Experiment, bottleneck: int | None) -> Network:
    return laboratory.build(lambda: shallow_net(784, settings.hidden, bottleneck), task, name="shallow")


def _logits(laboratory: Laboratory, task: Task, settings: Experiment, arm: str) -> Part:
    """Learning from the first convolutional network, or from the mean logits of all."""
    networks: list[nn.Module] = []
    for k in range(1 if arm == SINGLE else settings.members):
        network = laboratory.build(lenet5, task, name=_deep(k))
        network.load_state_dict(laboratory.left(_deep(k)))
        networks.append(network)
    folder = laboratory.folder / "answers" if laboratory.folder else None
    return LearnFromTeacher(Teacher(*networks, agree="logits", folder=folder), match="logits")


def _descents(laboratory: Laboratory, task: Task, settings: Experiment) -> Figures:
    """Losses and seconds of epochs with and without the bottleneck, by turns; the teachers' answers are there already."""
    schedule = Schedule(epochs=1, lr=settings.slow_lr, optimizer="sgd", decay="constant", warmup=0.0)
    widths = {ENSEMBLE: None, THIN: settings.bottleneck}
    networks = {arm: _shallow(laboratory, task, settings, width) for arm, width in widths.items()}
    parts = [_logits(laboratory, task, settings, ENSEMBLE)]
    found: dict[str, list[float]] = {f"{what}, {arm}": [] for what in ("losses", "seconds") for arm in networks}
    for epoch in range(settings.slow_epochs):
        for arm, network in networks.items():
            history = laboratory.train(network, task, schedule, parts, name=f"{epoch}")
            found[f"losses, {arm}"] += history.losses
            found[f"seconds, {arm}"] += history.seconds
    return dict(found)


def _found(laboratory: Laboratory, network: Network, task: Task) -> Figures:
    return {
        "error": 100 - laboratory.percent_correct(network, task),
        "parameters": sum(p.numel() for p in network.parameters()),
    }


def _faster(found: Arms) -> float:
    """How many times the bottleneck is faster, by the median epochs."""
    times = found[SLOW]
    return statistics.median(times[f"seconds, {ENSEMBLE}"]) / statistics.median(times[f"seconds, {THIN}"])


def _less(found: Arms) -> float:
    """By how many percent the training loss of an early epoch is less with the bottleneck."""
    return 100 * (1 - found[THIN]["losses"][_EARLY - 1] / found[ENSEMBLE]["losses"][_EARLY - 1])


def checks(settings: Experiment) -> tuple[Check, ...]:
    """Errors by what is learned, and what the bottleneck costs and gives."""
    return (
        Check(
            "learning the mean logits of the ensemble, the shallow network has at least 10 % fewer errors than learning labels",
            "TIMIT: 20.0 % with 400,000 units against 23.6",
            lambda arms: 100 * (1 - arms[ENSEMBLE]["error"] / arms[HARD]["error"]),
            10.0,
            "%",
        ),
        Check(
            "and not more than learning the logits of one convolutional network",
            "CIFAR-10: 14.2 % against 15.1 (recalled)",
            lambda arms: arms[SINGLE]["error"] - arms[ENSEMBLE]["error"],
        ),
        Check(
            f"a linear bottleneck of {settings.bottleneck} units leaves at most a third of the parameters",
            "section 2.3: k (H + D) instead of H D",
            lambda arms: arms[ENSEMBLE]["parameters"] / arms[THIN]["parameters"],
            3.0,
            "x",
        ),
        Check(
            "with it an epoch of training takes at most 1 / 1.5 of the time",
            "section 2.3: it speeds up training, from weeks",
            _faster,
            1.5,
            "x",
        ),
        Check(
            "and the accuracy is at most 0.5 pp lower",
            "section 2.3: it hardly takes anything away",
            lambda arms: arms[ENSEMBLE]["error"] - arms[THIN]["error"],
            -0.5,
        ),
        Check(
            f"after {_EARLY} epochs its training loss is lower",
            "section 2.3: it learns faster, in fewer epochs",
            _less,
            unit="%",
        ),
    )


def picture(found: Mapping[int, Arms], settings: Experiment) -> Any:
    """Errors, and the loss along the training with and without the bottleneck."""
    wrong, loss = "test error (%)", "training loss (squared distance of logits)"
    names = {
        HARD: "shallow, labels",
        SINGLE: "shallow, logits of one",
        ENSEMBLE: f"shallow, mean logits of {settings.members}",
        THIN: "the same with a bottleneck",
    }
    rows = [
        {"arm": "deep, alone", wrong: own[_deep(k)]["error"]} for own in found.values() for k in range(settings.members)
    ]
    rows += [{"arm": name, wrong: own[arm]["error"]} for own in found.values() for arm, name in names.items()]
    steps = [
        {"arm": f"{way}, {'bottleneck' if arm == THIN else 'none'}", "epoch": epoch, loss: value}
        for own in found.values()
        for arm in (ENSEMBLE, THIN)
        for way, losses in (("Adam", own[arm]["losses"]), ("gradient descent", own[SLOW][f"losses, {arm}"]))
        for epoch, value in enumerate(losses, 1)
    ]
    return side_by_side(
        dots(rows, wrong, title="MNIST", order=["deep, alone", *names.values()]),
        curves(steps, "epoch", loss, title="learning the mean logits", log_y=True),
        same_arms=False,
    )


CLAIM = Claim(
    name="do-deep-nets",
    paper="Ba and Caruana 2014, Do Deep Nets Really Need to be Deep?, arXiv:1312.6184",
    says="A network with a single hidden layer that learns the logits of deep ones is better than one that learns labels, the "
    "more so the better they are. A narrow linear layer before the hidden one makes it small and fast to train.",
    scaled="MNIST instead of TIMIT and CIFAR-10: 2,000 hidden units, 3 networks LeNet-5, 20,000 images, each in 8 "
    "versions in place of unlabeled data, the same for labels and logits. Logits are not brought to unit variance; Adam does "
    "not mind. Times are of gradient descent with momentum at a rate of 1e-4, by turns; its losses are in the picture. On "
    "validation images the bottleneck was seen to lower them at 1e-4 and 3e-4, not at 1e-3, and not Adam's, which are judged.",
    data=("mnist",),
    settings={
        "full": Experiment(),
        "quick": Experiment(images=5000, versions=2, deep_epochs=4, epochs=6),
    },
    arms=arms,
    measure=measure,
    checks=checks,
    picture=picture,
    timed=True,
    judges=(
        "penjing.models.shallow",
        "penjing.objective.teachers_answers",
        "penjing.training.teacher",
        "penjing.training.teaching",
    ),
)
