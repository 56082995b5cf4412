"""One set of weights that works at any width, also at those at which it was never trained."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from pydantic import Field

from penjing.dynamic import at_width
from penjing.dynamic.sandwich import Sandwich
from penjing.models import resnet_cifar
from penjing.papers.claim import Arms, Check, Claim, Figures
from penjing.papers.laboratory import Laboratory
from penjing.papers.pictures import curves
from penjing.papers.small_pictures import small_pictures
from penjing.settings import Settings
from penjing.training import LearnFromLabels, Schedule

SANDWICH, RANDOM, LABELS = "sandwich, in-place distillation", "random widths", "sandwich, labels alone"
CALIBRATED, AS_TRAINED = "statistics measured", "statistics of the full width"


class Experiment(Settings):
    """ResNet-8 on small pictures of CIFAR-10."""

    label = "universally-slimmable experiment"
    narrowest: float = 0.25
    between: int = Field(default=2, description="random widths a step, besides the narrowest and 1")
    judged: tuple[float, ...] = Field(
        default=(0.25, 0.33, 0.42, 0.54, 0.65, 0.76, 0.88, 1.0),
        description="widths that are cut out; those between the ends are none that were trained",
    )
    images: int = Field(default=10_000, description="to learn from")
    size: int = Field(default=16, description="pixels of a side")
    epochs: int = 16
    batch_size: int = 128
    lr: float = Field(default=0.1, description="SGD, cosine")
    weight_decay: float = 5e-4
    samples: int = Field(default=1000, description="to measure statistics of norms on")


def arms(settings: Experiment) -> tuple[str, ...]:
    """The method; without the widest and the narrowest in every step; without the widest as the teacher."""
    return (SANDWICH, RANDOM, LABELS)


def measure(laboratory: Laboratory, arm: str, settings: Experiment, before: Arms) -> Figures:
    """Train; accuracy on the test images in percent at each judged width, with statistics of norms measured and without."""
    task = small_pictures(laboratory, settings.images, settings.size, settings.batch_size)
    network = laboratory.build(lambda: resnet_cifar(8, width=16), task)
    part = Sandwich(
        settings.narrowest,
        between=settings.between,
        soft=0.0 if arm == LABELS else 1.0,
        both_ends=arm != RANDOM,
    )
    schedule = Schedule(
        epochs=settings.epochs, lr=settings.lr, optimizer="sgd", weight_decay=settings.weight_decay, warmup=0.1
    )
    laboratory.train(network, task, schedule, [LearnFromLabels(), part])
    batches = laboratory.bench(network, task).samples("norms", settings.samples)
    found: dict[str, dict[str, float]] = {CALIBRATED: {}, AS_TRAINED: {}}
    for width in settings.judged:
        for how, some in ((CALIBRATED, batches), (AS_TRAINED, None)):
            found[how][f"{width:g}"] = laboratory.percent_correct(at_width(network, width, some), task)
    return dict(found)


def checks(settings: Experiment) -> tuple[Check, ...]:
    """Any width works; what each of the three ideas is good for."""
    low, high = (f"{end(settings.judged):g}" for end in (min, max))

    def narrow(found: Figures) -> list[float]:
        return [value for width, value in found.items() if width != high]

    return (
        Check(
            "a wider self is at most 0.5 pp worse than the next narrower one, at widths never trained",
            "ImageNet, MobileNet v1, from width 1 to 0.25: error 28.2, 30.5, 35.8, 44.3 %",
            lambda arms: min(b - a for a, b in pairwise(arms[SANDWICH][CALIBRATED].values())),
            -0.5,
        ),
        Check(
            "without statistics of its own, a narrower self is at least 10 pp worse on average",
            "it fails (recalled)",
            lambda arms: _mean(narrow(arms[SANDWICH][CALIBRATED])) - _mean(narrow(arms[SANDWICH][AS_TRAINED])),
            10.0,
        ),
        Check(
            "the sandwich rule is not worse than random widths at the widest",
            "better at both ends (recalled)",
            lambda arms: arms[SANDWICH][CALIBRATED][high] - arms[RANDOM][CALIBRATED][high],
        ),
        Check(
            "nor at the narrowest",
            "the same (recalled)",
            lambda arms: arms[SANDWICH][CALIBRATED][low] - arms[RANDOM][CALIBRATED][low],
        ),
        Check(
            "in-place distillation is not worse than labels at the narrowest",
            "better, most at the narrowest (recalled)",
            lambda arms: arms[SANDWICH][CALIBRATED][low] - arms[LABELS][CALIBRATED][low],
        ),
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def picture(found: Mapping[int, Arms], settings: Experiment) -> Any:
    """Accuracy by width."""
    order = (SANDWICH, RANDOM, LABELS, AS_TRAINED)
    rows = [
        {"arm": arm if how == CALIBRATED else how, "width": float(width), "right (%)": value}
        for own in found.values()
        for arm, how in ((SANDWICH, CALIBRATED), (RANDOM, CALIBRATED), (LABELS, CALIBRATED), (SANDWICH, AS_TRAINED))
        for width, value in own[arm][how].items()
    ]
    return curves(rows, "width", "right (%)", title="CIFAR-10, 16 x 16, ResNet-8", order=order)


CLAIM = Claim(
    name="universally-slimmable",
    paper="Yu and Huang 2019, Universally Slimmable Networks and Improved Training Techniques, arXiv:1903.05134",
    says="A network that is trained in each step at its widest, its narrowest and some random widths, the narrower ones "
    "learning from the widest, works at any width once the statistics of its norms are measured there.",
    scaled="ResNet-8 on 10,000 pictures of CIFAR-10 scaled to 16 x 16, instead of MobileNet v1 and v2 on ImageNet.",
    data=("cifar10-jpeg",),
    settings={"full": Experiment(), "quick": Experiment(images=2000, epochs=3, judged=(0.25, 0.54, 1.0))},
    arms=arms,
    measure=measure,
    checks=checks,
    picture=picture,
    judges=("penjing.papers.small_pictures", "penjing.dynamic.slimmable", "penjing.dynamic.sandwich"),
)
