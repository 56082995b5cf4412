"""Networks of binary weights are hardly worse than real ones, and with chance in the signs hardly worse again."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from penjing.artifact import encode
from penjing.graph import Network
from penjing.papers.claim import Arms, Check, Claim, Figures
from penjing.papers.laboratory import Laboratory
from penjing.papers.pictures import dots, side_by_side
from penjing.quantization import Binarize, refresh_norms_
from penjing.representation import Signs, named_weights, plain, representations
from penjing.settings import Settings
from penjing.training import Schedule, Task

REAL, DETERMINISTIC, STOCHASTIC, DROPOUT = "real", "deterministic", "stochastic", "dropout"
NAMES = {
    REAL: "no regularizer",
    DETERMINISTIC: "BinaryConnect, deterministic",
    STOCHASTIC: "BinaryConnect, stochastic",
    DROPOUT: "50 % dropout",
}


class Experiment(Settings):
    """Three hidden layers on MNIST, batch norm, squared hinge."""

    label = "binary-connect experiment"
    hidden: int = Field(default=512, description="units of each of the three layers")
    epochs: int = 60
    batch_size: int = 100
    lr: float = Field(default=1e-3, description="of real weights, Adam")
    rates: dict[str, float] = Field(
        default={DETERMINISTIC: 1e-3, STOCHASTIC: 1e-2},
        description="of binary ones, divided by Glorot's coefficient as in the paper; Adam; chosen on validation images",
    )
    images: int = Field(default=5000, description="to learn from")


def mlp(hidden: int, dropout: float = 0.0) -> nn.Module:
    """784 inputs, three hidden layers with batch norm and ReLU, 10 answers with batch norm, as BinaryConnect has it."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    inputs = 784
    for number in range(1, 4):
        layers[f"linear{number}"] = nn.Linear(inputs, hidden, bias=False)
        layers[f"norm{number}"] = nn.BatchNorm1d(hidden)
        layers[f"relu{number}"] = nn.ReLU()
        if dropout:
            layers[f"dropout{number}"] = nn.Dropout(dropout)
        inputs = hidden
    layers["linear4"] = nn.Linear(inputs, 10, bias=False)
    layers["norm4"] = nn.BatchNorm1d(10)
    return nn.Sequential(layers)


def squared_hinge(answers: Tensor, labels: Tensor) -> Tensor:
    """mean max(0, 1 - t y)^2, t = 1 for the right class and -1 for the others; (n, classes) and (n,) to a scalar."""
    targets = 2.0 * F.one_hot(labels, answers.shape[-1]) - 1
    return (1 - targets * answers).clamp_min(0).square().mean()


def arms(settings: Experiment) -> tuple[str, ...]:
    """The four rows of the paper's table."""
    return (REAL, DETERMINISTIC, STOCHASTIC, DROPOUT)


def measure(laboratory: Laboratory, arm: str, settings: Experiment, before: Arms) -> Figures:
    """Train one network from the same initial weights; errors on the test images, in percent."""
    task = laboratory.task("mnist", batch_size=settings.batch_size, n_valid=60_000 - settings.images)
    task = replace(task, loss=squared_hinge)
    network = laboratory.build(lambda: mlp(settings.hidden, 0.5 if arm == DROPOUT else 0.0), task)
    if arm in (REAL, DROPOUT):
        laboratory.train(network, task, Schedule(epochs=settings.epochs, lr=settings.lr))
        return errors(laboratory, network, task) | {"bytes": len(encode(network))}
    bench = laboratory.bench(network, task)
    stage = Binarize(
        rounding=arm,  # type: ignore[arg-type]
        scale="none",
        skip=(),
        epochs=settings.epochs,
        lr=settings.rates[arm],
        norm_samples=0,  # at first those of training, as the paper has them
    )
    stage.apply(bench)
    network = bench.network
    real = with_originals(network)
    found = errors(laboratory, network, task) | {
        "bytes": len(encode(network)),
        "values": sorted({v for _, weight in _binary(network) for v in weight.unique().tolist()}),
        "largest original": max(float(original.abs().max()) for original in _originals(network).values()),
        "weights": sum(weight.numel() for _, weight in _binary(network)),
        "real weights": errors(laboratory, real, task),
    }
    refresh_norms_(network, bench.samples("norms", 10_000))
    return found | {"fresh norms": errors(laboratory, network, task)}


def errors(laboratory: Laboratory, network: Network, task: Task) -> Figures:
    """The share of wrong answers in percent, of the test and of the validation images."""
    return {
        "test error": 100 - laboratory.percent_correct(network, task),
        "validation error": 100 - laboratory.percent_correct(network, task, "valid"),
    }


