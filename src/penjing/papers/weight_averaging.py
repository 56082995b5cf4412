"""The mean of the weights that a training passes through at its end is a better network than the last of them."""

import statistics
from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import nn

from penjing.graph import Network
from penjing.models import resnet_cifar
from penjing.papers.claim import Arms, Check, Claim, Figures
from penjing.papers.laboratory import Laboratory, cloned
from penjing.papers.pictures import dots, side_by_side
from penjing.settings import Settings
from penjing.training import AverageEpochs, LearnFromLabels, Schedule, Task, mean_of_weights, measure_batch_norms_

HELD, COSINE, OTHER = "average of epochs", "cosine to 0", "average of epochs, another beginning"
OF_TWO = "mean of two beginnings"
LAST, FRESH, MEANS, LASTS = (
    "last epoch",
    "statistics of the beginning",
    "mean of the statistics",
    "statistics of the last epoch",
)


class Experiment(Settings):
    """A ResNet-8 on small pictures of CIFAR-10; SGD, whose rate stays up in the last quarter."""

    label = "weight-averaging experiment"
    images: int = Field(default=20_000, description="to learn from")
    size: int = Field(default=16, description="pixels of a side")
    depth: int = Field(default=8, description="of the residual network")
    epochs: int = 20
    averaged: int = Field(default=5, description="the last epochs, at whose ends the weights are averaged")
    hold: float = Field(default=0.75, description="fraction of all steps after which the learning rate stays")
    batch_size: int = 128
    lr: float = 0.1
    weight_decay: float = 5e-4


def arms(settings: Experiment) -> tuple[str, ...]:
    """The averaged run; as long with a cosine to 0; the averaged run from other weights; the mean of the two averages."""
    return (HELD, COSINE, OTHER, OF_TWO)


def measure(laboratory: Laboratory, arm: str, settings: Experiment, before: Arms) -> Figures:
    """Train one network; accuracy on the test images, in percent."""
    n_valid = 50_000 - settings.images
    task = laboratory.task(
        "cifar10-jpeg", size=settings.size, n_valid=n_valid, batch_size=settings.batch_size, augment=True
    )
    if arm == OF_TWO:
        return _of_two(laboratory, task, settings)
    network = laboratory.build(lambda: resnet_cifar(settings.depth), task, name=OTHER if arm == OTHER else HELD)
    n = len(task.train)  # type: ignore[arg-type]
    ends = tuple(n * epoch for epoch in range(settings.epochs - settings.averaged + 1, settings.epochs + 1))
    schedule = Schedule(
        epochs=settings.epochs,
        lr=settings.lr,
        optimizer="sgd",
        weight_decay=settings.weight_decay,
        hold=1.0 if arm == COSINE else settings.hold,
        keep_steps=ends if arm == HELD else (),
    )
    if arm == COSINE:
        laboratory.train(network, task, schedule)
        return {"accuracy": laboratory.percent_correct(network, task)}
    beginning, average = cloned(network.state_dict()), AverageEpochs(settings.averaged)
    kept = laboratory.train(network, task, schedule, [LearnFromLabels(), average]).weights
    averaged = cloned(network.state_dict())
    laboratory.leave(arm, averaged)
    found: Figures = {"accuracy": laboratory.percent_correct(network, task)}
    if arm == OTHER:
        return found
    for key, other in ((FRESH, beginning), (MEANS, average.mean), (LASTS, kept[ends[-1]])):
        network.load_state_dict(averaged | {name: other[name] for name in _statistics(network)})
        found[key] = laboratory.percent_correct(network, task)
    each = []
    for end in ends:
        network.load_state_dict(kept[end])
        each.append(laboratory.percent_correct(network, task))
    return found | {LAST: each[-1], "each epoch": each, "mean of the epochs": statistics.fmean(each)}


def _statistics(network: nn.Module) -> list[str]:
    """What batch norms keep beside their parameters, by name."""
    return [name for name, _ in network.named_buffers()]


