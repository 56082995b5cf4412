"""All measures of what makes a single weight important, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from penjing.errors import SettingError, nearest
from penjing.graph import Network
from penjing.pruning import criteria
from penjing.pruning.lamp import lamp_importance
from penjing.pruning.wanda import wanda_importance
from penjing.pruning.weight_magnitude import weight_magnitude
from penjing.pruning.weight_saliency import (
    fisher_alone,
    fisher_importance,
    gradient_importance,
    mas_alone,
    mas_importance,
    mas_squared,
    obd_exact_saliency,
    obd_saliency,
    random_importance,
    synaptic_intelligence_alone,
    synaptic_intelligence_importance,
    taylor_importance,
)
from penjing.sensitivity import Evidence

Compute = Callable[[Network, Evidence], dict[str, Tensor]]
Scope = Literal["global", "layer", "row"]


@dataclass(frozen=True)
class WeightScore:
    """A measure of importance: called with a network and evidence, it gives a number for each weight of each layer.

    Higher is more important. By the weight's full name, in its shape; biases and norms have none.

    Attributes:
        compute: the measure.
        scope: among which weights its authors compare: all, those of a layer, or those of an output's row.
        samples, labels, initial, path: what of the evidence it looks at: samples; the loss, so labels or a teacher; weights
            before training; what was accumulated while training.
    """

    compute: Compute
    scope: Scope = "global"
    samples: bool = False
    labels: bool = False
    initial: bool = False
    path: bool = False

    def __call__(self, network: Network, evidence: Evidence) -> dict[str, Tensor]:
        return self.compute(network, evidence)


WEIGHT_SCORES: dict[str, WeightScore] = {
    "magnitude": WeightScore(weight_magnitude),
    "random": WeightScore(random_importance),
    "lamp": WeightScore(lamp_importance),
    "wanda": WeightScore(wanda_importance, "row", samples=True),
    "gradient": WeightScore(gradient_importance, samples=True, labels=True),
    "taylor": WeightScore(taylor_importance, samples=True, labels=True),
    "obd": WeightScore(obd_saliency, samples=True, labels=True),
    "obd_exact": WeightScore(obd_exact_saliency, samples=True, labels=True),
    "fisher": WeightScore(fisher_importance, samples=True),
    "fisher_alone": WeightScore(fisher_alone, samples=True),
    "synaptic_intelligence": WeightScore(synaptic_intelligence_importance, path=True),
    "synaptic_intelligence_alone": WeightScore(synaptic_intelligence_alone, path=True),
    "mas": WeightScore(mas_importance, samples=True),
    "mas_squared": WeightScore(mas_squared, samples=True),
    "mas_alone": WeightScore(mas_alone, samples=True),
    "large_final": WeightScore(criteria.large_final, "layer"),
    "small_final": WeightScore(criteria.small_final, "layer"),
    "large_init": WeightScore(criteria.large_init, "layer", initial=True),
    "small_init": WeightScore(criteria.small_init, "layer", initial=True),
    "large_init_large_final": WeightScore(criteria.large_init_large_final, "layer", initial=True),
    "small_init_small_final": WeightScore(criteria.small_init_small_final, "layer", initial=True),
    "magnitude_increase": WeightScore(criteria.magnitude_increase, "layer", initial=True),
    "movement": WeightScore(criteria.movement, "layer", initial=True),
    "large_final_same_sign": WeightScore(criteria.large_final_same_sign, "layer", initial=True),
    "large_final_diff_sign": WeightScore(criteria.large_final_diff_sign, "layer", initial=True),
}


def weight_score(name: str, where: str = "score") -> WeightScore:
    """The measure of that name. Raises: SettingError: there is none, with the nearest."""
    if name not in WEIGHT_SCORES:
        raise SettingError(f'{where}: there is no score "{name}"; {nearest(name, WEIGHT_SCORES)}.')
    return WEIGHT_SCORES[name]
