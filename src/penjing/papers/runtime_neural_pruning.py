"""How many channels of a layer are computed is decided for each sample, by an agent that learns what they are worth."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import nn

from penjing.dynamic.blocks import residual_blocks
from penjing.dynamic.channel_sets import split_blocks
from penjing.dynamic.gates import GATES, recurrent_gates
from penjing.dynamic.route_training import GatesLearn, ValueOfActions
from penjing.graph import Network
from penjing.papers.claim import Arms, Check, Claim, Figures
from penjing.papers.laboratory import Laboratory
from penjing.papers.ways import (
    FIRST,
    PLAIN,
    Paper,
    RoutedExperiment,
    checks_of_ways,
    found_beside_random,
    found_on_test,
    least_step,
    picture_of_ways,
    train_plain,
)
from penjing.training import LearnFromLabels, Schedule

STATIC = "fixed channels"


class Experiment(RoutedExperiment):
    """A narrow ResNet-20 on digits; the hidden channels of seven of its nine blocks are split."""

    label = "runtime-neural-pruning experiment"
    sets: int = Field(default=4, description="into which hidden channels are split")
    penalties: tuple[float, ...] = Field(
        default=(0.01, 0.03, 0.1), description="for computing all sets of a block; rising"
    )
    judged: float = Field(default=0.03, description="the penalty that is compared")
    warm: int = Field(default=2, description="epochs in which the network learns to work with any number of sets")
    more_epochs: int = Field(default=10, description="agent and network by turns")
    more_lr: float = 0.2


def pruned(penalty: float) -> str:
    """The arm of a penalty."""
    return f"penalty {penalty:g}"


def arms(settings: Experiment) -> tuple[str, ...]:
    """Without an agent; with one, for several penalties; as many channels for everybody."""
    return (PLAIN, *(pruned(penalty) for penalty in settings.penalties), STATIC)


def split(network: Network, sets: int) -> Network:
    """With a recurrent agent that says for each block how many sets of channels are computed."""
    blocks = residual_blocks(network)
    network, logits = recurrent_gates(network, blocks, sets, lean=0.0)
    return split_blocks(network, blocks, logits, sets)


def fix_(network: Network, sets: int, column: int) -> None:
    """Make the agent say the same number of sets everywhere, for good."""
    for path, layer in network.layers().items():
        if path.startswith(f"{GATES}.") and isinstance(layer, nn.Linear):
            layer.requires_grad_(False)
            with torch.no_grad():
                layer.weight[:sets] = 0.0
                layer.bias[:sets] = -1.0
                layer.bias[column] = 1.0


def measure(laboratory: Laboratory, arm: str, settings: Experiment, before: Arms) -> Figures:
    """Train; accuracy on the test images in percent, and how many channels they take."""
    task = settings.task(laboratory)
    plain = settings.network(laboratory, task)
    first, second = settings.first(), settings.second()
    warm = settings.second(epochs=settings.warm)
    if arm == PLAIN:
        return train_plain(laboratory, plain, task, first, warm, second)
    plain.load_state_dict(laboratory.left(FIRST))
    network = split(plain, settings.sets)
    plain.load_state_dict(laboratory.left(PLAIN))
    if arm == STATIC:
        # rounded up: the fixed network computes at least as much
        column = math.ceil(before[pruned(settings.judged)]["computed"] * settings.sets - 1e-6) - 1
        fix_(network, settings.sets, column)
        laboratory.train(network, task, warm, name="warm")
        laboratory.train(network, task, second)
        found = found_on_test(network, plain, task)
        return {"accuracy": found["accuracy"], "computed": found["computed"]}
    penalty = next(penalty for penalty in settings.penalties if arm == pruned(penalty))

    def train(schedule: Schedule, part: GatesLearn, name: str) -> None:
        part.gate_lr = settings.gate_lr
        laboratory.train(network, task, schedule, [LearnFromLabels(), part], name)

    train(warm, ValueOfActions(-penalty, explore=(1.0, 1.0), agent=False), "warm")
    train(second, ValueOfActions(-penalty), "")
    shown = settings.shown if penalty == settings.judged else 0
    return found_beside_random(laboratory, network, plain, task, shown)


def checks(settings: Experiment) -> tuple[Check, ...]:
    """Against other ways; the penalty."""
    judged = pruned(settings.judged)
    paper = Paper(
        plain="VGG-16, 3 times fewer multiply-accumulates: 2.3 pp more top-5 errors (recalled)",
        computed="a third of the work",
        random="implied",
        fixed="3 times fewer: 2.3 pp against 3.2 of filter pruning (recalled)",
        ways="implied",
        hard="harder images use more (recalled)",
    )
    return (
        *checks_of_ways(judged, PLAIN, STATIC, "channel sets", paper),
        Check(
            "the higher the penalty, the fewer channels",
            "p sets the trade-off (section 3.3)",
            least_step([pruned(penalty) for penalty in reversed(settings.penalties)]),
            unit="%",
        ),
    )


def picture(found: Mapping[int, Arms], settings: Experiment) -> Any:
    """Accuracy against channels; which blocks serve which class; who takes the fewest and the most."""
    rows: list[dict[str, Any]] = []
    for seed, own in found.items():
        for penalty in settings.penalties:
            of = own[pruned(penalty)]
            rows.append({"arm": "agent", "seed": seed, "x": of["computed"], "y": of["accuracy"]})
        judged = own[pruned(settings.judged)]
        rows.append({"arm": "as many at random", "seed": seed, "x": judged["computed"], "y": judged["random"]})
        static = own[STATIC]
        rows.append({"arm": STATIC, "seed": seed, "x": static["computed"], "y": static["accuracy"]})
        rows.append({"arm": PLAIN, "seed": seed, "x": 1.0, "y": own[PLAIN]["accuracy"]})
    return picture_of_ways(rows, found[min(found)][pruned(settings.judged)])


CLAIM = Claim(
    name="runtime-neural-pruning",
    paper="Lin, Rao, Lu and Zhou 2017, Runtime Neural Pruning, NIPS",
    says="An agent that goes through the layers and learns by rewards how many channels each sample needs there keeps what "
    "pruning for everybody loses: work is spent where it is needed.",
    scaled="ResNet-20 of width 8 on 12,000 digits of MNIST, four sets of the hidden channels of seven blocks, "
    "instead of all layers of VGG-16 on ImageNet; an agent of linear layers instead of an LSTM.",
    data=("mnist",),
    settings={"full": Experiment(), "quick": Experiment(images=2000, epochs=3, more_epochs=2, warm=1)},
    arms=arms,
    measure=measure,
    checks=checks,
    picture=picture,
    judges=(
        "penjing.papers.small_pictures",
        "penjing.papers.ways",
        "penjing.dynamic.gates",
        "penjing.dynamic.maps",
        "penjing.dynamic.channel_sets",
        "penjing.dynamic.route_training",
    ),
)
