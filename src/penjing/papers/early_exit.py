"""Samples that leave at the first answer that is sure save work and time, and hardly any accuracy."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from penjing.dynamic import AtExits, attach_exits, for_saving, places_for_exits
from penjing.measurement import Answers, answer
from penjing.models import resnet_cifar
from penjing.papers.claim import Arms, Check, Claim, Figures
from penjing.papers.laboratory import Laboratory, cloned
from penjing.papers.pictures import pictures_in_rows, side_by_side, traces
from penjing.papers.small_pictures import on_test, small_pictures, thumbnails, time_shares
from penjing.settings import Settings
from penjing.training import Schedule

PLAIN, EXITS = "plain", "with exits"


class Experiment(Settings):
    """ResNet-20 with exits on small pictures of CIFAR-10."""

    label = "early-exit experiment"
    exits: int = Field(default=2, description="spread evenly over the multiply-accumulates")
    saving: float = Field(
        default=0.5,
        description="of the multiply-accumulates, for thresholds from validation; chosen on held-out images, another seed",
    )
    sweep: tuple[float, ...] = Field(default=(0.2, 0.3, 0.4, 0.5, 0.6), description="savings of the curve")
    shown: int = Field(default=10, description="pictures a row that leave early, and that go all the way")
    images: int = Field(default=10_000, description="to learn from")
    size: int = Field(default=16, description="pixels of a side")
    epochs: int = 16
    batch_size: int = 128
    lr: float = Field(default=0.1, description="SGD, cosine")
    weight_decay: float = 5e-4


def arms(settings: Experiment) -> tuple[str, ...]:
    """The network as it is; with exits, all answers trained together."""
    return (PLAIN, EXITS)


def measure(laboratory: Laboratory, arm: str, settings: Experiment, before: Arms) -> Figures:
    """Train; accuracy on the test images in percent, work and time as shares of the plain network's."""
    task = small_pictures(laboratory, settings.images, settings.size, settings.batch_size)
    plain = laboratory.build(lambda: resnet_cifar(20), task)
    schedule = Schedule(
        epochs=settings.epochs, lr=settings.lr, optimizer="sgd", weight_decay=settings.weight_decay, warmup=0.1
    )
    if arm == PLAIN:
        laboratory.train(plain, task, schedule)
        laboratory.leave(PLAIN, cloned(plain.state_dict()))
        return {"accuracy": laboratory.percent_correct(plain, task)}
    network = attach_exits(plain, places_for_exits(plain, settings.exits)).to(laboratory.accelerator.device)
    laboratory.train(network, task, schedule)
    plain.load_state_dict(laboratory.left(PLAIN))
    at = AtExits.of(network, answer(network, task, task.valid))
    curve = []
    for saving in settings.sweep:
        network.set_thresholds(for_saving(at, saving))
        _, right, share = on_test(network, task)
        curve.append({"MACs": float(share.mean()), "accuracy": 100 * float(right.mean())})
    network.set_thresholds(for_saving(at, settings.saving))
    found, right, share = on_test(network, task)
    at_test = AtExits.of(network, found)
    left_at = found.left_at
    assert left_at is not None
    early = left_at < len(at_test.macs) - 1
    return {
        "answers": [100 * float(own.double().mean()) for own in at_test.right],
        "curve": curve,
        "accuracy": 100 * float(right.mean()),
        "MACs": float(share.mean()),
        "left at": [float((left_at == k).double().mean()) for k in range(len(at_test.right))],
        "accuracy of those that leave early": 100 * float(right[early].mean()),
        "time at batch 1": time_shares(network, plain, task, 1),
        "time at batch 32": time_shares(network, plain, task, 32),
        "easy": thumbnails(task, surest(at_test, settings.shown)),
        "hard": thumbnails(task, least_sure(found, settings.shown)),
    }


