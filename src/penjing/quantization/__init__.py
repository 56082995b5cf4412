"""Parameter quantization: fewer different values, fewer bits."""

from penjing.quantization.activations import quantize_activations, round_biases_
from penjing.quantization.bias_correction import correct_biases_
from penjing.quantization.binarize import (
    Binarize,
    binarize_,
    binarize_network,
    follow_signs_,
    settle_signs_,
)
from penjing.quantization.bit_allocation import Choice, allocate
from penjing.quantization.calibrated import (
    CalibratedCoding,
    LayerStatistics,
    code_layer,
    code_network,
    layer_statistics,
)
from penjing.quantization.cluster import Cluster, cluster_, cluster_network, cluster_together_
from penjing.quantization.following import follow_originals_, keep_codes_, recluster_
from penjing.quantization.half_precision import HalfPrecision, halve_, halve_network
from penjing.quantization.kmeans import entropy_constrained, kmeans_1d
from penjing.quantization.quantize import Quantize, follow_grids_, quantize_network, settle_grids_
from penjing.quantization.refresh_norms import refresh_norms_
from penjing.quantization.search import Search
from penjing.quantization.sign_inputs import with_sign_inputs
from penjing.quantization.uniform import Scheme, quantize_, quantized
from penjing.training import Stage

STAGES: dict[str, type[Stage]] = {
    stage.label: stage for stage in (HalfPrecision, Quantize, Cluster, CalibratedCoding, Binarize)
}

__all__ = [
    "STAGES",
    "Binarize",
    "CalibratedCoding",
    "Choice",
    "Cluster",
    "HalfPrecision",
    "LayerStatistics",
    "Quantize",
    "Scheme",
    "Search",
    "allocate",
    "binarize_",
    "binarize_network",
    "cluster_",
    "cluster_network",
    "cluster_together_",
    "code_layer",
    "code_network",
    "correct_biases_",
    "entropy_constrained",
    "follow_grids_",
    "follow_originals_",
    "follow_signs_",
    "halve_",
    "halve_network",
    "keep_codes_",
    "kmeans_1d",
    "layer_statistics",
    "quantize_",
    "quantize_activations",
    "quantize_network",
    "quantized",
    "recluster_",
    "refresh_norms_",
    "round_biases_",
    "settle_grids_",
    "settle_signs_",
    "with_sign_inputs",
]
