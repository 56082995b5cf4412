"""What lifelong learning protects is what pruning should keep."""

from collections import OrderedDict
from collections.abc import Mapping
from itertools import islice
from typing import Any

import torch
from pydantic import Field
from scipy import stats  # type: ignore[import-untyped]
from torch import Tensor, nn

from penjing.models import lenet_300_100
from penjing.papers.claim import Arms, Check, Claim, Figures
from penjing.papers.laboratory import Laboratory, cloned
from penjing.papers.optimal_brain_damage import _delete_
from penjing.papers.pictures import curves
from penjing.pruning.masks import choose_masks
from penjing.pruning.weight_scores import WEIGHT_SCORES
from penjing.sensitivity import Evidence, SynapticIntelligence, fisher_information
from penjing.settings import Settings
from penjing.training import LearnFromLabels, Schedule, Task

TRAINED, ANALYTIC, RANKS = "trained", "linear network", "ranks"
SCORES = {
    "fisher": "EWC: F w²",
    "synaptic_intelligence": "SI: Ω w²",
    "mas_squared": "MAS: Ω w²",
    "mas": "MAS: Ω |w|",
    "magnitude": "magnitude",
    "random": "random",
    "fisher_alone": "F alone",
    "synaptic_intelligence_alone": "Ω of SI alone",
    "mas_alone": "Ω of MAS alone",
}
LIFELONG = ("fisher", "synaptic_intelligence", "mas_squared")


class Experiment(Settings):
    """LeNet-300-100 on MNIST, pruned at once over all layers, not retrained."""

    label = "lifelong-importance experiment"
    epochs: int = 10
    batch_size: int = 60
    lr: float = 1.2e-3
    batches: int = Field(default=40, description="training batches that the importances are averaged over")
    sparsities: tuple[float, ...] = (0.5, 0.7, 0.8, 0.9, 0.95)


def arms(settings: Experiment) -> tuple[str, ...]:
    """Train; prune by each score; how far rankings agree; and a network whose Fisher information is known."""
    return (TRAINED, *SCORES, RANKS, ANALYTIC)


def measure(laboratory: Laboratory, arm: str, settings: Experiment, before: Arms) -> Figures:
    """Test accuracies right after pruning."""
    task = laboratory.task("mnist", batch_size=settings.batch_size)
    if arm == ANALYTIC:
        return _analytic(laboratory, task)
    network = laboratory.build(lenet_300_100, task)
    if arm == TRAINED:
        path = SynapticIntelligence()
        laboratory.train(network, task, Schedule(epochs=settings.epochs, lr=settings.lr), [LearnFromLabels(), path])
        importance = {f"path {name}": omega for name, omega in path.importance().items()}
        laboratory.leave(TRAINED, {**cloned(network.state_dict()), **cloned(importance)})
        return {"accuracy": laboratory.percent_correct(network, task)}
    left = laboratory.left(TRAINED)
    state = {name: tensor for name, tensor in left.items() if not name.startswith("path ")}
    network.load_state_dict(state)
    evidence = Evidence(
        batches=lambda: islice(task.batches(task.train), settings.batches),
        path={name.removeprefix("path "): tensor for name, tensor in left.items() if name.startswith("path ")},
        generator=laboratory.generator(arm),
    )
    if arm == RANKS:
        flat = [_flat(WEIGHT_SCORES[name](network, evidence)) for name in ("fisher", "mas_squared")]
        return {"spearman": float(stats.spearmanr(*flat).statistic)}
    scores = WEIGHT_SCORES[arm](network, evidence)
    accuracies = []
    for sparsity in settings.sparsities:
        _delete_(network, state, choose_masks(scores, sparsity, scope="global")[0])
        accuracies.append(laboratory.percent_correct(network, task))
    return {"accuracies": accuracies}


def _flat(scores: Mapping[str, Tensor]) -> Any:
    return torch.cat([score.flatten() for score in scores.values()]).numpy()


