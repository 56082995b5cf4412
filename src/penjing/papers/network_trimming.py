"""Neurons that are mostly zero can go, and what is left learns on from where it stood."""

from collections.abc import Mapping
from itertools import islice
from typing import Any

import torch
from pydantic import Field

from penjing.graph import Network, channel_groups, remove_channels
from penjing.measurement import count_parameters
from penjing.models import lenet5
from penjing.papers.claim import Arms, Check, Claim, Figures
from penjing.papers.laboratory import Laboratory, cloned
from penjing.papers.pictures import dots, side_by_side
from penjing.pruning.apoz import average_zeros, often_zero
from penjing.pruning.channels import PruneChannels
from penjing.pruning.scratch import draw_weights_
from penjing.settings import Settings
from penjing.training import Schedule, Task

DENSE, TRIMMED, AT_ONCE, KEPT_WEIGHTS, NEW_WEIGHTS = "dense", "trimmed", "at once", "kept weights", "new weights"
LAYERS = ("conv1", "conv2", "fc1")


class Experiment(Settings):
    """LeNet 20-50-500 on MNIST, without batch norm, as in the paper."""

    label = "network-trimming experiment"
    epochs: int = 8
    batch_size: int = 64
    lr: float = 0.02
    rounds: int = Field(default=4, description="of trimming conv2 and fc1 and training")
    round_epochs: int = 2
    round_lr: float = 0.005
    batches: int = Field(default=40, description="training batches in which zeros are counted")
    draws: int = Field(default=5, description="random choices of as many units, for comparison")


def arms(settings: Experiment) -> tuple[str, ...]:
    """Train; trim in rounds; trim once and not train; train a trimmed network for an epoch from its own or from new weights."""
    return (DENSE, TRIMMED, AT_ONCE, KEPT_WEIGHTS, NEW_WEIGHTS)


def measure(laboratory: Laboratory, arm: str, settings: Experiment, before: Arms) -> Figures:
    """Test accuracies, parameters, and shares of zeros."""
    task = laboratory.task("mnist", batch_size=settings.batch_size)
    network = laboratory.build(lenet5, task)
    if arm == DENSE:
        laboratory.train(
            network, task, Schedule(epochs=settings.epochs, lr=settings.lr, optimizer="sgd", weight_decay=5e-4)
        )
        laboratory.leave(DENSE, cloned(network.state_dict()))
        shares = _shares(network, task, settings)
        zeros = {f"zeros of {layer}": 100 * float(share.mean()) for layer, share in shares.items()}
        return {
            "accuracy": laboratory.percent_correct(network, task),
            "parameters": count_parameters(network)[0],
            **zeros,
        }
    network.load_state_dict(laboratory.left(DENSE))
    if arm == AT_ONCE:
        return _at_once(laboratory, network, task, settings)
    stage = PruneChannels(
        rule="apoz",
        layers=("conv2", "fc1"),
        rounds=settings.rounds if arm == TRIMMED else 1,
        epochs=settings.round_epochs if arm == TRIMMED else 0,
        lr=settings.round_lr,
        optimizer="sgd",
        weight_decay=5e-4,
        batches=settings.batches,
    )
    bench = laboratory.bench(network, task)
    stage.apply(bench)
    small = bench.network
    if arm != TRIMMED:
        if arm == NEW_WEIGHTS:
            draw_weights_(small, laboratory.generator(arm))
        laboratory.train(small, task, Schedule(epochs=1, lr=settings.round_lr, optimizer="sgd"))
    facts = {name: left for name, left in bench.facts["channels left"].items() if name in LAYERS}
    return {
        "accuracy": laboratory.percent_correct(small, task),
        "parameters": count_parameters(small)[0],
        "left": facts,
    }


def _shares(network: Network, task: Task, settings: Experiment) -> dict[str, torch.Tensor]:
    groups = [channel_groups(network).group(layer) for layer in LAYERS]
    found = average_zeros(network, groups, islice(task.batches(task.train), settings.batches))
    return dict(zip(LAYERS, found, strict=True))


