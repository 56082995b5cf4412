"""Canonical polyadic decomposition: a convolution as four, of which those with places work on each channel alone.

x ── 1 x 1, I -> R ── k x 1, each channel ── 1 x k, each channel ── 1 x 1, R -> O ──

W[o, i, y, x] ~ sum_r D[o, r] V[y, r] H[x, r] A[i, r]
"""

import torch
from torch import Tensor

from penjing.architecture.factors import DAMPING, as_float64, in_metric, like, moments_of_modes, refitted, root_of
from penjing.errors import SettingError

_MOST_SWEEPS = 300
_TOLERANCE = 1e-4
"""Of the squared error: less progress in ten sweeps ends the iterations."""
_PATIENCE = 10
_RIDGES = (1e-2, 1e-8)
"""First and last ridge; it falls tenfold in every five sweeps."""


def cp_factors(
    weight: Tensor,
    rank: int,
    generator: torch.Generator,
    moment: Tensor | None = None,
    *,
    damping: float = DAMPING,
    sweeps: int = _MOST_SWEEPS,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four factors of this rank, by alternating least squares.

    Each factor in turn is the optimum for the other three, F <- W_(n) K (K^T K + ridge I)^-1, K the Khatri-Rao product of the
    others, whose columns have norm 1. So the ridge bounds the sizes of components: without one, components that cancel each
    other can grow for ever where no best approximation exists. Where the rank is less than the channels, the iterations begin
    in the space of the channels' leading singular vectors, which holds every tensor of that rank.

    With moments, inputs are taken in the metric of their channels (the mean over places of C), and the last factor is fitted to
    what the others give.

    Args:
        weight: (O, I, kh, kw).
        rank: at least 1.
        generator: of the first factors.
        moment: C of whole windows, (I kh kw, I kh kw), in the order of the filters' weights.
        sweeps: at most that many over all factors.
    Returns: A^T (rank, I), V^T (rank, kh), H^T (rank, kw) and D (O, rank), in the order in which they are applied; a component
        has the same norm in all four.
    Raises: SettingError: a rank below 1, shapes that do not fit.
    Source: Lebedev et al. 2015, arXiv:1412.6553, eq. 3 to 6; the ridge: Acar et al. 2011; the start: Bro and Andersson 1998.
    """
    filters = as_float64(weight, 4)
    if rank < 1:
        raise SettingError(f"low-rank: rank must be at least 1, got {rank}.")
    if moment is None:
        d, a, v, h = _decomposed(filters, rank, generator, sweeps)
    else:
        channels, places = filters.shape[1], filters.shape[2] * filters.shape[3]
        root = root_of(moments_of_modes(moment, (channels, places))[0], damping)
        d, a, v, h = _decomposed(in_metric(filters, [root]), rank, generator, sweeps)
        a = torch.linalg.solve_triangular(root.T, a, upper=True)
        basis = torch.einsum("ir,yr,xr->riyx", a, v, h).reshape(rank, -1)
        d = refitted(filters.flatten(1), basis, moment, damping=damping)
    norms = [factor.norm(dim=0).clamp_min(1e-150) for factor in (a, v, h, d)]
    size = torch.stack(norms).log().mean(0).exp()  # geometric mean
    a, v, h, d = (factor / norm * size for factor, norm in zip((a, v, h, d), norms, strict=True))
    return like(weight, a.T), like(weight, v.T), like(weight, h.T), like(weight, d)


def _decomposed(target: Tensor, rank: int, generator: torch.Generator, sweeps: int) -> list[Tensor]:
    """The factors (O, R), (I, R), (kh, R), (kw, R)."""
    bases = [_basis(target.flatten(1), rank), _basis(target.transpose(0, 1).flatten(1), rank)]
    small = torch.einsum("oiyx,op,iq->pqyx", target, *bases)
    start = [torch.randn(n, rank, generator=generator, dtype=torch.float64) for n in small.shape]
    found = _alternated(small, start, _RIDGES[0], sweeps)
    if small.shape == target.shape:
        return found
    found = [bases[0] @ found[0], bases[1] @ found[1], *found[2:]]
    return _alternated(target, found, _RIDGES[1], sweeps)


def _alternated(target: Tensor, factors: list[Tensor], ridge: float, sweeps: int) -> list[Tensor]:
    out, inputs, height, width = target.shape
    by_output = target.permute(0, 2, 3, 1).reshape(-1, inputs)  # (O kh kw, I)
    by_input = target.permute(1, 2, 3, 0).reshape(-1, out)  # (I kh kw, O)
    whole = float(target.square().sum())
    factors = [factor / factor.norm(dim=0).clamp_min(1e-150) for factor in factors]
    d, a, v, h = factors
    errors: list[float] = []
    fall = 10 ** (-1 / 5)
    for _ in range(sweeps):
        places = (v[:, None] * h[None]).reshape(height * width, -1)
        seen = (by_output @ a).reshape(out, height * width, -1)
        d = _unit(_solved((seen * places).sum(1), (a, v, h), ridge))
        seen = (by_input @ d).reshape(inputs, height * width, -1)
        a = _unit(_solved((seen * places).sum(1), (d, v, h), ridge))
        windows = (seen * a[:, None]).sum(0).reshape(height, width, -1)
        v = _unit(_solved((windows * h).sum(1), (d, a, h), ridge))
        sizes = (windows * v[:, None]).sum(0)
        h = _solved(sizes, (d, a, v), ridge)
        # ||W - W'||^2 = ||W||^2 - 2 <W, W'> + ||W'||^2
        model = float(_grams(d, a, v, h).sum())
        errors.append((whole - 2 * float((sizes * h).sum()) + model) / max(whole, 1e-300))
        size = h.norm(dim=0)
        h = _unit(h)
        settled = ridge <= _RIDGES[1]
        ridge = max(ridge * fall, _RIDGES[1])
        slow = len(errors) > _PATIENCE and errors[-1 - _PATIENCE] - errors[-1] < _TOLERANCE * errors[-1]
        if settled and (slow or errors[-1] < 1e-14):
            break
    return [d * size, a, v, h]


def _solved(products: Tensor, others: tuple[Tensor, ...], ridge: float) -> Tensor:
    """F (K^T K + ridge I) = products, (n, R)."""
    gram = _grams(*others)
    gram = gram + max(ridge, 1e-12) * torch.eye(len(gram), dtype=gram.dtype)
    return torch.cholesky_solve(products.T, torch.linalg.cholesky(gram)).T


def _grams(*factors: Tensor) -> Tensor:
    """K^T K of a Khatri-Rao product: the elementwise product of the factors' own, (R, R)."""
    gram = factors[0].T @ factors[0]
    for factor in factors[1:]:
        gram = gram * (factor.T @ factor)
    return gram


def _unit(factor: Tensor) -> Tensor:
    return factor / factor.norm(dim=0).clamp_min(1e-150)


def _basis(matrix: Tensor, rank: int) -> Tensor:
    """Leading left singular vectors, (rows, min(rank, rows)); all of them as they are where the rank is no less."""
    rows = len(matrix)
    if rank >= rows:
        return torch.eye(rows, dtype=matrix.dtype)
    return torch.linalg.eigh(matrix @ matrix.T)[1].flip(1)[:, :rank]
