"""Prune a little at a time: why the lecture does not remove everything at once."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from penjing.models import lenet_300_100
from penjing.papers.claim import Arms, Check, Claim, Figures
from penjing.papers.laboratory import Laboratory, cloned
from penjing.papers.pictures import curves
from penjing.pruning.weights import PruneWeights
from penjing.settings import Settings
from penjing.training import Schedule

DENSE = "dense"


class Experiment(Settings):
    """LeNet-300-100 on MNIST, magnitude pruning of all layers together, the same epochs of fine-tuning."""

    label = "iterative-vs-one-shot experiment"
    epochs: int = 8
    batch_size: int = 60
    lr: float = 1.2e-3
    sparsities: tuple[float, ...] = (0.9, 0.95, 0.98, 0.99)
    rounds: int = Field(default=6, description="of one epoch each; at once: all epochs after the only round")
    fine_tuning_lr: float = 6e-4


def arms(settings: Experiment) -> tuple[str, ...]:
    """The dense network, and both ways at each sparsity."""
    return (DENSE, *(f"{way} {sparsity:g}" for sparsity in settings.sparsities for way in ("one-shot", "iterative")))


def measure(laboratory: Laboratory, arm: str, settings: Experiment, before: Arms) -> Figures:
    """Train, or prune what was trained."""
    task = laboratory.task("mnist", batch_size=settings.batch_size)
    network = laboratory.build(lenet_300_100, task)
    if arm == DENSE:
        schedule = Schedule(epochs=settings.epochs, lr=settings.lr)
        laboratory.train(network, task, schedule)
        laboratory.leave(DENSE, cloned(network.state_dict()))
        return {"accuracy": laboratory.percent_correct(network, task)}
    network.load_state_dict(laboratory.left(DENSE))
    way, _, sparsity = arm.partition(" ")
    pace: Literal["iterative", "one-shot"] = "iterative" if way == "iterative" else "one-shot"
    rounds = settings.rounds if pace == "iterative" else 1
    stage = PruneWeights(
        sparsity=float(sparsity),
        score="magnitude",
        scope="global",
        pace=pace,
        rounds=rounds,
        epochs=settings.rounds // rounds,
        lr=settings.fine_tuning_lr,
    )
    bench = laboratory.bench(network, task)
    stage.apply(bench)
    return {"accuracy": laboratory.percent_correct(bench.network, task)}


def checks(settings: Experiment) -> tuple[Check, ...]:
    """Iterative minus one-shot."""

    def gain(sparsity: float) -> Any:
        return lambda arms: arms[f"iterative {sparsity:g}"]["accuracy"] - arms[f"one-shot {sparsity:g}"]["accuracy"]

    return tuple(
        Check(
            f"at {100 * sparsity:g} % zeros, {settings.rounds} rounds with an epoch each are at least as accurate as "
            f"one round with "
            f"{settings.rounds} epochs" + (", to 0.1 pp" if sparsity < 0.95 else ""),
            "Han et al. 2015: 9 times fewer weights iteratively where one step reached 5 times (AlexNet)",
            gain(sparsity),
            -0.1 if sparsity < 0.95 else 0.0,
        )
        for sparsity in settings.sparsities
    )


def picture(found: Mapping[int, Arms], settings: Experiment) -> Any:
    """Accuracy against what is left."""
    rows = [
        {
            "arm": way,
            "weights left (%)": round(100 * (1 - sparsity), 3),
            "test accuracy (%)": arms_of_seed[f"{way} {sparsity:g}"]["accuracy"],
        }
        for arms_of_seed in found.values()
        for sparsity in settings.sparsities
        for way in ("iterative", "one-shot")
    ]
    return curves(rows, "weights left (%)", "test accuracy (%)", title="a little at a time, or all at once", log_x=True)


CLAIM = Claim(
    name="iterative-vs-one-shot",
    paper="Han, Pool, Tran and Dally 2015, Learning both Weights and Connections, arXiv:1506.02626, section 3.4",
    says="Removing a few weights at a time, with training in between, keeps more accuracy than removing all of them at "
    "once and training as "
    "long afterwards.",
    scaled="LeNet-300-100 on MNIST; the paper shows it on AlexNet. Equal sparsity, equal epochs of fine-tuning, same "
    "learning rate.",
    data=("mnist",),
    settings={"full": Experiment(), "quick": Experiment(epochs=2, sparsities=(0.98,), rounds=3)},
    arms=arms,
    measure=measure,
    checks=checks,
    picture=picture,
    judges=("penjing.pruning.masks", "penjing.pruning.weight_magnitude", "penjing.pruning.weights"),
)
