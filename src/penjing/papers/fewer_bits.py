"""How few bits a weight may have, when it is rounded after training and when training goes on through the rounding."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from penjing.artifact import encode
from penjing.graph import Network
from penjing.models import lenet5
from penjing.papers.claim import Arms, Check, Claim, Figures
from penjing.papers.laboratory import Laboratory, cloned
from penjing.papers.pictures import curves, side_by_side
from penjing.quantization.quantize import Quantize
from penjing.settings import Settings
from penjing.training import Schedule, Task

DENSE, LONGER, AFTER, NAIVE, DURING = "dense", "dense, as long", "after training", "after, one step a layer", "during"
CHANNELS = "a step for each channel"


class Experiment(Settings):
    """LeNet-5 on MNIST, trained, then rounded; and trained on through the rounding."""

    label = "fewer-bits experiment"
    epochs: int = 5
    batch_size: int = 128
    lr: float = 1e-3
    bits: tuple[int, ...] = (8, 7, 6, 5, 4, 3, 2)
    trained_bits: tuple[int, ...] = (4, 3, 2)
    more_epochs: int = 2
    rates: tuple[float, ...] = (3e-4, 1e-3)
    """Of the training through the rounding, and of the same without it; the validation set chooses, for each number of bits."""


def arms(settings: Experiment) -> tuple[str, ...]:
    """Train; round by channels, and the plain way; train on without rounding; train on with it, at each number of bits."""
    return (DENSE, AFTER, NAIVE, LONGER, *(_during(bits) for bits in settings.trained_bits))


def _during(bits: int) -> str:
    return f"{DURING}, {bits} bits"


def measure(laboratory: Laboratory, arm: str, settings: Experiment, before: Arms) -> Figures:
    """Accuracy on the test images, and bytes of the file, by number of bits."""
    task = laboratory.task("mnist", batch_size=settings.batch_size)
    network = laboratory.build(lenet5, task)
    if arm == DENSE:
        laboratory.train(network, task, Schedule(epochs=settings.epochs, lr=settings.lr))
        laboratory.leave(DENSE, cloned(network.state_dict()))
        return {"accuracy": laboratory.percent_correct(network, task), "bytes": len(encode(network))}
    network.load_state_dict(laboratory.left(DENSE))
    if arm in (AFTER, NAIVE):
        found = [_rounded(laboratory, network, task, bits, arm == NAIVE) for bits in settings.bits]
        return {
            "accuracies": [laboratory.percent_correct(own, task) for own in found],
            "bytes": [len(encode(own)) for own in found],
        }
    return _longer(laboratory, network, task, settings, None if arm == LONGER else int(arm.split()[1]))


def _rounded(laboratory: Laboratory, network: Network, task: Task, bits: int, naive: bool) -> Network:
    """Biases are left at ten bits; the plain way is a step a layer over all of its weights, and no correction."""
    plainly: dict[str, Any] = {"per": "tensor", "range": "min-max", "correct_biases": False} if naive else {}
    bench = laboratory.bench(network, task, name=f"{bits}")
    Quantize(bits=bits, **plainly).apply(bench)
    return bench.network


def _longer(laboratory: Laboratory, network: Network, task: Task, settings: Experiment, bits: int | None) -> Figures:
    """Some more epochs, with rounding or without, at the rate that is best on the validation set."""
    state, tried = cloned(network.state_dict()), {}
    for rate in settings.rates:
        network.load_state_dict(state)
        bench = laboratory.bench(network, task, name=f"{rate:g}")
        if bits is None:
            laboratory.train(network, task, Schedule(epochs=settings.more_epochs, lr=rate), name=f"{rate:g}")
        else:
            Quantize(bits=bits, epochs=settings.more_epochs, lr=rate).apply(bench)
        own = bench.network
        tried[rate] = (
            laboratory.percent_correct(own, task, "valid"),
            laboratory.percent_correct(own, task),
            len(encode(own)),
        )
        network = laboratory.build(lenet5, task)
    best = max(tried, key=lambda rate: tried[rate][0])
    valid, accuracy, size = tried[best]
    return {"accuracy": accuracy, "valid": valid, "lr": best, "bytes": size}


def _drop(found: Arms, arm: str, settings: Experiment, bits: int) -> float:
    """Against the dense network, in points; below 0 where it is lost."""
    return float(found[arm]["accuracies"][settings.bits.index(bits)] - found[DENSE]["accuracy"])


def _trained_drop(found: Arms, bits: int) -> float:
    """Against the dense network that was trained on for as long."""
    return float(found[_during(bits)]["accuracy"] - found[LONGER]["accuracy"])


def _steepest(found: Arms, settings: Experiment) -> float:
    """The largest rise of the plain way's accuracy from a number of bits to a smaller one, as a loss."""
    values = found[NAIVE]["accuracies"]
    return -max(after - before for before, after in pairwise(values))


