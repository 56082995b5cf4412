"""Depthwise separable convolutions are nearly as good as full ones with a fraction of the work."""

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import nn

from penjing.architecture import SeparableConvs
from penjing.graph import Network, trace
from penjing.measurement.macs import macs_by_node
from penjing.models import plain_cnn
from penjing.papers.claim import Arms, Check, Claim, Figures
from penjing.papers.laboratory import Laboratory, cloned
from penjing.papers.pictures import dots, side_by_side
from penjing.settings import Settings
from penjing.training import Schedule

STANDARD, SEPARABLE, THIN, SWAPPED = (
    "full",
    "separable",
    "full, thin, as many MACs",
    "full, then swapped and trained on",
)
ARMS = (STANDARD, SEPARABLE, THIN, SWAPPED)


class Experiment(Settings):
    """Plain convolutional networks on small pictures of CIFAR-10."""

    label = "depthwise-separable experiment"
    widths: tuple[int, ...] = Field(default=(32, 64, 64, 128, 128, 128), description="filters of the full network")
    pool_after: tuple[int, ...] = (1, 3)
    images: int = Field(default=20_000, description="to learn from")
    size: int = Field(default=16, description="pixels of a side")
    epochs: int = 12
    more_epochs: int = Field(default=6, description="after the swap, at a tenth of the rate")
    batch_size: int = 128
    lr: float = 0.05
    weight_decay: float = 5e-4


def full(settings: Experiment, scale: float = 1.0) -> nn.Module:
    """The network of full convolutions, all widths times `scale`."""
    widths = [max(1, round(scale * width)) for width in settings.widths]
    return plain_cnn(widths, channels=3, first_kernel=3, first_stride=1, pool_after=settings.pool_after)


def separated(network: Network) -> Network:
    """All but the first convolution separable."""
    paths = [path for path, layer in network.layers().items() if isinstance(layer, nn.Conv2d)]
    return SeparableConvs().swap(network, paths)[0]


def n_macs(network: Network) -> int:
    """For one picture."""
    return sum(macs_by_node(network).values())


def thin_scale(settings: Experiment) -> float:
    """The scale at which the full network has as many MACs as the separable one, and no fewer."""
    x = torch.zeros(2, 3, settings.size, settings.size)
    wanted = n_macs(separated(trace(full(settings), (x,))))
    scales = [k / 256 for k in range(8, 257)]
    return next(s for s in scales if n_macs(trace(full(settings, s), (x,))) >= wanted)


@torch.no_grad()
def drawn_anew(network: Network) -> Network:
    """With weights that know nothing of the network that was swapped: He's normal distribution."""
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight)
    return network


def arms(settings: Experiment) -> tuple[str, ...]:
    """Full; separable from the start; full with as many MACs; swapped after training."""
    return ARMS


def measure(laboratory: Laboratory, arm: str, settings: Experiment, before: Arms) -> Figures:
    """Train one network; accuracy on the test images, in percent."""
    n_valid = 50_000 - settings.images
    task = laboratory.task(
        "cifar10-jpeg", size=settings.size, n_valid=n_valid, batch_size=settings.batch_size, augment=True
    )
    scale = thin_scale(settings) if arm == THIN else 1.0
    network = laboratory.build(lambda: full(settings, scale), task)
    schedule = Schedule(
        epochs=settings.epochs, lr=settings.lr, optimizer="sgd", weight_decay=settings.weight_decay, warmup=0.1
    )
    found: Figures = {}
    if arm == SEPARABLE:
        network = drawn_anew(separated(network)).to(laboratory.accelerator.device)
    if arm == SWAPPED:
        network.load_state_dict(laboratory.left("full"))
        old = {path: layer for path, layer in network.layers().items() if isinstance(layer, nn.Conv2d)}
        network = separated(network.cpu()).to(laboratory.accelerator.device)
        found["share of weights, largest error"] = max(
            _share_error(layer, network.get_submodule(path)) for path, layer in old.items() if path != "block0.conv"
        )
        found["before training on"] = laboratory.percent_correct(network.eval(), task)
        schedule = schedule.model_copy(update={"epochs": settings.more_epochs, "lr": settings.lr / 10})
    laboratory.train(network, task, schedule)
    if arm == STANDARD:
        laboratory.leave("full", cloned(network.state_dict()))
    return found | {
        "accuracy": laboratory.percent_correct(network, task),
        "MACs": n_macs(network),
        "parameters": sum(p.numel() for p in network.parameters()),
    }


