"""Is it the weights that pruning finds, or the shape?"""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from penjing.graph import Network
from penjing.measurement.macs import macs_by_node
from penjing.models import glorot_normal_, lenet5, lenet_300_100
from penjing.papers.claim import Arms, Check, Claim, Figures
from penjing.papers.laboratory import Laboratory, cloned
from penjing.papers.pictures import dots, side_by_side
from penjing.pruning.channels import PruneChannels
from penjing.pruning.lottery_ticket import all_kept, next_masks, prunable, start_again_
from penjing.pruning.scratch import TrainFromScratch, scratch_epochs
from penjing.settings import Settings
from penjing.training import BASELINE, Schedule, Task

LARGE, TUNED, SCRATCH_E, SCRATCH_B = "large", "fine-tuned", "scratch-E", "scratch-B"
RATES = (0.1, 0.01)


class Experiment(Settings):
    """LeNet-5 on a part of MNIST, half of its filters and units gone; and tickets of LeNet-300-100 at two learning rates."""

    label = "rethinking-pruning experiment"
    images: int = Field(default=10_000, description="to learn from, so that networks differ by more than the noise")
    epochs: int = 30
    fine_tuning_epochs: int = 10
    batch_size: int = 64
    lr: float = 0.05
    fine_tuning_lr: float = 0.001
    sparsity: float = 0.6
    ticket_epochs: int = 12
    ticket_sparsity: float = 0.95
    ticket_rounds: int = 3


def arms(settings: Experiment) -> tuple[str, ...]:
    """Channels: the large network, and its half made in three ways. Weights: dense, ticket and control at two rates."""
    tickets = [f"{kind} {rate:g}" for rate in RATES for kind in ("dense", *_rounds(settings), "reinit")]
    return (LARGE, TUNED, SCRATCH_E, SCRATCH_B, *tickets)


def _rounds(settings: Experiment) -> list[str]:
    return [f"ticket-{n}" for n in range(1, settings.ticket_rounds + 1)]


def measure(laboratory: Laboratory, arm: str, settings: Experiment, before: Arms) -> Figures:
    """Train one network."""
    n_valid = 60_000 - settings.images
    task = laboratory.task("mnist", batch_size=settings.batch_size, n_valid=n_valid)
    if arm not in (LARGE, TUNED, SCRATCH_E, SCRATCH_B):
        return _ticket(laboratory, arm, settings, task)
    network = laboratory.build(lenet5, task)
    long = {"lr": settings.lr, "optimizer": "sgd", "weight_decay": 1e-4}
    if arm == LARGE:
        laboratory.train(network, task, Schedule(epochs=settings.epochs, **long))  # type: ignore[arg-type]
        laboratory.leave(LARGE, cloned(network.state_dict()))
        return {
            "accuracy": laboratory.percent_correct(network, task),
            "MACs": _macs(network),
            "epochs": settings.epochs,
        }
    network.load_state_dict(laboratory.left(LARGE))
    bench = laboratory.bench(network, task, {BASELINE: network})
    prune = PruneChannels(
        sparsity=settings.sparsity,
        score="magnitude",
        uniform=True,
        rounds=1,
        epochs=settings.fine_tuning_epochs if arm == TUNED else 0,
        lr=settings.fine_tuning_lr,
        optimizer="sgd",
    )
    prune.apply(bench)
    epochs = settings.fine_tuning_epochs
    if arm != TUNED:
        budget = "epochs" if arm == SCRATCH_E else "macs"
        TrainFromScratch(budget=budget, epochs=settings.epochs, **long).apply(bench)  # type: ignore[arg-type]
        epochs = bench.facts["epochs"]
    return {
        "accuracy": laboratory.percent_correct(bench.network, task),
        "MACs": _macs(bench.network),
        "epochs": epochs,
        "epochs by the rule": scratch_epochs("macs", settings.epochs, _macs(network), _macs(bench.network)),
    }


def _ticket(laboratory: Laboratory, arm: str, settings: Experiment, task: Task) -> Figures:
    kind, _, rate = arm.partition(" ")
    network = laboratory.build(lambda: glorot_normal_(lenet_300_100()), task, name="ticket")
    initial, masks = cloned(network.state_dict()), all_kept(network)
    if kind.startswith("ticket"):
        number = int(kind.partition("-")[2])
        previous = laboratory.left(f"dense {rate}" if number == 1 else f"ticket-{number - 1} {rate}")
        goes = 1 - (1 - settings.ticket_sparsity) ** (1 / settings.ticket_rounds)
        masks = {name: previous[f"keep {name}"].bool() for name in masks}
        masks = next_masks({n: previous[f"score {n}"] for n in masks}, masks, dict.fromkeys(masks, goes))
        start_again_(network, initial, masks)
    elif kind == "reinit":
        left = laboratory.left(f"ticket-{settings.ticket_rounds} {rate}")
        masks = {name: left[f"keep {name}"].bool() for name in masks}
        start_again_(network, initial, masks, kept="reinit", generator=laboratory.generator(arm))
    laboratory.train(network, task, Schedule(epochs=settings.ticket_epochs, lr=float(rate), optimizer="sgd"))
    if kind != "reinit":
        scores = {f"score {name}": weight.abs() for name, weight in prunable(network).items()}
        laboratory.leave(arm, {**scores, **{f"keep {name}": keep for name, keep in masks.items()}})
    return {"accuracy": laboratory.percent_correct(network, task)}


