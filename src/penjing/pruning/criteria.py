"""Importance of a weight by its values before and after training.

w_i and w_f are the weight before and after training. Source of all of these: Zhou et al. 2019 (Deconstructing Lottery Tickets),
arXiv:1905.01067, section 3 and figure 2; the authors rank within each layer.
"""

import torch
from torch import Tensor

from penjing.errors import SettingError
from penjing.graph import Network
from penjing.sensitivity import Evidence, layer_weights


def before_and_after(network: Network, evidence: Evidence, who: str) -> dict[str, tuple[Tensor, Tensor]]:
    """(w_i, w_f) of every weight.

    Raises: SettingError: the weights before training were not kept, or have other shapes because channels have gone since.
    """
    initial = evidence.before(who)
    found = {}
    for name, after in layer_weights(network).items():
        path, _, last = name.rpartition(".")
        before = initial.get(name, initial.get(f"{path}.parametrizations.{last}.original"))
        if before is None or before.shape != after.shape:
            given = "there is no such weight" if before is None else f"it had shape {tuple(before.shape)}"
            raise SettingError(
                f"{who}: {name} has shape {tuple(after.shape)}, and before training {given}. Rank by weights before training "
                "only where no stage in between changed the layers."
            )
        found[name] = (before.to(after.device, after.dtype), after)
    return found


def large_final(network: Network, evidence: Evidence) -> dict[str, Tensor]:
    """score = |w_f|."""
    return {name: w.abs() for name, w in layer_weights(network).items()}


def small_final(network: Network, evidence: Evidence) -> dict[str, Tensor]:
    """score = -|w_f|."""
    return {name: -w.abs() for name, w in layer_weights(network).items()}


def large_init(network: Network, evidence: Evidence) -> dict[str, Tensor]:
    """score = |w_i|."""
    return {name: i.abs() for name, (i, _) in before_and_after(network, evidence, "large_init").items()}


def small_init(network: Network, evidence: Evidence) -> dict[str, Tensor]:
    """score = -|w_i|."""
    return {name: -i.abs() for name, (i, _) in before_and_after(network, evidence, "small_init").items()}


def _normalised(values: Tensor) -> Tensor:
    return values / values.max().clamp_min(torch.finfo(values.dtype).tiny)


def large_init_large_final(network: Network, evidence: Evidence) -> dict[str, Tensor]:
    """score = min(|w_i| / max |w_i|, |w_f| / max |w_f|), maxima over the layer."""
    pairs = before_and_after(network, evidence, "large_init_large_final")
    return {name: torch.minimum(_normalised(i.abs()), _normalised(f.abs())) for name, (i, f) in pairs.items()}


def small_init_small_final(network: Network, evidence: Evidence) -> dict[str, Tensor]:
    """score = -max(|w_i| / max |w_i|, |w_f| / max |w_f|), maxima over the layer."""
    pairs = before_and_after(network, evidence, "small_init_small_final")
    return {name: -torch.maximum(_normalised(i.abs()), _normalised(f.abs())) for name, (i, f) in pairs.items()}


def magnitude_increase(network: Network, evidence: Evidence) -> dict[str, Tensor]:
    """score = |w_f| - |w_i|."""
    pairs = before_and_after(network, evidence, "magnitude_increase")
    return {name: f.abs() - i.abs() for name, (i, f) in pairs.items()}


def movement(network: Network, evidence: Evidence) -> dict[str, Tensor]:
    """score = |w_f - w_i|."""
    return {name: (f - i).abs() for name, (i, f) in before_and_after(network, evidence, "movement").items()}


def large_final_same_sign(network: Network, evidence: Evidence) -> dict[str, Tensor]:
    """score = |w_f| where w_i and w_f have the same sign, else 0."""
    pairs = before_and_after(network, evidence, "large_final_same_sign")
    return {name: f.abs() * (i.sign() == f.sign()) for name, (i, f) in pairs.items()}


def large_final_diff_sign(network: Network, evidence: Evidence) -> dict[str, Tensor]:
    """score = |w_f| where w_i and w_f have different signs, else 0."""
    pairs = before_and_after(network, evidence, "large_final_diff_sign")
    return {name: f.abs() * (i.sign() != f.sign()) for name, (i, f) in pairs.items()}