def surest(at: AtExits, n: int) -> list[int]:
    """The samples of which the first exit is most sure."""
    return at.confidences[0].argsort(descending=True)[:n].tolist()


def least_sure(found: Answers, n: int) -> list[int]:
    """Those that go all the way and of which the final answer is least sure."""
    assert found.left_at is not None
    sure = found.logits.softmax(1).amax(1)
    sure[found.left_at < found.left_at.amax()] = 2.0
    return sure.argsort()[:n].tolist()


def checks(settings: Experiment) -> tuple[Check, ...]:
    """Accuracy at the saving, what the joint training does, who leaves first, and time."""
    return (
        Check(
            f"{settings.saving:.0%} of the multiply-accumulates saved at most 1 pp below the network without exits",
            "BranchyNet, ResNet-110 on CIFAR-10: 1.9 times faster at 79.2 instead of 80.7 % (recalled)",
            lambda arms: arms[EXITS]["accuracy"] - arms[PLAIN]["accuracy"],
            -1.0,
        ),
        Check(
            "at least as much is saved on test images as asked, within 1 pp",
            "thresholds come from the validation set (MSDNet, section 4)",
            lambda arms: 100 * (1 - arms[EXITS]["MACs"] - settings.saving),
            -1.0,
        ),
        Check(
            "training the exits as well leaves the final answer at most 1 pp worse",
            "it may even regularise (BranchyNet, section III)",
            lambda arms: arms[EXITS]["answers"][-1] - arms[PLAIN]["accuracy"],
            -1.0,
        ),
        Check(
            "those that leave early are right more often than all",
            "easy ones leave first",
            lambda arms: arms[EXITS]["accuracy of those that leave early"] - arms[EXITS]["accuracy"],
        ),
        *(
            Check(
                f"at least 20 % less time in batches of {batch}, thresholds the same",
                "our own aim",
                lambda arms, batch=batch: 100 * (1 - arms[EXITS][f"time at batch {batch}"]),  # type: ignore[misc]
                20.0,
                "%",
            )
            for batch in (1, 32)
        ),
    )


def picture(found: Mapping[int, Arms], settings: Experiment) -> Any:
    """Accuracy against work, with every answer by itself; who leaves early."""
    work, right = "MACs of the plain network (%)", "right (%)"
    rows: list[dict[str, Any]] = []
    for seed, own in found.items():
        rows += [
            {"arm": "leaving when sure", "seed": seed, work: 100 * point["MACs"], right: point["accuracy"]}
            for point in own[EXITS]["curve"]
        ]
        rows.append({"arm": PLAIN, "seed": seed, work: 100.0, right: own[PLAIN]["accuracy"]})
    first = found[min(found)][EXITS]
    return side_by_side(
        traces(rows, work, right, title="CIFAR-10, 16 x 16, ResNet-20"),
        pictures_in_rows({"leave first": first["easy"], "go all the way": first["hard"]}, title="seed 0"),
        same_arms=False,
    )


CLAIM = Claim(
    name="early-exit",
    paper="Teerapittayanon, McDanel and Kung 2016, BranchyNet, arXiv:1709.01686",
    says="With classifiers on the way, trained together with the last one, most samples can leave early: the answer comes "
    "sooner and is as good.",
    scaled="ResNet-20 with two exits on 10,000 pictures of CIFAR-10 scaled to 16 x 16; one threshold for the largest "
    "probability, from 5,000 validation pictures, instead of one for the entropy at each exit. Heads are "
    "linear on means over 4 x 4 parts of the map, without convolutions.",
    data=("cifar10-jpeg",),
    settings={"full": Experiment(), "quick": Experiment(images=2000, epochs=3)},
    arms=arms,
    measure=measure,
    checks=checks,
    picture=picture,
    timed=True,
    judges=(
        "penjing.papers.small_pictures",
        "penjing.dynamic.early_exit",
        "penjing.dynamic.maps",
        "penjing.dynamic.thresholds",
    ),
)
