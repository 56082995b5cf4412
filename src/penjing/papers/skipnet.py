"""Gates that look at each sample skip the blocks that it does not need."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from penjing.dynamic.blocks import gate_blocks, residual_blocks
from penjing.dynamic.gates import LEAN, recurrent_gates, with_gates
from penjing.dynamic.route_training import GatesByGradient, GatesLearn, HybridReinforcement
from penjing.graph import Network
from penjing.papers.claim import Arms, Check, Claim, Figures
from penjing.papers.laboratory import Laboratory, cloned
from penjing.papers.ways import (
    FIRST,
    PLAIN,
    Paper,
    RoutedExperiment,
    best_without,
    checks_of_ways,
    found_beside_random,
    found_on_test,
    least_step,
    picture_of_ways,
    train_plain,
    without_blocks,
)
from penjing.training import LearnFromLabels, Schedule

SUPERVISED, COLD, STATIC, GUMBEL = (
    "supervised gates",
    "reinforced from scratch",
    "fixed blocks",
    "Gumbel gates",
)


class Experiment(RoutedExperiment):
    """A narrow ResNet-20 on digits; seven of its nine blocks can be skipped."""

    label = "skipnet experiment"
    alphas: tuple[float, ...] = Field(
        default=(0.5, 1.0, 2.0), description="what skipping is worth: all blocks as much as alpha of the loss; rising"
    )
    judged: float = Field(
        default=1.0, description="the alpha that is compared; chosen on validation digits of two other seeds"
    )
    open: float = Field(default=0.6, description="share of the blocks that Gumbel gates, measured beside them, compute")
    lean: float = Field(default=LEAN, description="bias of gates at the start")
    reward_weight: float = 0.3


def reinforced(alpha: float) -> str:
    """The arm with supervised, then reinforced gates."""
    return f"alpha {alpha:g}"


def arms(settings: Experiment) -> tuple[str, ...]:
    """Without gates; supervised gates; these reinforced for several prices; reinforced from scratch; fixed; Gumbel gates."""
    return (PLAIN, SUPERVISED, *(reinforced(alpha) for alpha in settings.alphas), COLD, STATIC, GUMBEL)


def gated(network: Network, lean: float) -> Network:
    """With a recurrent gate in front of every block that can be skipped."""
    blocks = residual_blocks(network)
    network, logits = recurrent_gates(network, blocks, lean=lean)
    network, gates = with_gates(network, [(name, 0) for name in logits])
    return gate_blocks(network, blocks, gates)


def measure(laboratory: Laboratory, arm: str, settings: Experiment, before: Arms) -> Figures:
    """Train; accuracy on the test images in percent, and how many blocks they take."""
    task = settings.task(laboratory)
    plain = settings.network(laboratory, task)
    first, second = settings.first(), settings.second()

    def train(network: Network, schedule: Schedule, part: GatesLearn, name: str) -> None:
        part.gate_lr = settings.gate_lr if isinstance(part, HybridReinforcement) else 1.0
        laboratory.train(network, task, schedule, [LearnFromLabels(), part], name)

    if arm == PLAIN:
        return train_plain(laboratory, plain, task, first, second)
    if arm == STATIC:
        plain.load_state_dict(laboratory.left(FIRST))
        dropped = best_without(plain, task, before[reinforced(settings.judged)]["computed"])
        network = without_blocks(plain, dropped)
        laboratory.train(network, task, second)
        return {"accuracy": laboratory.percent_correct(network, task), "dropped": list(dropped)}
    network = gated(plain, settings.lean).to(laboratory.accelerator.device)
    plain.load_state_dict(laboratory.left(PLAIN))
    if arm == SUPERVISED:
        train(network, first, GatesByGradient(), "")
        laboratory.leave(SUPERVISED, cloned(network.state_dict()))
        return found_on_test(network, plain, task)
    if arm == COLD:
        train(network, first, HybridReinforcement(settings.judged, settings.reward_weight), "")
        train(
            network,
            second,
            HybridReinforcement(settings.judged, settings.reward_weight),
            "second",
        )
        return found_on_test(network, plain, task)
    if arm == GUMBEL:
        for schedule, name in ((first, ""), (second, "second")):
            train(network, schedule, GatesByGradient(settings.open, noise=True), name)
        return found_on_test(network, plain, task)
    network.load_state_dict(laboratory.left(SUPERVISED))
    alpha = next(alpha for alpha in settings.alphas if arm == reinforced(alpha))
    train(network, second, HybridReinforcement(alpha, settings.reward_weight), "")
    shown = settings.shown if alpha == settings.judged else 0
    return found_beside_random(laboratory, network, plain, task, shown)


def checks(settings: Experiment) -> tuple[Check, ...]:
    """Against other ways; the price; the two phases."""
    judged = reinforced(settings.judged)
    paper = Paper(
        plain="ResNet-38 on CIFAR-10: 92.75 instead of 92.5 %",
        computed="70 % of the work",
        random="better than stochastic depth",
        fixed="implied",
        ways="implied",
        hard="easy images skip more (recalled)",
    )
    return (
        *checks_of_ways(judged, PLAIN, STATIC, "blocks", paper),
        Check(
            "the higher the price, the fewer blocks",
            "alpha sets the trade-off (section 4)",
            least_step([reinforced(alpha) for alpha in reversed(settings.alphas)]),
            unit="%",
        ),
        Check(
            "at least 5 pp better than gates that are reinforced from scratch",
            "those fail",
            lambda arms: arms[judged]["accuracy"] - arms[COLD]["accuracy"],
            5.0,
        ),
        Check(
            "gates that only learn by gradients skip something already",
            "the second phase skips 10 % more (section 5)",
            lambda arms: 100 * (1 - arms[SUPERVISED]["computed"]),
            unit="%",
        ),
    )


def picture(found: Mapping[int, Arms], settings: Experiment) -> Any:
    """Accuracy against blocks; which blocks serve which class; who takes the fewest and the most."""
    rows: list[dict[str, Any]] = []
    for seed, own in found.items():
        for arm in (SUPERVISED, COLD, GUMBEL, *(reinforced(alpha) for alpha in settings.alphas)):
            name = "supervised, then reinforced" if arm not in (SUPERVISED, COLD, GUMBEL) else arm
            rows.append({"arm": name, "seed": seed, "x": own[arm]["computed"], "y": own[arm]["accuracy"]})
        judged = own[reinforced(settings.judged)]
        rows.append({"arm": "the same blocks at random", "seed": seed, "x": judged["computed"], "y": judged["random"]})
        rows.append({"arm": STATIC, "seed": seed, "x": judged["computed"], "y": own[STATIC]["accuracy"]})
        rows.append({"arm": PLAIN, "seed": seed, "x": 1.0, "y": own[PLAIN]["accuracy"]})
    return picture_of_ways(rows, found[min(found)][reinforced(settings.judged)])


CLAIM = Claim(
    name="skipnet",
    paper="Wang, Yu, Dou, Darrell and Gonzalez 2018, SkipNet, arXiv:1711.09485",
    says="Small gates learn which residual blocks a sample needs: first by gradients through their hard choices, then by a "
    "reward for skipping. The network skips much at hardly any loss, and less for hard samples; from scratch rewards fail.",
    scaled="ResNet-20 of width 8 on 12,000 digits of MNIST, instead of ResNet-38 to -110 on CIFAR and others on ImageNet; "
    "recurrent gates with a unit of linear layers instead of an LSTM. Tried before: CIFAR-10 at 16 x 16, see dynamic.md.",
    data=("mnist",),
    settings={"full": Experiment(), "quick": Experiment(images=2000, epochs=3, more_epochs=2)},
    arms=arms,
    measure=measure,
    checks=checks,
    picture=picture,
    judges=(
        "penjing.papers.small_pictures",
        "penjing.papers.ways",
        "penjing.dynamic.gates",
        "penjing.dynamic.maps",
        "penjing.dynamic.blocks",
        "penjing.dynamic.route_training",
    ),
)