def _at_once(laboratory: Laboratory, network: Network, task: Task, settings: Experiment) -> Figures:
    """The accuracy right after the units that are often zero are gone, and after as many at random."""
    grouping = channel_groups(network)
    chosen = {layer: often_zero(share) for layer, share in _shares(network, task, settings).items() if layer != "conv1"}
    generator = laboratory.generator(AT_ONCE)

    def without(units: Mapping[str, list[int]]) -> float:
        return laboratory.percent_correct(remove_channels(network, grouping.removal(units)), task)

    random = []
    for _ in range(settings.draws):
        orders = {layer: torch.randperm(grouping.group(layer).n_channels, generator=generator) for layer in chosen}
        random.append(without({layer: sorted(orders[layer][: len(units)].tolist()) for layer, units in chosen.items()}))
    removed = {layer: len(units) for layer, units in chosen.items()}
    return {"accuracy": without(chosen), "at random": sum(random) / len(random), "removed": removed}


def checks(settings: Experiment) -> tuple[Check, ...]:
    """Size without loss, and why: zeros are in the later layers, and the kept weights are worth keeping."""
    return (
        Check(
            "conv2 has more zeros than conv1",
            "VGG-16: CONV5-3 93 %, FC6 75 % (recalled)",
            lambda arms: arms[DENSE]["zeros of conv2"] - arms[DENSE]["zeros of conv1"],
            unit="% zeros",
        ),
        Check(
            "fc1 has more zeros than conv1",
            "the same",
            lambda arms: arms[DENSE]["zeros of fc1"] - arms[DENSE]["zeros of conv1"],
            unit="% zeros",
        ),
        Check(
            f"after {settings.rounds} rounds at least 2.5 times fewer parameters",
            "LeNet 3.85 times (recalled, not certain)",
            lambda arms: arms[DENSE]["parameters"] / arms[TRIMMED]["parameters"],
            2.5,
            "x",
        ),
        Check(
            "at most 0.2 pp less accurate",
            "without losing accuracy (abstract)",
            lambda arms: arms[TRIMMED]["accuracy"] - arms[DENSE]["accuracy"],
            -0.2,
        ),
        Check(
            "one epoch from the kept weights is more accurate than one from new ones",
            "weight initialisation is needed",
            lambda arms: arms[KEPT_WEIGHTS]["accuracy"] - arms[NEW_WEIGHTS]["accuracy"],
        ),
        Check(
            "right after trimming, at least 5 pp more accurate than without as many units chosen at random",
            "not in the paper; what the score is for",
            lambda arms: arms[AT_ONCE]["accuracy"] - arms[AT_ONCE]["at random"],
            5.0,
        ),
    )


def picture(found: Mapping[int, Arms], settings: Experiment) -> Any:
    """Accuracies and sizes."""
    accuracy = "test accuracy (%)"
    names = {
        DENSE: "dense",
        TRIMMED: f"trimmed in {settings.rounds} rounds",
        KEPT_WEIGHTS: "trimmed once, an epoch from kept weights",
        NEW_WEIGHTS: "the same from new weights",
        AT_ONCE: "trimmed once, not trained",
    }
    rows = [
        {"arm": name, accuracy: of_seed[arm]["accuracy"]} for of_seed in found.values() for arm, name in names.items()
    ]
    rows += [{"arm": "as many units at random", accuracy: of_seed[AT_ONCE]["at random"]} for of_seed in found.values()]
    sizes = [
        {"arm": names[arm], "parameters": of_seed[arm]["parameters"]}
        for of_seed in found.values()
        for arm in (DENSE, TRIMMED)
    ]
    return side_by_side(
        dots(rows, accuracy, title="accuracy", order=[*names.values(), "as many units at random"]),
        dots(sizes, "parameters", title="size"),
    )


CLAIM = Claim(
    name="network-trimming",
    paper="Hu, Peng, Tai and Tang 2016, Network Trimming, arXiv:1607.03250",
    says="Many neurons are zero for nearly every input; those that are so more often than the rest of their layer can "
    "be removed in "
    "rounds with training from the kept weights, without loss.",
    scaled="LeNet 20-50-500 on MNIST as in the paper, with a ReLU behind each convolution, since zeros are counted there.",
    data=("mnist",),
    settings={"full": Experiment(), "quick": Experiment(epochs=2, rounds=2, round_epochs=1, draws=2)},
    arms=arms,
    measure=measure,
    checks=checks,
    picture=picture,
    judges=("penjing.pruning.apoz", "penjing.pruning.channels", "penjing.pruning.scratch"),
)
