"""A network holds smaller ones that train as well as it does, from the weights that they began with."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import Field

from penjing.models import glorot_normal_, lenet_300_100
from penjing.papers.claim import Arms, Check, Claim, Figures
from penjing.papers.laboratory import Laboratory, Watch, cloned
from penjing.papers.pictures import curves, side_by_side
from penjing.pruning.lottery_ticket import all_kept, next_masks, prunable, rates_of, start_again_
from penjing.pruning.masks import Masks
from penjing.settings import Settings
from penjing.training import LearnFromLabels, Schedule

DENSE = "dense"


class Experiment(Settings):
    """LeNet-300-100 on MNIST, 55,000 images to learn from and 5,000 for early stopping."""

    label = "lottery-ticket experiment"
    epochs: int = Field(default=10, description="of 916 steps each; the paper's 50,000 steps are 55")
    batch_size: int = 60
    lr: float = 1.2e-3
    rate: float = Field(default=0.2, description="of the weights left that go in a round; half of it in the last layer")
    rounds: int = 8
    every: int = Field(default=100, description="steps between looks at the validation set")
    reinit_at: tuple[int, ...] = Field(default=(7,), description="rounds whose masks are tried with new weights")
    random_at: tuple[int, ...] = Field(default=(4, 7), description="rounds whose sparsity is tried with random masks")

    @property
    def schedule(self) -> Schedule:
        """Adam at a constant rate, as the paper has it."""
        return Schedule(epochs=self.epochs, lr=self.lr, decay="constant", warmup=0.0)


def arms(settings: Experiment) -> tuple[str, ...]:
    """The dense network, the tickets round by round, and the controls."""
    tickets = [f"ticket-{n}" for n in range(1, settings.rounds + 1)]
    return (
        DENSE,
        *tickets,
        *(f"reinit-{n}" for n in settings.reinit_at),
        *(f"random-{n}" for n in settings.random_at),
    )


def measure(laboratory: Laboratory, arm: str, settings: Experiment, before: Arms) -> Figures:
    """Train one network: the dense one, a ticket, or a control with the masks of a ticket."""
    task = laboratory.task("mnist", batch_size=settings.batch_size)
    network = laboratory.build(lambda: glorot_normal_(lenet_300_100()), task)
    initial = cloned(network.state_dict())
    kind, _, number = arm.partition("-")
    masks = all_kept(network)
    if kind == "ticket":
        previous = laboratory.left(DENSE if number == "1" else f"ticket-{int(number) - 1}")
        masks = _masks_of(previous, masks)
        rates = rates_of(network, settings.rate, {"out": settings.rate / 2})
        masks = next_masks({name: previous[f"score {name}"] for name in masks}, masks, rates)
        start_again_(network, initial, masks)
    elif kind != DENSE:
        masks = _masks_of(laboratory.left(f"ticket-{number}"), masks)
        generator = laboratory.generator(arm)
        if kind == "random":  # as many weights of every layer, anywhere
            masks = {
                n: keep.flatten()[torch.randperm(keep.numel(), generator=generator)].reshape(keep.shape)
                for n, keep in masks.items()
            }
        start_again_(network, initial, masks, kept="reinit" if kind == "reinit" else "rewind", generator=generator)
    watch = Watch(laboratory, settings.every)
    laboratory.train(network, task, settings.schedule, [LearnFromLabels(), watch])
    if kind in (DENSE, "ticket"):
        scores = {f"score {name}": weight.abs() for name, weight in prunable(network).items()}
        laboratory.leave(arm, {**scores, **{f"keep {name}": keep for name, keep in masks.items()}})
    kept = sum(int(keep.sum()) for keep in masks.values())
    return {
        "accuracy": laboratory.percent_correct(network, task),
        "density": 100 * kept / sum(keep.numel() for keep in masks.values()),
        "steps to the least validation loss": watch.earliest_best(),
        "least validation loss": min(watch.losses),
    }


def _masks_of(left: Mapping[str, Any], names: Masks) -> Masks:
    return {name: left[f"keep {name}"].bool() for name in names}


def _difference(figure: str, one: str, other: str, factor: float = 1.0) -> Callable[[Arms], float]:
    """figure(one) - factor * figure(other)."""
    return lambda arms: arms[one][figure] - factor * arms[other][figure]


def checks(settings: Experiment) -> tuple[Check, ...]:
    """Of the ticket with about a fifth of the weights, and of the controls."""
    steps = "steps to the least validation loss"
    last = settings.rounds
    fifth = f"ticket-{min(7, last)}"
    found = [
        Check(
            "with 21 % of the weights, the ticket reaches its least validation loss in at most 0.8 of the dense "
            "network's steps",
            "38 % earlier at 21.1 %",
            lambda arms: 0.8 * arms[DENSE][steps] - arms[fifth][steps],
            unit="steps",
        ),
        Check(
            "with 21 % of the weights, the ticket is as accurate as the dense network, to 0.05 pp",
            "more accurate than the dense network down to 3.6 % of the weights",
            lambda arms: arms[fifth]["accuracy"] - arms[DENSE]["accuracy"],
            -0.05,
        ),
        Check(
            "the tickets with 17 to 21 % of the weights are more accurate than the dense network on average",
            "more than 0.3 pp at 13.5 %",
            lambda arms: (arms[fifth]["accuracy"] + arms[f"ticket-{last}"]["accuracy"]) / 2 - arms[DENSE]["accuracy"],
        ),
    ]
    for n in settings.reinit_at[-1:]:
        found += [
            Check(
                "the same masks with newly drawn weights are at least 0.2 pp less accurate",
                "0.5 pp at 21.1 %",
                _difference("accuracy", f"ticket-{n}", f"reinit-{n}"),
                0.2,
            ),
            Check(
                "and take at least 1.5 times as many steps",
                "2.51 times at 21.1 %",
                _difference(steps, f"reinit-{n}", f"ticket-{n}", 1.5),
                unit="steps",
            ),
        ]
    for n in settings.random_at:
        found.append(
            Check(
                f"after {n} rounds the ticket is at least as accurate as the initial weights under a random mask",
                "shown in figure 4 of the paper",
                _difference("accuracy", f"ticket-{n}", f"random-{n}"),
            )
        )
    return tuple(found)


def picture(found: Mapping[int, Arms], settings: Experiment) -> Any:
    """Accuracy and early-stopping step against the weights left."""
    names = {"ticket": "ticket", "reinit": "same masks, new weights", "random": "random masks"}
    rows = []
    for arms_of_seed in found.values():
        for arm, figures in arms_of_seed.items():
            for kind, name in names.items():
                if arm.startswith(kind) or (arm == DENSE and kind == "ticket"):
                    rows.append(
                        {
                            "arm": name,
                            "weights left (%)": figures["density"],
                            "test accuracy (%)": figures["accuracy"],
                            "steps to the least validation loss": figures["steps to the least validation loss"],
                        }
                    )
    return side_by_side(
        curves(rows, "weights left (%)", "test accuracy (%)", title="accuracy", log_x=True, order=list(names.values())),
        curves(
            rows,
            "weights left (%)",
            "steps to the least validation loss",
            title="early stopping",
            log_x=True,
            order=list(names.values()),
        ),
    )


CLAIM = Claim(
    name="lottery-ticket",
    paper="Frankle and Carbin 2019, The Lottery Ticket Hypothesis, arXiv:1803.03635",
    says="A dense network contains a small one that, started from its own initial weights, trains at least as fast and "
    "as well; started "
    "from other weights it does not.",
    scaled="LeNet-300-100 on MNIST as in the paper, 9,160 steps a training instead of 50,000, 8 rounds instead of 20 and more.",
    data=("mnist",),
    settings={
        "full": Experiment(),
        "quick": Experiment(epochs=2, rounds=7, reinit_at=(7,), random_at=(7,)),
    },
    arms=arms,
    measure=measure,
    checks=checks,
    picture=picture,
    judges=("penjing.pruning.lottery_ticket", "penjing.pruning.ticket_actions", "penjing.pruning.masks"),
    seeds=5,
)
