"""Filters of signs with a scale cost little; signs as inputs too cost more."""

import math
from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from penjing.artifact import encode
from penjing.graph import Network
from penjing.models import plain_cnn
from penjing.papers.claim import Arms, Check, Claim, Figures
from penjing.papers.laboratory import Laboratory
from penjing.papers.pictures import dots, side_by_side
from penjing.quantization.binarize import Binarize
from penjing.representation import Signs, named_weights, representations
from penjing.settings import Settings
from penjing.training import Schedule, Task

REAL, WEIGHTS, BOTH = "real", "binary filters (BWN)", "binary filters and inputs (XNOR)"
ARMS = (REAL, WEIGHTS, BOTH)


class Experiment(Settings):
    """A plain convolutional network on CIFAR-10."""

    label = "xnor-net experiment"
    widths: tuple[int, ...] = (32, 64, 64, 96)
    epochs: int = 14
    batch_size: int = 100
    lr: float = Field(default=3e-3, description="of real weights, Adam")
    binary_lr: float = Field(default=1e-2, description="of binary ones, Adam; chosen on validation images")
    images: int = Field(default=10_000, description="to learn from, moved and mirrored at random")


def network_of(settings: Experiment) -> nn.Module:
    """Blocks of convolution, batch norm and ReLU: 16 x 16 places in the first two, 8 x 8 in the others."""
    return plain_cnn(settings.widths, channels=3, first_kernel=5, first_stride=2, pool_after=(1,))


def arms(settings: Experiment) -> tuple[str, ...]:
    """Real; filters of signs with a scale each; signs as inputs too. First and last layer stay real, as in the paper."""
    return ARMS


def measure(laboratory: Laboratory, arm: str, settings: Experiment, before: Arms) -> Figures:
    """Train one network from the same initial weights; errors in percent."""
    task = laboratory.task(
        "cifar10-jpeg", batch_size=settings.batch_size, n_valid=50_000 - settings.images, augment=True
    )
    network = laboratory.build(lambda: network_of(settings), task)
    if arm == REAL:
        laboratory.train(network, task, Schedule(epochs=settings.epochs, lr=settings.lr))
        return _described(laboratory, network, task)
    bench = laboratory.bench(network, task)
    Binarize(activations=arm == BOTH, epochs=settings.epochs, lr=settings.binary_lr).apply(bench)
    return _described(laboratory, bench.network, task)


def _described(laboratory: Laboratory, network: Network, task: Task) -> Figures:
    """The test error, the file, and of binary layers what must be so."""
    binary = [(owner, name) for _, owner, name in named_weights(network) if _is_binary(owner, name)]
    weights: list[Tensor] = [getattr(owner, name).detach() for owner, name in binary]
    return {
        "test error": 100 - laboratory.percent_correct(network, task),
        "bytes": len(encode(network)),
        "binary weights": sum(weight.numel() for weight in weights),
        "filters": sum(len(weight) for weight in weights),
        "filters of two values": sum(
            int(len(row.abs().unique()) == 1) for weight in weights for row in weight.flatten(1)
        ),
        "other numbers": sum(
            tensor.numel()
            for key, tensor in network.state_dict().items()
            if tensor.is_floating_point() and ".parametrizations." not in key
        ),
    }


def _is_binary(owner: nn.Module, name: str) -> bool:
    return any(isinstance(part, Signs) for part in representations(owner, name))


def checks(settings: Experiment) -> tuple[Check, ...]:
    """Errors, and what a filter takes."""

    def spare(arms: Arms, arm: str) -> float:
        """Bytes that the file is below a bit a binary weight, two bytes a scale, four a number of any other kind."""
        own = arms[arm]
        allowed = math.ceil(own["binary weights"] / 8) + 2 * own["filters"] + 4 * own["other numbers"] + 400
        return float(allowed - own["bytes"])

    return (
        Check(
            "filters of signs with a scale each err at most 2 pp more than real ones",
            "9.88 % (BWN) against about the same; ImageNet, AlexNet: 56.8 against 56.6 % correct",
            lambda arms: arms[REAL]["test error"] - arms[WEIGHTS]["test error"],
            -2.0,
        ),
        Check(
            "with signs as inputs too the error is larger",
            "10.17 against 9.88 %; ImageNet, AlexNet: 44.2 against 56.8 % correct",
            lambda arms: arms[BOTH]["test error"] - arms[WEIGHTS]["test error"],
        ),
        Check(
            "every binary filter has the values -s and s",
            "W = alpha B",
            lambda arms: min(arms[arm]["filters of two values"] - arms[arm]["filters"] for arm in (WEIGHTS, BOTH)),
            unit="filters",
        ),
        Check(
            "the file is at most a bit a binary weight, two bytes a scale, four bytes a number of another kind, and 400 bytes",
            "32 times less memory for the weights",
            lambda arms: min(spare(arms, arm) for arm in (WEIGHTS, BOTH)),
            unit="bytes",
        ),
    )


def picture(found: Mapping[int, Arms], settings: Experiment) -> Any:
    """Errors, and sizes of files."""
    rows = [
        {"arm": arm, "test error (%)": of_seed[arm]["test error"], "file (kB)": of_seed[arm]["bytes"] / 1000}
        for of_seed in found.values()
        for arm in ARMS
    ]
    return side_by_side(
        dots(rows, "test error (%)", title="CIFAR-10", order=ARMS),
        dots(rows, "file (kB)", title="size", order=ARMS, log=True),
    )


CLAIM = Claim(
    name="xnor-net",
    paper="Rastegari, Ordonez, Redmon and Farhadi 2016, XNOR-Net, arXiv:1603.05279, section 4",
    says="Filters of signs with one scale each are as accurate as real ones; signs as inputs too cost accuracy.",
    scaled="A plain CNN of four convolutions (32, 64, 64 and 96 filters) on 10,000 images of CIFAR-10 from JPEG files, 14 "
    "epochs; inputs have no scales of their own (the paper's K), the batch norms behind have them; the pooling stands in front "
    "of the sign and behind the norm, which is the same for positive norm scales.",
    data=("cifar10-jpeg",),
    settings={"full": Experiment(), "quick": Experiment(widths=(16, 24, 24, 32), epochs=4, images=5000)},
    arms=arms,
    measure=measure,
    checks=checks,
    picture=picture,
    judges=(
        "penjing.graph.ops",
        "penjing.quantization.binarize",
        "penjing.quantization.sign_inputs",
        "penjing.representation.signs",
    ),
)
