"""Architecture design: layers that compute nearly the same with less."""

from penjing.architecture.separable import SeparableConvs, separable, separable_approximation, separate_convolutions
from penjing.training import Stage

STAGES: dict[str, type[Stage]] = {stage.label: stage for stage in (SeparableConvs,)}

__all__ = ["STAGES", "SeparableConvs", "separable", "separable_approximation", "separate_convolutions"]
