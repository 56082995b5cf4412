"""Learning structured sparsity: whole filters, channels, filter shapes and blocks become exactly zero while training.

loss + strength * sum over groups g of sqrt(|g|) * ||w_g||_2, minimised by proximal steps: after each step down the gradient of
the loss, every group is shrunk by its norm, and those that are too small become exactly zero. A subgradient step only makes
them small, and the squared norm is ridge regression, which has no zeros at all.
Source: Wen et al. 2016 (SSL), arXiv:1608.03665; Yuan and Lin 2006 for sqrt(|g|).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from penjing.errors import SettingError
from penjing.graph import Network, select
from penjing.pruning.weight_groups import KINDS, Kind, WeightGroups, group_norms, silence_, stored_weight, weight_groups
from penjing.training import Fit, Part


def shrinkage(norms: Tensor, sizes: Tensor, threshold: float) -> Tensor:
    """By what factor each group is shrunk: max(0, 1 - threshold * sqrt(size) / norm), 0 where the norm is 0.

    Args:
        norms: ||w_g||_2, (groups,) or any shape; sizes: |g|, the same shape.
        threshold: at least 0.
    """
    return torch.where(norms > 0, (1 - threshold * sizes.sqrt() / norms.clamp_min(1e-38)).clamp_min(0), 0.0)


def block_soft_threshold(groups: Tensor, threshold: float) -> Tensor:
    """The proximal operator of the group lasso.

    argmin over z of 1/2 ||z - w||^2 + threshold * sum over groups g of sqrt(|g|) ||z_g||_2
    = w_g * max(0, 1 - threshold * sqrt(|g|) / ||w_g||_2): exact zeros where ||w_g||_2 <= threshold * sqrt(|g|).

    Args:
        groups: (groups, |g|), a group in each row.
        threshold: step size times strength, at least 0.
    Returns: the same shape; the argument is not changed.
    Raises: SettingError: a negative threshold.
    Source: Yuan and Lin 2006, Journal of the Royal Statistical Society B 68(1), eq. 2.4; Parikh and Boyd 2014, section 6.5.1.
    """
    if threshold < 0:
        raise SettingError(f"block_soft_threshold: threshold must be at least 0, got {threshold}.")
    norms = groups.norm(dim=1)
    sizes = torch.full_like(norms, groups.shape[1])
    return groups * shrinkage(norms, sizes, threshold)[:, None]


def shrink_(network: Network, groups: WeightGroups, threshold: float) -> None:
    """One proximal step on all groups, in place; what answers besides a zero group's weights is made zero with them."""
    with torch.no_grad():
        norms, sizes = group_norms(network, groups)
        factors = shrinkage(norms, sizes, threshold)
        for piece in groups.pieces:
            own = piece.group_of.to(factors.device)
            factor = torch.where(own >= 0, factors[own.clamp_min(0)], 1.0)
            stored_weight(network.get_submodule(piece.path)).mul_(factor)
        if groups.silent and bool((factors == 0).any()):
            silence_(network, groups, factors == 0)


def layer_factors(network: Network, factors: Mapping[str, float], where: str) -> dict[str, float]:
    """By layer, the factor of the last pattern that matches it.

    Raises: SettingError: a pattern matches nothing.
    """
    layers = network.layers().items()
    return {path: factor for pattern, factor in factors.items() for path in select(layers, [pattern], where)}


class ProximalGroupLasso(Part):
    """After each optimizer step, the proximal step of strength * sum of sqrt(|g|) ||w_g||_2 with that step's learning rate.

    Kinds are shrunk one after the other: shapes, channels, filters, depth. Where groups lie within one another (shapes in
    channels, filters in blocks) that is the exact step of the sum (Jenatton et al. 2011, arXiv:1009.2139, theorem 1); filters
    and channels cross, and there it is an approximation. Plain SGD makes it proximal gradient descent; momentum and AdamW step
    in another metric, in which the zeros stay exact, and a given strength means something else.

    Args:
        strengths: by kind; 0 or missing: not penalised.
        factors: by layer, names or patterns as in `graph.select`: what its strengths are multiplied by, 1 if missing; of
            several that match, the last counts. A structure over several layers has the largest of their factors.
    Raises: SettingError, when training starts: no layer has groups of these kinds, or a pattern matches nothing.
    """

    def __init__(self, strengths: Mapping[Kind, float], factors: Mapping[str, float] | None = None) -> None:
        self.strengths = {kind: value for kind, value in strengths.items() if value > 0}
        self.factors = dict(factors or {})
        self.groups: list[WeightGroups] = []
        self._strength_of: list[float] = []

    def start(self, fit: Fit) -> None:
        self.groups, left = weight_groups(fit.network, [kind for kind in KINDS if kind in self.strengths])
        if not self.groups:
            reasons = "; ".join(f"{path}: {reason}" for path, reason in left.items())
            raise SettingError(
                f"{fit.where}: no layer has groups of the kind {' or '.join(self.strengths) or '(none has a strength)'}"
                + (f" ({reasons})." if reasons else ".")
            )
        factors = layer_factors(fit.network, self.factors, f"{fit.where}: factors")
        largest = [max(factors.get(piece.path, 1.0) for piece in groups.pieces) for groups in self.groups]
        self._strength_of = [
            self.strengths[groups.kind] * factor for groups, factor in zip(self.groups, largest, strict=True)
        ]

    def after_step(self, fit: Fit) -> None:
        rates = {id(p): float(group["lr"]) for group in fit.optimizer.param_groups for p in group["params"]}
        for groups, strength in zip(self.groups, self._strength_of, strict=True):
            if not strength:
                continue
            stored = stored_weight(fit.network.get_submodule(groups.pieces[0].path))
            rate = rates.get(id(stored), 0.0)  # 0: it is not trained
            shrink_(fit.network, groups, rate * strength)
