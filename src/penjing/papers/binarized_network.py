"""A network whose weights and activations are signs is hardly worse than a real one."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from penjing.artifact import encode
from penjing.graph import Network
from penjing.graph.network import MODULE
from penjing.papers.binary_connect import errors, mlp, squared_hinge
from penjing.papers.claim import Arms, Check, Claim, Figures
from penjing.papers.laboratory import Laboratory
from penjing.papers.pictures import dots, side_by_side
from penjing.quantization.binarize import Binarize
from penjing.settings import Settings
from penjing.training import Schedule

REAL, WEIGHTS, BOTH = "real", "binary weights", "binary weights and activations"
ARMS = (REAL, WEIGHTS, BOTH)
_COUNTED = 16


class Experiment(Settings):
    """Three hidden layers on MNIST, batch norm, squared hinge."""

    label = "binarized-network experiment"
    hidden: int = Field(default=768, description="units of each of the three layers")
    epochs: int = 15
    batch_size: int = 100
    lr: float = Field(default=1e-3, description="of real weights, Adam")
    binary_lr: float = Field(
        default=1e-2,
        description="of binary ones, divided by Glorot's coefficient as in the paper; Adam; chosen on validation images",
    )
    images: int = Field(default=20_000, description="to learn from")


def arms(settings: Experiment) -> tuple[str, ...]:
    """Real; binary weights alone, for the figures; both."""
    return ARMS


def measure(laboratory: Laboratory, arm: str, settings: Experiment, before: Arms) -> Figures:
    """Train one network from the same initial weights; errors on the test images, in percent."""
    task = laboratory.task("mnist", batch_size=settings.batch_size, n_valid=60_000 - settings.images)
    task = replace(task, loss=squared_hinge)
    network = laboratory.build(lambda: mlp(settings.hidden), task)
    if arm == REAL:
        laboratory.train(network, task, Schedule(epochs=settings.epochs, lr=settings.lr))
        return errors(laboratory, network, task) | {"bytes": len(encode(network))}
    bench = laboratory.bench(network, task)
    stage = Binarize(scale="none", skip=(), activations=arm == BOTH, epochs=settings.epochs, lr=settings.binary_lr)
    stage.apply(bench)
    network = bench.network
    found = errors(laboratory, network, task) | {"bytes": len(encode(network))}
    if arm == BOTH:
        x = next(task.batches(task.valid)).args[0][:_COUNTED]
        found |= {"differences from counted bits": counted(network, x.to(laboratory.accelerator.device))}
    return found


@torch.no_grad()
def counted(network: Network, x: Tensor) -> int:
    """How many answers of layers that take signs are not n - 2 popcount(inputs xor weights), exactly."""
    wrong = 0

    def look(path: str, value: Tensor) -> Tensor:
        nonlocal wrong
        layer = network.get_submodule(path)
        weight: Tensor = layer.weight  # type: ignore[assignment]
        if set(value.unique().tolist()) <= {-1.0, 1.0}:
            rows, columns = ([_bits(row) for row in matrix] for matrix in (value, weight))
            n = weight.shape[1]
            expected = [[n - 2 * (row ^ column).bit_count() for column in columns] for row in rows]
            wrong += int((layer(value).cpu() != torch.tensor(expected)).sum())
        else:
            wrong += value.numel() if path != "linear1" else 0  # only the first layer takes numbers
        return value

    def looking(path: str) -> Any:
        return lambda value: look(path, value)

    edges = {
        (node.name, 0): looking(node.path)
        for node in network.nodes
        if node.op == MODULE and node.path.startswith("linear")
    }
    with network.watched(edges):
        network(x)
    return wrong


def _bits(signs: Tensor) -> int:
    return sum(1 << place for place, sign in enumerate(signs.tolist()) if sign > 0)


def checks(settings: Experiment) -> tuple[Check, ...]:
    """The error, and that it really is arithmetic of bits."""
    return (
        Check(
            "the error with binary weights and activations is at most 1 pp above that of the real network",
            "0.96 % (3 x 4,096 units, dropout, 1,000 epochs)",
            lambda arms: arms[REAL]["test error"] - arms[BOTH]["test error"],
            -1.0,
        ),
        Check(
            "signs of activations cost more than signs of weights",
            "1.40 % (Torch7) against 1.29 % (BinaryConnect)",
            lambda arms: arms[BOTH]["test error"] - arms[WEIGHTS]["test error"],
        ),
        Check(
            "every layer but the first computes n - 2 popcount(xor) exactly",
            "section 3.4",
            lambda arms: -arms[BOTH]["differences from counted bits"],
            unit="numbers",
        ),
        Check(
            "the file is at least 20 times smaller than the real network's",
            "section 3: 32 times less memory",
            lambda arms: arms[REAL]["bytes"] / arms[BOTH]["bytes"],
            20.0,
            "x",
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
        dots(rows, "test error (%)", title="MNIST", order=ARMS),
        dots(rows, "file (kB)", title="size", order=ARMS, log=True),
    )


CLAIM = Claim(
    name="binarized-network",
    paper="Hubara, Courbariaux, Soudry, El-Yaniv and Bengio 2016, Binarized Neural Networks, arXiv:1602.02830, section 2",
    says="A network whose weights and activations are -1 or 1, but for its input, is nearly as accurate as a real one, and its "
    "layers are counts of bits.",
    scaled="MNIST, three hidden layers of 768 units instead of 4,096, 20,000 images to learn from, 15 epochs instead of 1,000, "
    "no dropout, Adam with a cosine.",
    data=("mnist",),
    settings={"full": Experiment(), "quick": Experiment(hidden=512, epochs=12, images=5000)},
    arms=arms,
    measure=measure,
    checks=checks,
    picture=picture,
    judges=(
        "penjing.graph.ops",
        "penjing.papers.binary_connect",
        "penjing.quantization.binarize",
        "penjing.quantization.sign_inputs",
        "penjing.representation.signs",
    ),
)
