"""A network made for early answers: good ones at every exit, and the best accuracy within a budget."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from pydantic import Field

from penjing.dynamic import AtExits, for_saving
from penjing.graph import cut_out, with_one_answer
from penjing.measurement import answer, macs_of_samples
from penjing.models import msdnet
from penjing.papers.claim import Arms, Check, Claim, Figures
from penjing.papers.laboratory import Laboratory
from penjing.papers.pictures import pictures_in_rows, side_by_side, traces
from penjing.papers.small_pictures import on_test, small_pictures, thumbnails
from penjing.settings import Settings
from penjing.training import Schedule

MSDNET, ALONE = "MSDNet", "its last classifier alone"


class Experiment(Settings):
    """A small MSDNet on CIFAR-10."""

    label = "msdnet experiment"
    blocks: int = Field(default=4, description="each with a classifier")
    base: int = 1
    step: int = 1
    width: int = Field(default=8, description="channels of the finest scale")
    growth: int = 4
    budget: float = Field(default=0.6, description="share of the multiply-accumulates of the whole, on average")
    sweep: tuple[float, ...] = Field(default=(0.5, 0.6, 0.7, 0.8, 0.9), description="budgets of the curve")
    images: int = Field(default=10_000, description="to learn from")
    epochs: int = 20
    batch_size: int = 64
    lr: float = Field(default=0.1, description="SGD, cosine")
    weight_decay: float = 1e-4
    shown: int = Field(default=10, description="pictures a row that leave early, and that go all the way")


def arms(settings: Experiment) -> tuple[str, ...]:
    """All classifiers trained together; the last one by itself."""
    return (MSDNET, ALONE)


def measure(laboratory: Laboratory, arm: str, settings: Experiment, before: Arms) -> Figures:
    """Train; accuracy on the test images in percent, of every answer and within budgets."""
    task = small_pictures(laboratory, settings.images, 32, settings.batch_size)
    base, step, width, growth = settings.base, settings.step, settings.width, settings.growth
    network = with_one_answer(
        laboratory.build(lambda: msdnet(settings.blocks, base=base, step=step, width=width, growth=growth), task)
    )
    schedule = Schedule(
        epochs=settings.epochs, lr=settings.lr, optimizer="sgd", weight_decay=settings.weight_decay, warmup=0.05
    )
    if arm == ALONE:
        network = cut_out(network, len(network.exits)).to(laboratory.accelerator.device)
        laboratory.train(network, task, schedule)
        return {"accuracy": laboratory.percent_correct(network, task)}
    laboratory.train(network, task, schedule)
    at = AtExits.of(network, answer(network, task, task.valid))
    whole = at.macs[-1] / at.full  # with all classifiers, which the network without exits does not have

    def within(budget: float) -> list[float]:
        return for_saving(at, 1 - budget * whole, "geometric")

    curve = []
    for budget in settings.sweep:
        if at.macs[0] <= budget * at.macs[-1]:
            network.set_thresholds(within(budget))
            _, right, share = on_test(network, task)
            curve.append({"MACs": float(share.mean()) / whole, "accuracy": 100 * float(right.mean())})
    thresholds = within(settings.budget)
    network.set_thresholds(thresholds)
    found, right, share = on_test(network, task)
    at_test = AtExits.of(network, found)
    assert found.left_at is not None
    counted = macs_of_samples(network, found.left_at, found.opened).double()
    by_exit = [float((found.left_at == k).double().mean()) for k in range(len(at.macs))]
    told = sum(q * macs for q, macs in zip(by_exit, at.macs, strict=True))
    early = found.left_at < len(at.macs) - 1
    return {
        "answers": [100 * float(own.double().mean()) for own in at_test.right],
        "MACs of answers": [macs / at.macs[-1] for macs in at.macs],
        "curve": curve,
        "accuracy": 100 * float(right.mean()),
        "MACs": float(share.mean()) / whole,
        "MACs on validation": (1 - float(at.saving(thresholds).mean())) / whole,
        "counted against sum of C q": float(counted.mean()) / told,
        "left at": by_exit,
        "accuracy of those that leave early": 100 * float(right[early].mean()),
        "easy": thumbnails(task, at_test.confidences[0].argsort(descending=True)[: settings.shown].tolist()),
        "hard": thumbnails(task, at_test.confidences[-1].argsort()[: settings.shown].tolist()),
    }


def checks(settings: Experiment) -> tuple[Check, ...]:
    """The answers in order, and the budget."""

    def of(arms: Arms) -> Figures:
        return arms[MSDNET]

    def fixed(found: Figures) -> float:
        """Accuracy of the best exit whose work the budget allows."""
        answers = zip(found["MACs of answers"], found["answers"], strict=True)
        return max(value for macs, value in answers if macs <= max(found["MACs"], found["MACs of answers"][0]))

    return (
        Check(
            "no answer is more than 0.5 pp worse than the one before",
            "accuracy rises with the budget (recalled)",
            lambda arms: min(b - a for a, b in pairwise(of(arms)["answers"])),
            -0.5,
        ),
        Check(
            "the last answer is at least 3 pp better than the first",
            "accuracy rises with the budget (recalled)",
            lambda arms: of(arms)["answers"][-1] - of(arms)["answers"][0],
            3.0,
        ),
        Check(
            "training early classifiers as well leaves the last answer at most 1 pp worse",
            "they harm dense networks hardly, others much (recalled)",
            lambda arms: of(arms)["answers"][-1] - arms[ALONE]["accuracy"],
            -1.0,
        ),
        Check(
            f"{100 * settings.budget:.0f} % of the work: at least as good as the best exit with as much",
            "dynamic beats fixed exits (recalled)",
            lambda arms: of(arms)["accuracy"] - fixed(of(arms)),
        ),
        Check(
            "and at most 1 pp below the last answer",
            "as good as a ResNet-110 with a tenth of the work (recalled)",
            lambda arms: of(arms)["accuracy"] - of(arms)["answers"][-1],
            -1.0,
        ),
        Check(
            "the work counted on test pictures is that expected from the shares, within 1 %",
            "sum of q_k C_k (section 4.2)",
            lambda arms: 1 - 100 * abs(of(arms)["counted against sum of C q"] - 1),
            unit="%",
        ),
        Check(
            "those that leave early are right more often than all",
            "easy images leave first (recalled)",
            lambda arms: of(arms)["accuracy of those that leave early"] - of(arms)["accuracy"],
        ),
    )


def picture(found: Mapping[int, Arms], settings: Experiment) -> Any:
    """Accuracy against work: every answer by itself, and budgets; who leaves early."""
    work, right = "MACs of the whole network (%)", "right (%)"
    rows: list[dict[str, Any]] = []
    for seed, own in found.items():
        of = own[MSDNET]
        rows += [
            {"arm": "one exit for all", "seed": seed, work: 100 * macs, right: value}
            for macs, value in zip(of["MACs of answers"], of["answers"], strict=True)
        ]
        rows += [
            {"arm": "within a budget", "seed": seed, work: 100 * point["MACs"], right: point["accuracy"]}
            for point in of["curve"]
        ]
    first = found[min(found)][MSDNET]
    return side_by_side(
        traces(rows, work, right, title="CIFAR-10, a small MSDNet"),
        pictures_in_rows({"surest at first": first["easy"], "least sure": first["hard"]}, title="seed 0"),
        same_arms=False,
    )


CLAIM = Claim(
    name="msdnet",
    paper="Huang, Chen, Li, Wu, van der Maaten and Weinberger 2018, Multi-Scale Dense Networks, arXiv:1703.09844",
    says="With features at several scales and dense connections, early classifiers do not spoil late ones: each answer is "
    "better than the one before, and easy pictures that leave early pay for the hard ones.",
    scaled="An MSDNet of 4 layers with four classifiers, 8 channels and growth 4, on 10,000 pictures of CIFAR-10, 20 passes "
    "instead of 300.",
    data=("cifar10-jpeg",),
    settings={"full": Experiment(), "quick": Experiment(images=1000, epochs=2)},
    arms=arms,
    measure=measure,
    checks=checks,
    picture=picture,
    judges=("penjing.papers.small_pictures", "penjing.models.msdnet", "penjing.dynamic.thresholds"),
)
