"""Factors of low rank halve the work of convolutions for little accuracy, less still where activations weigh the error."""

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from penjing.architecture import LowRank, svd_factors
from penjing.graph import Network, features
from penjing.measurement.macs import macs_by_node
from penjing.models import conv_n
from penjing.papers.claim import Arms, Check, Claim, Figures
from penjing.papers.laboratory import Laboratory, cloned
from penjing.papers.pictures import dots, side_by_side
from penjing.sensitivity import input_covariances
from penjing.settings import Settings
from penjing.training import Schedule, Task

DENSE, TUCKER, WEIGHED, SPATIAL, MATRICES = (
    "dense",
    "Tucker-2, weights",
    "Tucker-2, activations",
    "k x 1 and 1 x k",
    "matrices",
)
HALVED = (TUCKER, WEIGHED, SPATIAL)
CONVS = ("type:Conv2d", "!conv1")


class Experiment(Settings):
    """A small VGG, Conv-4, on small pictures of CIFAR-10."""

    label = "low-rank experiment"
    width: float = Field(default=0.5, description="of Conv-4")
    images: int = Field(default=20_000, description="to learn from")
    size: int = Field(default=16, description="pixels of a side")
    epochs: int = 12
    more_epochs: int = Field(default=3, description="after the factorisation")
    batch_size: int = 128
    lr: float = Field(default=2e-3, description="AdamW, cosine")
    more_lr: float = Field(default=5e-4, description="after the factorisation")
    samples: int = Field(default=512, description="that weigh the error of the factors")
    rank: int = Field(default=32, description="of the matrices whose error is looked at")


def arms(settings: Experiment) -> tuple[str, ...]:
    """Dense; convolutions at half of the MACs in three ways; the mathematics of matrices."""
    return (DENSE, *HALVED, MATRICES)


def conv_macs(network: Network) -> int:
    """Multiply-accumulates of convolutions, whatever stands for them, the first left out."""
    macs = macs_by_node(network)
    return sum(n for name, n in macs.items() if name.startswith("conv") and not name.startswith("conv1"))


def measure(laboratory: Laboratory, arm: str, settings: Experiment, before: Arms) -> Figures:
    """Accuracy on the test images in percent, before and after training on; or errors of matrices."""
    n_valid = 50_000 - settings.images
    task = laboratory.task(
        "cifar10-jpeg", size=settings.size, n_valid=n_valid, batch_size=settings.batch_size, augment=True
    )
    network = laboratory.build(lambda: conv_n(4, width=settings.width, side=settings.size), task)
    if arm == DENSE:
        laboratory.train(network, task, Schedule(epochs=settings.epochs, lr=settings.lr, weight_decay=1e-2))
        laboratory.leave("dense", cloned(network.state_dict()))
        return {"accuracy": laboratory.percent_correct(network, task), "MACs of convolutions": conv_macs(network)}
    network.load_state_dict(laboratory.left("dense"))
    network.eval()
    if arm == MATRICES:
        return matrices(laboratory, network, task, settings)
    total, own = sum(macs_by_node(network).values()), conv_macs(network)
    stage = LowRank(
        layers=CONVS,
        method="spatial" if arm == SPATIAL else "tucker",
        max_macs=total - own // 2,
        samples=settings.samples if arm == WEIGHED else 0,
    )
    bench = laboratory.bench(network, task)
    stage.apply(bench)
    small = bench.network.to(laboratory.accelerator.device)
    first = laboratory.percent_correct(small.eval(), task)
    laboratory.train(small, task, Schedule(epochs=settings.more_epochs, lr=settings.more_lr, weight_decay=1e-2))
    return {
        "before training on": first,
        "accuracy": laboratory.percent_correct(small, task),
        "MACs of convolutions": conv_macs(small),
    }


@torch.no_grad()
def matrices(laboratory: Laboratory, network: Network, task: Task, settings: Experiment) -> Figures:
    """What can be said of one linear layer exactly: Eckart and Young's error, full rank, and how far its answers move."""
    layer: Any = network.get_submodule("fc1")
    weight, rank = layer.weight.double(), settings.rank
    tail = torch.linalg.svdvals(weight)[rank:].square().sum()
    error = (weight - _product(weight, rank)).square().sum()
    batches = laboratory.bench(network, task).samples("samples", settings.samples)
    moment = input_covariances(network, batches)["fc1.weight"][0]
    x = torch.cat([batch.args[0] for batch in task.batches(task.test or (), laboratory.accelerator.device)])
    with features(network, ["flatten"]) as found:
        network(x)
    inputs = found["flatten"].double()
    answers = inputs @ weight.T

    def lost(moment: Tensor | None) -> float:
        return float((answers - inputs @ _product(weight, rank, moment).T).square().sum() / answers.square().sum())

    whole = _product(weight, min(weight.shape))
    return {
        "Eckart and Young, relative": float((error - tail).abs() / tail),
        "full rank, largest difference": float((answers - inputs @ whole.T).abs().max()),
        "answers lost, weights": lost(None),
        "answers lost, activations": lost(moment),
    }


