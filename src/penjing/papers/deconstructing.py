"""What makes a lottery ticket win: which weights are kept, where the others are held, and the signs."""

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field

from penjing.graph import Network
from penjing.models import glorot_normal_, lenet_300_100
from penjing.papers.claim import Arms, Check, Claim, Figures
from penjing.papers.laboratory import Laboratory, cloned
from penjing.papers.pictures import dots, side_by_side
from penjing.pruning.lottery_ticket import Held, all_kept, next_masks, prunable, rates_of, start_again_
from penjing.pruning.masks import Masks
from penjing.pruning.supermask import Supermask
from penjing.pruning.ticket_actions import REMOVED
from penjing.pruning.weight_scores import WEIGHT_SCORES
from penjing.sensitivity import Evidence
from penjing.settings import Settings
from penjing.training import LearnFromLabels, Part, Schedule, Task

DENSE = "dense"
CRITERIA = ("large_final", "small_final", "random")


class Experiment(Settings):
    """LeNet-300-100 on MNIST."""

    label = "deconstructing experiment"
    epochs: int = 5
    batch_size: int = 60
    lr: float = 1.2e-3
    rate: float = Field(
        default=0.45, description="of the weights left that goes in a round, a quarter less in the last layer"
    )
    rounds: int = 5
    mask_epochs: int = Field(default=25, description="to learn a supermask, in batches of 250")
    mask_lr: float = 0.1
    untrained: tuple[float, ...] = Field(
        default=(0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        description="sparsities of masks that are tried untrained; the best counts",
    )

    @property
    def schedule(self) -> Schedule:
        """Adam at a constant rate."""
        return Schedule(epochs=self.epochs, lr=self.lr, decay="constant", warmup=0.0)


def arms(settings: Experiment) -> tuple[str, ...]:
    """Dense; tickets by three criteria, round by round; other ways to begin and to hold; masks on untrained weights."""
    last = settings.rounds
    tickets = [f"{criterion} {n}" for criterion in CRITERIA for n in range(1, last + 1)]
    starts = [f"start {kept}" for kept in ("reinit", "signed-reinit", "signed-constant")]
    held = [f"held {removed} {n}" for removed in ("freeze-init", "freeze-init-zero-mask") for n in (1, 2) if n <= last]
    return (DENSE, *tickets, *starts, *held, "untrained", "learned", "learned constant")


def measure(laboratory: Laboratory, arm: str, settings: Experiment, before: Arms) -> Figures:
    """One training, or the masks that need none."""
    task = laboratory.task("mnist", batch_size=250 if arm.startswith("learned") else settings.batch_size)
    network = laboratory.build(lambda: glorot_normal_(lenet_300_100()), task)
    initial = cloned(network.state_dict())
    kind, _, rest = arm.partition(" ")
    if kind == "untrained":
        return _untrained(laboratory, network, task, initial, settings)
    if kind == "learned":
        stage = Supermask(
            epochs=settings.mask_epochs,
            lr=settings.mask_lr,
            constant=rest == "constant",
            rescale=rest == "constant",
            warmup=0.0,
        )
        bench = laboratory.bench(network, task)
        stage.apply(bench)
        return {
            "accuracy": laboratory.percent_correct(bench.network, task),
            "validation accuracy of the draws": [100 * value for value in bench.facts["draws"]["values"]],
            "density": _mean_density(bench.facts["density"]),
        }
    parts: list[Part] = [LearnFromLabels()]
    masks = all_kept(network)
    if kind in CRITERIA:
        masks = _next(laboratory, network, initial, kind, int(rest), settings)
        start_again_(network, initial, masks)
    elif kind == "start":
        masks = _masks(laboratory.left(f"large_final {settings.rounds}"), masks)
        start_again_(network, initial, masks, kept=rest, generator=laboratory.generator(arm))
    elif kind == "held":
        removed, number = rest.split(" ")
        masks = _masks(laboratory.left(f"large_final {number}"), masks)
        previous = laboratory.left(DENSE if number == "1" else f"large_final {int(number) - 1}")
        parts.append(Held(masks, {n: REMOVED[removed](initial[n], previous[f"final {n}"]) for n in masks}))
    laboratory.train(network, task, settings.schedule, parts)
    if kind == DENSE or kind in CRITERIA:
        final = {f"final {name}": weight for name, weight in prunable(network).items()}
        laboratory.leave(arm, {**final, **{f"keep {name}": keep for name, keep in masks.items()}})
    return {"accuracy": laboratory.percent_correct(network, task), "density": _density(masks)}


def _next(
    laboratory: Laboratory,
    network: Network,
    initial: Mapping[str, Any],
    criterion: str,
    number: int,
    settings: Experiment,
) -> Masks:
    """The masks of a round, from the weights that the round before ended with."""
    previous = laboratory.left(DENSE if number == 1 else f"{criterion} {number - 1}")
    masks = _masks(previous, all_kept(network))
    scores = _scored(network, {n: previous[f"final {n}"] for n in masks}, initial, criterion, laboratory)
    return next_masks(scores, masks, rates_of(network, settings.rate, {"out": 0.75 * settings.rate}))


@torch.no_grad()
def _scored(
    network: Network, final: Mapping[str, Any], initial: Mapping[str, Any], criterion: str, laboratory: Laboratory
) -> Mapping[str, Any]:
    own = cloned(network.state_dict())
    network.load_state_dict({**own, **final})
    evidence = Evidence(initial=initial, generator=laboratory.generator(laboratory.key))
    scores = WEIGHT_SCORES[criterion](network, evidence)
    network.load_state_dict(own)
    return scores


def _untrained(
    laboratory: Laboratory, network: Network, task: Task, initial: Mapping[str, Any], settings: Experiment
) -> Figures:
    """The best of several sparsities, chosen on the validation set, for masks on the initial weights."""
    final = {n.removeprefix("final "): t for n, t in laboratory.left(DENSE).items() if n.startswith("final ")}
    scored = {c: _scored(network, final, initial, c, laboratory) for c in ("large_final_same_sign", "random")}
    found: Figures = {}
    for criterion, scores in scored.items():
        for kept in ("rewind", "signed-constant"):
            best = (-1.0, 0.0, 0.0)
            for sparsity in settings.untrained:
                masks = next_masks(scores, all_kept(network), dict.fromkeys(scores, sparsity))
                start_again_(network, initial, masks, kept=kept)
                valid = laboratory.percent_correct(network, task, "valid")
                best = max(best, (valid, laboratory.percent_correct(network, task), sparsity))
            found |= {f"{criterion} {kept}": best[1], f"{criterion} {kept} sparsity": best[2]}
    return found


def _masks(left: Mapping[str, Any], names: Masks) -> Masks:
    return {name: left[f"keep {name}"].bool() for name in names}


def _density(masks: Masks) -> float:
    return 100 * sum(int(keep.sum()) for keep in masks.values()) / sum(keep.numel() for keep in masks.values())


def _mean_density(by_layer: Any) -> float:
    return 100 * sum(by_layer.values()) / len(by_layer)


def checks(settings: Experiment) -> tuple[Check, ...]:
    """The orderings that the paper reports."""
    last = settings.rounds

    def accuracy(arm: str) -> Any:
        return lambda arms: arms[arm]["accuracy"]

    def minus(one: str, other: str) -> Any:
        return lambda arms: arms[one]["accuracy"] - arms[other]["accuracy"]

    untrained, ticket = "untrained", f"large_final {last}"
    return (
        Check(
            "at 5 to 6 % of the weights, keeping the large final weights beats random masks",
            "figure 3",
            minus(ticket, f"random {last}"),
        ),
        Check(
            "and random masks beat keeping the small final weights",
            "figure 3",
            minus(f"random {last}", f"small_final {last}"),
        ),
        Check(
            "new weights with the signs that they began with beat new weights",
            "figure 5",
            minus("start signed-reinit", "start reinit"),
            0.3,
        ),
        Check(
            "nothing but signs, all weights of one size, comes within 0.3 pp of the ticket",
            "figure 5",
            minus("start signed-constant", ticket),
            -0.3,
        ),
        Check(
            "removed weights at 0 do at least as well as at their initial values, 55 % left",
            "figure 4",
            minus("large_final 1", "held freeze-init 1"),
        ),
        Check("the same with 31 % left", "figure 4", minus("large_final 2", "held freeze-init 2")),
        Check(
            "untrained weights under the mask of large final weights of the same sign: at least 60 % right",
            "79.3 % (secondary figure)",
            lambda arms: arms[untrained]["large_final_same_sign rewind"],
            60.0,
            "%",
        ),
        Check(
            "at least three times as many as under random masks",
            "about 10 % under random masks",
            lambda arms: arms[untrained]["large_final_same_sign rewind"] - 3 * arms[untrained]["random rewind"],
        ),
        Check(
            "all weights of one size: at least 75 % right",
            "86 % (abstract)",
            lambda arms: arms[untrained]["large_final_same_sign signed-constant"],
            75.0,
            "%",
        ),
        Check("a learned mask on untrained weights: at least 93 % right", "95.3 %", accuracy("learned"), 93.0, "%"),
        Check(
            "a learned mask on weights of one size, rescaled: at least 96.5 % right",
            "98.0 % (secondary figure)",
            accuracy("learned constant"),
            96.5,
            "%",
        ),
        Check("and within 1.5 pp of the trained network", "97.7 % trained", minus("learned constant", DENSE), -1.5),
    )


def picture(found: Mapping[int, Arms], settings: Experiment) -> Any:
    """Trained tickets at the last round, and masks on untrained weights."""
    last = settings.rounds
    tickets = {
        DENSE: "dense, trained",
        f"large_final {last}": "large final weights",
        f"random {last}": "random masks",
        f"small_final {last}": "small final weights",
        "start signed-constant": "ticket's masks, signs only",
        "start signed-reinit": "ticket's masks, new sizes, old signs",
        "start reinit": "ticket's masks, new weights",
    }
    trained = [
        {"arm": name, "test accuracy (%)": arms_of_seed[arm]["accuracy"]}
        for arms_of_seed in found.values()
        for arm, name in tickets.items()
    ]
    untrained = []
    for arms_of_seed in found.values():
        figures = arms_of_seed["untrained"]
        untrained += [
            {"arm": name, "test accuracy (%), no weight trained": value}
            for name, value in {
                "learned mask, one size, rescaled": arms_of_seed["learned constant"]["accuracy"],
                "learned mask": arms_of_seed["learned"]["accuracy"],
                "large final, same sign, one size": figures["large_final_same_sign signed-constant"],
                "large final, same sign": figures["large_final_same_sign rewind"],
                "random mask": figures["random rewind"],
            }.items()
        ]
    left = 100 * (1 - settings.rate) ** last
    value = "test accuracy (%), no weight trained"
    return side_by_side(
        dots(
            trained,
            "test accuracy (%)",
            title=f"about {left:.0f} % of the weights, trained",
            order=list(tickets.values()),
        ),
        dots(untrained, value, title="masks alone", order=[str(row["arm"]) for row in untrained[:5]]),
    )


CLAIM = Claim(
    name="deconstructing-lottery-tickets",
    paper="Zhou, Lan, Liu and Yosinski 2019, Deconstructing Lottery Tickets, arXiv:1905.01067",
    says="Tickets win because training moved the removed weights towards zero and because the kept ones keep their "
    "signs; the right mask "
    "alone, on weights that were never trained, classifies far better than chance.",
    scaled="The fully connected network on MNIST as in the paper; 5 epochs instead of 55, 5 rounds of 45 % instead of "
    "24 of 20 %; masks are "
    "learned with Adam at 0.1 for 25 epochs instead of SGD at 100 for 2,000.",
    data=("mnist",),
    settings={
        "full": Experiment(),
        "quick": Experiment(epochs=1, rounds=3, rate=0.6, mask_epochs=4, untrained=(0.4, 0.6, 0.8)),
    },
    arms=arms,
    measure=measure,
    checks=checks,
    picture=picture,
    judges=(
        "penjing.pruning.criteria",
        "penjing.pruning.lottery_ticket",
        "penjing.pruning.masks",
        "penjing.pruning.supermask",
        "penjing.pruning.ticket_actions",
    ),
)
