"""Importance of a weight by how much the loss, or the answer, would change without it."""

import torch
from torch import Tensor

from penjing.errors import SettingError
from penjing.graph import Network
from penjing.sensitivity import (
    Evidence,
    diagonal_hessian,
    fisher_information,
    layer_weights,
    mean_gradient,
    memory_aware_synapses,
)


def random_importance(network: Network, evidence: Evidence) -> dict[str, Tensor]:
    """score ~ U(0, 1), with the evidence's generator: what every other score is compared with."""
    return {
        name: torch.rand(w.shape, generator=evidence.generator).to(w.device)
        for name, w in layer_weights(network).items()
    }


def gradient_importance(network: Network, evidence: Evidence) -> dict[str, Tensor]:
    """score = |g|, g = dE[L]/dw: how the loss changes when the weight moves."""
    return {name: g.abs() for name, g in mean_gradient(network, evidence).items()}


def taylor_importance(network: Network, evidence: Evidence) -> dict[str, Tensor]:
    """score = |g w|: how the loss changes without the weight, to first order.

    Source: Molchanov et al. 2019, arXiv:1906.10771, eq. 8, before the square.
    """
    weights = layer_weights(network)
    return {name: (g * weights[name]).abs() for name, g in mean_gradient(network, evidence).items()}


def obd_saliency(network: Network, evidence: Evidence) -> dict[str, Tensor]:
    """score = h w^2 / 2, h the Gauss-Newton diagonal: how the loss changes without the weight, to second order.

    For a trained network, whose gradient is 0, on training data; weights are taken one at a time (no cross terms).
    Source: LeCun, Denker and Solla 1990 (Optimal Brain Damage), eq. 5. Deviates: Gauss-Newton, so that h >= 0.
    """
    weights = layer_weights(network)
    return {name: h * weights[name].square() / 2 for name, h in diagonal_hessian(network, evidence).items()}


def obd_exact_saliency(network: Network, evidence: Evidence) -> dict[str, Tensor]:
    """score = h w^2 / 2 with the exact second derivative, which can be negative; for small networks.

    Source: LeCun, Denker and Solla 1990 (Optimal Brain Damage), eq. 5.
    """
    weights = layer_weights(network)
    found = diagonal_hessian(network, evidence, method="exact")
    return {name: h * weights[name].square() / 2 for name, h in found.items()}


def fisher_importance(network: Network, evidence: Evidence) -> dict[str, Tensor]:
    """score = F w^2, F the Fisher information: twice the change of the predicted distribution without the weight.

    Source: F of Kirkpatrick et al. 2017, arXiv:1612.00796; its use for pruning, Theis et al. 2018, arXiv:1801.05787, eq. 6.
    """
    weights = layer_weights(network)
    return {name: f * weights[name].square() for name, f in fisher_information(network, evidence).items()}


def fisher_alone(network: Network, evidence: Evidence) -> dict[str, Tensor]:
    """score = F: sensitivity to moving the weight, not to removing it. An ablation."""
    return fisher_information(network, evidence)


def mas_importance(network: Network, evidence: Evidence) -> dict[str, Tensor]:
    """score = Omega |w|, Omega of memory aware synapses: first-order change of ||F(x)||^2 without the weight, no labels.

    Source: Omega of Aljundi et al. 2018, arXiv:1711.09601, eq. 3.
    """
    weights = layer_weights(network)
    return {name: omega * weights[name].abs() for name, omega in memory_aware_synapses(network, evidence).items()}


def mas_squared(network: Network, evidence: Evidence) -> dict[str, Tensor]:
    """score = Omega w^2, Omega of memory aware synapses, as if it were a second derivative."""
    weights = layer_weights(network)
    return {name: omega * weights[name].square() for name, omega in memory_aware_synapses(network, evidence).items()}


def mas_alone(network: Network, evidence: Evidence) -> dict[str, Tensor]:
    """score = Omega of memory aware synapses. An ablation."""
    return memory_aware_synapses(network, evidence)


def synaptic_intelligence_importance(network: Network, evidence: Evidence) -> dict[str, Tensor]:
    """score = Omega w^2, Omega accumulated along the training path; see `sensitivity.SynapticIntelligence`.

    Source: Omega of Zenke et al. 2017, arXiv:1703.04200, eq. 5.
    """
    weights = layer_weights(network)
    return {
        name: omega * weights[name].square() for name, omega in synaptic_intelligence_alone(network, evidence).items()
    }


def synaptic_intelligence_alone(network: Network, evidence: Evidence) -> dict[str, Tensor]:
    """score = Omega accumulated along the training path. An ablation."""
    if evidence.path is None:
        raise SettingError(
            "synaptic intelligence: it looks at what was accumulated while training; train with "
            "sensitivity.SynapticIntelligence and give Evidence(path=part.importance())."
        )
    found = {}
    for name, w in layer_weights(network).items():
        omega = evidence.path.get(name)
        if omega is None or omega.shape != w.shape:
            given = "is missing" if omega is None else f"has shape {tuple(omega.shape)}, not {tuple(w.shape)}"
            raise SettingError(
                f"synaptic intelligence: what was accumulated for {name} {given}. Accumulate it on the network as it is now."
            )
        found[name] = omega.to(w.device)
    return found