def _product(weight: Tensor, rank: int, moment: Tensor | None = None) -> Tensor:
    first, second = svd_factors(weight, rank, moment)
    return second @ first


def checks(settings: Experiment) -> tuple[Check, ...]:
    """Half of the work for at most a point, with what was said of matrices."""
    found: list[Check] = []
    for arm in HALVED:
        found += [
            Check(
                f"{arm}: at least 2 times fewer multiply-accumulates in the convolutions",
                "4.93 times for VGG-16 (Kim et al., table 2)",
                lambda arms, arm=arm: arms[DENSE]["MACs of convolutions"] / arms[arm]["MACs of convolutions"],  # type: ignore[misc]
                2.0,
                "x",
            ),
            Check(
                f"{arm}: at most 1 pp below the dense network after {settings.more_epochs} epochs",
                "0.5 pp, top 5 (VGG-16, recalled)",
                lambda arms, arm=arm: arms[arm]["accuracy"] - arms[DENSE]["accuracy"],  # type: ignore[misc]
                -1.0,
            ),
            Check(
                f"{arm}: training on helps",
                "section 3.3: nearly all of it is won back in one epoch",
                lambda arms, arm=arm: arms[arm]["accuracy"] - arms[arm]["before training on"],  # type: ignore[misc]
            ),
        ]
    return (
        *found,
        Check(
            "before training on, factors that activations weigh are better than those of weights alone",
            "Denton et al., section 3.1: the metric of the data",
            lambda arms: arms[WEIGHED]["before training on"] - arms[TUCKER]["before training on"],
        ),
        Check(
            "the squared error of a matrix is the sum of the squared singular values left out, to 1e-4",
            "Eckart and Young 1936",
            lambda arms: -arms[MATRICES]["Eckart and Young, relative"],
            -1e-4,
            "",
        ),
        Check(
            "at full rank the answers are the same to 1e-4",
            "by definition",
            lambda arms: -arms[MATRICES]["full rank, largest difference"],
            -1e-4,
            "",
        ),
        Check(
            "at equal rank, factors that activations weigh lose less of the answers to test images",
            "Denton et al., section 3.1",
            lambda arms: arms[MATRICES]["answers lost, weights"] - arms[MATRICES]["answers lost, activations"],
            unit="",
        ),
    )


def picture(found: Mapping[int, Arms], settings: Experiment) -> Any:
    """Accuracy before and after training on."""
    rows = [
        {
            "arm": arm,
            "accuracy (%)": of_seed[arm]["accuracy"],
            "before training on (%)": of_seed[arm]["before training on"],
        }
        for of_seed in found.values()
        for arm in HALVED
    ]
    dense = [{"arm": DENSE, "accuracy (%)": of_seed[DENSE]["accuracy"]} for of_seed in found.values()]
    return side_by_side(
        dots([*dense, *rows], "accuracy (%)", title="half of the work, trained on", order=(DENSE, *HALVED)),
        dots(rows, "before training on (%)", title="before training on", order=HALVED),
    )


CLAIM = Claim(
    name="low-rank",
    paper="Kim et al. 2016, arXiv:1511.06530 (Tucker-2); Jaderberg et al. 2014, arXiv:1405.3866 (k x 1 and 1 x k); "
    "Denton et al. 2014, arXiv:1404.0736 (the metric of the data)",
    says="Convolutions factorised to half of their work and trained on for a few epochs are as accurate as before; the data's "
    "own metric makes better factors than the weights alone.",
    scaled="Conv-4 with half of its filters on CIFAR-10 (JPEG) of 16 x 16 pixels, 20,000 images; ranks of all layers together "
    "under a limit of multiply-accumulates instead of VBMF.",
    data=("cifar10-jpeg",),
    settings={"full": Experiment(), "quick": Experiment(images=4000, epochs=4, more_epochs=1)},
    arms=arms,
    measure=measure,
    checks=checks,
    picture=picture,
    judges=(
        "penjing.architecture.factors",
        "penjing.architecture.low_rank",
        "penjing.architecture.rank_choice",
        "penjing.architecture.schemes",
        "penjing.architecture.tucker",
    ),
)
