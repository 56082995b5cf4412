"""The group lasso makes whole filters exactly zero, and then they are gone."""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
from pydantic import Field

from penjing.graph import Network
from penjing.measurement import count_parameters
from penjing.measurement.macs import macs_by_node
from penjing.models import lenet5
from penjing.papers.claim import Arms, Check, Claim, Figures
from penjing.papers.laboratory import Laboratory, cloned
from penjing.papers.pictures import dots, side_by_side
from penjing.pruning.lottery_ticket import prunable
from penjing.pruning.masks import apply_masks_, choose_masks
from penjing.pruning.structured_sparsity import GroupLasso
from penjing.pruning.weight_scores import WEIGHT_SCORES
from penjing.sensitivity import Evidence
from penjing.settings import Settings
from penjing.training import Schedule, Task

DENSE, LASSO, RIDGE, SCATTERED, CLOCK = "dense", "group lasso", "weight decay", "scattered", "clock"
CONVOLUTIONS = {"conv1": 20, "conv2": 50}


class Experiment(Settings):
    """LeNet 20-50-500 on MNIST, from a trained network as in the paper."""

    label = "structured-sparsity experiment"
    epochs: int = 8
    batch_size: int = 64
    lr: float = 0.02
    lasso_epochs: int = 12
    lasso_lr: float = 0.02
    filters: float = Field(default=1.5e-3, description="strength for filters")
    channels: float = Field(default=4e-4, description="strength for columns")
    factors: dict[str, float] = Field(
        default={"conv1": 9.0, "conv2": 1.8, "type:Linear": 0.0},
        description="what multiplies a layer's strengths; as in the paper only convolutions are penalised",
    )
    finetune_epochs: int = 6
    ridge: float = Field(default=2e-3, description="weight decay that takes the group lasso's place")
    turns: int = 40


def arms(settings: Experiment) -> tuple[str, ...]:
    """Train; on with the group lasso; on with weight decay; single weights removed instead; the clock."""
    return (DENSE, LASSO, RIDGE, SCATTERED, CLOCK)


def measure(laboratory: Laboratory, arm: str, settings: Experiment, before: Arms) -> Figures:
    """Accuracy, what is left of each layer, and how many filters are exactly zero."""
    task = laboratory.task("mnist", batch_size=settings.batch_size)
    network = laboratory.build(lenet5, task)
    if arm == DENSE:
        schedule = Schedule(epochs=settings.epochs, lr=settings.lr, optimizer="sgd", weight_decay=5e-4)
        laboratory.train(network, task, schedule)
        laboratory.leave(DENSE, cloned(network.state_dict()))
        return _described(laboratory, network, task)
    network.load_state_dict(laboratory.left(DENSE))
    if arm == RIDGE:
        schedule = Schedule(
            epochs=settings.lasso_epochs, lr=settings.lasso_lr, optimizer="sgd", weight_decay=settings.ridge
        )
        laboratory.train(network, task, schedule)
        return _described(laboratory, network, task)
    if arm == SCATTERED:
        return _scattered(laboratory, network, task, before)
    if arm == CLOCK:
        return _clock(laboratory, network, settings)
    stage = GroupLasso(
        epochs=settings.lasso_epochs,
        lr=settings.lasso_lr,
        filters=settings.filters,
        channels=settings.channels,
        factors=settings.factors,
        finetune_epochs=settings.finetune_epochs,
    )
    bench = laboratory.bench(network, task)
    stage.apply(bench)
    laboratory.leave(LASSO, {"widths": torch.tensor(_widths(bench.network))})
    found = _described(laboratory, bench.network, task)
    zeros = bench.facts["zero of all"]["filters"]
    return found | {"zero filters": {name: zeros[name] for name in CONVOLUTIONS if name in zeros}}


def _described(laboratory: Laboratory, network: Network, task: Task) -> Figures:
    kept = {name: weight for name, weight in prunable(network).items() if name.removesuffix(".weight") in CONVOLUTIONS}
    kept = {name.removesuffix(".weight"): weight for name, weight in kept.items()}
    return {
        "accuracy": laboratory.percent_correct(network, task),
        "parameters": count_parameters(network)[0],
        "MACs": sum(macs_by_node(network).values()),
        "widths": dict(zip((*CONVOLUTIONS, "fc1"), _widths(network), strict=True)),
        "exact zeros": {name: int((weight.flatten(1) == 0).all(1).sum()) for name, weight in kept.items()},
        "weights": {name: int((weight != 0).sum()) for name, weight in kept.items()},
    }


def _widths(network: Network) -> list[int]:
    return [len(network.get_submodule(name).weight) for name in (*CONVOLUTIONS, "fc1")]  # type: ignore[arg-type]


def _scattered(laboratory: Laboratory, network: Network, task: Task, before: Arms) -> Figures:
    """As many weights of each convolution are left as the group lasso left, the largest: how many filters are empty?"""
    scores = WEIGHT_SCORES["magnitude"](network, Evidence())
    empty: dict[str, int] = {}
    for name in CONVOLUTIONS:
        score = {f"{name}.weight": scores[f"{name}.weight"]}
        sparsity = 1 - before[LASSO]["weights"][name] / next(iter(score.values())).numel()
        masks = choose_masks(score, sparsity, scope="layer")[0]
        apply_masks_(network, masks)
        empty[name] = sum(int((~keep.flatten(1)).all(1).sum()) for keep in masks.values())
    return {"empty filters": empty, "accuracy": laboratory.percent_correct(network, task)}