def _macs(network: Network) -> int:
    return sum(macs_by_node(network).values())


def checks(settings: Experiment) -> tuple[Check, ...]:
    """Scratch against fine-tuned, and tickets at both learning rates."""
    last = f"ticket-{settings.ticket_rounds}"
    return (
        Check(
            "trained from scratch with the same computation (Scratch-B), the small network is at least as accurate as "
            "the fine-tuned one, "
            "to 0.3 pp",
            "VGG-16-A: 93.78 against 93.41 % (recalled)",
            lambda arms: arms[SCRATCH_B]["accuracy"] - arms[TUNED]["accuracy"],
            -0.3,
        ),
        Check(
            "as much computation is at least as good as as many epochs (Scratch-B and Scratch-E), to 0.1 pp",
            "VGG-16-A: 93.78 against 93.62 % (recalled)",
            lambda arms: arms[SCRATCH_B]["accuracy"] - arms[SCRATCH_E]["accuracy"],
            -0.1,
        ),
        Check(
            "Scratch-B trains int(epochs * MACs before / MACs after) epochs",
            "the paper's rule",
            lambda arms: -abs(arms[SCRATCH_B]["epochs"] - arms[SCRATCH_B]["epochs by the rule"]),
            unit="epochs",
        ),
        Check(
            "with a large learning rate (0.1) a ticket is less than 0.3 pp better than new weights under its masks",
            "no better (figure 7)",
            lambda arms: 0.3 - (arms[f"{last} 0.1"]["accuracy"] - arms["reinit 0.1"]["accuracy"]),
        ),
        Check(
            "with a small one (0.01) it is better",
            "better, for single weights (figure 7)",
            lambda arms: arms[f"{last} 0.01"]["accuracy"] - arms["reinit 0.01"]["accuracy"],
        ),
    )


def picture(found: Mapping[int, Arms], settings: Experiment) -> Any:
    """Accuracies of all that is compared."""
    last = f"ticket-{settings.ticket_rounds}"
    channels = {
        LARGE: "large network",
        TUNED: "pruned, fine-tuned",
        SCRATCH_E: "pruned shape, from scratch, same epochs",
        SCRATCH_B: "pruned shape, from scratch, same MACs",
    }
    weights = {
        f"{kind} {rate:g}": f"{name}, lr {rate:g}"
        for rate in RATES
        for kind, name in ((last, "ticket"), ("reinit", "new weights"))
    }

    def rows(names: Mapping[str, str]) -> list[dict[str, Any]]:
        return [
            {"arm": name, "test accuracy (%)": of_seed[arm]["accuracy"]}
            for of_seed in found.values()
            for arm, name in names.items()
        ]

    gone = f"single weights, {100 * settings.ticket_sparsity:g} % gone"
    return side_by_side(
        dots(rows(channels), "test accuracy (%)", title="channels", order=list(channels.values())),
        dots(rows(weights), "test accuracy (%)", title=gone, order=list(weights.values())),
    )


CLAIM = Claim(
    name="rethinking-pruning",
    paper="Liu, Sun, Zhou, Huang and Darrell 2019, Rethinking the Value of Network Pruning, arXiv:1810.05270",
    says="For structured pruning the small network does as well from scratch, given the computation that the large one "
    "had; a lottery ticket "
    "helps only for single weights and small learning rates.",
    scaled="LeNet-5 and LeNet-300-100 on 10,000 images of MNIST instead of VGG and ResNets on CIFAR-10 and ImageNet; "
    "the learning rate decays to "
    "almost 0 in every training.",
    data=("mnist",),
    settings={
        "full": Experiment(),
        "quick": Experiment(images=5000, epochs=4, fine_tuning_epochs=2, ticket_epochs=3, ticket_rounds=2),
    },
    arms=arms,
    measure=measure,
    checks=checks,
    picture=picture,
    judges=(
        "penjing.pruning.channels",
        "penjing.pruning.lottery_ticket",
        "penjing.pruning.magnitude",
        "penjing.pruning.masks",
        "penjing.pruning.scratch",
        "penjing.pruning.ticket_actions",
    ),
)
