"""Deleting what the second derivative says matters least hurts less than deleting the smallest weights."""

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from penjing.graph import Network
from penjing.papers.claim import Arms, Check, Claim, Figures
from penjing.papers.laboratory import Laboratory, cloned
from penjing.papers.pictures import curves, side_by_side
from penjing.pruning.masks import apply_masks_, choose_masks
from penjing.pruning.weight_scores import WEIGHT_SCORES
from penjing.sensitivity import Evidence
from penjing.settings import Settings
from penjing.training import Schedule, Task

TRAINED, RETRAINED, CROSS_ENTROPY = "trained", "retrained", "cross entropy, "
SCORES = {"obd": "second derivative (OBD)", "magnitude": "magnitude", "random": "random"}


class Experiment(Settings):
    """A tanh network 784-40-10 on a part of MNIST, trained to a minimum."""

    label = "optimal-brain-damage experiment"
    beside: bool = Field(
        default=True, description="also with cross entropy, for the figures; the paper has squared error"
    )
    images: int = 10_000
    hidden: int = 40
    epochs: int = Field(default=60, description="long enough that the gradient is nearly 0, as the method assumes")
    lr: float = 3e-3
    weight_decay: float = 0.0
    batches: int = Field(default=20, description="of 128 training images, for the second derivatives")
    deleted: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    retrained_at: float = 0.6
    retraining_epochs: int = 10


def mlp(hidden: int) -> nn.Module:
    """784 inputs, one hidden layer with tanh, 10 logits."""
    layers = OrderedDict(flatten=nn.Flatten(), hidden=nn.Linear(784, hidden), tanh=nn.Tanh(), out=nn.Linear(hidden, 10))
    return nn.Sequential(layers)


def arms(settings: Experiment) -> tuple[str, ...]:
    """Train; delete by each score without retraining; delete and retrain. Then the same with cross entropy."""
    own = (TRAINED, *SCORES, RETRAINED)
    return (*own, *(f"{CROSS_ENTROPY}{arm}" for arm in own)) if settings.beside else own


def squared_error(answers: Tensor, labels: Tensor) -> Tensor:
    """Half the squared distance from 1 at the right class and 0 elsewhere, a mean over samples."""
    return 0.5 * (answers - F.one_hot(labels, answers.shape[-1])).square().sum(1).mean()


def measure(laboratory: Laboratory, arm: str, settings: Experiment, before: Arms) -> Figures:
    """Losses on the training images, before any retraining; errors on the test images after."""
    task = laboratory.task("mnist", batch_size=128, n_valid=60_000 - settings.images)
    prefix = CROSS_ENTROPY if arm.startswith(CROSS_ENTROPY) else ""
    arm = arm.removeprefix(CROSS_ENTROPY)
    if not prefix:
        task = replace(task, loss=squared_error)
    network = laboratory.build(lambda: mlp(settings.hidden), task)
    if arm == TRAINED:
        schedule = Schedule(epochs=settings.epochs, lr=settings.lr, weight_decay=settings.weight_decay)
        laboratory.train(network, task, schedule)
        laboratory.leave(prefix + TRAINED, cloned(network.state_dict()))
        return {
            "accuracy": laboratory.percent_correct(network, task),
            "loss": laboratory.mean_loss(network, task, "train"),
        }
    network.load_state_dict(laboratory.left(prefix + TRAINED))
    name = "obd" if arm == RETRAINED else arm
    scores = WEIGHT_SCORES[name](network, _evidence(laboratory, task, settings))
    if arm == RETRAINED:
        apply_masks_(network, choose_masks(scores, settings.retrained_at, scope="global")[0])
        schedule = Schedule(epochs=settings.retraining_epochs, lr=settings.lr / 3)
        laboratory.train(network, task, schedule)
        return {"accuracy": laboratory.percent_correct(network, task)}
    losses, predicted = [], []
    state = cloned(network.state_dict())
    for share in settings.deleted:
        masks = choose_masks(scores, share, scope="global")[0]
        _delete_(network, state, masks)
        losses.append(laboratory.mean_loss(network, task, "train"))
        predicted.append(sum(float(scores[n][~keep].double().sum()) for n, keep in masks.items()))
    found: Figures = {"losses": losses}
    return found | ({"predicted": predicted} if arm == "obd" else {})


