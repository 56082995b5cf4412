"""Networks designed to be small: their exact sizes, and what they reach with about as much as a plain one."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import Field
from torch import nn

from penjing.graph import trace
from penjing.measurement.macs import macs_by_node
from penjing.models import ghostnet, mobilenet, plain_cnn, shufflenet, squeezenet, xception
from penjing.papers.claim import Arms, Check, Claim, Figures
from penjing.papers.laboratory import Laboratory
from penjing.papers.pictures import dots, side_by_side
from penjing.settings import Settings
from penjing.training import Schedule

COUNTS, PLAIN, MOBILE, SHUFFLE, GHOST, SQUEEZE = "counts", "plain", "MobileNet", "ShuffleNet", "GhostNet", "SqueezeNet"
TRAINED = (PLAIN, MOBILE, SHUFFLE, GHOST, SQUEEZE)

SIZES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "SqueezeNet 1.0": (lambda: squeezenet("1.0"), 1_248_424),
    "SqueezeNet 1.1": (lambda: squeezenet("1.1"), 1_235_496),
    "MobileNet 1.0": (lambda: mobilenet(1.0), 4_231_976),
    "MobileNet 0.75": (lambda: mobilenet(0.75), 2_585_560),
    "MobileNet 0.5": (lambda: mobilenet(0.5), 1_331_592),
    "MobileNet 0.25": (lambda: mobilenet(0.25), 470_072),
    **{
        f"ShuffleNet 1.0, {g} groups": (lambda g=g: shufflenet(g), n)  # type: ignore[misc]
        for g, n in ((1, 1_531_936), (2, 1_733_848), (3, 1_865_728), (4, 1_968_344), (8, 2_434_768))
    },
    "Xception": (xception, 22_855_952),
    "GhostNet 0.5": (lambda: ghostnet(0.5), 2_587_292),
    "GhostNet 1.0": (lambda: ghostnet(1.0), 5_182_508),
    "GhostNet 1.3": (lambda: ghostnet(1.3), 7_358_820),
}
"""By name: the network for ImageNet, and its parameters as counted in public implementations."""


class Experiment(Settings):
    """Small forms on CIFAR-10, all with about `parameters`."""

    label = "compact-networks experiment"
    parameters: int = Field(default=200_000, description="each has at most so many")
    images: int = Field(default=20_000, description="to learn from")
    epochs: int = 10
    batch_size: int = 128
    lr: float = Field(default=0.05, description="SGD, cosine")
    weight_decay: float = 2e-4


def small_form(name: str, scale: float) -> nn.Module:
    """A network for 32 x 32 pictures of ten classes, its widths times `scale`."""
    small: dict[str, Any] = {"classes": 10, "small_images": True}
    match name:
        case "MobileNet":
            return mobilenet(scale, **small)
        case "ShuffleNet":
            return shufflenet(2, width=scale, **small)
        case "GhostNet":
            return ghostnet(scale, **small)
        case "SqueezeNet":
            return squeezenet("1.1", **small)
    widths = [max(1, round(scale * width)) for width in (32, 64, 64, 128, 128, 128)]
    return plain_cnn(widths, channels=3, first_kernel=3, first_stride=2, pool_after=(1, 3))


def largest_within(name: str, parameters: int) -> float:
    """The largest scale, in sixty-fourths, at which a network has at most so many parameters."""
    best = 0.0
    for k in range(2, 129):
        with torch.device("meta"):
            n = sum(p.numel() for p in small_form(name, k / 64).parameters())
        if n <= parameters:
            best = k / 64
    return best


def arms(settings: Experiment) -> tuple[str, ...]:
    """Counts; then each network."""
    return (COUNTS, *TRAINED)


def measure(laboratory: Laboratory, arm: str, settings: Experiment, before: Arms) -> Figures:
    """Count, or train one network; accuracy on the test images, in percent."""
    if arm == COUNTS:
        found: Figures = {}
        for name, (make, expected) in SIZES.items():
            with torch.device("meta"):
                found[name] = sum(p.numel() for p in make().parameters()) - expected
        return found
    task = laboratory.task(
        "cifar10-jpeg", n_valid=50_000 - settings.images, batch_size=settings.batch_size, augment=True
    )
    scale = largest_within(arm, settings.parameters)
    network = laboratory.build(lambda: small_form(arm, scale), task)
    schedule = Schedule(
        epochs=settings.epochs, lr=settings.lr, optimizer="sgd", weight_decay=settings.weight_decay, warmup=0.1
    )
    history = laboratory.train(network, task, schedule)
    return {
        "accuracy": laboratory.percent_correct(network, task),
        "scale": scale,
        "parameters": sum(p.numel() for p in network.parameters()),
        "MACs": sum(macs_by_node(trace(network.cpu(), task.example().args)).values()),
        "seconds of an epoch": sorted(history.seconds)[len(history.seconds) // 2],
    }


def checks(settings: Experiment) -> tuple[Check, ...]:
    """Exact sizes, and accuracy at equal size."""

    def better(arm: str) -> Callable[[Arms], float]:
        return lambda arms: arms[arm]["accuracy"] - arms[PLAIN]["accuracy"]

    return (
        Check(
            "every network has exactly the parameters of the public implementations",
            "15 networks",
            lambda arms: -sum(abs(n) for n in arms[COUNTS].values()),
            unit="parameters",
        ),
        *(
            Check(
                f"{arm} is at least as accurate as a plain network with as many parameters",
                "section 4 of each paper, on ImageNet, against networks of other designs",
                better(arm),
            )
            for arm in TRAINED[1:4]
        ),
    )


def picture(found: Mapping[int, Arms], settings: Experiment) -> Any:
    """Accuracy, and work."""
    rows = [
        {"arm": arm, "accuracy (%)": of_seed[arm]["accuracy"], "million MACs": of_seed[arm]["MACs"] / 1e6}
        for of_seed in found.values()
        for arm in TRAINED
    ]
    return side_by_side(
        dots(rows, "accuracy (%)", title=f"at most {settings.parameters:,} parameters", order=TRAINED),
        dots(rows, "million MACs", title="work", order=TRAINED, log=True),
    )


CLAIM = Claim(
    name="compact-networks",
    paper="Iandola et al. 2016, arXiv:1602.07360; Howard et al. 2017, arXiv:1704.04861; Zhang et al. 2018, arXiv:1707.01083; "
    "Chollet 2017, arXiv:1610.02357; Han et al. 2020, arXiv:1911.11907",
    says="Networks of separable, grouped, squeezed and cheaply derived channels do more with their parameters than plain ones.",
    scaled="Small forms with at most 200,000 parameters on CIFAR-10 (JPEG), 20,000 images, 10 epochs; SqueezeNet, which has no "
    "width, is larger and only for the picture.",
    data=("cifar10-jpeg",),
    settings={"full": Experiment(), "quick": Experiment(images=2000, epochs=2)},
    arms=arms,
    measure=measure,
    checks=checks,
    picture=picture,
    judges=(
        "penjing.models.ghostnet",
        "penjing.models.mobilenet",
        "penjing.models.shufflenet",
        "penjing.models.squeezenet",
        "penjing.models.xception",
    ),
)