def checks(settings: Experiment) -> tuple[Check, ...]:
    """What the papers found, in points of accuracy."""
    return (
        Check(
            "8 bits after training, a step for each channel: at most 0.1 pp below the dense network",
            "Krishnamoorthi, table 2: 8-bit weights by channel lose nothing, or a few tenths, in most networks",
            lambda arms: _drop(arms, AFTER, settings, 8),
            -0.1,
        ),
        Check(
            "4 bits during training: at most 0.3 pp below the dense network trained for as long",
            "Esser et al., table 1: ResNet-18 at 4 bits is not below full precision (71.1 and 70.5 %)",
            lambda arms: _trained_drop(arms, 4),
            -0.3,
        ),
        Check(
            "3 bits during training: at most 0.5 pp below",
            "Esser et al., table 1: 70.2 % against 70.5",
            lambda arms: _trained_drop(arms, 3),
            -0.5,
        ),
        Check(
            "2 bits during training: at most 1 pp below",
            "Esser et al., table 1: 67.6 % against 70.5",
            lambda arms: _trained_drop(arms, 2),
            -1.0,
        ),
        Check(
            "2 bits after training, one step a layer: more than 5 pp below",
            "Krishnamoorthi, section 3.2.1: few bits in one step a layer lose everything",
            lambda arms: -_drop(arms, NAIVE, settings, 2),
            5.0,
        ),
        Check(
            "2 bits after training, a step for each channel of least squared error: more than 5 pp below too",
            "Esser et al., section 1: so few bits need training",
            lambda arms: -_drop(arms, AFTER, settings, 2),
            5.0,
        ),
        Check(
            "2 bits: during training is better than after",
            "Krishnamoorthi, section 4; Esser et al.",
            lambda arms: float(arms[_during(2)]["accuracy"] - arms[AFTER]["accuracies"][settings.bits.index(2)]),
        ),
        Check(
            "3 bits after training: a step for each channel of least squared error is better than one a layer over all weights",
            "Krishnamoorthi, table 2: steps of channels bring most of the loss back",
            lambda arms: _drop(arms, AFTER, settings, 3) - _drop(arms, NAIVE, settings, 3),
        ),
        Check(
            "one step a layer: nowhere is a smaller number of bits better by more than 0.1 pp",
            "the fewer bits, the worse",
            lambda arms: _steepest(arms, settings),
            -0.1,
        ),
    )


def picture(found: Mapping[int, Arms], settings: Experiment) -> Any:
    """Accuracy against bits, and the errors of those that work against the bytes of the file."""
    x, y, size, error = "bits of a weight", "accuracy (%)", "file (kB)", "wrong (%)"
    rows, sizes = [], []
    for own in found.values():
        for arm, name in ((AFTER, f"after training, {CHANNELS}"), (NAIVE, "after training, one step a layer")):
            for bits, accuracy, n in zip(settings.bits, own[arm]["accuracies"], own[arm]["bytes"], strict=True):
                rows.append({"arm": name, x: bits, y: accuracy})
                if arm == AFTER:
                    sizes.append({"arm": name, size: n / 1000, error: 100 - accuracy})
        for bits in settings.trained_bits:
            name, figures = f"during training, {CHANNELS}", own[_during(bits)]
            rows.append({"arm": name, x: bits, y: figures["accuracy"]})
            sizes.append({"arm": name, size: figures["bytes"] / 1000, error: 100 - figures["accuracy"]})
        for bits in settings.bits:
            rows.append({"arm": "dense, trained for as long", x: bits, y: own[LONGER]["accuracy"]})
        sizes.append(
            {
                "arm": "dense, trained for as long",
                size: own[LONGER]["bytes"] / 1000,
                error: 100 - own[LONGER]["accuracy"],
            }
        )
    return side_by_side(
        curves(rows, x, y, title="accuracy against bits"),
        curves(_means(sizes, size), size, error, title="errors against size", log_x=True, log_y=True),
    )


def _means(rows: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Sizes of the same arm that differ by less than a tenth are those of one setting: all get their mean."""
    found = []
    for row in rows:
        near = [r[key] for r in rows if r["arm"] == row["arm"] and abs(r[key] / row[key] - 1) < 0.1]
        found.append({**row, key: round(sum(near) / len(near), 3)})
    return found


CLAIM = Claim(
    name="fewer-bits",
    paper="Krishnamoorthi 2018, arXiv:1806.08342; Esser et al. 2020 (LSQ), arXiv:1902.08153",
    says="After training, 8 bits a weight cost nothing when each channel has a step of its own, and few bits cost everything. "
    "Trained through the rounding, steps too, 4 and 3 bits cost next to nothing and 2 bits little.",
    scaled="LeNet-5 on MNIST instead of ImageNet networks; weights only, activations stay float32; steps are powers of two to "
    "the 16th part, as files have them; biases have ten bits. After training, a step for each channel is that of least squared "
    "error, with corrected biases; one step a layer reaches over all weights. The rate of training on is chosen on validation "
    "images.",
    data=("mnist",),
    settings={
        "full": Experiment(),
        "quick": Experiment(epochs=1, more_epochs=1, bits=(8, 4, 3, 2), rates=(1e-3,)),
    },
    arms=arms,
    measure=measure,
    checks=checks,
    picture=picture,
    judges=(
        "penjing.quantization.bias_correction",
        "penjing.quantization.quantize",
        "penjing.quantization.uniform",
        "penjing.representation.grid",
    ),
)
