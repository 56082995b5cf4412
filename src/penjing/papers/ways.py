"""What claims about routing have in common: the ways that samples go, and ways that nobody has learned."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from penjing.data import in_memory_loader
from penjing.dynamic.blocks import gate_blocks, residual_blocks
from penjing.dynamic.choices import choosing
from penjing.dynamic.gates import feed_forward_gates, with_gates
from penjing.graph import Network
from penjing.measurement import Answers, answer, block_shares
from penjing.models import resnet_cifar
from penjing.papers.claim import Arms, Check, Figures
from penjing.papers.laboratory import Laboratory, cloned
from penjing.papers.pictures import grid, pictures_in_rows, side_by_side, traces
from penjing.papers.small_pictures import on_test, thumbnails
from penjing.settings import Settings
from penjing.training import Schedule, Task
from penjing.training.task import correct

_CERTAIN = 10.0
_ROUNDING = 1e-6
_N_VALID = 5000


class RoutedExperiment(Settings):
    """What experiments with a narrow ResNet-20 on digits share; seven of its nine blocks can be skipped."""

    gate_lr: float = Field(default=1.0, description="how many times faster what decides learns than the network")
    images: int = Field(default=12_000, description="to learn from")
    width: int = Field(default=8, description="of the first stage, a half of ResNet-20's")
    epochs: int = Field(default=6, description="of the first training")
    more_epochs: int = Field(default=6, description="of the second")
    more_lr: float = Field(default=0.3, description="its rate as a share of the first one's")
    batch_size: int = 128
    lr: float = Field(default=0.1, description="SGD, cosine")
    weight_decay: float = 5e-4
    shown: int = Field(default=10, description="pictures a row that take the least and the most")

    def task(self, laboratory: Laboratory) -> Task:
        """The digits, rotated, scaled, sheared and shifted at random; 5,000 others for every choice."""
        task = laboratory.task(
            "mnist", n_valid=60_000 - self.images, batch_size=self.batch_size, augment=True, versions=8
        )
        held = task.valid.dataset  # type: ignore[attr-defined]
        valid = in_memory_loader(held.images[:_N_VALID], held.labels[:_N_VALID], 2 * self.batch_size)
        return replace(task, valid=valid)

    def network(self, laboratory: Laboratory, task: Task) -> Network:
        """The network that computes everything."""
        return laboratory.build(lambda: resnet_cifar(20, width=self.width, channels=1), task)

    def first(self) -> Schedule:
        """The first training."""
        return Schedule(epochs=self.epochs, lr=self.lr, optimizer="sgd", weight_decay=self.weight_decay, warmup=0.1)

    def second(self, **changes: Any) -> Schedule:
        """The second, with changes."""
        return self.first().model_copy(update={"epochs": self.more_epochs, "lr": self.lr * self.more_lr, **changes})


FIRST, PLAIN = "first", "plain"
"""What `train_plain` leaves: the network after its first training, and at its end."""


def train_plain(laboratory: Laboratory, network: Network, task: Task, *schedules: Schedule) -> Figures:
    """Train the network that computes everything, one schedule after another, and leave it for the other arms."""
    for k, schedule in enumerate(schedules):
        laboratory.train(network, task, schedule, name=str(k))
        if k == 0:
            laboratory.leave(FIRST, cloned(network.state_dict()))
    laboratory.leave(PLAIN, cloned(network.state_dict()))
    return {"accuracy": laboratory.percent_correct(network, task)}


def found_on_test(network: Network, plain: Network, task: Task, *, shown: int = 0) -> Figures:
    """What a network with gates does on the test pictures: accuracy, work, and who needs more of it.

    Hard are the pictures that the plain network gets wrong, and of the rest the quarter of which it is least sure.
    """
    found, right, share = on_test(network, task)
    by_block = torch.stack(list(block_shares(network, found.opened).values()), 1)
    without = answer(plain, task, task.test)  # type: ignore[arg-type]
    hard = is_hard(without)
    used = by_block.mean(1)
    figures: Figures = {
        "accuracy": 100 * float(right.mean()),
        "MACs": float(share.mean()),
        "computed": float(used.mean()),
        "by block": by_block.mean(0).tolist(),
        "ways": len(torch.unique(by_block, dim=0)),
        "computed for hard": _mean(used[hard], used),
        "computed for easy": _mean(used[~hard], used),
    }
    if shown:
        figures["by class"] = by_class(by_block, found.labels)
        order = (used + 1e-6 * torch.rand(len(used), generator=torch.Generator().manual_seed(0))).argsort()
        figures["least"], figures["most"] = (_thumbnails(task, some) for some in (order[:shown], order[-shown:]))
    return figures


def _thumbnails(task: Task, some: Tensor) -> list[str]:
    held = task.test.dataset  # type: ignore[union-attr]
    in_three = in_memory_loader(held.images[some].expand(-1, 3, -1, -1), held.labels[some], len(some))
    return thumbnails(replace(task, test=in_three), range(len(some)))


def found_beside_random(laboratory: Laboratory, network: Network, plain: Network, task: Task, shown: int) -> Figures:
    """What `found_on_test` says; of a network that is shown, also how good as much at random is ("random")."""
    found = found_on_test(network, plain, task, shown=shown)
    if shown:
        found["random"] = random_ways(network, task, found["computed"], laboratory.generator("ways"))
    return found


def _mean(some: Tensor, everybody: Tensor) -> float:
    return float((some if len(some) else everybody).mean())


def is_hard(found: Answers) -> Tensor:
    """Wrong, or among the least sure quarter of those that are right; (n,), bool."""
    right = correct(found.logits, found.labels) > 0
    best = found.logits.softmax(1).topk(2, 1).values
    margin = best[:, 0] - best[:, 1]
    hard: Tensor = ~right | (margin < torch.quantile(margin[right], 0.25))
    return hard


def by_class(used: Tensor, labels: Tensor) -> list[list[float]]:
    """For each class what its samples take of each block on average."""
    return [used[labels == label].mean(0).tolist() for label in range(int(labels.max()) + 1)]


def random_ways(network: Network, task: Task, share: float, generator: torch.Generator) -> float:
    """Accuracy in percent on the test part if this share of every block is computed on average, at random.

    A gate of its own is open for this share of the samples; of k channel sets a + 1 or a are computed, whichever is needed.
    """

    def choose(source: str, logits: Tensor) -> Tensor:
        chance = torch.rand(logits.shape, generator=generator).to(logits)
        if source not in exclusive:
            return (chance < share).to(logits)
        sets = share * logits.shape[1]
        whole = int(sets)
        return (whole - 1 + (chance[:, 0] < sets - whole).long()).clamp(0, logits.shape[1] - 1)

    exclusive = {node.inputs[0] for node in network.gates if node.settings["rule"] == "largest"}
    right = []
    network.eval()
    with torch.no_grad():
        for batch in task.batches(task.test, next(network.parameters()).device):  # type: ignore[arg-type]
            with choosing(network, choose):
                right.append(correct(network(*batch.args, **batch.kwargs), batch.labels).cpu())
    return 100 * float(torch.cat(right).double().mean())


def without_blocks(network: Network, dropped: tuple[int, ...]) -> Network:
    """The network with some of its residual blocks skipped by everybody: gates that have nothing to decide."""
    blocks = residual_blocks(network)
    made, logits = feed_forward_gates(network, blocks)
    made, gates = with_gates(made, [(name, 0) for name in logits])
    made = gate_blocks(made, blocks, gates)
    for k in range(len(blocks)):
        out: Any = made.get_submodule(f"routing.{k}")
        assert isinstance(out, nn.Linear)
        with torch.no_grad():
            out.weight.zero_()
            out.bias.fill_(-_CERTAIN if k in dropped else _CERTAIN)
    return made


def best_without(network: Network, task: Task, computed: float) -> tuple[int, ...]:
    """The blocks without which the network as it is loses least on the validation set, out of all choices of so many.

    Args:
        computed: the share of the blocks that may be computed; what is left after dropping is no less.
    """
    n_blocks = len(residual_blocks(network))
    n_dropped = int(n_blocks * (1 - computed) + _ROUNDING)

    def accuracy_without(dropped: tuple[int, ...]) -> float:
        found = answer(without_blocks(network, dropped), task, task.valid)
        return float(correct(found.logits, found.labels).double().mean())

    return max(combinations(range(n_blocks), n_dropped), key=accuracy_without)


@dataclass(frozen=True)
class Paper:
    """What a paper found of each thing that all claims about routing check."""

    plain: str
    computed: str
    random: str
    fixed: str
    ways: str
    hard: str


def checks_of_ways(judged: str, plain: str, fixed: str, what: str, paper: Paper) -> tuple[Check, ...]:
    """Against the plain network, random and fixed ways; who needs more.

    Args:
        judged, plain, fixed: the arms that are compared; judged with "random", see `found_on_test`.
        what: is skipped, in the plural.
    """
    return (
        Check(
            "at most 1 pp below the network that computes everything, trained as long",
            paper.plain,
            lambda arms: arms[judged]["accuracy"] - arms[plain]["accuracy"],
            -1.0,
        ),
        Check(
            f"with at most 75 % of the {what} that can be skipped",
            paper.computed,
            lambda arms: 100 * (0.75 - arms[judged]["computed"]),
            unit="%",
        ),
        Check(
            f"at least 2 pp better than the same network with as many {what} at random",
            paper.random,
            lambda arms: arms[judged]["accuracy"] - arms[judged]["random"],
            2.0,
        ),
        Check(
            f"at least as good as a network with fixed {what}, no fewer, trained as long",
            paper.fixed,
            lambda arms: arms[judged]["accuracy"] - arms[fixed]["accuracy"],
        ),
        Check("not all pictures go the same way", paper.ways, lambda arms: arms[judged]["ways"] - 1, 1.0, "ways"),
        Check(
            f"hard pictures take more {what} than easy ones",
            paper.hard,
            lambda arms: 100 * (arms[judged]["computed for hard"] - arms[judged]["computed for easy"]),
            unit="%",
        ),
    )


def least_step(names: Sequence[str]) -> Callable[[Arms], float]:
    """By how much more, in percent, each arm computes than the one before it, at the least."""
    return lambda arms: min(100 * (arms[b]["computed"] - arms[a]["computed"]) for a, b in pairwise(names))


def picture_of_ways(rows: list[dict[str, Any]], judged: Figures) -> Any:
    """Accuracy against the share of blocks; which blocks serve which class; pictures that take the least and the most.

    Args:
        rows: with "arm", "seed", "x" (the share of what could be computed, 0 to 1) and "y" (right, %).
        judged: as `found_on_test` gives, with pictures.
    """
    computed, right = "computed of what can be skipped (%)", "right (%)"
    points = [{"arm": row["arm"], "seed": row["seed"], computed: 100 * row["x"], right: row["y"]} for row in rows]
    table = [
        {"block": str(k + 1), "class": str(digit), "computed (%)": 100 * share}
        for digit, shares in enumerate(judged["by class"])
        for k, share in enumerate(shares)
    ]
    order = [str(k + 1) for k in range(len(judged["by block"]))]
    least_most = {"the least": judged["least"], "the most": judged["most"]}
    return side_by_side(
        traces(points, computed, right, title="MNIST, ResNet-20 of width 8"),
        grid(table, "block", "class", "computed (%)", title="for each class, seed 0", order=order),
        pictures_in_rows(least_most, title="who takes", side=36),
        same_arms=False,
    )