def _clock(laboratory: Laboratory, dense: Network, settings: Experiment) -> Figures:
    """Milliseconds of a batch of 64 on one thread, dense and with the widths that the group lasso left, in turns."""
    widths = laboratory.left(LASSO)["widths"].tolist()
    small = torch.nn.Sequential(
        torch.nn.Conv2d(1, widths[0], 5),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(widths[0], widths[1], 5),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(16 * widths[1], widths[2]),
        torch.nn.ReLU(),
        torch.nn.Linear(widths[2], 10),
    ).eval()
    large, x = lenet5().eval(), torch.randn(64, 1, 28, 28)
    calls: dict[str, Callable[[], Any]] = {"dense": lambda: large(x), "small": lambda: small(x)}
    times: dict[str, list[float]] = {name: [] for name in calls}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        for turn in range(settings.turns + 2):
            for name, call in calls.items():
                begun = time.perf_counter()
                call()
                if turn > 1:
                    times[name].append(1e3 * (time.perf_counter() - begun))
    torch.set_num_threads(threads)
    return {name: median(found) for name, found in times.items()}


def checks(settings: Experiment) -> tuple[Check, ...]:
    """Structures that go, at what loss, and that nothing else makes them go."""

    def zero_share(arms: Arms) -> float:
        zeros = arms[LASSO]["zero filters"]
        return 100 * sum(n for n, _ in zeros.values()) / sum(n for _, n in zeros.values())

    return (
        Check(
            "at most 6 of the 20 filters of conv1 are left",
            "5 (SSL 1), 3 (SSL 2); recalled",
            lambda arms: 6 - arms[LASSO]["widths"]["conv1"],
            unit="filters",
        ),
        Check(
            "at most 20 of the 50 filters of conv2 are left",
            "19 (SSL 1), 12 (SSL 2); recalled",
            lambda arms: 20 - arms[LASSO]["widths"]["conv2"],
            unit="filters",
        ),
        Check(
            "at most 0.2 pp less accurate than before",
            "error 0.9 to 0.8 % (SSL 1), 1.0 % (SSL 2); recalled",
            lambda arms: arms[LASSO]["accuracy"] - arms[DENSE]["accuracy"],
            -0.2,
        ),
        Check(
            "at least half of the convolutions' filters become exactly zero",
            "75 and 62 % (SSL 1)",
            zero_share,
            50.0,
            "%",
        ),
        Check(
            "with weight decay in its place not one does",
            "the squared norm has no exact zeros",
            lambda arms: -sum(arms[RIDGE]["exact zeros"].values()),
            unit="filters",
        ),
        Check(
            "removing as many single weights by magnitude empties less than half as many filters",
            "figure 1: non-structured sparsity has no structure",
            lambda arms: (
                sum(n for n, _ in arms[LASSO]["zero filters"].values()) / 2
                - sum(arms[SCATTERED]["empty filters"].values())
            ),
            unit="filters",
        ),
        Check(
            "a batch is computed at least twice as fast",
            "layers 1.6 to 5.2 times (SSL 1), 2.0 to 7.4 times (SSL 2); recalled",
            lambda arms: arms[CLOCK]["dense"] / arms[CLOCK]["small"],
            2.0,
            "x",
        ),
    )


def picture(found: Mapping[int, Arms], settings: Experiment) -> Any:
    """Accuracies, and what is left of each layer."""
    rows = [
        {"arm": name, "test accuracy (%)": of_seed[arm]["accuracy"]}
        for of_seed in found.values()
        for arm, name in {
            DENSE: "dense",
            LASSO: "group lasso, filters removed",
            SCATTERED: "as many single weights removed, not trained",
        }.items()
    ]
    sizes = {"conv1": 20, "conv2": 50, "fc1": 500}
    left = [
        {"arm": f"{name} of {n}", "left (%)": 100 * of_seed[LASSO]["widths"][name] / n}
        for of_seed in found.values()
        for name, n in sizes.items()
    ]
    return side_by_side(
        dots(rows, "test accuracy (%)", title="accuracy"), dots(left, "left (%)", title="structures left")
    )


CLAIM = Claim(
    name="structured-sparsity",
    paper="Wen, Wu, Wang, Chen and Li 2016, Learning Structured Sparsity in Deep Neural Networks, arXiv:1608.03665, "
    "section 4.1",
    says="A group lasso on filters and channels makes most of a network's structures exactly zero at almost no loss of "
    "accuracy; what is zero is "
    "removed and the network is faster.",
    scaled="LeNet 20-50-500 on MNIST as in the paper, with a ReLU behind each convolution; a true proximal step "
    "instead of a subgradient with a "
    "threshold.",
    data=("mnist",),
    settings={
        "full": Experiment(),
        "quick": Experiment(epochs=2, lasso_epochs=4, filters=4.5e-3, channels=1.2e-3, finetune_epochs=1, turns=15),
    },
    arms=arms,
    measure=measure,
    checks=checks,
    picture=picture,
    timed=True,
    judges=(
        "penjing.pruning.group_lasso",
        "penjing.pruning.masks",
        "penjing.pruning.structured_sparsity",
        "penjing.pruning.weight_groups",
    ),
)