def _analytic(laboratory: Laboratory, task: Task) -> Figures:
    """A linear layer with softmax: F[c, j] = mean over samples of x_j^2 p_c (1 - p_c)."""
    network = laboratory.build(lambda: nn.Sequential(OrderedDict(flatten=nn.Flatten(), out=nn.Linear(784, 10))), task)
    laboratory.train(network, task, Schedule(epochs=1, lr=1e-3))
    batches = list(islice(task.batches(task.train), 40))
    evidence = Evidence(batches=lambda: batches, generator=laboratory.generator(ANALYTIC))
    sampled = fisher_information(network, evidence, draws=50)["out.weight"].double()
    with torch.no_grad():
        x = torch.cat([batch.args[0].flatten(1) for batch in batches]).double()
        p = torch.cat([network(*batch.args) for batch in batches]).double().softmax(-1)
    known = (p * (1 - p)).T @ x.square() / len(x)  # (classes, inputs)
    return {"relative difference": float((sampled - known).norm() / known.norm())}


def checks(settings: Experiment) -> tuple[Check, ...]:
    """Against magnitude and chance; there is no published table to compare with."""
    none = "no published table"

    def at(arm: str, sparsity: float) -> Any:
        return lambda arms: arms[arm]["accuracies"][settings.sparsities.index(sparsity)]

    found = [
        Check(
            f"{100 * sparsity:g} % gone: F w² is at least as accurate as magnitude, to 0.5 pp",
            none,
            lambda arms, s=sparsity: at("fisher", s)(arms) - at("magnitude", s)(arms),  # type: ignore[misc]
            -0.5,
        )
        for sparsity in (0.5, 0.8, 0.9)
    ]
    found += [
        Check(
            f"80 % gone: {SCORES[name]} is at least 10 pp above chance deletion",
            none,
            lambda arms, name=name: at(name, 0.8)(arms) - at("random", 0.8)(arms),  # type: ignore[misc]
            10.0,
        )
        for name in LIFELONG
    ]
    return (
        *found,
        Check(
            "F w² and MAS rank the weights alike: Spearman's correlation is at least 0.5",
            none,
            lambda arms: arms[RANKS]["spearman"],
            0.5,
            "",
        ),
        Check(
            "on a linear network the sampled Fisher information is x² p (1 - p), within 5 %",
            "follows from its definition",
            lambda arms: 5 - 100 * arms[ANALYTIC]["relative difference"],
            unit="%",
        ),
    )


def picture(found: Mapping[int, Arms], settings: Experiment) -> Any:
    """Accuracy right after pruning."""
    rows = [
        {
            "arm": name,
            "weights gone (%)": 100 * sparsity,
            "test accuracy (%), not retrained": arms_of_seed[arm]["accuracies"][position],
        }
        for arms_of_seed in found.values()
        for arm, name in list(SCORES.items())[:6]
        for position, sparsity in enumerate(settings.sparsities)
    ]
    order = list(SCORES.values())
    return curves(rows, "weights gone (%)", "test accuracy (%), not retrained", title="importance from lifelong "
    "learning", order=order)  # fmt: skip


CLAIM = Claim(
    name="lifelong-importance",
    paper="Kirkpatrick et al. 2017 (EWC), arXiv:1612.00796; Zenke et al. 2017 (SI), arXiv:1703.04200; Aljundi et al. "
    "2018 (MAS), "
    "arXiv:1711.09601",
    says="Measures of how much a task needs a weight, made to protect it in lifelong learning, tell as well which "
    "weights can be pruned.",
    scaled="The papers do not prune; LeNet-300-100 on MNIST, global one-shot pruning without retraining. Scores are "
    "importance times the "
    "weight's square; the importance alone is an ablation.",
    data=("mnist",),
    settings={"full": Experiment(), "quick": Experiment(epochs=2, batches=10, sparsities=(0.5, 0.8, 0.9))},
    arms=arms,
    measure=measure,
    checks=checks,
    picture=picture,
    judges=(
        "penjing.pruning.masks",
        "penjing.pruning.weight_saliency",
        "penjing.sensitivity.fisher",
        "penjing.sensitivity.mas",
        "penjing.sensitivity.per_sample",
        "penjing.sensitivity.synaptic_intelligence",
    ),
    seeds=5,
)
