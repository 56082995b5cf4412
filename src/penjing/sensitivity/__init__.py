"""How much the loss, or the answer, depends on each weight. What pruning and quantization both ask."""

from penjing.sensitivity.covariance import input_covariances
from penjing.sensitivity.evidence import Evidence, Weights
from penjing.sensitivity.first_order import mean_gradient
from penjing.sensitivity.fisher import fisher_information
from penjing.sensitivity.gradient_moments import GradientMoments, gradient_moments
from penjing.sensitivity.hessian import diagonal_hessian
from penjing.sensitivity.inputs import input_mean_squares
from penjing.sensitivity.layer_weights import layer_weights, weighted_layers
from penjing.sensitivity.mas import memory_aware_synapses
from penjing.sensitivity.merging import merge_importances
from penjing.sensitivity.noise_inputs import noise_inputs, smooth_noise
from penjing.sensitivity.per_sample import per_sample_gradients
from penjing.sensitivity.synaptic_intelligence import SynapticIntelligence, path_importance

__all__ = [
    "Evidence",
    "GradientMoments",
    "SynapticIntelligence",
    "Weights",
    "diagonal_hessian",
    "fisher_information",
    "gradient_moments",
    "input_covariances",
    "input_mean_squares",
    "layer_weights",
    "mean_gradient",
    "memory_aware_synapses",
    "merge_importances",
    "noise_inputs",
    "path_importance",
    "per_sample_gradients",
    "smooth_noise",
    "weighted_layers",
]