def with_originals(network: Network) -> Network:
    """A copy whose weights are the real numbers that the signs are of: how the paper tests what it trained by chance."""
    real = plain(network)
    with torch.no_grad():
        for name, original in _originals(network).items():
            real.get_parameter(name).copy_(original)
    return real


def _originals(network: Network) -> dict[str, Tensor]:
    found = {}
    for full_name, owner, name in named_weights(network):
        if any(isinstance(part, Signs) for part in representations(owner, name)):
            found[full_name] = owner.parametrizations[name].original.detach()  # type: ignore[index, union-attr]
    return found


def _binary(network: Network) -> list[tuple[str, Tensor]]:
    originals = _originals(network)
    return [(name, getattr(owner, key).detach()) for name, owner, key in named_weights(network) if name in originals]


def error(arms_of_seed: Arms, arm: str) -> float:
    """As the paper tests: binary weights where signs were taken, the real ones where they were drawn."""
    figures = arms_of_seed[arm]
    return float((figures["real weights"] if arm == STOCHASTIC else figures)["test error"])


def checks(settings: Experiment) -> tuple[Check, ...]:
    """The paper's table, and what must be so."""
    return (
        Check(
            "the error with binary weights, deterministic, is at most 0.3 pp above that of real ones without a regularizer",
            "1.29 against 1.30 %",
            lambda arms: error(arms, REAL) - error(arms, DETERMINISTIC),
            -0.3,
        ),
        Check(
            "stochastic, tested with real weights as in the paper, at most 0.1 pp above deterministic",
            "1.18 against 1.29 %",
            lambda arms: error(arms, DETERMINISTIC) - error(arms, STOCHASTIC),
            -0.1,
        ),
        Check(
            "binary beats the original without a regularizer: the error of the better way, chosen on validation images, is "
            "below that of real weights",
            "1.18 against 1.30 %; dropout does better, 1.01 %",
            _gain,
        ),
        Check(
            "all weights are -1 or 1, and the originals stay within 1",
            "section 2.4",
            lambda arms: min(
                float(arms[arm]["values"] == [-1.0, 1.0] and arms[arm]["largest original"] <= 1)
                for arm in (DETERMINISTIC, STOCHASTIC)
            ),
            1.0,
            "",
        ),
        Check(
            "the weights take a bit each: the file is at most a bit a weight, 16 bytes for each channel of a norm and 400 "
            "bytes",
            "section 5: at least 16 times less memory",
            lambda arms: min(
                arms[arm]["weights"] / 8 + 16 * (3 * settings.hidden + 10) + 400 - arms[arm]["bytes"]
                for arm in (DETERMINISTIC, STOCHASTIC)
            ),
            unit="bytes",
        ),
    )


def _gain(arms_of_seed: Arms) -> float:
    validated = {
        DETERMINISTIC: arms_of_seed[DETERMINISTIC]["validation error"],
        STOCHASTIC: arms_of_seed[STOCHASTIC]["real weights"]["validation error"],
    }
    better = min(validated, key=validated.__getitem__)
    return error(arms_of_seed, REAL) - error(arms_of_seed, better)


def picture(found: Mapping[int, Arms], settings: Experiment) -> Any:
    """Errors, and sizes of files."""
    rows, sizes = [], []
    for of_seed in found.values():
        for arm, name in NAMES.items():
            rows.append({"arm": name, "test error (%)": error(of_seed, arm)})
            sizes.append({"arm": name, "file (kB)": of_seed[arm]["bytes"] / 1000})
        fresh = of_seed[STOCHASTIC]["fresh norms"]["test error"]
        rows.append({"arm": "stochastic, tested with signs", "test error (%)": fresh})
    order = [*NAMES.values(), "stochastic, tested with signs"]
    return side_by_side(
        dots(rows, "test error (%)", title="MNIST", order=order),
        dots(sizes, "file (kB)", title="size", order=order, log=True),
    )


CLAIM = Claim(
    name="binary-connect",
    paper="Courbariaux, Bengio and David 2015, BinaryConnect, arXiv:1511.00363, table 2",
    says="A network whose weights are -1 or 1 in every pass, while real numbers in [-1, 1] take up the gradients, is as "
    "accurate as one of real weights; drawing the signs by chance makes it better than one without a regularizer.",
    scaled="MNIST, three hidden layers of 512 units instead of 1,024, and 5,000 images to learn from, so that 60 epochs (3,000 "
    "steps instead of 500,000) are enough to learn them by heart and a regularizer has something to do; Adam with a cosine "
    "instead of SGD with an exponential decay, and the last epoch instead of the one best on validation images.",
    data=("mnist",),
    settings={
        "full": Experiment(),
        "quick": Experiment(hidden=256, epochs=20),
    },
    arms=arms,
    measure=measure,
    checks=checks,
    picture=picture,
    judges=("penjing.quantization.binarize", "penjing.representation.signs"),
)
