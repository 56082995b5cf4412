"""Lottery tickets of a small convolutional network."""

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field

from penjing.models import conv_n, glorot_normal_
from penjing.papers.claim import Arms, Check, Claim, Figures
from penjing.papers.laboratory import Laboratory, Watch, cloned
from penjing.papers.pictures import curves, side_by_side
from penjing.pruning.lottery_ticket import all_kept, next_masks, prunable, rates_of, start_again_
from penjing.settings import Settings
from penjing.training import LearnFromLabels, Schedule

DENSE = "dense"
STEPS = "steps to the least validation loss"


class Experiment(Settings):
    """Conv-2 on CIFAR-10, 45,000 images to learn from and 5,000 for early stopping."""

    label = "lottery-ticket-conv2 experiment"
    width: float = Field(default=0.25, description="all filters and units times this")
    epochs: int = Field(default=6, description="of 750 steps each; the paper's 20,000 steps are 27")
    batch_size: int = 60
    lr: float = 1e-3
    convolutions: float = Field(
        default=0.25, description="of the convolutions' weights that go in a round; also of the last layer's"
    )
    linear: float = Field(default=0.46, description="of the other layers' weights that go in a round")
    rounds: int = 4
    every: int = Field(default=75, description="steps between looks at the validation set")

    @property
    def schedule(self) -> Schedule:
        """Adam at a constant rate, as the paper has it."""
        return Schedule(epochs=self.epochs, lr=self.lr, decay="constant", warmup=0.0)

    @property
    def rates(self) -> dict[str, float]:
        """By pattern, what goes in a round besides the linear layers."""
        return {"type:Conv2d": self.convolutions, "out": self.convolutions}


def arms(settings: Experiment) -> tuple[str, ...]:
    """The dense network, the tickets round by round, and both controls with as many weights as the last."""
    tickets = [f"ticket-{n}" for n in range(1, settings.rounds + 1)]
    return (DENSE, *tickets, "new weights", "random masks")


def measure(laboratory: Laboratory, arm: str, settings: Experiment, before: Arms) -> Figures:
    """Train one network: the dense one, a ticket, or a control."""
    task = laboratory.task("cifar10-jpeg", batch_size=settings.batch_size)
    network = laboratory.build(lambda: glorot_normal_(conv_n(2, width=settings.width)), task)
    initial, masks, generator = cloned(network.state_dict()), all_kept(network), laboratory.generator(arm)
    if arm.startswith("ticket"):
        number = int(arm.partition("-")[2])
        previous = laboratory.left(DENSE if number == 1 else f"ticket-{number - 1}")
        masks = {name: previous[f"keep {name}"].bool() for name in masks}
        scores = {name: previous[f"score {name}"] for name in masks}
        masks = next_masks(scores, masks, rates_of(network, settings.linear, settings.rates))
    elif arm != DENSE:
        left = laboratory.left(f"ticket-{settings.rounds}")
        masks = {name: left[f"keep {name}"].bool() for name in masks}
        if arm == "random masks":  # as many weights of every layer, anywhere
            orders = {name: torch.randperm(keep.numel(), generator=generator) for name, keep in masks.items()}
            masks = {name: keep.flatten()[orders[name]].reshape(keep.shape) for name, keep in masks.items()}
    start_again_(network, initial, masks, kept="reinit" if arm == "new weights" else "rewind", generator=generator)
    watch = Watch(laboratory, settings.every)
    laboratory.train(network, task, settings.schedule, [LearnFromLabels(), watch])
    if arm == DENSE or arm.startswith("ticket"):
        scores = {f"score {name}": weight.abs() for name, weight in prunable(network).items()}
        laboratory.leave(arm, {**scores, **{f"keep {name}": keep for name, keep in masks.items()}})
    kept = sum(int(keep.sum()) for keep in masks.values())
    return {
        "accuracy": laboratory.percent_correct(network, task),
        "density": 100 * kept / sum(keep.numel() for keep in masks.values()),
        STEPS: watch.earliest_best(),
        "least validation loss": min(watch.losses),
    }


def checks(settings: Experiment) -> tuple[Check, ...]:
    """Of the ticket of the last round, and of the controls."""
    last = f"ticket-{settings.rounds}"
    return (
        Check(
            "with 9 % of the weights, the dense network takes at least 1.5 times as many steps to its least validation "
            "loss as the ticket",
            "3.5 times at 8.8 %",
            lambda arms: arms[DENSE][STEPS] - 1.5 * arms[last][STEPS],
            unit="steps",
        ),
        Check(
            "the ticket is at least 1 pp more accurate than the dense network",
            "3.4 pp at 4.6 %",
            lambda arms: arms[last]["accuracy"] - arms[DENSE]["accuracy"],
            1.0,
        ),
        Check(
            "its validation loss comes lower than the dense network's",
            "figure 5",
            lambda arms: arms[DENSE]["least validation loss"] - arms[last]["least validation loss"],
            unit="nats",
        ),
        Check(
            "the same masks with newly drawn weights are less accurate",
            "figure 5",
            lambda arms: arms[last]["accuracy"] - arms["new weights"]["accuracy"],
        ),
        Check(
            "the initial weights under random masks are less accurate",
            "figure 12 (appendix)",
            lambda arms: arms[last]["accuracy"] - arms["random masks"]["accuracy"],
        ),
    )


def picture(found: Mapping[int, Arms], settings: Experiment) -> Any:
    """Accuracy and early-stopping step against the weights left."""
    kinds = {"ticket": "ticket", "new weights": "same masks, new weights", "random masks": "random masks"}
    rows = []
    for arms_of_seed in found.values():
        for arm, figures in arms_of_seed.items():
            kind = "ticket" if arm == DENSE else arm.partition("-")[0]
            rows.append(
                {
                    "arm": kinds[kind],
                    "weights left (%)": figures["density"],
                    "test accuracy (%)": figures["accuracy"],
                    STEPS: figures[STEPS],
                }
            )
    order = list(kinds.values())
    accuracy, steps = (
        curves(rows, "weights left (%)", figure, title=title, log_x=True, order=order)
        for figure, title in (("test accuracy (%)", "accuracy"), (STEPS, "early stopping"))
    )
    return side_by_side(accuracy, steps)


CLAIM = Claim(
    name="lottery-ticket-conv2",
    paper="Frankle and Carbin 2019, The Lottery Ticket Hypothesis, arXiv:1803.03635, section 3",
    says="Tickets of a convolutional network learn several times faster than the whole and end more accurate.",
    scaled="Conv-2 at a quarter of its width (16 and 16 filters, 64 and 64 units), CIFAR-10 from JPEG files, 4,500 steps a "
    "training instead of 20,000 at a larger learning rate, 4 rounds instead of 11.",
    data=("cifar10-jpeg",),
    settings={"full": Experiment(), "quick": Experiment(epochs=1, rounds=2, width=0.125)},
    arms=arms,
    measure=measure,
    checks=checks,
    picture=picture,
    judges=("penjing.pruning.lottery_ticket", "penjing.pruning.ticket_actions", "penjing.pruning.masks"),
)
