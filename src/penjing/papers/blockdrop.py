"""A policy that sees the image once says which blocks of the network it needs."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from penjing.dynamic.blocks import gate_blocks, residual_blocks
from penjing.dynamic.gates import policy, with_gates
from penjing.dynamic.route_training import DropByPolicy
from penjing.graph import Network
from penjing.papers.claim import Arms, Check, Claim, Figures
from penjing.papers.laboratory import Laboratory
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
from penjing.training import LearnFromLabels

STATIC = "fixed blocks"


class Experiment(RoutedExperiment):
    """A narrow ResNet-20 on digits; seven of its nine blocks can be skipped."""

    label = "blockdrop experiment"
    penalties: tuple[float, ...] = Field(default=(3.0, 7.0, 20.0), description="for a wrong answer, gamma; rising")
    judged: float = Field(
        default=7.0, description="the penalty that is compared; chosen on validation digits of another seed"
    )
    policy_epochs: int = Field(default=8, description="in which the policy alone learns, the last blocks first")
    policy_lr: float = Field(default=2e-3, description="of it, AdamW")


def dropping(penalty: float) -> str:
    """The arm of a penalty."""
    return f"gamma {penalty:g}"


def arms(settings: Experiment) -> tuple[str, ...]:
    """Without a policy; with one, for several penalties; fixed blocks."""
    return (PLAIN, *(dropping(penalty) for penalty in settings.penalties), STATIC)


def with_policy(network: Network) -> Network:
    """With a policy in front that opens or shuts each block that can be skipped."""
    blocks = residual_blocks(network)
    network, logits = policy(network, len(blocks))
    network, gates = with_gates(network, [(logits, k) for k in range(len(blocks))])
    return gate_blocks(network, blocks, gates)


def measure(laboratory: Laboratory, arm: str, settings: Experiment, before: Arms) -> Figures:
    """Train; accuracy on the test images in percent, and how many blocks they take."""
    task = settings.task(laboratory)
    plain = settings.network(laboratory, task)
    first, second = settings.first(), settings.second()
    if arm == PLAIN:
        return train_plain(laboratory, plain, task, first, second)
    plain.load_state_dict(laboratory.left(FIRST))
    if arm == STATIC:
        dropped = best_without(plain, task, before[dropping(settings.judged)]["computed"])
        network = without_blocks(plain, dropped)
        laboratory.train(network, task, second)
        return {"accuracy": laboratory.percent_correct(network, task), "dropped": list(dropped)}
    penalty = next(penalty for penalty in settings.penalties if arm == dropping(penalty))
    network = with_policy(plain)
    plain.load_state_dict(laboratory.left(PLAIN))
    alone = first.model_copy(
        update={
            "epochs": settings.policy_epochs,
            "lr": settings.policy_lr,
            "optimizer": "adamw",
            "weight_decay": 0.0,
        }
    )
    laboratory.train(network, task, alone, [DropByPolicy(penalty, joint=False)], "policy")
    alone_found = found_on_test(network, plain, task)
    joint = DropByPolicy(penalty, joint=True)
    joint.gate_lr = settings.gate_lr
    laboratory.train(network, task, second, [LearnFromLabels(), joint])
    shown = settings.shown if penalty == settings.judged else 0
    found = found_beside_random(laboratory, network, plain, task, shown)
    return found | {f"policy alone, {what}": alone_found[what] for what in ("accuracy", "computed", "ways")}


def checks(settings: Experiment) -> tuple[Check, ...]:
    """Against other ways; the penalty; what joint training mends."""
    judged = dropping(settings.judged)
    paper = Paper(
        plain="ResNet-110 on CIFAR-10: 93.6 instead of 93.2 %",
        computed="16.9 of 54 blocks",
        random="random policies are far worse (recalled)",
        fixed="implied",
        ways="469 ways",
        hard="harder images use more (recalled)",
    )
    return (
        *checks_of_ways(judged, PLAIN, STATIC, "blocks", paper),
        Check(
            "the higher the penalty for wrong answers, the more blocks",
            "gamma sets the trade-off (section 3.2)",
            least_step([dropping(penalty) for penalty in settings.penalties]),
            unit="%",
        ),
        Check(
            "training both together is better than the policy alone",
            "93.6 instead of 75.4 %",
            lambda arms: arms[judged]["accuracy"] - arms[judged]["policy alone, accuracy"],
        ),
    )


def picture(found: Mapping[int, Arms], settings: Experiment) -> Any:
    """Accuracy against blocks; which blocks serve which class; who takes the fewest and the most."""
    rows: list[dict[str, Any]] = []
    for seed, own in found.items():
        for penalty in settings.penalties:
            of = own[dropping(penalty)]
            rows.append({"arm": "policy and network", "seed": seed, "x": of["computed"], "y": of["accuracy"]})
            alone = {"x": of["policy alone, computed"], "y": of["policy alone, accuracy"]}
            rows.append({"arm": "policy alone", "seed": seed, **alone})
        judged = own[dropping(settings.judged)]
        rows.append({"arm": "the same blocks at random", "seed": seed, "x": judged["computed"], "y": judged["random"]})
        rows.append({"arm": STATIC, "seed": seed, "x": judged["computed"], "y": own[STATIC]["accuracy"]})
        rows.append({"arm": PLAIN, "seed": seed, "x": 1.0, "y": own[PLAIN]["accuracy"]})
    return picture_of_ways(rows, found[min(found)][dropping(settings.judged)])


CLAIM = Claim(
    name="blockdrop",
    paper="Wu, Nagarajan, Kumar, Rennie, Davis, Grauman and Feris 2018, BlockDrop, arXiv:1711.08393",
    says="A small policy network that sees the image and is rewarded for right answers with few blocks learns which residual "
    "blocks to compute; trained on together, network and policy are as good as the whole with a part of the work.",
    scaled="ResNet-20 of width 8 on 12,000 digits of MNIST, instead of ResNet-110 on CIFAR and ResNet-101 on ImageNet; "
    "a policy of three convolutions instead of a ResNet-8; some 14 passes instead of thousands.",
    data=("mnist",),
    settings={"full": Experiment(), "quick": Experiment(images=2000, epochs=3, more_epochs=2, policy_epochs=2)},
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
