"""One set of weights that works at four widths is as good at each as a network trained for that width alone."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from penjing.dynamic import at_width, make_slimmable
from penjing.dynamic.sandwich import Sandwich
from penjing.graph import Network
from penjing.measurement import macs_of_answers
from penjing.models import resnet_cifar
from penjing.papers.claim import Arms, Check, Claim, Figures
from penjing.papers.laboratory import Laboratory
from penjing.papers.pictures import curves
from penjing.papers.small_pictures import small_pictures
from penjing.settings import Settings
from penjing.training import LearnFromLabels, Part, Schedule

SLIM, SHARED = "slimmable", "slimmable, norms shared"


class Experiment(Settings):
    """ResNet-8 on small pictures of CIFAR-10."""

    label = "slimmable experiment"
    widths: tuple[float, ...] = Field(default=(0.25, 0.5, 0.75, 1.0), description="of 16, 32 and 64 channels")
    images: int = Field(default=10_000, description="to learn from")
    size: int = Field(default=16, description="pixels of a side")
    epochs: int = 16
    batch_size: int = 128
    lr: float = Field(default=0.1, description="SGD, cosine")
    weight_decay: float = 5e-4


def alone(width: float) -> str:
    """The arm of a network of that width."""
    return f"width {width:g} alone"


def arms(settings: Experiment) -> tuple[str, ...]:
    """A network for each width; one for all; one for all whose widths share their norms too."""
    return (*(alone(width) for width in settings.widths), SLIM, SHARED)


def measure(laboratory: Laboratory, arm: str, settings: Experiment, before: Arms) -> Figures:
    """Train; accuracy on the test images in percent, for a network with several widths at each."""
    task = small_pictures(laboratory, settings.images, settings.size, settings.batch_size)
    schedule = Schedule(
        epochs=settings.epochs, lr=settings.lr, optimizer="sgd", weight_decay=settings.weight_decay, warmup=0.1
    )
    for width in settings.widths:
        if arm == alone(width):
            network = laboratory.build(lambda w=width: resnet_cifar(8, width=round(16 * w)), task)  # type: ignore[misc]
            laboratory.train(network, task, schedule)
            return {
                "accuracy": laboratory.percent_correct(network, task),
                "parameters": n_parameters(network),
                "MACs": macs_of_answers(network)[-1],
            }
    network = laboratory.build(lambda: resnet_cifar(8, width=16), task)
    if arm == SLIM:
        network = make_slimmable(network, settings.widths).to(laboratory.accelerator.device)
        laboratory.train(network, task, schedule)
        found = {}
        for k, width in enumerate(settings.widths):
            network.leave_at(k)
            found[f"{width:g}"] = laboratory.percent_correct(network, task)
        return {"accuracies": found, "parameters": n_parameters(network), "MACs": macs_of_answers(network)}
    descending = tuple(sorted(settings.widths, reverse=True))
    parts: list[Part] = [
        LearnFromLabels(),
        Sandwich(min(settings.widths), soft=0.0, widths=descending, shared_statistics=True),
    ]
    laboratory.train(network, task, schedule, parts)
    return {
        "accuracies": {
            f"{width:g}": laboratory.percent_correct(at_width(network, width), task) for width in settings.widths
        },
        "parameters": n_parameters(network),
    }


def n_parameters(network: Network) -> int:
    """Of all layers, each counted once."""
    return sum(parameter.numel() for parameter in network.parameters())


def checks(settings: Experiment) -> tuple[Check, ...]:
    """Each width against its own network; what shared norms do; what it costs."""

    def better(arms: Arms, width: float) -> float:
        gained: float = arms[SLIM]["accuracies"][f"{width:g}"] - arms[alone(width)]["accuracy"]
        return gained

    narrowest, widest = min(settings.widths), max(settings.widths)
    return (
        Check(
            "at no width is the slimmable network more than 1.5 pp worse than one trained for that width",
            "ImageNet, MobileNet v1, from width 1 to 0.25: error 28.5, 30.5, 35.2, 46.9 % against 29.1, 31.6, 36.7, 50.2",
            lambda arms: min(better(arms, width) for width in settings.widths),
            -1.5,
        ),
        Check(
            f"at width {narrowest:g} it is at most 1 pp worse",
            "46.9 % error against 50.2",
            lambda arms: better(arms, narrowest),
            -1.0,
        ),
        Check(
            "where widths share their norms, the worst width has at most 40 % right",
            "0.1 % right (recalled)",
            lambda arms: 40 - min(arms[SHARED]["accuracies"].values()),
        ),
        Check(
            "norms for each width take less than 2 % more parameters",
            "private norms cost next to nothing",
            lambda arms: 2 - 100 * (arms[SLIM]["parameters"] / arms[alone(widest)]["parameters"] - 1),
            unit="%",
        ),
    )


def picture(found: Mapping[int, Arms], settings: Experiment) -> Any:
    """Accuracy by width."""
    order = ("each trained alone", SLIM, SHARED)
    rows = [
        {"arm": name, "width": width, "right (%)": value}
        for own in found.values()
        for width in settings.widths
        for name, value in zip(
            order,
            (own[alone(width)]["accuracy"], *(own[arm]["accuracies"][f"{width:g}"] for arm in (SLIM, SHARED))),
            strict=True,
        )
    ]
    return curves(rows, "width", "right (%)", title="CIFAR-10, 16 x 16, ResNet-8", order=order)


CLAIM = Claim(
    name="slimmable",
    paper="Yu, Yang, Xu, Yang and Huang 2019, Slimmable Neural Networks, arXiv:1812.08928",
    says="One network can run at several widths: with batch norms for each width and the sum of the widths' losses it is as "
    "good at each as a network that was trained at that width alone. With shared norms it fails.",
    scaled="ResNet-8 on 10,000 pictures of CIFAR-10 scaled to 16 x 16, widths 0.25, 0.5, 0.75 and 1, instead of MobileNet, "
    "ShuffleNet and ResNet-50 on ImageNet.",
    data=("cifar10-jpeg",),
    settings={"full": Experiment(), "quick": Experiment(images=2000, epochs=3)},
    arms=arms,
    measure=measure,
    checks=checks,
    picture=picture,
    judges=("penjing.papers.small_pictures", "penjing.dynamic.slimmable", "penjing.dynamic.sandwich"),
)
