"""Architecture design: layers that compute nearly the same with less."""

from penjing.architecture.cp import cp_factors
from penjing.architecture.factors import energy_rank, spatial_factors, svd_factors
from penjing.architecture.fire import FireModules, fire_approximation
from penjing.architecture.ghost import GhostModules, ghost_approximation
from penjing.architecture.grouped import GroupedConvs, grouped_approximation
from penjing.architecture.low_rank import Factorisation, LowRank, factorise
from penjing.architecture.separable import SeparableConvs, separable, separable_approximation, separate_convolutions
from penjing.architecture.tucker import tucker2
from penjing.architecture.vbmf import evidence_rank
from penjing.training import Stage

STAGES: dict[str, type[Stage]] = {
    stage.label: stage for stage in (SeparableConvs, GroupedConvs, FireModules, GhostModules, LowRank)
}

__all__ = [
    "STAGES",
    "Factorisation",
    "FireModules",
    "GhostModules",
    "GroupedConvs",
    "LowRank",
    "SeparableConvs",
    "cp_factors",
    "energy_rank",
    "evidence_rank",
    "factorise",
    "fire_approximation",
    "ghost_approximation",
    "grouped_approximation",
    "separable",
    "separable_approximation",
    "separate_convolutions",
    "spatial_factors",
    "svd_factors",
    "tucker2",
]