def _share_error(conv: nn.Conv2d, container: nn.Module) -> float:
    """|share of weights - (1/O + 1/k^2)| of one layer."""
    weights = sum(
        p.numel() for name, p in container.named_parameters() if name in ("depthwise.weight", "pointwise.weight")
    )
    share = weights / conv.weight.numel()
    return abs(share - (1 / conv.out_channels + 1 / conv.kernel_size[0] ** 2))


def checks(settings: Experiment) -> tuple[Check, ...]:
    """The count of weights, the work, and the accuracy at equal widths and at equal work."""
    return (
        Check(
            "the share of weights is 1/O + 1/k^2 in every layer",
            "section 3.1, eq. 5",
            lambda arms: -arms[SWAPPED]["share of weights, largest error"],
            -1e-9,
            "",
        ),
        Check(
            "5 times fewer multiply-accumulates than full convolutions of the same widths",
            "8.6 times (table 4: 4,866 and 569 million, wider)",
            lambda arms: arms[STANDARD]["MACs"] / arms[SEPARABLE]["MACs"],
            5.0,
            "x",
        ),
        Check(
            "at most 2 pp below full convolutions of the same widths",
            "1.1 pp (table 4: 71.7 and 70.6 %)",
            lambda arms: arms[SEPARABLE]["accuracy"] - arms[STANDARD]["accuracy"],
            -2.0,
        ),
        Check(
            "better than a thin network of full convolutions with as many multiply-accumulates",
            "fewer layers or channels cost 3 pp and more (table 5)",
            lambda arms: arms[SEPARABLE]["accuracy"] - arms[THIN]["accuracy"],
        ),
        Check(
            "swapped from a trained network and trained on, at most 2 pp below it",
            "our own: begun from the closest weights",
            lambda arms: arms[SWAPPED]["accuracy"] - arms[STANDARD]["accuracy"],
            -2.0,
        ),
    )


def picture(found: Mapping[int, Arms], settings: Experiment) -> Any:
    """Accuracy, and work."""
    rows = [
        {"arm": arm, "accuracy (%)": of_seed[arm]["accuracy"], "million MACs": of_seed[arm]["MACs"] / 1e6}
        for of_seed in found.values()
        for arm in ARMS
    ]
    return side_by_side(
        dots(rows, "accuracy (%)", title="CIFAR-10, small", order=ARMS),
        dots(rows, "million MACs", title="work", order=ARMS, log=True),
    )


CLAIM = Claim(
    name="depthwise-separable",
    paper="Howard et al. 2017, MobileNets, arXiv:1704.04861, sections 3.1 and 4.1",
    says="A network of depthwise separable convolutions needs a fraction of the weights and of the work of one with full "
    "convolutions and is nearly as accurate; a thin network with as little work is worse.",
    scaled="Plain networks of six convolutions on CIFAR-10 (JPEG) of 16 x 16 pixels, 20,000 images, 12 epochs, instead of "
    "MobileNet on ImageNet.",
    data=("cifar10-jpeg",),
    settings={"full": Experiment(), "quick": Experiment(images=4000, epochs=4, more_epochs=2)},
    arms=arms,
    measure=measure,
    checks=checks,
    picture=picture,
    judges=("penjing.architecture.separable", "penjing.architecture.swap"),
)