def _of_two(laboratory: Laboratory, task: Task, settings: Experiment) -> Figures:
    """The mean of two trainings that began with different weights, its batch norms measured anew."""
    networks = []
    for name in (HELD, OTHER):
        networks.append(laboratory.build(lambda: resnet_cifar(settings.depth), task, name=name))
        networks[-1].load_state_dict(laboratory.left(name))
    mean = mean_of_weights(networks)
    measure_batch_norms_(mean, task.batches(task.train, laboratory.accelerator.device))
    assert isinstance(mean, Network)
    return {"accuracy": laboratory.percent_correct(mean, task)}


def checks(settings: Experiment) -> tuple[Check, ...]:
    """The average against the last weights and against a rate that falls to 0; and what it must not be made of."""
    return (
        Check(
            "the average of the last epochs' weights is better than the last weights of the same run by at least 0.1 pp",
            "section 3.2, and 4: what the rate that stays up passes through is worse than its mean",
            lambda arms: arms[HELD]["accuracy"] - arms[HELD][LAST],
            0.1,
        ),
        Check(
            "it is at least as good as a training as long whose rate falls to 0",
            "table 1, one budget: VGG-16 on CIFAR-10 93.59 against 93.25 %, PreResNet-164 95.56 against 95.28 %",
            lambda arms: arms[HELD]["accuracy"] - arms[COSINE]["accuracy"],
        ),
        Check(
            "with statistics of batch norms that were never measured it is at least 5 pp worse",
            "section 3.2: the statistics are measured anew after the average",
            lambda arms: arms[HELD]["accuracy"] - arms[HELD][FRESH],
            5.0,
        ),
        Check(
            "the mean of two networks that began with different weights has less than half the accuracy of either, even with "
            "its batch norms measured anew",
            "section 3.4: averages are of points that one training connects",
            lambda arms: 0.5 * min(arms[HELD]["accuracy"], arms[OTHER]["accuracy"]) - arms[OF_TWO]["accuracy"],
        ),
    )


def picture(found: Mapping[int, Arms], settings: Experiment) -> Any:
    """Close by, what is compared with the average; far off, what goes wrong."""
    accuracy = "test accuracy (%)"
    near = {
        "average of the last epochs": lambda own: own[HELD]["accuracy"],
        "mean accuracy of those epochs": lambda own: own[HELD]["mean of the epochs"],
        "last epoch of the same run": lambda own: own[HELD][LAST],
        "rate falls to 0 instead": lambda own: own[COSINE]["accuracy"],
    }
    far = {
        "average, batch norms measured anew": lambda own: own[HELD]["accuracy"],
        "with the mean of the statistics": lambda own: own[HELD][MEANS],
        "with the last epoch's statistics": lambda own: own[HELD][LASTS],
        "with statistics never measured": lambda own: own[HELD][FRESH],
        "mean of two beginnings": lambda own: own[OF_TWO]["accuracy"],
    }

    def rows(arms: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [{"arm": arm, accuracy: get(own)} for own in found.values() for arm, get in arms.items()]

    return side_by_side(
        dots(rows(near), accuracy, title="the average and what it is made of", order=list(near)),
        dots(rows(far), accuracy, title="statistics, and strangers", order=list(far)),
    )


CLAIM = Claim(
    name="weight-averaging",
    paper="Izmailov, Podoprikhin, Garipov, Vetrov and Wilson 2018 (SWA), Averaging Weights Leads to Wider Optima and Better "
    "Generalization, arXiv:1803.05407",
    says="The mean of the weights along the end of a training, at a learning rate that stays up, is better than its last "
    "weights and than a training whose rate falls to 0. Statistics of batch norms must be measured anew, and weights of "
    "different beginnings cannot be averaged.",
    scaled="ResNet-8, 20,000 pictures of CIFAR-10 (JPEG) at 16 x 16 pixels, 20 epochs instead of 200, the mean of the last 5. "
    "Batch norms that were never measured are those of the untrained network, as they are where only parameters are averaged; "
    "where the statistics are averaged too, or taken from the last epoch, is in the figures.",
    data=("cifar10-jpeg",),
    settings={"full": Experiment(), "quick": Experiment(images=5000, epochs=8, averaged=2)},
    arms=arms,
    measure=measure,
    checks=checks,
    picture=picture,
    judges=("penjing.training.averages", "penjing.training.fit"),
)