@torch.no_grad()
def _delete_(network: Network, state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    network.load_state_dict({n: t * masks[n].to(t.dtype) if n in masks else t for n, t in state.items()})


def _evidence(laboratory: Laboratory, task: Task, settings: Experiment) -> Evidence:
    return Evidence(
        batches=lambda: islice(task.batches(task.train), settings.batches),
        loss=lambda network, batch: task.loss(network(*batch.args), batch.labels),
        generator=laboratory.generator("scores"),
    )


def _rise(arms_of_seed: Arms, arm: str, position: int) -> float:
    return float(arms_of_seed[arm]["losses"][position] - arms_of_seed[TRAINED]["loss"])


def checks(settings: Experiment) -> tuple[Check, ...]:
    """The three statements of the paper's figures 1 and 2."""
    found = []
    for share in (0.3, 0.5, 0.6):
        at = settings.deleted.index(share)
        found += [
            Check(
                f"{100 * share:g} % deleted, not retrained: the training loss rises less by OBD than by magnitude",
                "figure 1: the objective rises far less",
                lambda arms, at=at: _rise(arms, "magnitude", at) - _rise(arms, "obd", at),  # type: ignore[misc]
                unit="",
            ),
            Check(
                f"{100 * share:g} % deleted: and less by magnitude than at random",
                "random deletion is too bad for the figure",
                lambda arms, at=at: _rise(arms, "random", at) - _rise(arms, "magnitude", at),  # type: ignore[misc]
                unit="",
            ),
        ]
    at = settings.deleted.index(0.3)
    return (
        *found,
        Check(
            "up to 30 % deleted, the rise of the loss is what the saliencies add up to, within a factor of 2",
            "agrees up to about 30 % (800 of 2,578)",
            lambda arms: (
                1 - abs(math.log2(max(arms["obd"]["predicted"][at], 1e-12) / max(_rise(arms, "obd", at), 1e-12)))
            ),
            unit="octaves",
        ),
        Check(
            "60 % deleted and retrained, the test error is at most 0.3 pp above the whole network's",
            "almost the same up to 60 % (1,500)",
            lambda arms: arms[RETRAINED]["accuracy"] - arms[TRAINED]["accuracy"],
            -0.3,
        ),
    )


def picture(found: Mapping[int, Arms], settings: Experiment) -> Any:
    """The loss against what is deleted, and against its prediction."""
    y = "rise of the training loss"
    rows, compared = [], []
    for arms_of_seed in found.values():
        for position, share in enumerate(settings.deleted):
            x = {"deleted (%)": round(100 * share)}
            rows += [
                {"arm": name, y: max(_rise(arms_of_seed, arm, position), 1e-5), **x} for arm, name in SCORES.items()
            ]
            compared += [
                {"arm": "measured", y: max(_rise(arms_of_seed, "obd", position), 1e-5), **x},
                {"arm": "sum of saliencies", y: arms_of_seed["obd"]["predicted"][position], **x},
            ]
    return side_by_side(
        curves(rows, "deleted (%)", y, title="not retrained", log_y=True, order=list(SCORES.values())),
        curves(compared, "deleted (%)", y, title="OBD: predicted and measured", log_y=True),
        same_arms=False,
    )


CLAIM = Claim(
    name="optimal-brain-damage",
    paper="LeCun, Denker and Solla 1990, Optimal Brain Damage, NIPS 2",
    says="Half of the second derivative times the weight's square tells what deleting it costs: the loss rises far "
    "less than when the "
    "smallest weights go, the sum predicts the rise, and most weights can go after retraining.",
    scaled="A tanh network 784-40-10 on 10,000 images of MNIST instead of a convolutional one with 10^5 connections; "
    "squared error as in "
    "the paper; the second derivative is the Gauss-Newton part, exact for each sample. The figures have the same with "
    "cross entropy, "
    "which judges nothing; it was run first, and squared error taken after its failure had been seen, because it is "
    "the paper's.",
    data=("mnist",),
    settings={
        "full": Experiment(),
        "quick": Experiment(
            beside=False, images=5000, epochs=15, batches=8, deleted=(0.3, 0.5, 0.6), retraining_epochs=3
        ),
    },
    arms=arms,
    measure=measure,
    checks=checks,
    picture=picture,
    judges=(
        "penjing.pruning.masks",
        "penjing.pruning.weight_saliency",
        "penjing.sensitivity.hessian",
        "penjing.sensitivity.per_sample",
    ),
    seeds=5,
)
